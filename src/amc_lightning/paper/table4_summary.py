"""The paper's Table 4 over seeds: one row a system, and AMC by local proxy against the best AT[P] of each column."""

from collections.abc import Iterator
from dataclasses import replace

from amc_lightning.paper.black_box import pictured_columns, pictured_rows, table4_cell
from amc_lightning.paper.bold import with_bold
from amc_lightning.paper.cells import CLEAN, Error
from amc_lightning.paper.comparison import match_grid
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.measures import heads
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.table_notes import FOR_COMPARISON, seeds, sizes, without_gradient
from amc_lightning.paper.trained import AT_PROXY_SYSTEMS, LOCAL_PROXY, Model, Systems, models
from amc_lightning.report import wording
from amc_lightning.report.columns import Column
from amc_lightning.report.proxy_wording import interface_text, what_it_means
from amc_lightning.report.table4 import Table4
from amc_lightning.report.table4_bold import system_failures

TITLE = "Table 4 over seeds: error rates (%) under black-box attacks, lower is better"


def table4_summary(runs: Runs, tables: list[Table4]) -> list[Grid]:
    """Return two tables for each dataset and interface: errors over seeds, and paired tests where there are any.

    Args:
        runs: all runs of the report.
        tables: what ``black_box.table4`` made of them.
    """
    grids = []
    for table in tables:
        columns = _columns(table)
        grids.append(_errors(table, columns))
        paired = _against_the_best(table, runs.of(table.dataset), columns)
        grids += [paired] if paired is not None else []
    return grids


def _columns(table: Table4) -> list[Column]:
    means = [column for column in table.columns if column.key == "mean"]
    return [CLEAN, *pictured_columns(table), *means]


def _errors(table: Table4, columns: list[Column]) -> Grid:
    known = pictured_rows(table)
    rows = [
        Row(name, tuple(table4_cell(table, name, systems, column) for column in columns))
        for name, systems in known.items()
    ]
    head = ("system", *heads(columns))
    failed = [
        {check: why for system in systems for check, why in system_failures(table, system).items()}
        for systems in known.values()
    ]
    marked, bold = with_bold(rows, head, failed)
    said = (*_notes(table, marked), *bold, FOR_COMPARISON)
    return Grid("table4_summary", table.dataset, f"{table.dataset}: {table.heading}", head, marked, said)


def _notes(table: Table4, rows: tuple[Row, ...]) -> Iterator[str]:
    errors = [cell for row in rows for cell in row.cells if isinstance(cell, Error)]
    yield f"The attacker has no weights, only answers: {interface_text(table.interface)}."
    yield sizes(errors)
    yield from seeds(errors)
    views = [replace(system.results, order=(), stages=(system.stage,)) for system in table.systems]
    for say in (wording.strengths, wording.summaries, what_it_means):
        yield from map(say, views)
    yield without_gradient(errors)
    if table.is_the_papers:
        yield "'paper' before a number: the paper's own; without intervals, from its own training, proxies and data."
        for limit in sorted({view.dataset.limit for view in views if view.dataset.limit is not None}):
            yield f"Trained on at most {limit:,} images, the paper on all: the numbers are not comparable."
    yield "table4.md has every seed by itself, with the proxies' own errors and what the rows were made with."


def _against_the_best(table: Table4, systems: Systems, columns: list[Column]) -> Grid | None:
    def members(system: str) -> list[Model]:
        found = models(systems, system, table.threat_model)
        return [model for model in found if model.run.results.interfaces.get(table.threat_model) == table.interface]

    own = members(LOCAL_PROXY)
    rivals = {system: found for system in AT_PROXY_SYSTEMS.values() if (found := members(system))}
    if not own or not rivals:
        return None
    title = f"{table.dataset}: {table.heading}, AMC by local proxy against the best AT[P] of each column"
    return match_grid(title, "table4_paired", table.dataset, own, rivals, columns, kind="AT[P]")
