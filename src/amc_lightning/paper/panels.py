"""Heat maps of the paper's tables: one panel a dataset, our error rates large, the paper's under them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from amc_lightning.paper.cells import Error
from amc_lightning.report.columns import Column
from amc_lightning.report.heat_map import COLORS, ink
from amc_lightning.report.palette import footnote, new_figure, save

_CELL, _ROW, _LABELS, _HEADINGS, _BELOW = 0.95, 0.66, 3.3, 0.95, 1.5  # inches


@dataclass(frozen=True)
class Panel:
    """One table as it is drawn.

    Args:
        title: over it, in front of its column headings.
        columns: the columns; between the paper's and ours is a gap.
        rows: names of the rows.
        cells: error rates, rows by columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Error, ...], ...]


def write_panels(path: Path, title: str, panels: Sequence[Panel], footnotes: Sequence[str]) -> list[Path]:
    """Draw panels below each other on a scale of 0 to 100 %, and write them as PNG.

    Args:
        path: of the picture.
        title: over all of them.
        panels: what to draw; nothing is written where there are none.
        footnotes: under all of them.

    Returns:
        The path, if there is a picture.
    """
    if not panels:
        return []
    wide = max(7.5, _LABELS + _CELL * max(len(panel.columns) for panel in panels))
    heights = [_HEADINGS + _ROW * len(panel.rows) for panel in panels]
    figure = new_figure(wide, sum(heights) + _BELOW)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        image = _draw(ax, panel)
    figure.colorbar(image, ax=list(axes), label="error rate (%), lower is better", pad=0.02, ticks=range(0, 101, 20))
    figure.suptitle(title, fontsize=13)
    footnote(figure, *footnotes)
    return [save(figure, path)]


def _draw(ax: Axes, panel: Panel) -> AxesImage:
    values = np.array([[np.nan if cell.value is None else cell.value for cell in row] for row in panel.cells])
    image = ax.imshow(np.ma.masked_invalid(values), cmap=COLORS, vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(panel.cells):
        for j, cell in enumerate(row):
            _write(ax, i, j, cell)
    columns = panel.columns
    for j in range(1, len(columns)):
        if _is_papers(columns[j]) != _is_papers(columns[j - 1]):
            ax.axvline(j - 0.5, color="white", linewidth=6)
    headings = ["\n".join(column.heading).strip().replace("<=", " \u2264 ") for column in columns]
    ax.set_xticks(range(len(columns)), headings, fontsize=9.5)
    ax.set_yticks(range(len(panel.rows)), panel.rows, fontsize=10)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_title(panel.title, fontsize=11, loc="left")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _write(ax: Axes, i: int, j: int, cell: Error) -> None:
    """Write our number, under it what is known of its spread, and last the paper's."""
    color = "black" if cell.value is None else ink(cell.value)
    under = [(line.replace("+-", "\u00b1"), 7.5, "normal") for line in cell.small]
    under += [(cell.below, 7.5, "italic")] if cell.below else []
    lines = [(cell.main, 12.0, "normal"), *under]
    high = 13.0 + 10.0 * len(under)  # points: a large line, then small ones
    place = high / 2 - 6.5
    for number, (text, size, style) in enumerate(lines):
        place -= 0.0 if number == 0 else 11.5 if number == 1 else 10.0
        ax.annotate(
            text,
            (j, i),
            (0, place),
            textcoords="offset points",
            ha="center",
            va="center",
            color=color,
            fontsize=size,
            fontstyle=style,
        )


def _is_papers(column: Column) -> bool:
    return column.group == "attack" and column.strength == "paper" and "@" not in column.key
