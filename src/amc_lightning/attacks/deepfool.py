"""DeepFool: walk to the nearest decision boundary of the linearised model, in l2."""

import math

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import over_largest
from amc_lightning.attacks.base import (
    Attack,
    CleanNeed,
    Start,
    full_precision,
    is_fooled,
    is_unknown,
    nan_where,
    rows_like,
)


class DeepFool(Attack):
    """Step onto the nearest of the linearised boundaries until the answer is wrong.

    Rows leave as soon as they are fooled. A row that is not fooled after ``max_iter`` steps comes back clean, and so
    does a row wrong from the start. Labels are required.

    Args:
        model: returns logits.
        nb_candidate: classes to look at, the label among them, >= 2: the highest logits at each step; all if there are
            fewer. A step costs one forward and ``nb_candidate - 1`` backward passes.
        overshoot: share by which the whole perturbation is lengthened, > 0, so as to end beyond the boundary.
        max_iter: steps, >= 1.

    Attributes:
        zero_gradient: rows right at the start for which no boundary had a gradient there in the last call, (B,) bool;
            they come back clean.

    Reference:
        Moosavi-Dezfooli et al., CVPR 2016, https://arxiv.org/abs/1511.04599, algorithm 2; names and defaults are
        CleverHans' ``DeepFool``, as are the clipping to [0, 1] and the candidates. The walk itself is not lengthened,
        as in the paper, but a row ends as soon as its lengthened perturbation fools; the constants that programs add
        to the steps, so as to cross the boundary without that, are left out.
    """

    draws_nothing = True
    zero_gradient: Tensor | None = None

    def __init__(self, model: nn.Module, nb_candidate: int = 10, overshoot: float = 0.02, max_iter: int = 50) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("DeepFool", model)
        self.nb_candidate = nb_candidate
        self.overshoot = overshoot
        self.max_iter = max_iter

    @staticmethod
    def gradient_passes(nb_candidate: int = 10, max_iter: int = 50, **arguments: object) -> int:
        """Return the gradient passes per row at most, each candidate counted as one."""
        return (nb_candidate - 1) * max_iter

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that it needs the logits at the clean images."""
        return "logits"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return zeros; not asked for, as one direction is not enough."""
        return torch.zeros_like(logits)

    def forward(self, images: Tensor, labels: Tensor, start: Start | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            start: what a pass at ``images`` told; only its logits are read.

        Returns:
            x_adv, like ``images``.
        """
        x0, labels = images.detach(), labels.to(images.device)
        self.zero_gradient = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        logits = self._logits(x0) if start is None else start.logits
        unknown = is_unknown(logits)
        # An answer that is no number must be noticed, and so must such a gradient.
        x_adv = nan_where(unknown, x0)
        rows = (~is_fooled(logits, labels) & ~unknown).nonzero().squeeze(1)
        x, total = x0[rows], torch.zeros_like(x0[rows])
        for iteration in range(self.max_iter):
            if len(rows) == 0:
                break
            step, distance = self._nearest(x, labels[rows])
            stuck = distance.isinf()
            if iteration == 0:
                self.zero_gradient[rows] = stuck
            total = total + step
            beyond = (x0[rows] + (1 + self.overshoot) * total).clamp_(0.0, 1.0)
            logits = self._logits(beyond)
            unknown, fooled = is_unknown(logits) | distance.isnan(), is_fooled(logits, labels[rows])
            ended = unknown | fooled
            x_adv[rows[ended]] = nan_where(unknown, beyond)[ended]
            going = ~ended & ~stuck
            rows, total = rows[going], total[going]
            x = (x0[rows] + total).clamp_(0.0, 1.0)
        return x_adv

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        return full_precision(self.get_logits(x))

    def _nearest(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step onto the nearest boundary of the model linearised at ``x``, and its length, (B,).

        The length is infinite where no boundary is seen, NaN where a gradient is.
        """
        point = x.clone().requires_grad_()
        logits = full_precision(self.get_logits(point))
        column = labels.unsqueeze(1)
        others = min(self.nb_candidate, logits.shape[1]) - 1
        candidates = logits.detach().scatter(1, column, -math.inf).topk(others, dim=1).indices
        gaps = logits.gather(1, candidates) - logits.gather(1, column)
        step = torch.zeros_like(x)
        nearest = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
        for candidate in range(others):
            (w,) = torch.autograd.grad(gaps[:, candidate].sum(), point, retain_graph=candidate < others - 1)
            unit, largest = over_largest(w)
            length = unit.flatten(1).norm(dim=1)
            # |f| / |w|, and the step |f| w / |w|^2, in units of the largest entry.
            scaled = gaps[:, candidate].detach().abs().to(x.dtype) / largest
            distance = scaled / length
            nearer = (largest != 0) & ~(distance >= nearest) & ~nearest.isnan()
            step = torch.where(rows_like(nearer, w), rows_like(distance / length, w) * unit, step)
            nearest = torch.where(nearer, distance, nearest)
        return step, nearest
