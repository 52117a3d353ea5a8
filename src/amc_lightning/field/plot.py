"""The picture: union error over norms against gradient passes, every row named beside its panel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from amc_lightning.field.entrants import FAMILIES, Entrant
from amc_lightning.field.labels import Label, spread_labels, write_labels
from amc_lightning.field.tables import has_judge, union_cell
from amc_lightning.paper.cells import Error
from amc_lightning.report.palette import footnote, new_figure, save
from amc_lightning.report.record import UNDEFENDED, Strength

FIGURE = Path("figures") / "baselines.png"
_WIDE, _HIGH, _REST = 6.92, 3.7, 1.1  # inches; 900 pixels wide
_FAR = 5.0  # times the fewest passes: from here on the axis is logarithmic
# Shape says what a row is; each family has a column, and its filling and color repeat it.
_COLORS = {"norms": "#0072B2", "attacks": "#D55E00"}
_SHAPES = {"single": "o", "several": "s", "cascade": "*"}
_SIZES = {"single": 6.5, "several": 6.5, "cascade": 14.0}
_KINDS = {"single": "AT against one attack", "several": "baseline against all attacks", "cascade": "AMC"}


@dataclass(frozen=True)
class Point:
    """One marker.

    Args:
        row: of which system.
        cell: its union error.
    """

    row: Entrant
    cell: Error

    @property
    def y(self) -> float:
        """Its error, percent."""
        assert self.cell.value is not None
        return self.cell.value

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of its bar: Wilson's interval of one seed, one standard deviation of several."""
        if self.cell.only is not None:
            return self.cell.only.low, self.cell.only.high
        spread = self.cell.spread
        sd = 0.0 if spread is None else spread.sd
        return max(0.0, self.y - sd), min(100.0, self.y + sd)


@dataclass(frozen=True)
class Line:
    """A line of panels, one for each family: one dataset at one strength."""

    title: str
    points: tuple[Point, ...]

    def of(self, family: str) -> list[Point]:
        """Return the markers of a family."""
        return [point for point in self.points if point.row.place.family == family]


def write_plot(by_dataset: Sequence[tuple[str, Sequence[Entrant]]], folder: Path) -> Path | None:
    """Draw a line of panels for each dataset and strength of which there is a union, and write them as PNG.

    Args:
        by_dataset: datasets with their rows.
        folder: of the report.

    Returns:
        Path of the picture; None where there is nothing to show.

    Raises:
        UserError: if the per-example results of a run cannot be read.
        OSError: if it cannot be written.
    """
    lines = [
        Line(f"{dataset}, {strength}", tuple(points_of(rows, strength)))
        for dataset, rows in by_dataset
        for strength in _strengths(rows)
    ]
    lines = [line for line in lines if any(line.of(family) for family in FAMILIES)]
    families = [family for family in FAMILIES if any(line.of(family) for line in lines)]
    if not lines:
        return None
    figure = new_figure(_WIDE, _HIGH * len(lines) + _REST)
    axes = figure.subplots(len(lines), len(families), squeeze=False, sharey="row")
    written = []
    for row, line in zip(axes, lines, strict=True):
        for ax, family in zip(row, families, strict=True):
            _scale(ax, line, family)
            labels = _draw(ax, line, family)
            written.append((ax, write_labels(ax, labels)))
        row[0].set_ylabel(f"{line.title}: union error (%)", fontsize=9.5)
    for ax, family in zip(axes[0], families, strict=True):
        ax.set_title(FAMILIES[family], fontsize=10)
    _explain(figure, lines, families)
    figure.draw_without_rendering()  # from here on the layout is final
    figure.set_layout_engine("none")
    for ax, notes in written:
        spread_labels(ax, notes)
    return save(figure, folder / FIGURE)


def points_of(rows: Sequence[Entrant], strength: Strength) -> list[Point]:
    """Return the markers of the rows whose union is known at a strength."""
    cells = [(row, union_cell(row, strength)) for row in rows]
    return [Point(row, cell) for row, cell in cells if cell.value is not None]


def _strengths(rows: Sequence[Entrant]) -> tuple[Strength, ...]:
    return ("check", "judge") if has_judge(rows) else ("check",)


def _draw(ax: Axes, line: Line, family: str) -> list[Label]:
    """Draw a family's markers and the undefended model; return what is to be written beside them."""
    labels, color = [], _COLORS[family]
    for point in line.of(family):
        place, (low, high) = point.row.place, point.bounds
        ax.errorbar(
            point.row.passes,
            point.y,
            yerr=[[point.y - low], [high - point.y]],
            marker=_SHAPES[place.kind],
            markersize=_SIZES[place.kind],
            color=color,
            markerfacecolor=color if family == "norms" else "white",
            markeredgewidth=1.4,
            elinewidth=0.9,
            capsize=2.5,
        )
        labels.append(Label(place.label, point.row.passes, point.y, color, place.kind == "cascade"))
    for point in line.of(""):
        ax.axhline(point.y, color="0.35", linestyle="--", linewidth=1.0, zorder=0)
        labels.append(Label(UNDEFENDED, ax.get_xlim()[1], point.y, "0.25"))
    ax.set_xlabel(f"gradient passes per image{' (log)' if ax.get_xscale() == 'log' else ''}", fontsize=9.5)
    ax.tick_params(labelsize=9)
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return labels


def _scale(ax: Axes, line: Line, family: str) -> None:
    """Set the limits of a panel; logarithmic where the rows of its family took very different passes."""
    passes = [point.row.passes for point in line.of(family)]
    least, most = min(passes, default=0.0), max(passes, default=0.0)
    if least > 0 and most / least >= _FAR:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_minor_formatter("")
        ratio = (most / least) ** 0.1
        ax.set_xlim(least / ratio, most * ratio)
    else:
        room = max(0.1 * (most - least), 0.05 * most, 1.0)
        ax.set_xlim(least - room, most + room)
        ax.locator_params(axis="x", nbins=5)
    ends = [end for point in line.points for end in point.bounds]
    room = max(2.0, 0.05 * (max(ends) - min(ends)))
    ax.set_ylim(max(-2.0, min(ends) - room), min(102.0, max(ends) + room))


def _explain(figure: Figure, lines: Sequence[Line], families: Sequence[str]) -> None:
    """Write the title, what the shapes are, and what the bars are."""
    points = [point for line in lines for family in families for point in line.of(family)]
    kinds = [kind for kind in _SHAPES if any(point.row.place.kind == kind for point in points)]
    handles = [
        Line2D(
            [], [], linestyle="none", marker=_SHAPES[kind], markersize=min(9.0, _SIZES[kind]), color="0.3",
            label=_KINDS[kind],
        )
        for kind in kinds
    ]  # fmt: skip
    below = 1 - 0.27 / figure.get_figheight()  # the title leaves a line free for it
    figure.legend(
        handles=handles, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, below), ncols=len(handles), frameon=False
    )
    figure.suptitle("Error in the union of three norms, and the passes of training after M0\n\n", fontsize=11.5)
    spread = "; of several seeds one standard deviation" if any(len(point.cell.rates) > 1 for point in points) else ""
    footnote(
        figure,
        "Lower is better, further left is cheaper; each panel has its own axis of passes. Bars: 95 % Wilson interval "
        f"over images{spread}. Dashed: undefended, M0 without further passes.",
    )
