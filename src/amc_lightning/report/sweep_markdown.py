"""summary.md: every job of a sweep, the spread over seeds, the order that validation chooses, and what failed."""

from collections.abc import Iterator, Sequence

from amc_lightning.report import sweep_wording, wording
from amc_lightning.report.columns import Column
from amc_lightning.report.markdown_table import markdown_table
from amc_lightning.report.sweep_comparison import Choice, has_several_orders, spread
from amc_lightning.report.sweep_record import Entry, OrderRow, order_text


def sweep_text(
    entries: Sequence[Entry],
    columns: Sequence[Column],
    rows: Sequence[OrderRow],
    choices: Sequence[Choice],
    figure: str | None,
    black_box: Sequence[str] = (),
) -> str:
    """Return the summary as Markdown.

    Args:
        entries: every job that has ended.
        columns: the error rates to show.
        rows: the measured jobs by order.
        choices: the comparisons of orders.
        figure: path of the heat map, relative to the summary; None where there is none.
        black_box: the blocks of the section on black-box attacks; empty where there were none.
    """
    blocks = [f"# Sweep {_name(entries)}".rstrip(), f"{sweep_wording.counted(entries)}."]
    failed = [entry for entry in entries if entry.job.exit_status or entry.problem]
    if failed:
        lines = [f"- **{entry.job.title}**: {entry.job.message or entry.problem}" for entry in failed]
        blocks += ["## Failed", "\n".join(lines), sweep_wording.WHAT_TO_DO]
    if has_several_orders(rows):
        blocks += ["## Best order", *_best(rows, choices)]
    blocks += black_box
    if figure is not None:
        blocks.append(f"![Heat map of the last stage's error rates by order and attack]({figure})")
    blocks += ["## Jobs: error rates of the last stage (%), lower is better", _jobs(entries, columns)]
    if rows:
        blocks += [_notes(entries), "## Spread over seeds", *_spread(rows, columns)]
    return "\n\n".join(blocks) + "\n"


def _name(entries: Sequence[Entry]) -> str:
    runs = [entry.results for entry in entries if entry.results is not None]
    return " and ".join(dict.fromkeys(run.experiment for run in runs))


def _best(rows: Sequence[OrderRow], choices: Sequence[Choice]) -> Iterator[str]:
    if not choices:
        yield sweep_wording.nothing_to_choose(rows)
        return
    for choice in choices:
        best = choice.ranked[0][0]
        first, *rest = sweep_wording.choice_text(choice)
        yield " ".join([first.replace(order_text(best.order), f"**{order_text(best.order)}**", 1), *rest])
    yield sweep_wording.choosing()


def _jobs(entries: Sequence[Entry], columns: Sequence[Column]) -> str:
    head = ["job", "overrides", "order", "seed", "status", "validation mean", *(column.title for column in columns)]
    lines = []
    for entry in entries:
        job = entry.job
        shown = ["-" if entry.validation is None else wording.percent(entry.validation)]
        shown += [_cell(entry, column) for column in columns]
        lines.append(
            [
                f"[{job.number}]({job.folder})",
                f"`{job.label}`",
                order_text(job.order),
                str(job.seed),
                entry.status,
                *shown,
            ]
        )
    return markdown_table(head, lines)


def _cell(entry: Entry, column: Column) -> str:
    rate = entry.rate(column)
    if rate is None:
        return "-"
    return wording.percent(rate.error) + (f" ({wording.interval(rate)})" if column.key == "worst" else "")


def _notes(entries: Sequence[Entry]) -> str:
    notes = [
        "validation mean: of clean and attacked validation images; orders are chosen by it. In brackets: the 95 % "
        "interval (Wilson).",
        *sweep_wording.notes(entries),
        "Where two intervals overlap, this table does not show that the rates differ.",
    ]
    return "\n".join(f"- {note}" for note in notes)


def _spread(rows: Sequence[OrderRow], columns: Sequence[Column]) -> Iterator[str]:
    shown = [column for column in columns if column.group != "attack"]
    lines = []
    for row in rows:
        spreads = [spread(row.errors(column)) for column in shown]
        if any(found is not None for found in spreads):
            cells = (
                "-"
                if found is None
                else f"{wording.percent(found.mean)} +- {found.sd:.1f}<br>"
                f"{wording.percent(found.least)}-{wording.percent(found.most)}"
                for found in spreads
            )
            lines.append([row.name, ", ".join(map(str, row.seeds)), *cells])
    if not lines:
        yield f"No order has been measured with two seeds or more. {sweep_wording.seeds_warning(1)}"
        return
    said = "In each cell: mean +- standard deviation (of the sample), then least and most, over the seeds named."
    yield f"{said} {sweep_wording.attacker_seed(rows)}".rstrip()
    fewest = min(len(row.seeds) for row in rows if len(row.seeds) > 1)
    if warning := sweep_wording.seeds_warning(fewest):
        yield f"**{warning}**"
    yield markdown_table(["order", "seeds", *(column.title for column in shown)], lines)
