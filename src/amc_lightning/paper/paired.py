"""Comparisons of models on the same examples: exact tests, a bootstrap over rows, and a choice of the best model."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 20190714  # any fixed number does; this one is the first day of IJCNN 2019
_BLOCK = 250  # resamples at a time: bounds the memory of wide integers and float64 counts


@dataclass(frozen=True)
class McNemar:
    """The exact two-sided McNemar test of two models on the same rows.

    Args:
        n: rows.
        only_a: rows that only the first model got wrong.
        only_b: rows that only the second model got wrong.
        p: probability of a split of the discordant rows at least as uneven, if both models were equally good.
    """

    n: int
    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval, in the unit of the statistic."""

    estimate: float
    low: float
    high: float


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> McNemar:
    """Compare the mistakes of two models on the same rows.

    Args:
        a: rows that the first model got wrong, (N,) bool.
        b: rows that the second model got wrong, (N,) bool.

    Returns:
        The counts and the p value; 1.0 where no row is discordant.

    Raises:
        ValueError: if the shapes differ.

    Reference:
        McNemar 1947; the exact form is a binomial test of the discordant rows against one half.

    Example:
        >>> mcnemar(np.array([True, True, True, False]), np.array([False, False, False, False]))
        McNemar(n=4, only_a=3, only_b=0, p=0.25)
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"two models are compared on the same rows: the shapes are {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return McNemar(int(a.size), only_a, only_b, p)


def sign_test(differences: NDArray[np.float64]) -> float:
    """Return the p value of the exact two-sided sign test of the rows that differ; 1.0 where none does.

    Of rows that can differ by one step only it is McNemar's test.

    Args:
        differences: of two sides, one a row, (N,).

    Example:
        >>> sign_test(np.array([2.0, 1.0, 3.0, 0.0])), sign_test(np.zeros(5))
        (0.25, 1.0)
    """
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(above, above + below, 0.5).pvalue) if above + below else 1.0


def exact_interval(differences: NDArray[np.float64], largest: float, *, level: float = LEVEL) -> Interval:
    """Return bounds on the mean difference that hold however few rows differ; wider than a bootstrap's.

    From Clopper and Pearson's bounds on the shares of rows above and below 0, each at half of the error that the level
    leaves. Towards 0 a row counts as the smallest step seen, away from it as the largest possible.

    Args:
        differences: of two sides, one a row, (N,), N > 0.
        largest: how much one row can differ at most, > 0.
        level: of the interval, between 0 and 1.

    Example:
        >>> found = exact_interval(np.zeros(200), 1.0)
        >>> found.estimate, round(found.low, 4), round(found.high, 4)
        (0.0, -0.0217, 0.0217)
    """
    tail, n, steps = (1 - level) / 4, len(differences), np.abs(differences)
    smallest = float(steps[steps > 0].min()) if steps.any() else 0.0
    bounds = []
    for side in (differences > 0, differences < 0):
        k = int(side.sum())
        low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
        bounds.append((smallest * low, largest * (float(beta.isf(tail, k + 1, n - k)) if k < n else 1.0)))
    (low_above, high_above), (low_below, high_below) = bounds
    return Interval(float(differences.mean()), low_above - high_below, high_above - low_below)


def chosen_on_the_other_half(rivals: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return for every row the model with the least errors on the half of the rows that the row is not in.

    The halves are the rows of even and of odd index. A model that is chosen on the rows that it is compared on looks
    better than it is; one chosen on other rows does not. Of equal models it is the first.

    Args:
        rivals: errors of R models, (R, N), R > 0.

    Returns:
        Indices of models, (N,).

    Example:
        >>> chosen_on_the_other_half(np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]))
        array([1, 0, 1, 0])
    """
    found = np.empty(rivals.shape[1], dtype=np.intp)
    for half in (0, 1):
        found[half::2] = rivals[:, 1 - half :: 2].sum(axis=1).argmin()
    return found


def resampled_means(rows: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Return the mean of every array over resampled rows, the same rows for all arrays.

    A resample is its counts per row, so that all means of all resamples are one product of two matrices.

    Args:
        rows: one array a row of the matrix, (A, N) float64; whole numbers, such as 0 and 1, are summed without
            rounding, so that the result is the same on any machine.
        resamples: how many, >= 1.
        seed: of the generator.

    Returns:
        (resamples, A) float64.

    Raises:
        ValueError: if ``rows`` is not a matrix of at least one column.
    """
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"rows must be a matrix of arrays x rows, got shape {rows.shape}")
    n = rows.shape[1]
    columns = np.ascontiguousarray(np.asarray(rows, dtype=np.float64).T)
    counts = _counts(n, resamples, seed)
    blocks = range(0, resamples, _BLOCK)
    sums = [counts[start : start + _BLOCK].astype(np.float64) @ columns for start in blocks]
    means: NDArray[np.float64] = np.concatenate(sums) / n
    return means


def percentiles(estimate: float, means: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """Return an estimate with the quantiles over the resamples, (R,), that the level asks for."""
    low, high = np.quantile(means, (0.5 - level / 2, 0.5 + level / 2))
    return Interval(estimate, float(low), float(high))


def bootstrap(
    rows: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> Interval:
    """Return the mean of one array, such as a paired difference, with its percentile interval over resampled rows.

    Args:
        rows: (N,) float64; see ``resampled_means``.
        resamples: how many, >= 1.
        seed: of the generator.
        level: of the interval, between 0 and 1.

    Example:
        >>> bootstrap(np.array([1.0, 1.0, 1.0, 1.0]))
        Interval(estimate=1.0, low=1.0, high=1.0)
    """
    means = resampled_means(rows[None], resamples=resamples, seed=seed)[:, 0]
    return percentiles(float(rows.mean()), means, level=level)


@lru_cache(maxsize=3)  # every claim about a dataset resamples the same few numbers of rows: two splits, and a cut one
def _counts(n: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each row is drawn in each resample, (resamples, n); multinomial.

    A byte is enough: that one of n rows is drawn 256 times in n draws is beyond any chance (below n / 256!).
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n), dtype=np.uint8)
    for start in range(0, resamples, _BLOCK):
        block = counts[start : start + _BLOCK]
        size = len(block)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
    return counts
