"""A plain PGD that is watched in every step: how many rows it has fooled so far, and how its loss rises."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc_lightning.attacks import Norm, opened
from amc_lightning.attacks.ball import BALLS
from amc_lightning.attacks.base import cross_entropy_direction, full_precision, is_fooled
from amc_lightning.errors import NotFiniteError
from amc_lightning.referee.gradients import margin
from amc_lightning.seeding import generator

LARGEST_MARGIN = 1e30
"""To which infinite margins are cut, so that they can be subtracted."""


@dataclass(frozen=True)
class Trace:
    """One run of PGD on N rows; entry 0 is the start, entry s the point after s steps.

    Attributes:
        fooled: whether a row was wrong at that point or before, (S + 1, N) bool.
        margins: largest other logit less the true one at that point, (S + 1, N) float32; positive where it is wrong.
    """

    fooled: Tensor
    margins: Tensor

    @property
    def steps(self) -> int:
        """S."""
        return len(self.margins) - 1

    def last_rise(self, steps: int, last: int) -> Tensor:
        """Return which share of its whole rise each row's best margin made in the last of some steps.

        Args:
            steps: number of steps that count.
            last: how many of them are the last ones.

        Returns:
            (N,) in [0, 1]; 0 for rows whose margin never rose.

        Example:
            >>> margins = torch.tensor([[0.0, 0.0], [6.0, -1.0], [5.0, -2.0], [8.0, 0.0]])
            >>> Trace(margins > 7, margins).last_rise(3, 2)
            tensor([0.2500, 0.0000])
        """
        best = self.margins[: steps + 1].cummax(0).values.double()
        whole, late = best[steps] - best[0], best[steps] - best[steps - last]
        return torch.where(whole > 0, late / torch.where(whole > 0, whole, 1.0), 0.0).float()


def traced(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    eps_iter: float,
    steps: int,
    seed: int,
    batch_size: int,
) -> Trace:
    """Run PGD on the cross-entropy from a random point of the ball, and watch it.

    Args:
        model: returns logits, (B, K).
        x: images, (N, C, H, W) float32 in [0, 1].
        y: class indices, (N,) int64.
        norm: of the ball.
        eps: its radius in pixel units.
        eps_iter: length of a step.
        steps: how many.
        seed: of the start.
        batch_size: rows a call.

    Raises:
        NotFiniteError: if the model answers with NaN.
        UserError: if it passes no gradient back.
    """
    noise = BALLS[norm].draw(tuple(x.shape), generator(seed, "referee", "trace"))
    parts = []
    for start in range(0, len(x), batch_size):
        cut = slice(start, start + batch_size)
        with opened(model, x[cut], y[cut]) as view:
            parts.append(_climbed(view, x[cut], y[cut], noise[cut].to(x), norm, eps, eps_iter, steps))
    return Trace(torch.cat([part.fooled for part in parts], 1), torch.cat([part.margins for part in parts], 1))


def _climbed(
    view: nn.Module, x: Tensor, y: Tensor, noise: Tensor, norm: Norm, eps: float, eps_iter: float, steps: int
) -> Trace:
    ball = BALLS[norm]

    def inside(moved: Tensor) -> Tensor:
        return ball.project(moved - x, eps).add_(x).clamp_(0.0, 1.0)

    point, fooled, margins = inside(x + eps * noise), [], []
    for step in range(steps + 1):
        point = point.detach().requires_grad_(step < steps)
        logits = full_precision(view(point))
        answers = logits.detach()
        if bool(answers.isnan().any()):
            raise NotFiniteError("the model answers with NaN on the path of PGD")
        fooled.append(is_fooled(answers, y).cpu())
        margins.append(margin(answers, y).clamp(-LARGEST_MARGIN, LARGEST_MARGIN).float().cpu())
        if step < steps:
            (gradient,) = torch.autograd.grad(logits, point, cross_entropy_direction(logits, y))
            point = inside(point.detach() + eps_iter * ball.step(gradient, point.detach()))
    return Trace(torch.stack(fooled).cummax(0).values, torch.stack(margins))
