"""The paper's Table 6: an attack that the cascade has not seen, with and without feature squeezing."""

from collections.abc import Sequence

from amc_lightning.paper.cells import CLEAN, Cell, Error, error
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.measures import LETTERS, budget_columns, check_columns, heads, measured
from amc_lightning.paper.numbers import table6_number
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.squeezed import HONEST, squeezings
from amc_lightning.paper.table_notes import FOR_COMPARISON, notes
from amc_lightning.paper.trained import (
    AMC_SYSTEM,
    AT_SYSTEMS,
    NAMES,
    WITHOUT_SYSTEMS,
    Model,
    Systems,
    models,
    undefended_models,
)
from amc_lightning.report.columns import Column
from amc_lightning.report.paper_table4 import ATTACKS
from amc_lightning.report.record import UNDEFENDED
from amc_lightning.report.wording import WHITE_BOX

TITLE = "Table 6: error rates (%) under an attack that training left out, white box, lower is better"
UNSEEN = "fgsm"
"""The attack that the paper leaves out."""


def table6(runs: Runs) -> list[Grid]:
    """Return the tables of each dataset: FGSM as the unseen attack, and every attack that was left out."""
    grids = []
    for dataset in runs.datasets:
        systems = runs.of(dataset)
        without = {attack: models(systems, system, WHITE_BOX) for attack, system in WITHOUT_SYSTEMS.items()}
        without = {attack: found for attack, found in without.items() if found}
        if UNSEEN in without:
            grids.append(_papers(dataset, systems, without[UNSEEN]))
        if without:
            grids.append(_ours(dataset, systems, without))
    return grids


def _papers(dataset: str, systems: Systems, cascade: Sequence[Model]) -> Grid:
    column, system = Column("attack", UNSEEN, "paper", (LETTERS[UNSEEN], f"({UNSEEN})")), WITHOUT_SYSTEMS[UNSEEN]
    bare, said = undefended_models(systems), list[str]()
    name = f"AMC (with {', '.join(attack for attack in ATTACKS if attack != UNSEEN)})"
    rows = [Row(NAMES[UNDEFENDED], _pair(UNDEFENDED, bare, column, table6_number(dataset, 0)))] if bare else []
    rows.append(Row(name, _pair(system, cascade, column, table6_number(dataset, 1))))
    found = squeezings(systems, system, said)
    for squeezed in found:
        clean = squeezed.cells(system, CLEAN, None)
        unseen = squeezed.cells(system, column, table6_number(dataset, 2))
        if any(cell.rates for cell in unseen.values()):
            rows += [Row(f"{name} and {way}, {squeezed.name}", (clean[way], unseen[way])) for way in unseen]
    errors = [cell for row in rows for cell in row.cells if isinstance(cell, Error)]
    weaker = [squeezed.weaker([column]) for squeezed in found]
    below = (*notes([*bare, *cascade], errors), HONEST if found else "", *weaker, *said, FOR_COMPARISON)
    title = f"{dataset}: {UNSEEN} as the unseen attack"
    return Grid("table6", dataset, title, ("system", *heads([CLEAN, column])), tuple(rows), below)


def _pair(system: str, found: Sequence[Model], column: Column, paper: float | None) -> tuple[Cell, Cell]:
    return error(system, found, CLEAN), error(system, found, column, paper=paper)


def _ours(dataset: str, systems: Systems, without: dict[str, list[Model]]) -> Grid:
    every = {UNDEFENDED: undefended_models(systems)}
    every |= {system: models(systems, system, WHITE_BOX) for system in (AMC_SYSTEM, *AT_SYSTEMS.values())}
    every = {system: found for system, found in every.items() if found}
    shown = [model for found in (*without.values(), *every.values()) for model in found]
    columns = _columns(without)
    rows = [
        Row(NAMES[system], tuple(error(system, every[system], column) for column in columns))
        for system in (UNDEFENDED,)
        if system in every
    ]
    unseen = [(WITHOUT_SYSTEMS[_attack(column)], without[_attack(column)], column) for column in columns]
    rows.append(Row("AMC without the column's attack", tuple(error(*cell) for cell in unseen)))
    rows += [
        Row(NAMES[system], tuple(error(system, found, column) for column in columns))
        for system, found in every.items()
        if system != UNDEFENDED
    ]
    errors = [cell for row in rows for cell in row.cells if isinstance(cell, Error)]
    missing = [WITHOUT_SYSTEMS[attack] for attack in ATTACKS if attack not in without]
    below = (
        *notes(shown, errors),
        "Every column is an attack that one cascade did not train with; that row has another cascade in every column. "
        "AMC has trained with all of them, AT with one each.",
        f"Not shown, as there is no run: {', '.join(missing)}." if missing else "",
        FOR_COMPARISON,
    )
    title = f"{dataset}: every attack left out once"
    return Grid("table6_ours", dataset, title, ("system", *heads(columns)), tuple(rows), below)


def _columns(without: dict[str, list[Model]]) -> list[Column]:
    """Return for every attack that was left out its columns: the paper's, within a radius, and check."""
    columns = []
    for attack, found in without.items():
        columns.append(Column("attack", attack, "paper", (LETTERS[attack], f"({attack})")))
        more = [*budget_columns(found), *check_columns(found)]
        columns += [column for column in more if _attack(column) == attack]
        columns = [column for column in columns if _attack(column) != attack or column in measured([column], found)]
    return columns


def _attack(column: Column) -> str:
    return column.key.partition("@")[0]
