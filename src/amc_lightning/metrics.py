"""Metrics with one value per source of a row: clean, or the attack that made it."""

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics import Metric


class MeanBySource(Metric):
    """Mean of a per-row quantity, kept apart by the rows' source.

    Args:
        num_sources: number of sources S.
        scale: factor of the mean; 100 turns the share of wrong rows into an error rate in percent.

    Example:
        >>> metric = MeanBySource(2, scale=100)
        >>> metric.update(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor([ 50., 100.])
    """

    full_state_update = False

    def __init__(self, num_sources: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", torch.zeros(num_sources, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_sources, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, source: Tensor) -> None:
        """Add rows: values (B,) of any real or bool dtype, source (B,) int64 in [0, S)."""
        self.total.index_add_(0, source, values.to(self.total.dtype))
        self.count.index_add_(0, source, torch.ones_like(values, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        """Return the means, (S,) float32; NaN where a source had no rows. torchmetrics gives a scalar where S is 1."""
        return (self.scale * self.total / self.count).float()

    def by_source(self) -> list[float]:
        """Return the means so far as a list of S numbers, whatever S is; waits for the device."""
        return [float(value) for value in (self.scale * self.total / self.count).tolist()]


def wilson(wrong: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of an error rate, in percent.

    Args:
        wrong: rows that are wrong, 0 to n.
        n: rows, >= 1.

    Reference:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927; computed by SciPy.

    Example:
        >>> [round(bound, 2) for bound in wilson(12, 140)]
        [4.97, 14.38]
    """
    interval = binomtest(wrong, n).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)
