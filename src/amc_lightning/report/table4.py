"""The paper's Table 4 from the jobs of a sweep: which models are its rows, which error rates its columns."""

import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from amc_lightning.report import proxy_wording
from amc_lightning.report.columns import Column, columns
from amc_lightning.report.paper_table4 import AMC, ATTACKS, UNDEFENDED, paper_number
from amc_lightning.report.record import Interface, Results, Stage
from amc_lightning.report.sweep_record import Entry, order_text

_PAPER_ORDER = ("fgsm", "vap", "eap", "pgm")
_KINDS = ("undefended", "at_proxy", "amc_proxy", "other_proxy", "at", "amc", "other")


@dataclass(frozen=True)
class System:
    """One row: a trained model and its errors under one threat model.

    Args:
        name: of the row, such as "AT[P] fgsm".
        kind: one of the kinds, which rows are sorted by.
        paper: its row in the paper's table; empty where it has none.
        results: of its job, under the table's threat model.
        stage: the model that is shown; it has been measured.
        job: the job's number.
    """

    name: str
    kind: str
    paper: str
    results: Results
    stage: Stage
    job: int

    @property
    def minutes(self) -> float:
        """What training took, all stages up to this model's and their proxies P'."""
        return sum(stage.minutes + (stage.proxy.minutes if stage.proxy else 0.0) for stage in self.stages)

    @property
    def passes_per_image(self) -> float:
        """Gradient passes per training image of all stages up to this model's; training of proxies P' not counted."""
        return sum(stage.passes_per_image for stage in self.stages)

    @property
    def stages(self) -> list[Stage]:
        """The stages that led to this model, its own the last."""
        return [stage for stage in self.results.stages if stage.index <= self.stage.index]


@dataclass(frozen=True)
class Table4:
    """All systems of one dataset under one black-box threat model.

    Args:
        dataset: its name.
        threat_model: its name; several may share it.
        heading: that name, with the interface's settings where several share it.
        systems: the rows.
        columns: the error rates.
    """

    dataset: str
    threat_model: str
    heading: str
    systems: tuple[System, ...]
    columns: tuple[Column, ...]

    @property
    def interface(self) -> Interface:
        """What the attacker is answered."""
        return self.systems[0].results.interfaces[self.threat_model]

    @property
    def is_the_papers(self) -> bool:
        """Whether the paper has numbers beside these: its table is of the interface that answers with labels."""
        return self.interface.kind == "label" and any(
            paper_number(self.dataset, system.paper, attack) is not None
            for system in self.systems
            for attack in ATTACKS
        )

    def paper(self, system: System, column: Column) -> float | None:
        """Return the paper's number beside a cell; None where it has none."""
        if not self.is_the_papers or column.group != "attack" or column.strength != "paper":
            return None
        return paper_number(self.dataset, system.paper, column.key)


def black_box_tables(entries: Iterable[Entry]) -> list[Table4]:
    """Return one table for each dataset and black-box threat model that jobs of a sweep measured under; maybe none.

    Threat models of one name with other interfaces, settings or budgets have a table each. They stand in the order in
    which jobs have them. A model that stands at the beginning of several jobs, the undefended one, is one row where it
    was measured in the same way.
    """
    found: dict[tuple[str, str, str], dict[Hashable, System]] = {}
    for entry in entries:
        for view in entry.results.each() if entry.results is not None else ():
            if view.is_black_box:
                key = (view.dataset.name, view.primary, _identity(view.interfaces[view.primary]))
                rows = found.setdefault(key, {})
                for system in _systems(view, entry.job.number):
                    rows.setdefault(_measurement(system), system)
    found = {key: rows for key, rows in found.items() if rows}
    tables = []
    for key, rows in found.items():
        dataset, threat_model, _ = key
        systems = list(rows.values())
        others = [s for other, them in found.items() if other != key and other[0] == dataset for s in them.values()]
        is_alone = sum(other[:2] == key[:2] for other in found) == 1
        heading = threat_model if is_alone else _heading(threat_model, systems[0].results.interfaces[threat_model])
        tables.append(Table4(dataset, threat_model, heading, _named(systems, others), _columns(systems)))
    return tables


def _heading(threat_model: str, interface: Interface) -> str:
    kind = "" if threat_model.endswith(interface.kind) else f"{interface.kind}, "
    return f"{threat_model} ({kind}{proxy_wording.settings_text(interface)})"


