"""What a sweep shows on the console when it is over: one line per job, and which order validation chooses."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from amc_lightning.report import proxy_wording, sweep_wording, table4_markdown, wording
from amc_lightning.report.columns import Column
from amc_lightning.report.record import Rate
from amc_lightning.report.sweep_comparison import choices, order_rows
from amc_lightning.report.sweep_record import Entry, order_text
from amc_lightning.report.table4 import Table4, black_box_tables
from amc_lightning.report.table4_file import TABLE_4

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
        cells += [_percent(entry.rate(column)) for column in (_CLEAN, *_WORST)]
        style = "red" if job.exit_status or entry.problem else ""
        table.add_row(*(Text(cell) for cell in cells), Text(entry.status, style=style))
    primaries = dict.fromkeys(entry.results.primary for entry in entries if entry.results is not None)
    under = "" if list(primaries) in ([], [wording.WHITE_BOX]) else f" under {' or '.join(primaries)}"
    title = Text(f"Sweep: {sweep_wording.counted(entries)}. Error rates (%) of the last stage{under}", style="bold")
    best = [Text(" ".join(sweep_wording.choice_text(choice))) for choice in choices(order_rows(entries))]
    return Group(title, table, *best, *_black_box(black_box_tables(entries)))


def _black_box(tables: Sequence[Table4]) -> Iterator[RenderableType]:
    """Yield the overview of Table 4, one table for each dataset: systems by interfaces."""
    for dataset in dict.fromkeys(table.dataset for table in tables):
        mine = [table for table in tables if table.dataset == dataset]
        yield Text()
        yield Text(f"Black-box (Table 4) on {dataset}: error rates (%), strength check", style="bold")
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1, 0, 0), show_edge=False)
        shown.add_column("\nsystem", overflow="fold")
        shown.add_column("\nclean", justify="right")
        for table in mine:
            shown.add_column(f"{table4_markdown.short(table)}\n{_three('mean', 'worst', 'agrees')}", no_wrap=True)
        for systems in table4_markdown.by_system(mine):
            first = next(system for system in systems if system is not None)
            cells = [first.name, wording.percent(first.stage.evaluation.clean.error)]
            for system in systems:
                mean, worst = map(_percent, table4_markdown.summaries(system))
                agrees = "-" if system is None else proxy_wording.agreements(system.stage)
                cells.append(_three(mean, worst, agrees))
            shown.add_row(*map(Text, cells))
        yield shown
    if tables:
        yield Text(
            f"P'' agrees: {proxy_wording.AGREEMENT}. {proxy_wording.WEAK} Every attack, with intervals: {TABLE_4}."
        )


def _percent(rate: Rate | None) -> str:
    return "-" if rate is None else wording.percent(rate.error)


def _three(mean: str, worst: str, agrees: str) -> str:
    return f"{mean:>5} {worst:>5} {agrees:>6}"


def _settings(entries: Sequence[Entry]) -> dict[int, str]:
    """Return the settings in which jobs differ, by job; empty if they differ in none."""
    common = frozenset.intersection(*(entry.job.settings for entry in entries))
    if all(entry.job.settings == common for entry in entries):
        return {}
    return {
        entry.job.number: " ".join(item for item in entry.job.overrides if item in entry.job.settings - common)
        for entry in entries
    }
