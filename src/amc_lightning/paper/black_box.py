"""The paper's Table 4 from the runs of a report: the tables that a sweep writes of its jobs."""

from collections.abc import Hashable, Sequence

from amc_lightning.paper.cells import Error
from amc_lightning.paper.measures import paper_columns
from amc_lightning.paper.runs import Run, Runs
from amc_lightning.report.columns import Column
from amc_lightning.report.sweep_record import Entry, Job
from amc_lightning.report.table4 import System, Table4, black_box_tables


def table4(runs: Runs) -> list[Table4]:
    """Return one table for each dataset and black-box threat model that a run was measured under; maybe none.

    Only the undefended model, if nothing else was measured so, is no table.
    """
    found = black_box_tables(_entry(number, run) for number, run in enumerate(runs.every))
    return [table for table in found if any(system.stage.index > 0 for system in table.systems)]


def pictured(tables: Sequence[Table4]) -> list[Table4]:
    """Return one table of each dataset: that of the paper's interface, which answers with labels, else the first."""
    chosen = []
    for dataset in dict.fromkeys(table.dataset for table in tables):
        mine = [table for table in tables if table.dataset == dataset]
        chosen.append(next((table for table in mine if table.interface.kind == "label"), mine[0]))
    return chosen


def pictured_columns(table: Table4) -> list[Column]:
    """Return the columns of the picture: the paper's four, then ours without clean and mean."""
    papers = paper_columns()
    known = {(column.key, column.strength) for column in papers}
    ours = [
        column
        for column in table.columns
        if column.group != "clean" and column.key != "mean" and (column.key, column.strength) not in known
    ]
    return [*papers, *ours]


def pictured_rows(table: Table4) -> dict[str, list[System]]:
    """Return the rows of the picture by name: the seeds of one system together, unlike those of the table."""
    found: dict[Hashable, list[System]] = {}
    for system in table.systems:
        hardened = system.stage.index > 0
        how = (system.results.order, system.results.threat_model) if hardened else ()
        found.setdefault((system.kind, system.paper, how), []).append(system)
    rows: dict[str, list[System]] = {}
    for systems in found.values():
        if len({system.results.seed for system in systems}) < len(systems):  # more tells them apart than the seed
            rows |= {system.name: [system] for system in systems}
        else:
            name = systems[0].name
            rows[name.replace(f", seed {systems[0].results.seed}", "") if len(systems) > 1 else name] = systems
    return rows


def table4_cell(table: Table4, name: str, systems: Sequence[System], column: Column) -> Error:
    """Return one error rate of a row of the picture with the paper's number.

    Args:
        table: the table.
        name: of the row.
        systems: its models, one a seed.
        column: which rate.
    """
    rates = {system.results.seed: rate for system in systems if (rate := column.rate(system.stage)) is not None}
    return Error(name, column, table.threat_model, dict(sorted(rates.items())), table.paper(systems[0], column))


def _entry(number: int, run: Run) -> Entry:
    overrides = (f"system={run.system}", f"seed={run.seed}")
    job = Job(
        number=number,
        total=None,
        folder=str(number),
        label=" ".join(overrides),
        overrides=overrides,
        exit_status=0,
        message="",
        seed=run.seed,
        order=run.results.order,
        validate_rows=0,
    )
    return Entry(job, run.results)
