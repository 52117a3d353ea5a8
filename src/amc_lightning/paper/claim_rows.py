"""The rows that a claim compares: which examples each system got wrong, the same ones for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amc_lightning.paper.claim_list import CLEAN
from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.runs import Run, undefended
from amc_lightning.paper.trained import Systems, same_rows
from amc_lightning.report.record import UNDEFENDED, Strength

NO_COMMON_SEED = "a seed that all of them were run with"
OTHER_ROWS = "the same rows for all of them"


@dataclass(frozen=True)
class Cell:
    """One error rate: a system under an attack.

    Args:
        system: its name; "undefended" is M0 of any run where there is no run of that name.
        attack: its name, or "clean" for the test split as it is.
        strength: of the attack; of no meaning for clean.
        threat_model: under which; empty for the run's primary one, which only the clean error is asked for.
        stage: index of the model; None for the one that is deployed.
        also: another threat model: a row is wrong that is wrong under at least one of the two; empty for none.
    """

    system: str
    attack: str
    strength: Strength = "paper"
    threat_model: str = ""
    stage: int | None = None
    also: str = ""

    def __str__(self) -> str:
        """Say what is missing where this is not there."""
        place = f"{self.strength}/{self.attack}" if self.attack != CLEAN else CLEAN
        stage = "" if self.stage is None else f" stage {self.stage}"
        return f"{self.system}{stage} ({', '.join(part for part in (self.threat_model, place) if part)})"


@dataclass(frozen=True)
class Gathered:
    """What there is of the cells that a claim needs.

    Args:
        counts: seeds by which each row was got wrong, cells x rows, (A, N); None where something is missing.
        seeds: those that all systems have, ascending.
        missing: what is not there.
    """

    counts: NDArray[np.float64] | None
    seeds: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()


def runs_of(systems: Systems, system: str, seed: int, *, near: Sequence[str] = ()) -> list[Run]:
    """Return the runs that stand for a system with a seed, the best one first.

    That is its own run; the undefended model is M0 of any other run that trained one, too, first those of the systems
    ``near``, which it is compared with.
    """
    own = [run for run in systems.get(system, ()) if run.seed == seed]
    if system != UNDEFENDED:
        return own[:1]
    others = [run for name in [*near, *systems] for run in systems.get(name, ()) if run.seed == seed]
    return own + [run for run in others if undefended([run]) is not None]


def seeds_of(systems: Systems, names: Sequence[str]) -> tuple[int, ...]:
    """Return the seeds that all of these systems were run with, ascending."""
    every = sorted({run.seed for runs in systems.values() for run in runs})
    return tuple(seed for seed in every if all(runs_of(systems, name, seed) for name in names))


def missing_of(systems: Systems, names: Sequence[str]) -> tuple[str, ...]:
    """Return which of these systems were not run at all, or that they have no seed in common."""
    every = {run.seed for runs in systems.values() for run in runs}
    absent = [name for name in names if not any(runs_of(systems, name, seed) for seed in every)]
    return tuple(absent) or (() if seeds_of(systems, names) else (NO_COMMON_SEED,))


def column(systems: Systems, attack: str, strength: Strength) -> str:
    """Return which rate of an attack counts: at strength check, of an unbounded search that within its radius."""
    is_search = any(attack in run.results.budget for runs in systems.values() for run in runs)
    return f"{attack}@budget" if is_search and strength == "check" else attack


def gather(systems: Systems, cells: Sequence[Cell]) -> Gathered:
    """Collect the rows of several cells, summed over the seeds that every system has.

    Sums of flags are whole numbers, which is why they are not divided by the number of seeds here.

    Args:
        systems: the runs on one dataset.
        cells: what is compared; all on the same split.
    """
    names = list(dict.fromkeys(cell.system for cell in cells))
    absent = missing_of(systems, names)
    if absent:
        return Gathered(None, missing=absent)
    seeds = seeds_of(systems, names)
    found = {(cell, seed): _find(systems, cell, seed, names) for cell in cells for seed in seeds}
    complete = tuple(seed for seed in seeds if all(found[cell, seed] is not None for cell in cells))
    if not complete:
        lacking = [str(cell) for cell in cells if any(found[cell, seed] is None for seed in seeds)]
        return Gathered(None, seeds, tuple(dict.fromkeys(lacking)))
    rows = [[one for seed in complete if (one := found[cell, seed]) is not None] for cell in cells]
    first, *others = [one for each in rows for one in each]
    split = _split(cells[0])
    if not all(first.wrong.shape == one.wrong.shape and same_rows(first.run, one.run, split) for one in others):
        return Gathered(None, complete, (OTHER_ROWS,))
    counts = [np.sum([one.wrong for one in each], axis=0) for each in rows]
    return Gathered(np.array(counts, dtype=np.float64), complete)


@dataclass(frozen=True)
class _Rows:
    """Which rows of a split a model of a run got wrong."""

    wrong: Wrong
    run: Run


def _find(systems: Systems, cell: Cell, seed: int, near: Sequence[str]) -> _Rows | None:
    for run in runs_of(systems, cell.system, seed, near=near):
        wrong = _wrong(run, cell)
        if wrong is not None:
            return _Rows(wrong, run)
    return None


def _split(cell: Cell) -> Literal["test", "attack"]:
    return "test" if cell.attack == CLEAN else "attack"


def _wrong(run: Run, cell: Cell) -> Wrong | None:
    if cell.also:
        one, other = (_wrong(run, replace(cell, threat_model=name, also="")) for name in (cell.threat_model, cell.also))
        return None if one is None or other is None else one | other
    stage = (run.first if cell.system == UNDEFENDED else run.last).index if cell.stage is None else cell.stage
    flags = run.flags
    if cell.attack == CLEAN:
        return flags.clean(stage, threat_model=cell.threat_model)
    found = flags.wrong(stage, cell.strength, cell.attack, threat_model=cell.threat_model)
    name, _, at = cell.attack.partition("@")
    if found is not None or not at or name not in run.results.budget:
        return found
    bare = flags.wrong(stage, cell.strength, name, threat_model=cell.threat_model)  # a file of an earlier version
    place = "" if cell.threat_model in ("", run.results.threat_models[0]) else f"{cell.threat_model}/"
    l1 = flags.arrays.get(f"{stage}/{place}{cell.strength}/{name}/l1")
    return None if bare is None or l1 is None else bare & (l1.astype(np.float64) <= run.results.budget[name][1])
