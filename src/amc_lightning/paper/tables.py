"""All tables of the paper and their pictures, from the runs of a report."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from amc_lightning.paper import ablations, black_box, table2, table3, table4_summary, table5, table6
from amc_lightning.paper.document import write_document
from amc_lightning.paper.measures import budget_columns, check_columns, measured, paper_columns, summary_columns
from amc_lightning.paper.panels import Panel, write_panels
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.trained import NAMES
from amc_lightning.report.proxy_wording import WEAK
from amc_lightning.report.table4 import Table4
from amc_lightning.report.table4_file import write_table4

TABLES, FIGURES = "tables", "figures"
_UNDER = "Large: error rate; under it its 95 % interval, or \u00b1 its standard deviation over seeds."
_PAPER = "paper: the number in the paper, from its own training."


def write_tables(runs: Runs, folder: Path) -> list[Path]:
    """Write Tables 2 to 6 and the variations of AMC below ``tables``, the pictures of two below ``figures``.

    A table without a row of its own is left out. The same runs give the same bytes.

    Args:
        runs: what there is.
        folder: of the report.

    Returns:
        Paths of the files, in the order of the tables.

    Raises:
        UserError: if the per-example results of a run cannot be read.
        OSError: if a file cannot be written.
    """
    place = folder / TABLES
    black = black_box.table4(runs)
    return [
        *write_document(place, "table2", table2.TITLE, table2.table2(runs)),
        *write_document(place, "table3", table3.TITLE, table3.table3(runs)),
        *_picture3(runs, folder / FIGURES / "table3.png"),
        *write_table4(folder, black),
        *write_document(place, "table4_summary", table4_summary.TITLE, table4_summary.table4_summary(runs, black)),
        *_picture4(black_box.pictured(black), folder / FIGURES / "table4.png"),
        *write_document(place, "table5", table5.TITLE, table5.table5(runs)),
        *write_document(place, "table6", table6.TITLE, table6.table6(runs)),
        *write_document(place, "ablations", ablations.TITLE, ablations.ablations(runs)),
    ]


def _picture3(runs: Runs, path: Path) -> list[Path]:
    panels, limits = [], list[int | None]()
    for dataset in runs.datasets:
        rows = table3.table3_models(runs.of(dataset))
        if not rows:
            continue
        every = [model for found in rows.values() for model in found]
        limits += [model.run.results.dataset.limit for model in every]
        worst = [column for column in summary_columns(every) if (column.key, column.strength) == ("worst", "check")]
        ours = [*budget_columns(every), *check_columns(every), *worst]
        columns = measured([*paper_columns(), *ours], every)
        cells = tuple(
            tuple(table3.table3_cell(dataset, system, found, column) for column in columns)
            for system, found in rows.items()
        )
        panels.append(Panel(dataset, tuple(columns), tuple(NAMES[system] for system in rows), cells))
    return write_panels(path, "Error rates (%) under white-box attacks (Table 3)", panels, _footnotes(panels, limits))


def _picture4(tables: Sequence[Table4], path: Path) -> list[Path]:
    panels, limits = [], list[int | None]()
    for table in tables:
        limits += [system.results.dataset.limit for system in table.systems]
        columns, rows = tuple(black_box.pictured_columns(table)), black_box.pictured_rows(table)
        cells = tuple(
            tuple(black_box.table4_cell(table, name, systems, column) for column in columns)
            for name, systems in rows.items()
        )
        panels.append(Panel(f"{table.dataset}: {table.heading}", columns, tuple(rows), cells))
    return write_panels(
        path, "Error rates (%) under black-box attacks (Table 4)", panels, [*_footnotes(panels, limits), WEAK]
    )


def _footnotes(panels: Sequence[Panel], limits: Iterable[int | None]) -> list[str]:
    errors = [cell for panel in panels for row in panel.cells for cell in row]
    has_paper = any(cell.paper is not None for cell in errors)
    sizes = sorted({rate.n for cell in errors for rate in cell.rates.values()})
    lines = [f"Attack split, n = {' or '.join(map(str, sizes))}. {_UNDER}{f' {_PAPER}' if has_paper else ''}"]
    capped = sorted({limit for limit in limits if limit is not None})
    if has_paper and capped:
        most = " or ".join(f"{limit:,}" for limit in capped)
        lines.append(f"Trained on at most {most} images, the paper on all: the numbers are not comparable.")
    if any(cell.column.strength == "check" for cell in errors):
        lines.append("F, E, P, V: strength paper. Only check may be called robust, and against these attacks only.")
    return lines
