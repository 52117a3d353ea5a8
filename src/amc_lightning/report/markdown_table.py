"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from amc_lightning.report import wording
from amc_lightning.report.record import Rate


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def short_rate(rate: Rate | None) -> str:
    """Return an error rate with its interval on one line, "17.1 (11.8-24.2)"; a dash where there is none."""
    return "-" if rate is None else f"{wording.percent(rate.error)} ({wording.interval(rate)})"
