"""The final table on the console: rows = M0 and every stage, columns = error rates with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from amc_lightning.report import wording
from amc_lightning.report.columns import Column, columns
from amc_lightning.report.record import Results, Stage


def console_table(results: Results) -> "ErrorTable":
    """Return the error table as a rich renderable, to be given to ``rich.console.Console.print``."""
    return ErrorTable(results)


@dataclass(frozen=True)
class _Cells:
    """One column of the console table: heading lines and, for each stage, the lines of its cell."""

    heading: tuple[str, str]
    cell: Callable[[Stage], tuple[str, str]]


@dataclass(frozen=True)
class ErrorTable:
    """The error table, laid out for the width of the console it is printed on.

    Where the columns do not fit side by side, they continue in further blocks with the same rows, so that nothing is
    cut off at 80 columns. Minutes and passes are added where a block has room for them; report.md always has them.

    Args:
        results: what to show.
    """

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the blocks of the table, and the notes under it."""
        results = self.results
        yield Text(wording.headline(results), style="bold")
        warnings = (wording.status_warning(results), wording.data_warning(results))
        yield from (Text(warning, style="yellow") for warning in warnings if warning)
        if not results.stages:
            yield Text(wording.summary_line(results))
            return
        padding, blocks = 1, self._blocks(console, options, 1)
        if len(blocks) > 1:
            padding, blocks = 0, self._blocks(console, options, 0)
        for block in blocks:
            yield self._table(console, block, padding)
            yield Text()
        for note in (wording.sizes, wording.strengths, wording.summaries, wording.not_shown):
            if note(results):
                yield Text(note(results), style="" if note is wording.not_shown else "dim")

    def _blocks(self, console: Console, options: ConsoleOptions, padding: int) -> list[list[_Cells]]:
        """Pack the columns into blocks no wider than the console, mean and worst kept together."""

        def fits(block: list[_Cells]) -> bool:
            table = self._table(console, block, padding)
            return Measurement.get(console, options.update(width=10_000), table).maximum <= options.max_width

        shown = columns(self.results)
        summaries = [_rate_cells(column) for column in shown if column.group == "summary"]
        groups = [[_rate_cells(column)] for column in shown if column.group != "summary"] + [summaries]
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

    def _table(self, console: Console, block: Sequence[_Cells], padding: int) -> Table:
        # Without dimmed intervals, a blank line tells the rows apart.
        leading = 0 if console.is_terminal else 1
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, padding, 0, 0), show_edge=False
        )
        table.leading = leading
        table.add_column("\nstage", no_wrap=True)
        for cells in block:
            table.add_column(_lines(cells.heading), justify="right", no_wrap=True)
        for stage in self.results.stages:
            table.add_row(stage.label, *(_lines(cells.cell(stage), "dim") for cells in block))
        return table


def _rate_cells(column: Column) -> _Cells:
    def cell(stage: Stage) -> tuple[str, str]:
        rate = column.rate(stage)
        return ("-", "") if rate is None else (wording.percent(rate.error), wording.interval(rate))

    return _Cells(column.heading, cell)


def _lines(lines: tuple[str, str], second_style: str = "") -> Text:
    return Text.assemble(lines[0], "\n", (lines[1], second_style))


_COSTS = [
    _Cells(("train", "minutes"), lambda stage: (f"{stage.minutes:.1f}", "")),
    _Cells(("passes", "per image"), lambda stage: (f"{stage.passes_per_image:,.0f}", "")),
]
