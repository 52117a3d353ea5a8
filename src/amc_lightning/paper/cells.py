"""The cells of the paper's tables: an error rate with the paper's beside it, or another fact."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from amc_lightning.paper.trained import Model
from amc_lightning.report import wording
from amc_lightning.report.columns import Column
from amc_lightning.report.record import Rate
from amc_lightning.report.sweep_comparison import Spread, spread

CLEAN = Column("clean", "clean", "paper", ("clean", ""))


@dataclass(frozen=True)
class Error:
    """An error rate of one system, in percent.

    Args:
        system: whose, as in the column "system" of the CSV file.
        column: which rate.
        threat_model: under which it was measured.
        rates: by seed, ascending; empty where it was not measured.
        paper: the number in the paper; None where it has none.
        shows_n: whether the number of images stands in the cell, as it is not that of the other columns.
        shows_paper: whether the paper's number stands in the cell, and not beside it.
        is_best: whether it is set in bold.
    """

    system: str
    column: Column
    threat_model: str
    rates: Mapping[int, Rate]
    paper: float | None = None
    shows_n: bool = False
    shows_paper: bool = True
    is_best: bool = False

    @property
    def value(self) -> float | None:
        """The error rate, averaged over seeds; None where it was not measured."""
        return statistics.fmean(rate.error for rate in self.rates.values()) if self.rates else None

    @property
    def only(self) -> Rate | None:
        """The rate of the only seed; None where there is none, or several."""
        return next(iter(self.rates.values())) if len(self.rates) == 1 else None

    @property
    def spread(self) -> Spread | None:
        """The spread over seeds; None for fewer than two."""
        return spread([rate.error for rate in self.rates.values()])

    @property
    def main(self) -> str:
        """The error rate as text; a dash where it was not measured."""
        return "-" if self.value is None else wording.percent(self.value)

    @property
    def small(self) -> tuple[str, ...]:
        """What stands under the rate: its interval, or its spread over seeds; then how many images, if asked for."""
        lines = []
        if self.only is not None:
            lines.append(wording.interval(self.only))
        elif self.spread is not None:
            lines.append(f"+- {wording.percent(self.spread.sd)} ({len(self.rates)} seeds)")
        if self.shows_n and self.rates:
            lines.append(f"n {' or '.join(map(str, sorted({rate.n for rate in self.rates.values()})))}")
        return tuple(lines)

    @property
    def below(self) -> str:
        """The paper's number in words; empty where it has none, or where that stands elsewhere."""
        return "" if self.paper is None or not self.shows_paper else f"paper {self.paper:g}"


@dataclass(frozen=True)
class Fact:
    """Anything in a table that is no error rate.

    Args:
        main: as it is shown.
        quantity: what it is, as in the column "quantity" of the CSV file; empty where it stands for itself.
        value: the number; None where it is none.
        system: whose it is.
        details: further columns of the CSV file.
    """

    main: str
    quantity: str = ""
    value: float | None = None
    system: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def small(self) -> tuple[str, ...]:
        """What stands under it: nothing."""
        return ()

    @property
    def below(self) -> str:
        """The paper's number in words: it has none."""
        return ""


Cell = Error | Fact


def error(
    system: str, found: Iterable[Model], column: Column, *, paper: float | None = None, shows_n: bool = False
) -> Error:
    """Return the cell of a system's models, one a seed, in one column."""
    known = list(found)
    rates = {model.seed: rate for model in known if (rate := model.rate(column)) is not None}
    return Error(system, column, known[0].threat_model if known else "", rates, paper, shows_n)


def mean_rate(wrong: Sequence[NDArray[np.bool_]]) -> Rate:
    """Return the mean error of several models on the same rows, with a normal interval over rows.

    Where every row has the same share of models that get it wrong, it is Wilson's interval of that share: that nothing
    varies among these rows does not say that nothing will.

    Args:
        wrong: one array a model, each (N,) bool.

    Example:
        >>> rate = mean_rate([np.array([True, False]), np.array([False, False])])
        >>> rate.n, rate.wrong, rate.error
        (2, 0.5, 25.0)
    """
    share: NDArray[np.float64] = np.stack(wrong).mean(axis=0, dtype=np.float64)
    n, mean = len(share), float(share.mean())
    if share.std() == 0:
        found = binomtest(round(mean * n), n).proportion_ci(confidence_level=0.95, method="wilson")
        low, high = 100 * float(found.low), 100 * float(found.high)
    else:
        half = 196 * float(share.std(ddof=1)) / n**0.5
        low, high = max(0.0, 100 * mean - half), min(100.0, 100 * mean + half)
    return Rate(n=n, wrong=float(share.sum()), error=100 * mean, low=low, high=high)
