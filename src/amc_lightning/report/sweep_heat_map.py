"""The heat map of a sweep: orders by attacks, error rates of the last stage averaged over seeds."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from amc_lightning.report import wording
from amc_lightning.report.columns import Column
from amc_lightning.report.heat_map import COLORS, ink
from amc_lightning.report.palette import DOTS_PER_INCH
from amc_lightning.report.sweep_comparison import Choice, block_of
from amc_lightning.report.sweep_record import OrderRow
from amc_lightning.results import write_whole

# Pixels. Drawn by hand, as it is drawn anew after every job: matplotlib takes a second for 24 orders, this a twentieth.
_CELL, _ROW, _GAP, _MARGIN, _BAR, _LEAST_BAR = 100, 36, 10, 22, 20, 240
_TITLE, _TEXT, _SMALL = 12.0, 9.0, 8.0
_LINE = 1.35  # from line to line, in sizes of the letters


@dataclass(frozen=True)
class OrderMap:
    """What is drawn: the text and colour of every cell, and all words around it.

    Args:
        labels: one per row.
        headings: one per column, of one or two lines.
        values: error rates in percent, rows by columns; NaN where not measured.
        row_breaks: rows above which orders of another block begin.
        column_breaks: columns left of which another kind of number begins.
        best: rows that validation chooses.
        title: over the picture.
        footnotes: under it.
    """

    labels: tuple[str, ...]
    headings: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    row_breaks: tuple[int, ...]
    column_breaks: tuple[int, ...]
    best: tuple[int, ...]
    title: str
    footnotes: tuple[str, ...]


def order_map(rows: Sequence[OrderRow], columns: Sequence[Column], choices: Sequence[Choice]) -> OrderMap | None:
    """Return what the heat map shows; None if no job has been measured.

    The first column is the validation error that orders are chosen by; means over attacks are left out, as the cells
    beside them say more.
    """
    shown = [column for column in columns if column.key != "mean"]
    if not rows or not shown:
        return None
    values = []
    for row in rows:
        means = [np.mean(row.errors(column)) if row.errors(column) else np.nan for column in shown]
        validation = row.validation()
        values.append((np.nan if validation is None else validation, *map(float, means)))
    groups = ["validation", *(column.group for column in shown)]
    chosen = [choice.ranked[0][0] for choice in choices]
    headings = ["\n".join(column.heading).strip().replace("<=", " \u2264 ") for column in shown]
    return OrderMap(
        labels=tuple(row.name for row in rows),
        headings=("validation\nmean", *headings),
        values=tuple(values),
        row_breaks=tuple(i for i in range(1, len(rows)) if block_of(rows[i]) != block_of(rows[i - 1])),
        column_breaks=tuple(j for j in range(1, len(groups)) if groups[j] != groups[j - 1]),
        best=tuple(i for i, row in enumerate(rows) if row in chosen),
        title=_title(rows),
        footnotes=_footnotes(rows, choices),
    )


def draw_orders(shown: OrderMap) -> Image.Image:
    """Draw the heat map on a scale of 0 to 100 %."""
    labels = max(_width(label, _TEXT, bold=True) for label in shown.labels)
    left = _MARGIN + labels + 14
    top = _MARGIN + _height(1, _TITLE) + 26 + _height(2, _TEXT) + 8
    columns = _starts(len(shown.headings), _CELL, shown.column_breaks)
    rows = _starts(len(shown.labels), _ROW, shown.row_breaks)
    wide, high = columns[-1] + _CELL, rows[-1] + _ROW
    bar_left, bar_high = left + wide + 30, max(high, _LEAST_BAR)
    texts = [_width(shown.title, _TITLE), *(_width(line, _SMALL) for line in shown.footnotes)]
    size = max(bar_left + _BAR + 90, max(texts) + 2 * _MARGIN)
    below = top + bar_high + 24
    image = Image.new("RGB", (size, below + _height(len(shown.footnotes), _SMALL) + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), shown.title, "black", _font(_TITLE))
    for x, heading in zip(columns, shown.headings, strict=True):
        lines = heading.split("\n")
        for line, y in enumerate(range(len(lines), 0, -1)):
            place = (left + x + _CELL / 2, top - 8 - _height(y - 1, _TEXT))
            draw.text(place, lines[line], "black", _font(_TEXT), anchor="md")
    for i, (y, label) in enumerate(zip(rows, shown.labels, strict=True)):
        middle = top + y + _ROW / 2
        draw.text((left - 14, middle), label, "black", _font(_TEXT, bold=i in shown.best), anchor="rm")
        for x, value in zip(columns, shown.values[i], strict=True):
            _draw_cell(draw, left + x, top + y, value)
    for i in shown.best:
        draw.rectangle((left - 3, top + rows[i] - 2, left + wide + 2, top + rows[i] + _ROW + 1), None, "black", 3)
    _draw_scale(image, draw, bar_left, top, bar_high)
    for line, footnote in enumerate(shown.footnotes):
        draw.text((_MARGIN, below + _height(line, _SMALL)), footnote, "black", _font(_SMALL))
    return image


def save_orders(image: Image.Image, path: Path) -> Path:
    """Write a heat map as PNG in one step; return its path."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    write_whole(path, buffer.getvalue())
    return path


