"""What a sweep's jobs say together: rows of orders, spread over seeds, and the order that validation chooses."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from amc_lightning.report.columns import Column, columns
from amc_lightning.report.sweep_record import Entry, OrderRow

LEAST_SEEDS = 3
"""Fewer seeds than this say next to nothing about a spread."""


@dataclass(frozen=True)
class Spread:
    """One error rate over the seeds of one order, percent.

    ``sd`` is the sample's (n - 1).
    """

    mean: float
    sd: float
    least: float
    most: float


@dataclass(frozen=True)
class Choice:
    """Orders of the same attacks under the same settings, by their validation error over the same seeds.

    Args:
        settings: what the settings differ in from those of other choices; empty if in nothing.
        attacks: the attacks that every one of these orders has, by name.
        seeds: the seeds that every one of them was run with; the errors are averaged over these.
        ranked: the orders with their validation errors, percent, the lowest first.
        resolution: half a 95 % interval of one such error, points; None if it cannot be told.
        rows: attacked validation images behind each error.
    """

    settings: str
    attacks: tuple[str, ...]
    seeds: tuple[int, ...]
    ranked: tuple[tuple[OrderRow, float], ...]
    resolution: float | None
    rows: int

    @property
    def gap(self) -> float:
        """How much more error the runner-up has than the best, points."""
        return self.ranked[1][1] - self.ranked[0][1]

    @property
    def is_resolved(self) -> bool:
        """Whether the runner-up lies further from the best than the rows can resolve."""
        return self.resolution is not None and self.gap > self.resolution

    @property
    def close(self) -> int:
        """The number of orders, the best among them, that the rows cannot tell from the best."""
        lowest = self.ranked[0][1]
        return sum(1 for _, value in self.ranked if value - lowest <= (self.resolution or 0.0))


def sweep_columns(entries: Iterable[Entry]) -> list[Column]:
    """Return the columns of all jobs, each once; attacks in the order of the evaluation, not of a cascade."""
    found: dict[Column, None] = {}
    for entry in entries:
        if entry.results is not None:
            found |= dict.fromkeys(columns(replace(entry.results, order=())))
    return sorted(found, key=lambda column: ("clean", "attack", "summary").index(column.group))


def order_rows(entries: Sequence[Entry]) -> list[OrderRow]:
    """Return the measured jobs by settings and order; within the same settings and attacks by validation error."""
    common = frozenset.intersection(*(entry.job.settings for entry in entries)) if entries else frozenset()
    groups: dict[tuple[str, tuple[str, ...]], dict[int, Entry]] = {}
    for entry in entries:
        if entry.results is not None:
            settings = " ".join(item for item in entry.job.overrides if item in entry.job.settings - common)
            groups.setdefault((settings, entry.job.order), {})[entry.job.seed] = entry
    rows = [OrderRow(*key, dict(sorted(by_seed.items()))) for key, by_seed in groups.items()]
    places = {block: place for place, block in enumerate(dict.fromkeys(map(block_of, rows)))}
    return sorted(rows, key=lambda row: (places[block_of(row)], _or_last(row.validation())))


def block_of(row: OrderRow) -> tuple[str, tuple[str, ...]]:
    """Return what rows must share to be compared: their settings and their set of attacks."""
    return row.settings, tuple(sorted(row.order))


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of an error rate over seeds; None for fewer than two.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, sd=1.0, least=1.0, most=3.0)
    """
    if len(values) < 2:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values), min(values), max(values))


def choices(rows: Sequence[OrderRow]) -> list[Choice]:
    """Rank the orders of every block that has two or more, by validation error alone.

    Orders are compared over the seeds that all of them were run with: one seed more or less would move a mean by
    itself. A block whose validation attacked nothing is left out, and so is one without a common seed.
    """
    blocks: dict[tuple[str, tuple[str, ...]], list[OrderRow]] = {}
    for row in rows:
        if row.validation() is not None and _attacked(row) > 0:
            blocks.setdefault(block_of(row), []).append(row)
    found = []
    for (settings, attacks), members in blocks.items():
        seeds = frozenset.intersection(*(frozenset(row.seeds) for row in members))
        if len(members) < 2 or not seeds:
            continue
        pairs = [(row, value) for row in members if (value := row.validation(seeds)) is not None]
        ranked = tuple(sorted(pairs, key=lambda pair: pair[1]))
        halves = [half for row, _ in ranked[:2] for seed in seeds if (half := _resolution(row.by_seed[seed]))]
        resolution, count = max(halves, default=None), _attacked(ranked[0][0])
        found.append(Choice(settings, attacks, tuple(sorted(seeds)), ranked, resolution, count))
    return found


def has_several_orders(rows: Sequence[OrderRow]) -> bool:
    """Say whether there are two orders of the same attacks, by the same defence and threat model: whether to choose.

    In a sweep over systems there are none: each has one order, or attacks of its own.
    """
    orders: dict[tuple[str, str, tuple[str, ...]], set[tuple[str, ...]]] = {}
    for row in rows:
        for entry in row.by_seed.values():
            if entry.results is not None:
                kind = (entry.results.defence, entry.results.threat_model, tuple(sorted(row.order)))
                orders.setdefault(kind, set()).add(row.order)
    return any(len(found) > 1 for found in orders.values())


def _attacked(row: OrderRow) -> int:
    """Return the number of attacked validation images behind a row, the least over its seeds."""
    counts = [_validated(entry) for entry in row.by_seed.values()]
    return min(counts, default=0)


def _validated(entry: Entry) -> int:
    held_out = entry.results.dataset.counts.get("validation", 0) if entry.results is not None else 0
    return min(entry.job.validate_rows, held_out)


def _resolution(entry: Entry) -> float | None:
    """Return half a 95 % interval of the mean error over attacks, points, at the number of validation images.

    The interval in results.json is of the attack split; with n rows there and m here it is sqrt(n / m) times as wide.
    """
    rate = entry.last.evaluation.paper.get("mean") if entry.last is not None else None
    if rate is None:
        return None
    return (rate.high - rate.low) / 2 * math.sqrt(rate.n / _validated(entry))


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value
