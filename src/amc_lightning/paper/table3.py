"""The paper's Table 3: white-box errors of the undefended model, of adversarial training and of AMC."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from amc_lightning.paper.bold import failures, with_bold
from amc_lightning.paper.cells import CLEAN, Cell, Error, Fact, error
from amc_lightning.paper.comparison import match_grid
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.measures import (
    budget_columns,
    check_columns,
    heads,
    judge_columns,
    measured,
    own_columns,
    paper_columns,
    predicted_columns,
    summary_columns,
)
from amc_lightning.paper.numbers import table3_number
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.table2 import cost_cells
from amc_lightning.paper.table_notes import FOR_COMPARISON, cost, notes
from amc_lightning.paper.trained import (
    AMC_SYSTEM,
    AT_SYSTEMS,
    NAMES,
    Model,
    Systems,
    mean_passes,
    models,
    undefended_models,
)
from amc_lightning.report.columns import Column
from amc_lightning.report.paper_table4 import AMC
from amc_lightning.report.proxy_wording import span
from amc_lightning.report.record import UNDEFENDED
from amc_lightning.report.wording import WHITE_BOX

TITLE = "Table 3: error rates (%) under white-box attacks, lower is better"
PAPER_ROWS: Mapping[str, str] = {
    UNDEFENDED: UNDEFENDED,
    **{system: attack for attack, system in AT_SYSTEMS.items()},
    AMC_SYSTEM: AMC,
}
"""Names of the paper's rows by system, in the paper's order."""


def table3(runs: Runs) -> list[Grid]:
    """Return the tables of each dataset: the paper's columns, ours, and AMC against the best AT of each column."""
    grids = []
    for dataset in runs.datasets:
        rows = table3_models(runs.of(dataset))
        if rows:
            failed = [failures(found, runs.of(dataset)) for found in rows.values()]
            for grid in (_papers(dataset, rows), _ours(dataset, rows)):
                marked, said = with_bold(grid.rows, grid.head, failed)
                grids.append(replace(grid, rows=marked, notes=(*grid.notes, *said, FOR_COMPARISON)))
            grids += _against_the_best(dataset, rows)
    return grids


def table3_models(systems: Systems) -> dict[str, list[Model]]:
    """Return the models of the rows by system; empty where none was hardened."""
    found = {system: models(systems, system, WHITE_BOX) for system in PAPER_ROWS if system != UNDEFENDED}
    hardened = {system: known for system, known in found.items() if known}
    bare = undefended_models(systems) if hardened else []
    return {**({UNDEFENDED: bare} if bare else {}), **hardened}


def table3_cell(dataset: str, system: str, found: Sequence[Model], column: Column) -> Error:
    """Return one error rate with the paper's beside it, where it has one."""
    row = PAPER_ROWS[system]
    paper = table3_number(dataset, row, column.key) if column.strength == "paper" and column.group == "attack" else None
    return error(system, found, column, paper=paper, shows_n=column.strength == "judge")


def _papers(dataset: str, rows: Mapping[str, list[Model]]) -> Grid:
    columns = [CLEAN, *paper_columns()]
    made = tuple(
        Row(NAMES[system], tuple(table3_cell(dataset, system, found, column) for column in columns))
        for system, found in rows.items()
    )
    head = ("system", *heads(columns))
    said = tuple(_notes(rows, made))
    return Grid("table3", dataset, f"{dataset}: the paper's attacks (strength paper)", head, made, said)


def _ours(dataset: str, rows: Mapping[str, list[Model]]) -> Grid:
    every = [model for found in rows.values() for model in found]
    columns = [*own_columns(every), *judge_columns(every), *predicted_columns(every)]
    distances = _distances(every)
    made = tuple(
        Row(
            NAMES[system],
            (
                *(_distance(system, found, *distance) for distance in distances),
                *_cells(dataset, system, found, columns),
                *cost_cells(system, found),
            ),
        )
        for system, found in rows.items()
    )
    medians = tuple(f"{attack} {norm} median" for attack, norm in distances)
    head = ("system", *medians, *heads(columns), "minutes", "passes per image")
    said = [*_notes(rows, made), cost(every)]
    said += [
        f"{name}: of the images that were right and that the attack, without limit, made wrong: the larger, the more "
        "it took."
        for name in medians
    ]
    if judge_columns(every):
        said.append(
            "judge: attacks of another making, on the leading n images of the attack split; its worst case is over "
            "these and that of strength check, where the run has one."
        )
    if predicted_columns(every):
        said.append(
            "predicted: the paper's attacks aimed at the model's own answer, as CleverHans does by default: on an "
            "image that the model gets wrong they may repair it."
        )
    grid = "table3_ours"
    return Grid(grid, dataset, f"{dataset}: what the paper does not show", head, made, tuple(said))


def _cells(dataset: str, system: str, found: Sequence[Model], columns: Sequence[Column]) -> Iterator[Cell]:
    for column in columns:
        yield table3_cell(dataset, system, found, column)


def _notes(rows: Mapping[str, list[Model]], made: Sequence[Row]) -> Iterator[str]:
    errors = [cell for row in made for cell in row.cells if isinstance(cell, Error)]
    yield from notes([model for found in rows.values() for model in found], errors)


def _against_the_best(dataset: str, rows: Mapping[str, list[Model]]) -> list[Grid]:
    """Return the table of paired tests; none where AMC or every adversarially trained model is missing."""
    rivals = {system: rows[system] for system in AT_SYSTEMS.values() if system in rows}
    if AMC_SYSTEM not in rows or not rivals:
        return []
    amc = rows[AMC_SYSTEM]
    title = f"{dataset}: AMC against the best adversarial training of each column"
    grid = match_grid(title, "table3_paired", dataset, amc, rivals, _tested(amc), kind="AT")
    if grid is None:
        return []
    passes = (
        f"Gradient passes per training image: AMC {mean_passes(amc):,.0f}, the AT "
        f"{span(round(mean_passes(found)) for found in rivals.values())}. Where these differ, so did the budgets of "
        "training."
    )
    return [replace(grid, notes=(*grid.notes, passes))]


def _tested(amc: Sequence[Model]) -> list[Column]:
    """Return the columns whose rows are wrong or right: every attack and the worst case, at both strengths."""
    worst = [column for column in summary_columns(amc) if column.key == "worst"]
    every = [*paper_columns(), *budget_columns(amc), *check_columns(amc), *worst]
    return measured([CLEAN, *every], amc)


def _distances(found: Sequence[Model]) -> list[tuple[str, str]]:
    """Return the unbounded attacks, with the norm of their radius, that the median distance of some is known of."""
    known = {name: norm for model in found for name, (norm, _) in model.run.results.budget.items()}
    return [
        (name, norm) for name, norm in known.items() if any(_median(model, name, norm) is not None for model in found)
    ]


def _distance(system: str, found: Sequence[Model], attack: str, norm: str) -> Fact:
    medians = [value for model in found if (value := _median(model, attack, norm)) is not None]
    if not medians:
        return Fact("-")
    seeds = " ".join(str(model.seed) for model in found if _median(model, attack, norm) is not None)
    details = {"attack": attack, "strength": "paper", "seeds": seeds, "threat_model": WHITE_BOX}
    value = statistics.fmean(medians)
    return Fact(f"{value:.1f}", f"{norm}_median", value, system, details)


def _median(model: Model, attack: str, norm: str) -> float | None:
    rate = model.evaluation.paper.get(attack)
    return None if rate is None else rate.quantiles.get(norm, {}).get("0.5")
