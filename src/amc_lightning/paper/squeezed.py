"""Feature squeezing in front of a system's models, attacked both ways: never one way without the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from amc_lightning.paper.cells import Error, error
from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.trained import Model, Systems
from amc_lightning.report.columns import Column
from amc_lightning.report.record import Rate, Results

EITHER, ADAPTIVE, POST_HOC = "FS (either way)", "FS (adaptive)", "FS (the paper's way)"
HONEST = (
    "FS (the paper's way): examples made on the bare model and squeezed afterwards, by an attacker who does not know "
    "of it. FS (adaptive): attacked through the squeezing (BPDA). FS (either way): wrong under at least one of the "
    "two, as who knows of the squeezing can do either; this is the number that counts. The worst case of FS (adaptive) "
    "includes the examples squeezed afterwards already, that of FS (the paper's way) those alone."
)


@dataclass(frozen=True)
class Ways:
    """The threat models of one squeezing; empty where it was not attacked in that way."""

    adaptive: str = ""
    post_hoc: str = ""

    @property
    def is_both(self) -> bool:
        """Whether it was attacked both ways."""
        return bool(self.adaptive and self.post_hoc)


@dataclass(frozen=True)
class Squeezed:
    """A squeezing in front of a system's models, one a seed, that was attacked both ways.

    Args:
        name: of the squeezing.
        settings: its class and parameters, in words.
        post_hoc: the models, with examples squeezed afterwards.
        adaptive: the same models, attacked through the squeezing.
    """

    name: str
    settings: str
    post_hoc: tuple[Model, ...]
    adaptive: tuple[Model, ...]

    def cells(self, system: str, column: Column, paper: float | None) -> dict[str, Error]:
        """Return the cells of one column, the headline first; of a seed that lacks either way, none is shown.

        Args:
            system: whose.
            column: which rate.
            paper: the paper's number, which is of examples squeezed afterwards.

        Returns:
            By "FS (either way)", "FS (adaptive)" and "FS (the paper's way)".
        """
        both = self._both(column)
        union = {one.seed: rate for one, other in both if (rate := union_rate(one, other, column)) is not None}
        return {
            EITHER: Error(system, column, f"squeezed/{self.name}/either" if union else "", union),
            ADAPTIVE: error(system, [other for _, other in both], column),
            POST_HOC: error(system, [one for one, _ in both], column, paper=paper if both else None),
        }

    def weaker(self, columns: Sequence[Column]) -> str:
        """Say under which attacks the adaptive attack does less than the examples squeezed afterwards; maybe empty."""
        found = []
        for column in columns:
            rates = [(one.rate(column), other.rate(column)) for one, other in self._both(column)]
            if column.group == "attack" and any(a and b and b.error < a.error for a, b in rates):
                found.append(column.title)
        return weaker_text(self.name, found)

    def _both(self, column: Column) -> list[tuple[Model, Model]]:
        return [
            (one, other)
            for one, other in zip(self.post_hoc, self.adaptive, strict=True)
            if one.rate(column) is not None and other.rate(column) is not None
        ]


def weaker_text(squeezing: str, attacks: Sequence[str]) -> str:
    """Say that the adaptive attack did not do its best; empty for no attacks.

    Example:
        >>> weaker_text("bit_depth_1", ["pgm"])
        '**bit_depth_1: under pgm adaptive is below post hoc: the adaptive attack did not do its best there.**'
    """
    if not attacks:
        return ""
    return (
        f"**{squeezing}: under {', '.join(attacks)} adaptive is below post hoc: the adaptive attack did not do its "
        "best there.**"
    )


def ways(results: Results) -> Mapping[str, Ways]:
    """Return the squeezings of a run by name, each with the threat models that it was attacked under."""
    found: dict[str, Ways] = {}
    for threat_model, squeezing in results.squeezings.items():
        known = found.get(squeezing.name, Ways())
        added = Ways(threat_model, known.post_hoc) if squeezing.adaptive else Ways(known.adaptive, threat_model)
        found[squeezing.name] = added
    return found


def squeezings(systems: Systems, system: str, said: list[str]) -> list[Squeezed]:
    """Return the squeezings of a system that were attacked both ways.

    Args:
        systems: the runs of a dataset.
        system: which.
        said: gets a note for each squeezing that is left out, as it was attacked in one way only.
    """
    found: dict[str, dict[int, dict[bool, Model]]] = {}
    settings: dict[str, str] = {}
    for run in systems.get(system, ()):
        for name, known in ways(run.results).items():
            for adaptive, threat_model in ((True, known.adaptive), (False, known.post_hoc)):
                if threat_model in run.last.evaluations:
                    by_seed = found.setdefault(name, {})
                    by_seed.setdefault(run.seed, {})[adaptive] = Model(run, run.last, threat_model)
                    settings.setdefault(name, _settings(run.results, threat_model))
    complete = []
    for name, by_seed in found.items():
        both = [by_seed[seed] for seed in sorted(by_seed) if len(by_seed[seed]) == 2]
        if both:
            pair = (tuple(models[way] for models in both) for way in (False, True))
            complete.append(Squeezed(name, settings[name], *pair))
        alone = sorted(seed for seed, models in by_seed.items() if len(models) == 1)
        if alone:
            kinds = {"adaptive" if next(iter(by_seed[seed])) else "post-hoc" for seed in alone}
            said.append(
                f"Feature squeezing {name} of {system}, seed {', '.join(map(str, alone))}, is left out: there is only "
                f"the {' or '.join(sorted(kinds))} number, and neither is shown without the other."
            )
    return complete


def squeezed_models(found: Sequence[Squeezed]) -> list[Model]:
    """Return the models of some squeezings, both ways."""
    return [model for one in found for model in (*one.post_hoc, *one.adaptive)]


def _settings(results: Results, threat_model: str) -> str:
    given = results.squeezings[threat_model].settings
    return ", ".join(f"{name} {value}" for name, value in given.items() if name != "_target_")


def union_rate(one: Model, other: Model, column: Column) -> Rate | None:
    """Return the rate of the rows that are wrong in at least one of two ways; None if they were not kept."""
    a, b = one.wrong(column), other.wrong(column)
    return None if a is None or b is None or a.shape != b.shape else _rate(a | b)


def _rate(wrong: Wrong) -> Rate:
    n, count = len(wrong), int(wrong.sum())
    found = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(n=n, wrong=count, error=100 * count / n, low=100 * float(found.low), high=100 * float(found.high))
