"""What a sweep shows on the console when it is over: one line per job, and which order validation chooses."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from amc_lightning.report import sweep_wording, wording
from amc_lightning.report.columns import Column
from amc_lightning.report.sweep_comparison import choices, order_rows
from amc_lightning.report.sweep_record import Entry, order_text

_CLEAN = Column("clean", "clean", "paper", ("clean", ""))
_WORST = [Column("summary", "worst", strength, ("worst", strength)) for strength in ("paper", "check")]


def sweep_table(entries: Sequence[Entry]) -> Group:
    """Return the closing table of a sweep as a rich renderable.

    Args:
        entries: every job that has ended, by number.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("job", justify="right")
    table.add_column("order", overflow="fold")
    table.add_column("seed", justify="right")
    labels = _settings(entries)
    if labels:
        table.add_column("settings", overflow="fold")
    for heading in ("validation\nmean", "clean", "worst\npaper", "worst\ncheck"):
        table.add_column(heading, justify="right")
    table.add_column("status")
    for entry in entries:
        job = entry.job
        cells = [str(job.number), order_text(job.order), str(job.seed), *([labels[job.number]] if labels else [])]
        cells.append("-" if entry.validation is None else wording.percent(entry.validation))
        for column in (_CLEAN, *_WORST):
            rate = entry.rate(column)
            cells.append("-" if rate is None else wording.percent(rate.error))
        style = "red" if job.exit_status or entry.problem else ""
        table.add_row(*(Text(cell) for cell in cells), Text(entry.status, style=style))
    title = Text(f"Sweep: {sweep_wording.counted(entries)}. Error rates (%) of the last stage", style="bold")
    best = [Text(" ".join(sweep_wording.choice_text(choice))) for choice in choices(order_rows(entries))]
    return Group(title, table, *best)


def _settings(entries: Sequence[Entry]) -> dict[int, str]:
    """Return the settings in which jobs differ, by job; empty if they differ in none."""
    common = frozenset.intersection(*(entry.job.settings for entry in entries))
    if all(entry.job.settings == common for entry in entries):
        return {}
    return {
        entry.job.number: " ".join(item for item in entry.job.overrides if item in entry.job.settings - common)
        for entry in entries
    }
