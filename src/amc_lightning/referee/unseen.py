"""Perturbations that a claim says nothing about: moved images, noise, corruptions, balls of the other norms."""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from amc_lightning.attacks import Norm
from amc_lightning.data.augment import moved
from amc_lightning.referee.case import ORDERS, Case
from amc_lightning.seeding import generator

ANGLES = (-15.0, 0.0, 15.0)
"""Degrees. Engstrom et al., 2019, search up to 30; half of that leaves every digit what it is."""
SHIFT = 1 / 14
"""Share of the side in each direction: 2 pixels of 28, where Engstrom et al., 2019, take 3."""
NOISE = 0.1
"""Standard deviation of Gaussian noise, pixel units: the highest of CIFAR-10-C (Hendrycks and Dietterich, 2019)."""
BRIGHTNESS = 0.2
"""Added or taken, pixel units: the fourth of the five severities of CIFAR-10-C."""
CONTRAST = 0.4
"""Factor about each channel's mean: the third of the five severities of CIFAR-10-C."""
SPREAD = 16
"""Balls are taken as equal if they just hold a change of one pixel in so many by the same amount."""


def radius_in(norm: Norm, *, like: Norm, eps: float, dim: int) -> float:
    """Return the radius in a norm that goes with one in another.

    Moving one pixel in 16 by e has l-inf norm e, l2 norm e sqrt(d) / 4 and l1 norm e d / 16, and balls that just hold
    such a change are taken as equal. That gives about the usual radii: from l-inf 0.3 on MNIST l2 2.1 and l1 15 (usual:
    2 and 10), from 8/255 on CIFAR-10 l2 0.43 and l1 6 (usual: 0.5 and 12).

    Args:
        norm: the wanted norm.
        like: the norm of ``eps``.
        eps: a radius in pixel units of [0, 1].
        dim: numbers in an image, C H W.

    Returns:
        The radius; at most 1 in l-inf.

    Example:
        >>> round(radius_in("l2", like="linf", eps=0.3, dim=784), 6)
        2.1
    """
    factor: dict[Norm, float] = {"linf": 1.0, "l2": math.sqrt(dim / SPREAD), "l1": dim / SPREAD}
    found = eps / factor[like] * factor[norm]
    return min(found, 1.0) if norm == "linf" else found


def unseen_errors(case: Case, rows: int) -> dict[str, Tensor]:
    """Return which of the leading rows are wrong under each perturbation, clean mistakes included; (rows,) bool each.

    Of a perturbation with several forms (angles and shifts, brighter and darker) the worst for each row counts.
    """
    x, y = case.x[:rows], case.y[:rows].cpu()
    clean = case.clean_wrong[:rows]
    found = {}
    for name, forms in (
        ("rotation and shift", _moved(x)),
        ("Gaussian noise", _noisy(x, case.seed)),
        ("brightness", ((x + change).clamp(0, 1) for change in (BRIGHTNESS, -BRIGHTNESS))),
        ("contrast", _contrasts(x)),
    ):
        wrong = clean.clone()
        for form in forms:
            wrong |= case.answers(case.model, form).argmax(1) != y
        found[name] = wrong
    for norm in ORDERS:
        if norm != case.threat.norm:
            eps = radius_in(norm, like=case.threat.norm, eps=case.threat.eps, dim=x[0].numel())
            attempt = case.attempt(case.attack("pgd", norm=norm, eps=eps), rows=rows)
            found[f"PGD, {norm} {eps:.3g}"] = attempt.wrong | clean
    return found


def _moved(x: Tensor) -> Iterator[Tensor]:
    side = SHIFT * min(x.shape[2:])
    for angle, right, down in product(ANGLES, (-side, 0.0, side), (-side, 0.0, side)):
        if (angle, right, down) != (0, 0, 0):
            shifts = torch.tensor([[right, down]], device=x.device).expand(len(x), 2)
            yield moved(x, torch.full((len(x),), angle, device=x.device), shifts).clamp(0, 1)


def _noisy(x: Tensor, seed: int) -> Iterator[Tensor]:
    noise = torch.randn(x.shape, generator=generator(seed, "referee", "noise")).to(x)
    yield (x + NOISE * noise).clamp(0, 1)


def _contrasts(x: Tensor) -> Iterator[Tensor]:
    mean = x.mean(dim=(2, 3), keepdim=True)
    yield (mean + CONTRAST * (x - mean)).clamp(0, 1)