def _identity(interface: Interface) -> str:
    """Return all that an attacker's answers depend on, as a text."""
    given = {name: value for name, value in interface.settings.items() if value is not None}
    return json.dumps([interface.kind, given, interface.budget], sort_keys=True)


def _model(system: System) -> Hashable:
    return system.results.seed, system.stage.key or (system.name, system.job)


def _measurement(system: System) -> Hashable:
    """Return what makes two rows the same one: the model, its seed, the P'' and the attacks it was measured with."""
    proxies = tuple((name, proxy.key) for name, proxy in system.stage.evaluation.proxies.items())
    attacks = json.dumps(system.results.attacks.get(system.results.primary, {}), sort_keys=True)
    attacked = tuple(rate.n for rate in system.stage.evaluation.check.values())
    return _model(system), proxies, attacks, attacked


def _systems(results: Results, job: int) -> Iterator[System]:
    for stage in results.measured:
        if stage.index == 0:
            name = "undefended" if stage.steps else "given weights"
            yield System(name, "undefended", UNDEFENDED if stage.steps else "", results, stage, job)
        elif stage is results.stages[-1]:
            yield _hardened(results, stage, job)


def _hardened(results: Results, stage: Stage, job: int) -> System:
    by_proxy = any(part.proxy is not None for part in results.stages)
    tag, order = "[P]" if by_proxy else "", order_text(results.order)
    single = results.defence == "adversarial_training" and len(results.order) == 1
    if single:
        kind, name = "at", f"AT{tag} {order}"
    elif results.defence == "amc":
        kind, name = "amc", "AMC, local proxy" if by_proxy else "AMC, target-hardened"
    else:
        kind, name = "other", f"{results.defence}{tag} {order}"
    paper = _paper_row(results, single=single) if by_proxy else ""
    return System(name, f"{kind}_proxy" if by_proxy else kind, paper, results, stage, job)


def _paper_row(results: Results, *, single: bool) -> str:
    """Return which row of the paper's table a model is that was hardened on proxies; empty if none."""
    if single:
        return results.order[0] if results.order[0] in ATTACKS else ""
    is_parent = results.crafting is None or results.crafting.transfer == "parent"
    return AMC if results.defence == "amc" and results.order == _PAPER_ORDER and is_parent else ""


def _named(systems: Sequence[System], others: Sequence[System]) -> tuple[System, ...]:
    """Return the rows in the paper's order, with names that tell them apart, also from those of other tables."""
    named = []
    for system in sorted(systems, key=_place):
        alike = [other for other in systems if other is not system]
        alike += [other for other in others if _model(other) != _model(system)]
        named.append(replace(system, name=_distinct(system, [other for other in alike if other.name == system.name])))
    return tuple(named)


def _place(system: System) -> tuple[int, int, int]:
    attack = system.results.order[0] if system.kind.startswith("at") else ""
    return _KINDS.index(system.kind), ATTACKS.index(attack) if attack in ATTACKS else len(ATTACKS), system.job


def _distinct(system: System, rest: Sequence[System]) -> str:
    """Return a row's name with what tells it from others of the same name: settings that differ, else the job."""
    told: list[str] = []
    for tell in (_order, _hardened_under, _seed, _job):
        if any(tell(other) != tell(system) for other in rest):
            told.append(tell(system))
            rest = [other for other in rest if tell(other) == tell(system)]
    return ", ".join([system.name, *told])


def _order(system: System) -> str:
    return "" if system.stage.index == 0 else order_text(system.results.order)


def _hardened_under(system: System) -> str:
    return "" if system.stage.index == 0 else system.results.threat_model


def _seed(system: System) -> str:
    return f"seed {system.results.seed}"


def _job(system: System) -> str:
    return f"job {system.job}"


def _columns(systems: Iterable[System]) -> tuple[Column, ...]:
    """Return clean, the attacks in the paper's order at strength paper, those with another check, mean and worst."""
    found: dict[Column, None] = {}
    for system in systems:
        found |= dict.fromkeys(columns(replace(system.results, order=())))
    shown = [column for column in found if column.group != "summary" or column.strength == "check"]
    return tuple(sorted(shown, key=_column_place))


def _column_place(column: Column) -> tuple[int, bool, int]:
    attack = column.key.partition("@")[0]
    group = ("clean", "attack", "summary").index(column.group)
    place = ATTACKS.index(attack) if attack in ATTACKS else len(ATTACKS)
    return group, column.group == "attack" and column.strength == "check", place