def _draw_cell(draw: ImageDraw.ImageDraw, x: int, y: int, value: float) -> None:
    measured = not math.isnan(value)
    if measured:
        draw.rectangle((x, y, x + _CELL - 1, y + _ROW - 1), _color(value))
    text, color = (wording.percent(value), ink(value)) if measured else ("-", "black")
    draw.text((x + _CELL / 2, y + _ROW / 2), text, color, _font(_TEXT), anchor="mm")


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, high: int) -> None:
    """Draw the bar that says which colour is which error rate."""
    strip = np.repeat(COLORS(np.linspace(1, 0, high), bytes=True)[:, None, :3], _BAR, axis=1)
    image.paste(Image.fromarray(strip), (left, top))
    draw.rectangle((left - 1, top - 1, left + _BAR, top + high), outline="black")
    for tick in range(0, 101, 20):
        y = top + (high - 1) * (1 - tick / 100)
        draw.line((left + _BAR, y, left + _BAR + 5, y), "black")
        draw.text((left + _BAR + 9, y), str(tick), "black", _font(_SMALL), anchor="lm")
    words = "error rate (%), lower is better"
    upright = Image.new("RGB", (_width(words, _SMALL), _height(1, _SMALL)), "white")
    ImageDraw.Draw(upright).text((0, 0), words, "black", _font(_SMALL))
    turned = upright.rotate(90, expand=True)
    image.paste(turned, (left + _BAR + 48, top + (high - turned.height) // 2))


def _starts(count: int, size: int, breaks: Sequence[int]) -> list[int]:
    """Return where each of several cells begins, with a gap before those in ``breaks``.

    Example:
        >>> _starts(3, 100, [2])
        [0, 100, 210]
    """
    return list(accumulate((size + (_GAP if i in breaks else 0) for i in range(1, count)), initial=0))


@cache
def _font(points: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib's figures."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), points * DOTS_PER_INCH / 72)


def _width(text: str, points: float, *, bold: bool = False) -> int:
    return math.ceil(_font(points, bold=bold).getlength(text))


def _height(lines: int, points: float) -> int:
    return math.ceil(lines * points * _LINE * DOTS_PER_INCH / 72)


def _color(error: float) -> tuple[int, int, int]:
    red, green, blue, _ = COLORS(error / 100, bytes=True)
    return int(red), int(green), int(blue)


def _title(rows: Sequence[OrderRow]) -> str:
    runs = [entry.results for row in rows for entry in row.by_seed.values() if entry.results is not None]
    what = " or ".join(dict.fromkeys(f"{run.defence} on {run.dataset.name}{wording.under(run)}" for run in runs))
    return f"Error rates after the last stage, by order of attacks: {what}"


def _footnotes(rows: Sequence[OrderRow], choices: Sequence[Choice]) -> tuple[str, ...]:
    found = [entry.last for row in rows for entry in row.by_seed.values()]
    last = [stage.evaluation for stage in found if stage is not None]
    clean = _numbers(evaluation.clean.n for evaluation in last)
    attack = _numbers(rate.n for evaluation in last for rate in evaluation.check.values())
    attacked = _numbers(choice.rows for choice in choices) if choices else "0"
    counts = [len(row.seeds) for row in rows]
    seeds = f"{min(counts)} to {max(counts)} seeds" if len(set(counts)) > 1 else f"{counts[0]} seed"
    if counts[0] > 1 and len(set(counts)) == 1:
        seeds += "s"
    frame = " The frame is round the order that validation chooses." if choices else ""
    return (
        f"validation mean: clean and attacked, n = {attacked} attacked. clean: test split, n = {clean}.",
        f"Attacks and worst: attack split, n = {attack}. Each cell: mean of {seeds}.{frame}",
    )


def _numbers(values: Iterable[int]) -> str:
    return " or ".join(str(value) for value in sorted(set(values))) or "0"
