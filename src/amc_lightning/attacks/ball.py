"""Balls of l-inf, l2 and l1 within the box [0, 1]: a steepest step, the way back inside, and a random point."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amc_lightning.attacks.base import largest_entries, rows_like

SPARSE_SHARE = 0.01
"""Share of the pixels that one l1 step moves: SLIDE's 99th percentile."""


Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True)
class Ball:
    """The geometry of one norm.

    Attributes:
        norm: ``linf``, ``l2`` or ``l1``.
        step: gradient and current point, each (B, C, H, W), to the direction of steepest ascent of length 1 in this
            norm, as a new tensor. Zero where the gradient is.
        project: perturbations (B, C, H, W) and a radius, to the nearest ones in the ball (l2, l1: not yet in the box).
        draw: (B, C, H, W) and a CPU generator, to points uniform in the unit ball, float32.
    """

    norm: Norm
    step: Callable[[Tensor, Tensor], Tensor]
    project: Callable[[Tensor, float], Tensor]
    draw: Callable[[Sequence[int], torch.Generator], Tensor]


def unit_l2(rows: Tensor) -> Tensor:
    """Scale every row to l2 length 1; zero rows stay zero, and NaN stays NaN so that it is noticed.

    Args:
        rows: (B, ...) float, of any size: rows whose squares underflow are scaled rightly too.
    """
    flat = over_largest(rows)[0].flatten(1)
    flat = flat / nonzero(flat.norm(dim=1, keepdim=True))
    return flat.view_as(rows)


def over_largest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows divided by their largest absolute entries, and these, (B,); zero rows stay zero, NaN stays NaN.

    The squares of a confident model's gradient underflow; those of the rows so divided do not.
    """
    largest = largest_entries(rows)
    return rows / rows_like(nonzero(largest), rows), largest


def project_l1(delta: Tensor, eps: float) -> Tensor:
    """Return the nearest perturbations, in l2, with an l1 norm of at most ``eps``.

    Args:
        delta: (B, ...) float.
        eps: radius, >= 0.

    Reference:
        Duchi et al., ICML 2008, figure 1: soft thresholding at the value at which the norm becomes eps.

    Example:
        >>> project_l1(torch.tensor([[3.0, -1.0, 0.5]]), 2.0)
        tensor([[2., -0., 0.]])
    """
    flat = delta.flatten(1)
    sizes, _ = flat.abs().sort(dim=1, descending=True)
    excess = sizes.cumsum(dim=1) - eps
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    kept = (sizes * count > excess).sum(dim=1, keepdim=True).clamp_(min=1)
    threshold = (excess.gather(1, kept - 1) / kept).clamp_(min=0)
    return (flat.sign() * (flat.abs() - threshold).clamp_(min=0)).view_as(delta)


def _project_l2(delta: Tensor, eps: float) -> Tensor:
    length = delta.flatten(1).norm(dim=1)
    return delta * rows_like(eps / length.clamp(min=max(eps, 1e-30)), delta)


def _step_l1(gradient: Tensor, x: Tensor) -> Tensor:
    # A pixel on a face of the box cannot move out of it: it must not take the place of one that can move.
    blocked = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    flat = gradient.masked_fill(blocked, 0.0).flatten(1)
    count = max(1, round(SPARSE_SHARE * flat.shape[1]))
    values, index = flat.abs().topk(count, dim=1)
    signs = _sign(flat.gather(1, index))
    moved = (values > 0).sum(dim=1, keepdim=True).clamp_(min=1)
    return torch.zeros_like(flat).scatter_(1, index, signs / moved).view_as(gradient)


def _draw_linf(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator).mul_(2.0).sub_(1.0)


def _draw_l2(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    direction = torch.randn(tuple(shape), generator=generator)
    radius = torch.rand(shape[0], generator=generator).pow_(1 / math.prod(shape[1:]))
    return unit_l2(direction) * rows_like(radius, direction)


def _draw_l1(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # Exponential sizes and one more beside them, divided by their sum, are uniform in the simplex; signs are free.
    sizes = torch.rand(shape[0], math.prod(shape[1:]) + 1, generator=generator).clamp_(min=1e-30).log_().neg_()
    points = sizes[:, :-1] / sizes.sum(dim=1, keepdim=True)
    signs = torch.randint(2, points.shape, generator=generator).mul_(2).sub_(1)
    return (points * signs).view(tuple(shape))


def nonzero(scale: Tensor) -> Tensor:
    """Return the same with 1 in place of 0, to divide by."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _sign(gradient: Tensor) -> Tensor:
    # torch's sign of NaN is 0, which would hide it.
    return torch.where(gradient.isnan(), gradient, gradient.sign())


def _step_linf(gradient: Tensor, x: Tensor) -> Tensor:
    return _sign(gradient)


LINF = Ball("linf", _step_linf, lambda delta, eps: delta.clamp(-eps, eps), _draw_linf)
L2 = Ball("l2", lambda gradient, x: unit_l2(gradient), _project_l2, _draw_l2)
L1 = Ball("l1", _step_l1, project_l1, _draw_l1)
BALLS = {ball.norm: ball for ball in (LINF, L2, L1)}
