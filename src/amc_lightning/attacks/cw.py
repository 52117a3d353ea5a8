"""CW, the attack of Carlini and Wagner: the smallest l2 perturbation that changes the answer."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import (
    Attack,
    CleanNeed,
    Start,
    full_precision,
    is_fooled,
    is_unknown,
    largest_entries,
    nan_where,
    rows_like,
)
from amc_lightning.attacks.search import Nearest, WeightSearch, hinge

# Keeps tanh space finite at pixels 0 and 1: the authors' value.
INSIDE = 0.999999
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
# A row that has moved by less than this, in l2, has not begun, and no plateau ends it: one step of 8 bits.
BEGUN = 1 / 255


class CW(Attack):
    """Search the least l2 distance of an image that the model gets wrong, by Adam in tanh space.

    Minimises ``c * max(0, real - other + confidence) + ||x_adv - x||_2^2`` from the clean image in every search step,
    with a search over c, and an early abort, for each row alone. The nearest wrong image over all iterates is
    returned; the clean one where none is wrong, and for rows wrong from the start. Labels are required.

    Args:
        model: returns logits.
        confidence: margin by which another class must lead, >= 0.
        learning_rate: Adam's, > 0.
        binary_search_steps: search steps over c, >= 1.
        max_iterations: Adam iterations a search step, >= 1.
        abort_early: let a row leave a search step when its loss has not fallen by 0.01 % over a tenth of it.
        initial_const: first c; multiplied by 10 until a row is fooled, then bisected.

    Attributes:
        zero_gradient: rows right at the start whose margin had a gradient of exactly zero there in the last call, (B,)
            bool; they come back clean.

    Reference:
        Carlini and Wagner, S&P 2017, https://arxiv.org/abs/1608.04644, sections V and VI; names, defaults, abort rule
        and "repeat the last step with the upper bound from ten steps on" are CleverHans' ``CarliniWagnerL2``, whose
        abort goes by the loss of the whole batch. `torchattacks.CW` has no search over c, hides the true class with 0
        (wrong for negative logits) and adds the confidence to columns (wrong in a batch).
    """

    draws_nothing = True
    zero_gradient: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        confidence: float = 0.0,
        learning_rate: float = 5e-3,
        binary_search_steps: int = 5,
        max_iterations: int = 1000,
        abort_early: bool = True,
        initial_const: float = 1e-2,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("CW", model)
        self.confidence = confidence
        self.learning_rate = learning_rate
        self.binary_search_steps = binary_search_steps
        self.max_iterations = max_iterations
        self.abort_early = abort_early
        self.initial_const = initial_const

    @staticmethod
    def gradient_passes(binary_search_steps: int = 5, max_iterations: int = 1000, **arguments: object) -> int:
        """Return the gradient passes per row at most: the one at the clean image serves every search step."""
        return 1 + binary_search_steps * (max_iterations - 1)

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that it needs the gradient at the clean images."""
        return "gradient"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return the gradient of ``real - other`` by the logits, (B, K): 1 at the label, -1 at the best other class."""
        column = labels.unsqueeze(1)
        other = logits.scatter(1, column, -math.inf).argmax(dim=1, keepdim=True)
        return torch.zeros_like(logits).scatter_(1, other, -1.0).scatter_(1, column, 1.0)

    def forward(self, images: Tensor, labels: Tensor, start: Start | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            start: what a pass at ``images`` told; without its gradient, one is made here.

        Returns:
            x_adv, like ``images``.
        """
        x0, labels = images.detach(), labels.to(images.device)
        if start is None or start.gradient is None:
            start = self._clean_pass(x0, labels)
        gradient = start.gradient
        assert gradient is not None
        right, largest = ~is_fooled(start.logits, labels, self.confidence), largest_entries(gradient)
        # An answer that is no number must be noticed, and so must such a gradient.
        unknown = is_unknown(start.logits) | (right & largest.isnan())
        self.zero_gradient = (largest == 0) & right & ~unknown
        rows = (right & ~unknown & ~self.zero_gradient).nonzero().squeeze(1)
        x_adv = nan_where(unknown, x0)
        if len(rows) > 0:
            hinge0 = hinge(start.logits[rows], labels[rows], self.confidence).to(x0.dtype)
            x_adv[rows] = self._search(x0[rows], labels[rows], gradient[rows].to(x0.dtype), hinge0)
        return x_adv

    def _clean_pass(self, x0: Tensor, labels: Tensor) -> Start:
        x = x0.clone().requires_grad_()
        logits = full_precision(self.get_logits(x))
        (gradient,) = torch.autograd.grad(logits, x, self.clean_direction(logits.detach(), labels))
        return Start(logits.detach(), gradient)

    def _search(self, x0: Tensor, labels: Tensor, gradient0: Tensor, hinge0: Tensor) -> Tensor:
        """Search over c for each row; return the nearest wrong images, clean where there is none."""
        best = Nearest.of(x0)
        search = WeightSearch(x0, self.initial_const, self.binary_search_steps)
        everyone = torch.arange(len(x0), device=x0.device)
        for search_step in range(self.binary_search_steps):
            c = search.weight(search_step)
            t = (2 * x0 - 1) * INSIDE
            descent = _Descent(
                rows=everyone,
                x0=x0,
                labels=labels,
                c=c,
                w=t.atanh(),
                # The distance has no gradient where it is zero.
                gradient=rows_like(c, x0) * gradient0 * (1 - t * t) / 2,
                mean=torch.zeros_like(x0),
                square=torch.zeros_like(x0),
                previous_loss=c * hinge0,
                nearest=Nearest.of(x0),
            )
            search.learn(self._descend(descent, best))
        return best.result()

    def _descend(self, rows: "_Descent", best: Nearest) -> Tensor:
        """Run one search step; note the nearest wrong iterates in ``best``; return which rows had any, (B,) bool."""
        found = torch.zeros(len(best.x), dtype=torch.bool, device=best.x.device)
        period = self.max_iterations // 10 or 1
        for k in range(1, self.max_iterations):
            x, slope = rows.step(k, self.learning_rate)
            # One pass judges this iterate and tells where to go next.
            point = x.requires_grad_()
            logits = full_precision(self.get_logits(point))
            margin = hinge(logits, rows.labels, self.confidence)
            (gradient,) = torch.autograd.grad((rows.c.to(margin) * margin).sum(), point)
            x = point.detach()
            distance = rows.offer(x, logits.detach(), self.confidence)
            rows.gradient = (gradient + 2 * (x - rows.x0)) * slope
            if self.abort_early and k % period == 0:
                loss = rows.c * margin.detach().to(rows.c) + distance
                # A black or white pixel lies where tanh is flat, and takes long to begin.
                begins = distance < BEGUN**2
                rows.nearest.unknown = rows.nearest.unknown | largest_entries(gradient).isnan()  # before it is left
                going = ((loss <= 0.9999 * rows.previous_loss) | begins).nonzero().squeeze(1)  # the sync of a check
                rows.previous_loss = loss
                if len(going) < len(rows.rows):
                    rows.end(best, found)
                    rows = rows.only(going)
                if len(going) == 0:
                    return found
        x, _ = rows.step(self.max_iterations, self.learning_rate)
        with torch.no_grad():
            logits = full_precision(self.get_logits(x))
        rows.offer(x, logits, self.confidence)
        rows.end(best, found)
        return found


