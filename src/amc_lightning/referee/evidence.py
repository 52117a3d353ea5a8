"""How many rows are too many: chance shall not fail a sound model, however few rows there are."""

import torch
from scipy.stats import binomtest
from torch import Tensor

SIGNIFICANT = 0.01
"""A count that chance makes less often than this is evidence. Stricter than 5 %, as many checks are made at once."""


def is_above(count: int, rows: int, share: float) -> bool:
    """Return whether a count is evidence that its share is larger than ``share``, by an exact one-sided test.

    Args:
        count: rows that something holds for, 0 to ``rows``.
        rows: looked at; where there are none there is no evidence.
        share: in [0, 1].

    Example:
        >>> is_above(2, 2, 0.05), is_above(1, 2, 0.05)
        (True, False)
    """
    return rows > 0 and count > share * rows and bool(binomtest(count, rows, share, "greater").pvalue < SIGNIFICANT)


def is_below(count: int, rows: int, share: float) -> bool:
    """Return whether a count is evidence that its share is smaller than ``share``; as ``is_above``.

    Example:
        >>> is_below(0, 2, 0.95), is_below(93, 100, 0.95)
        (True, False)
    """
    return is_above(rows - count, rows, 1 - share)


def percent(rows: Tensor) -> float:
    """Return the share of rows that are true, (N,) bool, in percent; 0 where there are none."""
    return 100 * float(rows.double().mean()) if len(rows) else 0.0


def and_list(names: list[str]) -> str:
    """Return names as a phrase.

    Example:
        >>> and_list(["a", "b", "c"]), and_list(["a"])
        ('a, b and c', 'a')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def union(parts: list[Tensor]) -> Tensor:
    """Return rows that are true in any of several (N,) bool."""
    return torch.stack(parts).any(dim=0)
