"""What a summary of a sweep is made of: its jobs, and what each of them measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from amc_lightning.report.columns import Column
from amc_lightning.report.record import Rate, Results, Stage

# Overrides that say which order or seed a job has; all others are its settings.
_ORDER_AND_SEED = frozenset({"seed", "cascade.order", "attack_order", "sweep"})


@dataclass(frozen=True)
class Job:
    """One job of a sweep as its job.json tells it.

    Args:
        number: Hydra's number of the job, from 0; its folder has this name.
        total: jobs of the whole sweep; None where that is not known.
        folder: the job's folder, relative to that of the sweep.
        label: the overrides in which jobs differ, such as "cascade.order=[fgsm] seed=1".
        overrides: the whole command line of the job.
        exit_status: 0 finished, 1 stopped by itself, 2 bad input.
        message: why the job failed, one line; empty where it did not.
        seed: its seed.
        order: its attacks in cascade order.
        validate_rows: cap on attacked validation images.
    """

    number: int
    total: int | None
    folder: str
    label: str
    overrides: tuple[str, ...]
    exit_status: int
    message: str
    seed: int
    order: tuple[str, ...]
    validate_rows: int

    @property
    def status(self) -> Literal["finished", "failed"]:
        """How the job ended."""
        return "failed" if self.exit_status else "finished"

    @property
    def title(self) -> str:
        """The job in words: "job 3 (cascade.order=[fgsm])"."""
        return f"job {self.number} ({self.label})"

    @property
    def settings(self) -> frozenset[str]:
        """The overrides that set neither order nor seed: only jobs that agree in them are compared."""
        return frozenset(item for item in self.overrides if _key(item) not in _ORDER_AND_SEED)


@dataclass(frozen=True)
class Entry:
    """One job with what it measured.

    Args:
        job: which.
        results: its results; None where it failed, only planned, or left a file that cannot be read.
        validation: mean over clean and attacked validation images of the last stage, percent; None if not measured.
        problem: why its files cannot be read; empty where they can.
    """

    job: Job
    results: Results | None = None
    validation: float | None = None
    problem: str = ""

    @property
    def last(self) -> Stage | None:
        """The last stage, the one to deploy, under the primary threat model; None where it was not measured."""
        if self.results is None or self.results.primary not in self.results.stages[-1].evaluations:
            return None
        return self.results.stages[-1]

    @property
    def status(self) -> str:
        """How the job ended, and whether that left anything to show."""
        if self.job.exit_status or self.results is not None:
            return self.job.status
        return "unreadable" if self.problem else "no results"

    def rate(self, column: Column) -> Rate | None:
        """Return one rate of the last stage; None if it was not measured."""
        return None if self.last is None else column.rate(self.last)


@dataclass(frozen=True)
class OrderRow:
    """The measured jobs of one order under the same settings, one per seed.

    Args:
        settings: what the settings differ in from those of other rows; empty if in nothing.
        order: the attacks in cascade order.
        by_seed: the jobs by their seeds, ascending.
    """

    settings: str
    order: tuple[str, ...]
    by_seed: Mapping[int, Entry]

    @property
    def name(self) -> str:
        """The order in words: "fgsm > vap", behind the settings where these differ."""
        return f"{self.settings}: {order_text(self.order)}" if self.settings else order_text(self.order)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(self.by_seed)

    def errors(self, column: Column) -> list[float]:
        """Return one error rate of every seed in which it was measured, percent."""
        rates = (entry.rate(column) for entry in self.by_seed.values())
        return [rate.error for rate in rates if rate is not None]

    def validation(self, seeds: frozenset[int] | None = None) -> float | None:
        """Return the validation error averaged over some seeds, all by default; None where one has none."""
        values = [entry.validation for seed, entry in self.by_seed.items() if seeds is None or seed in seeds]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


def order_text(order: tuple[str, ...]) -> str:
    """Return an order in words.

    Example:
        >>> order_text(("fgsm", "vap")), order_text(())
        ('fgsm > vap', 'none')
    """
    return " > ".join(order) or "none"


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
