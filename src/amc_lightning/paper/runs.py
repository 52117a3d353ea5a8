"""The runs that the paper's tables are made of: one for each system, dataset and seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from amc_lightning.paper.flags import Flags, read_flags
from amc_lightning.report import Results, Stage


@dataclass(frozen=True)
class Run:
    """One system, trained and measured with one seed.

    Args:
        system: its name in the group ``system``, such as "at_fgsm".
        results: what it measured; finished, and with at least one stage.
        folder: its run folder.
    """

    system: str
    results: Results
    folder: Path

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return self.results.seed

    @property
    def dataset(self) -> str:
        """The name of its dataset."""
        return self.results.dataset.name

    @property
    def first(self) -> Stage:
        """M0."""
        return self.results.stages[0]

    @property
    def last(self) -> Stage:
        """The model that is deployed."""
        return self.results.stages[-1]

    @cached_property
    def flags(self) -> Flags:
        """Its per-example results.

        Raises:
            UserError: if they are missing or damaged.
        """
        return read_flags(self.folder, self.results)


@dataclass(frozen=True)
class Runs:
    """All runs of one report.

    Args:
        every: the runs, in the order of the manifest.
    """

    every: tuple[Run, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets: the paper's in its order, then the others in theirs."""
        found = list(dict.fromkeys(run.dataset for run in self.every))
        return tuple(sorted(found, key=lambda name: PAPER_DATASETS.index(name) if name in PAPER_DATASETS else 9))

    def of(self, dataset: str) -> Mapping[str, Sequence[Run]]:
        """Return the runs on one dataset by system, each with its seeds ascending; systems in the manifest's order."""
        found: dict[str, list[Run]] = {}
        for run in self.every:
            if run.dataset == dataset:
                found.setdefault(run.system, []).append(run)
        return {system: sorted(runs, key=lambda run: run.seed) for system, runs in found.items()}

    def seeds(self, dataset: str) -> tuple[int, ...]:
        """Return every seed that some system on a dataset was run with, ascending."""
        return tuple(sorted({run.seed for run in self.every if run.dataset == dataset}))


PAPER_DATASETS = ("mnist", "svhn", "cifar10")


def undefended(runs: Iterable[Run]) -> Run | None:
    """Return a run whose M0 stands for the undefended model: the first that trained one; None where none did."""
    return next((run for run in runs if run.first.index == 0 and run.first.steps), None)
