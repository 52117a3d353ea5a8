"""What a claim asks of the rows of some systems: the cells it needs, and which are set against which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amc_lightning.paper.claim_finding import Rule, Side
from amc_lightning.paper.claim_rows import Cell
from amc_lightning.paper.paired import chosen_on_the_other_half

Counts = NDArray[np.float64]
"""Seeds by which each row was got wrong, cells x rows, (A, N); whole numbers."""


@dataclass(frozen=True)
class Rows:
    """A difference of errors, row by row.

    Args:
        values: (N,), whole numbers, so that sums of them are exact.
        in_sample: the mean of the values where the best rival is chosen on the same rows; None where none is chosen.
    """

    values: NDArray[np.float64]
    in_sample: float | None = None


@dataclass(frozen=True)
class Sum:
    """The errors of some cells less those of as many others; a cell may stand there more than once.

    Args:
        plus: places of cells.
        minus: places of cells, as many.
    """

    plus: tuple[int, ...]
    minus: tuple[int, ...]

    @property
    def divisor(self) -> int:
        """By what a value is divided to be a difference of mean errors."""
        return len(self.plus)

    def rows(self, counts: Counts) -> Rows:
        """Return the difference, row by row."""
        return Rows(counts[list(self.plus)].sum(axis=0) - counts[list(self.minus)].sum(axis=0))


@dataclass(frozen=True)
class Change:
    """A difference less another difference of as many cells."""

    after: Sum
    before: Sum

    @property
    def divisor(self) -> int:
        """By what a value is divided to be a change of mean errors."""
        return self.after.divisor

    def rows(self, counts: Counts) -> Rows:
        """Return the change, row by row."""
        return Rows(self.after.rows(counts).values - self.before.rows(counts).values)


@dataclass(frozen=True)
class OverBest:
    """The error of the best rival less a system's, over attacks, each with a best rival of its own.

    The rival is chosen on one half of the rows and compared on the other, both ways.

    Args:
        places: for each attack the places of the system's cell and of its rivals' cells.
    """

    places: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> int:
        """By what a value is divided to be a difference of mean errors."""
        return len(self.places)

    def rows(self, counts: Counts) -> Rows:
        """Return the difference, row by row."""
        values, in_sample = np.zeros(counts.shape[1]), 0.0
        for own, *others in self.places:
            rivals = counts[others]
            chosen = chosen_on_the_other_half(rivals)
            values += rivals[chosen, np.arange(rivals.shape[1])] - counts[own]
            in_sample += float(rivals.mean(axis=1).min() - counts[own].mean())
        return Rows(values, in_sample if len(self.places[0]) > 2 else None)


Contrast = Sum | Change | OverBest


@dataclass(frozen=True)
class Question:
    """What a claim asks.

    Args:
        cells: that it needs.
        contrasts: the numbers, by name; empty for the only one.
        side: on which the claim puts each.
        rule: whether all must be there, or any.
        beside: for a contrast, others that are shown with it and have no say.
        say: more to be said of the counts; empty for nothing.
    """

    cells: Sequence[Cell]
    contrasts: Mapping[str, Contrast]
    side: Side
    rule: Rule = "all"
    beside: Mapping[str, Mapping[str, Contrast]] = field(default_factory=dict)
    say: Callable[[Counts], str] = lambda _: ""
