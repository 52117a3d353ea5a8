"""PGM, the projected gradient method (PGD) in an l-inf, l2 or l1 ball, with starts given from outside."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import L1, L2, LINF, Ball
from amc_lightning.attacks.base import (
    Attack,
    CleanNeed,
    Start,
    cross_entropy_direction,
    full_precision,
    gradient_logits,
    is_fooled,
    is_zero,
    loss_order,
    nan_where,
    rows_like,
)

LONGEST_STEP = 100.0
"""Length in radii to which a step is cut: floats would lose the start and the ball beside a far longer one.

Whatever is longer ends, but for a hundredth of the radius, at the same place."""


class PGM(Attack):
    """Projected gradient ascent on the cross-entropy within an l-inf ball and the box [0, 1].

    With the same start it takes the steps of `torchattacks.PGD`; where the softmax is saturated and theirs stands
    still, it goes on. Labels are required.

    Args:
        model: returns logits.
        eps: radius in pixel units of [0, 1]; 0 costs no pass.
        eps_iter: length of a step, in the norm of the ball; None for 2.5 * eps / nb_iter.
        nb_iter: steps, >= 1.
        rand_init: start uniformly in the ball (clipped to the box), else at the image.
        restarts: runs from starts of their own, >= 1 (all alike without ``rand_init``, so then 1 is enough). The best
            of their ends is returned: a fooling one if there is one, and the largest loss among those.
        keep_best: choose the best in the same way among all points of the path. Costs one more forward pass a run.
        compact: as ``keep_best``, but a row leaves the batch at the first point that fools, which it then returns: the
            same rows are fooled, with fewer passes. Waits for the device in every step, so it is for evaluation.

    Attributes:
        zero_gradient: rows whose first gradient was exactly zero in the last call, (B,) bool.

    Reference:
        Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083, equation 1 and, for the step size, section 5;
        ``eps_iter`` and ``nb_iter`` default to CleverHans' ``MadryEtAl``.
    """

    draws_nothing = True
    ball: ClassVar[Ball] = LINF
    zero_gradient: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        eps_iter: float | None = 0.01,
        nb_iter: int = 40,
        rand_init: bool = True,
        restarts: int = 1,
        keep_best: bool = False,
        compact: bool = False,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("PGM", model)
        self.eps = eps
        self.eps_iter = 2.5 * eps / nb_iter if eps_iter is None else eps_iter
        self.nb_iter = nb_iter
        self.rand_init = rand_init
        self.restarts = restarts
        self.keep_best = keep_best or compact
        self.compact = compact

    @staticmethod
    def completed(params: Mapping[str, object]) -> dict[str, object]:
        """Return parameters with the step size that None stands for, so that records show what was done."""
        if params.get("eps_iter", 0) is not None:
            return dict(params)
        return {**params, "eps_iter": 2.5 * cast(float, params["eps"]) / cast(int, params["nb_iter"])}

    @staticmethod
    def gradient_passes(nb_iter: int = 40, restarts: int = 1, **arguments: object) -> int:
        """Return the gradient passes per row at most."""
        return nb_iter * restarts

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that only a run from the image itself needs its gradient."""
        return "nothing" if arguments.get("rand_init", True) or arguments.get("eps") == 0 else "gradient"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return the direction of the cross-entropy, (B, K)."""
        return cross_entropy_direction(logits, labels)

    @classmethod
    def draw_noise(cls, shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw points uniform in the unit ball, to be scaled by eps; None where the start is the image.

        Returns:
            (B, C, H, W) for one run, (B, R, C, H, W) for R; the first run's do not depend on R.
        """
        if not arguments.get("rand_init", True):
            return None
        restarts = cast(int, arguments.get("restarts", 1))
        runs = [cls.ball.draw(shape, generator) for _ in range(restarts)]
        return runs[0] if restarts == 1 else torch.stack(runs, dim=1)

    def forward(
        self, images: Tensor, labels: Tensor, noise: Tensor | None = None, start: Start | None = None
    ) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            noise: as ``draw_noise`` gives it; drawn from torch's global state if ``rand_init`` asks for a start and
                none is given.
            start: the pass at ``images``, if it has been made; used without ``rand_init``.

        Returns:
            x_adv, like ``images``.
        """
        images, labels = images.detach().to(self.device), labels.to(self.device)
        self.zero_gradient = None
        if self.eps == 0:
            return images.clone()
        if not self.rand_init:
            noise = None
        elif noise is None:
            arguments = {"rand_init": True, "restarts": self.restarts}
            seeded = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
            noise = cast(Tensor, self.draw_noise(images.shape, seeded, **arguments)).to(images)
        runs = [noise] if noise is None or self.restarts == 1 else list(noise.unbind(dim=1))
        if len(runs) == 1 and not self.keep_best:
            return self._climb(images, labels, runs[0], start, None)
        best = _Best(images)
        rows = torch.arange(len(images), device=images.device)
        for noise in runs:
            if self.compact:
                rows = rows[~best.fooled[rows]]
                if len(rows) == 0:
                    break
            cut = None if noise is None else noise[rows]
            begun = None if start is None else Start(start.logits[rows], _rows(start.gradient, rows))
            x_adv = self._climb(images[rows], labels[rows], cut, begun, best.at(rows))
            if not self.keep_best:
                best.at(rows).offer(x_adv, self._judged(x_adv), labels[rows])
        return best.x

    def _climb(
        self, x0: Tensor, labels: Tensor, noise: Tensor | None, start: Start | None, best: "_View | None"
    ) -> Tensor:
        """Run once from each row's start; offer the points of the path, and leave with fooled rows, where asked."""
        inside = _Inside(x0, self.eps, self.ball)
        x_adv = x0 if noise is None else inside(x0 + self.eps * noise)
        watched = best if self.keep_best else None
        length = min(self.eps_iter, LONGEST_STEP * self.eps)
        for step in range(self.nb_iter):
            if step == 0 and noise is None and start is not None and start.gradient is not None:
                gradient, logits = start.gradient, start.logits
            else:
                gradient, logits = self._gradient(x_adv, labels, judged=watched is not None)
            if step == 0 and self.zero_gradient is None:
                self.zero_gradient = is_zero(gradient)
            if watched is not None:
                fooled = watched.offer(x_adv, logits, labels)
                if self.compact:
                    left = (~fooled).nonzero().squeeze(1)
                    if len(left) == 0:
                        return x_adv
                    if len(left) < len(fooled):
                        watched, inside = watched.at(left), inside.at(left)
                        x_adv, gradient, labels = x_adv[left], gradient[left], labels[left]
            x_adv = inside(self.ball.step(gradient, x_adv).mul_(length).add_(x_adv))
        if watched is not None:
            watched.offer(x_adv, self._judged(x_adv), labels)
        return x_adv

    def _gradient(self, x_adv: Tensor, labels: Tensor, *, judged: bool) -> tuple[Tensor, Tensor]:
        """Return the direction of ascent at ``x_adv`` and logits there that may be decided on, if ``judged``."""
        point = x_adv.detach().requires_grad_()
        logits = gradient_logits(self, point)
        # No reduction over rows: a row's gradient must not shrink with the batch.
        (gradient,) = torch.autograd.grad(logits, point, cross_entropy_direction(logits, labels))
        if judged and not getattr(self.model, "gradients_are_exact", True):
            return gradient, self._judged(x_adv)
        return gradient, logits.detach()

    @torch.no_grad()
    def _judged(self, x_adv: Tensor) -> Tensor:
        return full_precision(self.get_logits(x_adv))


