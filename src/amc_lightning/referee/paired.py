"""Two attacks on the same rows: is one really stronger, or was it chance?"""

from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor

from amc_lightning.referee.evidence import SIGNIFICANT, is_above


@dataclass(frozen=True)
class Pair:
    """Which of two attacks fooled how many of the same rows.

    Attributes:
        n: rows.
        first_only: rows that only the first fooled.
        second_only: rows that only the second fooled.
    """

    n: int
    first_only: int
    second_only: int

    @property
    def lead(self) -> float:
        """Error of the first less error of the second, in percentage points."""
        return 100 * (self.first_only - self.second_only) / self.n

    @property
    def extra(self) -> float:
        """Rows that only the first fooled, in percent of all."""
        return 100 * self.first_only / self.n

    @property
    def p_value(self) -> float:
        """Probability of such a lead of the first, or a larger one, if neither is the stronger one.

        Reference:
            McNemar, 1947, Note on the sampling error of the difference between correlated proportions; exact
            and one-sided.

        Example:
            >>> Pair(n=100, first_only=7, second_only=0).p_value
            0.0078125
        """
        discordant = self.first_only + self.second_only
        return 1.0 if discordant == 0 else float(binomtest(self.first_only, discordant, 0.5, "greater").pvalue)

    def leads_by(self, points: float) -> bool:
        """Return whether the first leads by more than so many percentage points, and significantly."""
        return self.lead > points and self.p_value < SIGNIFICANT

    def exceeds(self, points: float, tolerated: float) -> bool:
        """Return whether the rows of the first only are more than ``points`` percent.

        They must also be significantly more than ``tolerated`` percent, by an exact one-sided binomial test: an attack
        that stops at some step always misses a few rows.
        """
        return self.extra > points and is_above(self.first_only, self.n, tolerated / 100)


def compared(first: Tensor, second: Tensor) -> Pair:
    """Compare two attacks on the same rows.

    Args:
        first: rows that the first fooled, (N,) bool.
        second: rows that the second fooled, (N,) bool.

    Example:
        >>> import torch
        >>> compared(torch.tensor([True, True, False]), torch.tensor([False, True, False]))
        Pair(n=3, first_only=1, second_only=0)
    """
    return Pair(len(first), int((first & ~second).sum()), int((second & ~first).sum()))
