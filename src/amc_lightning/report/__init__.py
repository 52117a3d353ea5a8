"""Tables, figures and the Markdown report, from the files of a run folder and nothing else."""

from pathlib import Path

from amc_lightning.report.figures import write_figures
from amc_lightning.report.markdown import write_report
from amc_lightning.report.reading import parse_results, read_results
from amc_lightning.report.record import Rate, Results, Stage
from amc_lightning.report.table import console_table
from amc_lightning.report.wording import summary_line

__all__ = [
    "Rate",
    "Results",
    "Stage",
    "console_table",
    "parse_results",
    "read_results",
    "summary_line",
    "write_all",
    "write_figures",
    "write_report",
]


def write_all(folder: Path, *, figures: bool = True) -> Path:
    """Write the figures and then the report that embeds them; return the report's path.

    Args:
        folder: the run's output folder, with results.json.
        figures: whether to draw any.

    Raises:
        UserError: if a file of the folder cannot be read.
    """
    if figures:
        write_figures(folder)
    return write_report(folder)
