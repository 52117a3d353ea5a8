"""The systems that are compared: which family each is of, what kind of defence it is, and its models by seed."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from amc_lightning.paper.runs import Run
from amc_lightning.paper.trained import AMC_SYSTEM, AT_SYSTEMS, Model, Systems, models, undefended_models
from amc_lightning.report.decisive import chance
from amc_lightning.report.record import UNDEFENDED
from amc_lightning.report.wording import WHITE_BOX

Kind = Literal["undefended", "single", "several", "cascade"]
"""``single`` is adversarial training against one attack, ``several`` a baseline against all attacks of its family."""
Reasons = Callable[[Run], Mapping[str, str]]
"""Gives the checks that a run fails, each with its reason; empty where its numbers may be believed."""

FAMILIES: Mapping[str, str] = {"norms": "hardened against three norms", "attacks": "hardened against four attacks"}
_METHODS = {"avg": "AVG", "max": "MAX", "msd": "MSD", "sat": "SAT", "e_at": "E-AT"}
_NORMS = ("linf", "l2", "l1")


@dataclass(frozen=True)
class Place:
    """Where a system stands in the comparison.

    Args:
        family: a key of ``FAMILIES``; empty for the undefended model, which is beside both.
        kind: of defence.
        label: its name within the family, short enough for a picture.
    """

    family: str
    kind: Kind
    label: str

    @property
    def name(self) -> str:
        """Its name in a table of both families."""
        return f"{self.family}: {self.label}" if self.family else self.label


PLACES: Mapping[str, Place] = {
    UNDEFENDED: Place("", "undefended", "Undefended"),
    **{f"norms_at_{norm}": Place("norms", "single", f"AT {norm}") for norm in _NORMS},
    **{f"norms_{key}": Place("norms", "several", label) for key, label in _METHODS.items()},
    "norms_amc": Place("norms", "cascade", "AMC"),
    "norms_amc_reverse": Place("norms", "cascade", "AMC reverse"),
    **{system: Place("attacks", "single", f"AT {attack}") for attack, system in AT_SYSTEMS.items()},
    **{f"attacks_{key}": Place("attacks", "several", label) for key, label in _METHODS.items()},
    AMC_SYSTEM: Place("attacks", "cascade", "AMC"),
}
"""Every system that has a row, in the order of the rows."""


@dataclass(frozen=True)
class Entrant:
    """One row: a system that was run and measured in a white box.

    Args:
        system: its name, a key of ``PLACES``.
        models: its last models, or M0, one for each seed, seeds ascending; at least one.
    """

    system: str
    models: tuple[Model, ...]

    @property
    def place(self) -> Place:
        """Where it stands."""
        return PLACES[self.system]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its seeds, ascending."""
        return tuple(model.seed for model in self.models)

    @property
    def passes(self) -> float:
        """Gradient passes per training image of all stages after M0, crafting and training; averaged over seeds."""
        return passes_after(self.models)

    @property
    def first_passes(self) -> float:
        """Gradient passes per training image of M0, averaged over seeds."""
        return statistics.fmean(_sum(model, first=True)[0] for model in self.models)

    @property
    def minutes(self) -> float:
        """Minutes of all stages after M0, averaged over seeds."""
        return statistics.fmean(_sum(model, first=False)[1] for model in self.models)

    @property
    def first_minutes(self) -> float:
        """Minutes of M0, averaged over seeds."""
        return statistics.fmean(_sum(model, first=True)[1] for model in self.models)

    @property
    def order(self) -> str:
        """The attacks that it was hardened against, in the order of the cascade."""
        return " -> ".join(self.models[0].run.results.order)

    @property
    def clean_error(self) -> float:
        """Clean error rate on the test split, percent, averaged over seeds."""
        return statistics.fmean(model.evaluation.clean.error for model in self.models)

    @property
    def is_guessing(self) -> bool:
        """Whether a model of it is not shown to be better than guessing on clean images.

        One that gives every image the same answer cannot be attacked: where others are at 100 %, it would be the best.
        """
        return any(model.evaluation.clean.high >= chance(model.run.results) for model in self.models)

    def reasons(self, reasons: Reasons) -> dict[str, str]:
        """Return the checks that a run of it fails; none for the undefended model, whose run may be another's."""
        if self.place.kind == "undefended":
            return {}
        return {check: why for model in self.models for check, why in reasons(model.run).items()}


def entrants(systems: Systems) -> list[Entrant]:
    """Return the rows of a dataset in their order: the systems that have a place and were measured in a white box.

    The undefended model may be M0 of any run that was measured so.
    """
    found = {system: models(systems, system, WHITE_BOX) for system in PLACES if system != UNDEFENDED}
    found = {UNDEFENDED: undefended_models(systems), **found} if any(found.values()) else found
    return [Entrant(system, tuple(known)) for system, known in found.items() if known]


def others(systems: Systems) -> list[str]:
    """Return the systems of a dataset that have no row: of no family, or without a white-box measurement."""
    shown = {entrant.system for entrant in entrants(systems)}
    return [system for system in systems if system not in shown]


def of_family(rows: Iterable[Entrant], family: str, *kinds: Kind) -> list[Entrant]:
    """Return the rows of a family that are of one of some kinds; of any kind where none is given."""
    return [row for row in rows if row.place.family == family and (not kinds or row.place.kind in kinds)]


def passes_after(found: Sequence[Model]) -> float:
    """Return the gradient passes per training image of all stages after M0, averaged over some models."""
    return statistics.fmean(_sum(model, first=False)[0] for model in found)


def _sum(model: Model, *, first: bool) -> tuple[float, float]:
    """Return passes and minutes of M0, or of the stages after it up to this model's."""
    stages = [stage for stage in model.stages if (stage.index == 0) == first]
    return sum(stage.passes_per_image for stage in stages), sum(stage.minutes for stage in stages)
