"""The final table on the console: rows = M0 and every stage, columns = error rates with their intervals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.columns import Column, columns
from amc_lightning.report.record import Results, Stage


def console_table(results: Results) -> "ErrorTable":
    """Return the error table as a rich renderable, to be given to ``rich.console.Console.print``."""
    return ErrorTable(results)


@dataclass(frozen=True)
class _Cells:
    """One column of the console table: heading lines and, for each stage, the lines of its cell."""

    heading: tuple[str, str]
    cell: Callable[[Stage], tuple[str, ...]]


@dataclass(frozen=True)
class ErrorTable:
    """The error tables, one per threat model, laid out for the width of the console they are printed on.

    Where the columns do not fit side by side, they continue in further blocks with the same rows, so that nothing is
    cut off at 80 columns. Minutes and passes are added where a block has room for them; report.md always has them.
    Under a black-box threat model every cell also has the error of P'' itself, and a column its agreement.

    Args:
        results: what to show.
    """

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the titles, the blocks of the tables, and the notes under them."""
        results = self.results
        warnings = (wording.status_warning(results), wording.data_warning(results))
        views = [view for view in results.each() if view.measured]
        for view in views or [results]:
            yield Text(wording.headline(view), style="bold")
            if view.primary == results.primary:
                yield from (Text(warning, style="yellow") for warning in warnings if warning)
            if not view.measured:
                yield Text(wording.summary_line(view))
                return
            if view.is_black_box:
                yield Text(proxy_wording.attacker(view.interfaces[view.primary], view.measured), style="dim")
            if view.primary in view.squeezings:
                yield Text(wording.squeezed(view.squeezings[view.primary]), style="dim")
            padding, blocks = 1, _blocks(view, console, options, 1)
            if len(blocks) > 1:
                padding, blocks = 0, _blocks(view, console, options, 0)
            for block in blocks:
                yield _table(view, console, block, padding)
                yield Text()
            if outdone := proxy_wording.outdone(view) if view.is_black_box else "":
                yield Text(outdone)
                yield Text()
        notes = (wording.sizes, wording.strengths, wording.summaries, wording.other_strengths)
        said = [note(view) for note in notes for view in views]
        yield from (Text(note, style="dim") for note in dict.fromkeys(said) if note)
        yield from (Text(note) for note in dict.fromkeys(_proxy_notes(views)))
        yield Text(wording.not_shown(results))


def _blocks(results: Results, console: Console, options: ConsoleOptions, padding: int) -> list[list[_Cells]]:
    """Pack the columns into blocks no wider than the console, mean and worst kept together."""

    def fits(block: list[_Cells]) -> bool:
        table = _table(results, console, block, padding)
        return Measurement.get(console, options.update(width=10_000), table).maximum <= options.max_width

    shown = columns(results)
    cells_of = _black_box_cells if results.is_black_box else _rate_cells
    summaries = [cells_of(column) for column in shown if column.group == "summary"]
    groups = [[cells_of(column)] for column in shown if column.group != "summary"] + [summaries]
    if results.is_black_box:
        groups.append([_AGREEMENT])
    blocks: list[list[_Cells]] = [[]]
    for group in groups:
        if fits(blocks[-1] + group):
            blocks[-1] += group
            continue
        if blocks[-1]:
            blocks.append([])
        for cells in group:
            if blocks[-1] and not fits([*blocks[-1], cells]):
                blocks.append([])
            blocks[-1].append(cells)
    return [*blocks[:-1], blocks[-1] + _COSTS] if fits(blocks[-1] + _COSTS) else blocks


def _table(results: Results, console: Console, block: Sequence[_Cells], padding: int) -> Table:
    # Without dimmed intervals, a blank line tells the rows apart.
    leading = 0 if console.is_terminal else 1
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, padding, 0, 0), show_edge=False
    )
    table.leading = leading
    table.add_column("\nstage", no_wrap=True)
    for cells in block:
        table.add_column(_lines(cells.heading), justify="right", no_wrap=True)
    for stage in results.measured:
        table.add_row(stage.label, *(_lines(cells.cell(stage), "dim") for cells in block))
    return table


def _rate_cells(column: Column) -> _Cells:
    def cell(stage: Stage) -> tuple[str, ...]:
        rate = column.rate(stage)
        return ("-", "") if rate is None else (wording.percent(rate.error), wording.interval(rate))

    return _Cells(column.heading, cell)


def _black_box_cells(column: Column) -> _Cells:
    plain = _rate_cells(column)

    def cell(stage: Stage) -> tuple[str, ...]:
        rate = column.rate(stage)
        own = "" if rate is None or rate.proxy is None else f"P'' {wording.bound(rate.proxy.error)}"
        return (*plain.cell(stage), own)

    return _Cells(column.heading, cell)


def _agreement(stage: Stage) -> tuple[str, ...]:
    shown = [proxy_wording.agreement_text(proxy.agreement) for proxy in stage.evaluation.proxies.values()]
    return tuple(line for pair in shown for line in pair) or ("-",)


def _proxy_notes(views: Sequence[Results]) -> Iterator[str]:
    for view in views:
        if view.is_black_box:
            yield (
                "P'': the error of the proxy itself on the same examples. P'' agrees: "
                f"{proxy_wording.AGREEMENT}, with its interval."
            )
            yield proxy_wording.what_it_means(view)


def _lines(lines: tuple[str, ...], second_style: str = "") -> Text:
    first, *others = lines
    return Text.assemble(first, *(("\n" + line, second_style) for line in others))


_AGREEMENT = _Cells(("P''", "agrees"), _agreement)
_COSTS = [
    _Cells(("train", "minutes"), lambda stage: (f"{stage.minutes:.1f}", "")),
    _Cells(("passes", "per image"), lambda stage: (f"{stage.passes_per_image:,.0f}", "")),
]