class PGDL2(PGM):
    """Projected gradient ascent on the cross-entropy within an l2 ball and the box; parameters are those of ``PGM``.

    Reference:
        Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083, section 5.1, with normalised steps.
    """

    ball = L2


class PGDL1(PGM):
    """Projected gradient ascent on the cross-entropy within an l1 ball and the box; parameters are those of ``PGM``.

    A step moves the hundredth of the pixels with the largest gradients, alike in size, among those that can move.

    Reference:
        The sparse step: SLIDE of Tramer and Boneh, NeurIPS 2019, https://arxiv.org/abs/1904.13000, section 4.
    """

    ball = L1


class _Inside:
    """The way back into the ball around each row and the box; pixel bounds are made once."""

    def __init__(self, x0: Tensor, eps: float, ball: Ball) -> None:
        self.x0 = x0
        self.eps = eps
        self.ball = ball
        self.bounds = None
        if ball is LINF:
            self.bounds = (x0 - eps).clamp_(min=0.0), (x0 + eps).clamp_(max=1.0)

    def __call__(self, x: Tensor) -> Tensor:
        if self.bounds is not None:
            return torch.clamp(x, *self.bounds)
        return self.ball.project(x - self.x0, self.eps).add_(self.x0).clamp_(0.0, 1.0)

    def at(self, rows: Tensor) -> "_Inside":
        return _Inside(self.x0[rows], self.eps, self.ball)


class _Best:
    """Per row the best point offered so far: fooling before not fooling, then by loss."""

    def __init__(self, x0: Tensor) -> None:
        self.x = x0.clone()
        self.fooled = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        self.loss = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)

    def at(self, rows: Tensor) -> "_View":
        return _View(self, rows)


class _View:
    """Some rows of a ``_Best``."""

    def __init__(self, whole: _Best, rows: Tensor) -> None:
        self.whole = whole
        self.rows = rows

    def at(self, rows: Tensor) -> "_View":
        return _View(self.whole, self.rows[rows])

    def offer(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Take the better points over; return which of those offered fool."""
        whole, rows = self.whole, self.rows
        fooled = is_fooled(logits, labels)
        losses = loss_order(logits, labels).to(whole.loss)
        before, known = whole.fooled[rows], whole.loss[rows]
        # NaN is taken over, and gives way only to what fools: an answer that is no number must be noticed.
        better = (fooled & ~before) | ((fooled == before) & ~(losses <= known) & ~known.isnan())
        x = nan_where(losses.isnan(), x)
        whole.x[rows] = torch.where(rows_like(better, x), x, whole.x[rows])
        whole.fooled[rows] = before | fooled
        whole.loss[rows] = torch.where(better, losses, known)
        return fooled


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]
