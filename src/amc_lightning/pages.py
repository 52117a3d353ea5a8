"""Which pages the runs of a sweep make: the paper's tables, or the comparison with the multi-attack baselines."""

from collections.abc import Mapping
from pathlib import Path

from amc_lightning.field.entrants import PLACES
from amc_lightning.field.report import write_field_report
from amc_lightning.paper.report import write_paper_report
from amc_lightning.paper.runs import Run, Runs
from amc_lightning.report.decisive import decisive


def write_pages(runs: Runs, folder: Path) -> dict[str, Path]:
    """Write every page that runs have rows of.

    Args:
        runs: of one sweep, or of several.
        folder: where the pages go, with their tables and pictures below.

    Returns:
        What each page is, and where it lies.

    Raises:
        UserError: if a file of a run cannot be read.
        OSError: if a file cannot be written.
    """
    systems = {run.system for run in runs.every}
    pages: dict[str, Path] = {}
    compared = any(system.startswith(("norms_", "attacks_")) for system in systems & PLACES.keys())
    if not compared or not systems <= PLACES.keys():
        pages["The paper's tables, Figure 1 and claims"] = write_paper_report(runs, folder)
    if compared:
        undefended = [run.results for run in runs.every if run.first.index == 0]

        def reasons(run: Run) -> Mapping[str, str]:
            return decisive(run.results, folder=run.folder, undefended=undefended)

        pages["AMC among the multi-attack baselines"] = write_field_report(runs, folder, reasons=reasons)
    return pages
