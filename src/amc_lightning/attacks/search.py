"""What EAP and CW share: the search over the weight of the margin, the margin itself, and the nearest wrong images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from amc_lightning.attacks.base import is_fooled, is_unknown, nan_where, rows_like

# "Not known yet" for the upper bound of the search, and the limit below which it counts as known: the authors' values.
NO_UPPER_BOUND, KNOWN_BELOW = 1e10, 1e9
# With as many search steps or more, the last one is made at the upper bound: the authors' program.
REPEAT_FROM = 10


class WeightSearch:
    """The weight c of the margin beside the distance, for each row: tenfold until it is fooled, then bisected.

    Args:
        x0: images, (B, C, H, W), for size, dtype and device.
        initial_const: first c.
        steps: search steps.
    """

    def __init__(self, x0: Tensor, initial_const: float, steps: int) -> None:
        self.c = torch.full((len(x0),), initial_const, dtype=x0.dtype, device=x0.device)
        self.lower, self.upper = torch.zeros_like(self.c), torch.full_like(self.c, NO_UPPER_BOUND)
        self.steps = steps

    def weight(self, step: int) -> Tensor:
        """Return c for a search step, counted from 0."""
        if step == self.steps - 1 >= REPEAT_FROM - 1:
            self.c = self.upper
        return self.c

    def learn(self, found: Tensor) -> None:
        """Move the bounds and c by whether a row was fooled, (B,) bool."""
        self.upper = torch.where(found, torch.minimum(self.upper, self.c), self.upper)
        self.lower = torch.where(found, self.lower, torch.maximum(self.lower, self.c))
        unbounded = torch.where(found, self.c, self.c * 10)
        self.c = torch.where(self.upper < KNOWN_BELOW, (self.lower + self.upper) / 2, unbounded)


def hinge(logits: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """Return max(0, real - other + confidence), (B,). -inf, not 0, hides the true class: logits may be negative."""
    column = labels.unsqueeze(1)
    real = logits.gather(1, column).squeeze(1)
    return functional.relu(real - logits.scatter(1, column, -math.inf).amax(dim=1) + confidence)


@dataclass
class Nearest:
    """Per row the nearest wrong image so far; the clean one, at an infinite distance, where there is none.

    Attributes:
        x: images, (B, C, H, W).
        distance: theirs, (B,).
        unknown: rows of which an image or its answer was no number, (B,) bool.
    """

    x: Tensor
    distance: Tensor
    unknown: Tensor

    @classmethod
    def of(cls, x0: Tensor) -> "Nearest":
        """Begin at clean images."""
        distance = torch.full((len(x0),), math.inf, dtype=x0.dtype, device=x0.device)
        return cls(x0.clone(), distance, torch.zeros_like(distance, dtype=torch.bool))

    def __getitem__(self, rows: Tensor) -> "Nearest":
        """Return some rows, as a copy."""
        return Nearest(self.x[rows], self.distance[rows], self.unknown[rows])

    def offer(self, x: Tensor, distance: Tensor, logits: Tensor, labels: Tensor, confidence: float) -> None:
        """Take over the images that fool and are nearer."""
        nearer = is_fooled(logits, labels, confidence) & (distance < self.distance)
        self.x = torch.where(rows_like(nearer, x), x, self.x)
        self.distance = torch.where(nearer, distance, self.distance)
        self.unknown = self.unknown | is_unknown(logits) | distance.isnan()

    def merge_(self, rows: Tensor, other: "Nearest") -> None:
        """Take over, for these rows, what is nearer in another search."""
        nearer = other.distance < self.distance[rows]
        self.x[rows] = torch.where(rows_like(nearer, other.x), other.x, self.x[rows])
        self.distance[rows] = torch.where(nearer, other.distance, self.distance[rows])
        self.unknown[rows] |= other.unknown

    def put_(self, rows: Tensor, part: "Nearest") -> None:
        """Write back rows that were taken out."""
        if part is not self:
            self.x[rows], self.distance[rows], self.unknown[rows] = part.x, part.distance, part.unknown

    def result(self) -> Tensor:
        """Return the images; NaN for rows that nothing fooled and that met what is no number, so that it is noticed."""
        return nan_where(self.unknown & self.distance.isinf(), self.x)