@dataclass
class _Descent:
    """The rows of one search step that still descend; all tensors have one entry for each of them.

    ``rows`` says which rows of the search they are; ``w``, ``mean`` and ``square`` are Adam's point in tanh space and
    its moments.
    """

    rows: Tensor
    x0: Tensor
    labels: Tensor
    c: Tensor
    w: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    previous_loss: Tensor
    nearest: Nearest

    def step(self, k: int, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Take Adam's k-th step, from 1; return the images there and their derivative by ``w``."""
        self.mean = BETA1 * self.mean + (1 - BETA1) * self.gradient
        self.square = BETA2 * self.square + (1 - BETA2) * self.gradient.square()
        root = (self.square / (1 - BETA2**k)).sqrt_().add_(ADAM_EPS)
        self.w = self.w - learning_rate / (1 - BETA1**k) * self.mean / root
        t = self.w.tanh()
        return (t + 1) / 2, (1 - t * t) / 2

    def offer(self, x: Tensor, logits: Tensor, confidence: float) -> Tensor:
        """Note images that fool and are nearer than before; return the squared l2 distances, (B,)."""
        distance = (x - self.x0).flatten(1).square().sum(dim=1)
        self.nearest.offer(x, distance, logits, self.labels, confidence)
        return distance

    def end(self, best: Nearest, found: Tensor) -> None:
        """Hand over what these rows have found, to the images of the whole search and the flags of its step."""
        found[self.rows] = self.nearest.distance.isfinite()
        best.merge_(self.rows, self.nearest)

    def only(self, kept: Tensor) -> "_Descent":
        return _Descent(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})
