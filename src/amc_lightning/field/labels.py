"""Names of markers in a column beside the axes, in the order of the markers, each with a thin line to its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.text import Annotation

_COLUMN = 1.05  # where names begin, in widths of the axes
_LINE = 13.0  # points from name to name, at least
_FONT = 9.0


@dataclass(frozen=True)
class Label:
    """A name and the marker that it belongs to.

    Args:
        text: the name.
        x: of the marker, in the units of the axes.
        y: of the marker, in the units of the axes.
        color: of the text.
        is_bold: whether it stands out.
    """

    text: str
    x: float
    y: float
    color: str
    is_bold: bool = False


def write_labels(ax: Axes, labels: Sequence[Label]) -> list[Annotation]:
    """Write the names beside the axes, each at the height of its marker, so that a layout leaves room for them."""
    bottom, top = ax.get_ylim()
    return [
        ax.annotate(
            label.text,
            (label.x, label.y),
            (_COLUMN, (label.y - bottom) / (top - bottom)),
            textcoords="axes fraction",
            ha="left",
            va="center",
            fontsize=_FONT,
            color=label.color,
            fontweight="bold" if label.is_bold else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": "0.65", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5),
            },
        )
        for label in labels
    ]  # fmt: skip


def spread_labels(ax: Axes, written: Sequence[Annotation]) -> None:
    """Move names apart that would cover each other; the layout of the figure has to be final."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    points = ax.get_window_extent().height * 72 / figure.dpi
    gap = min(_LINE / points, 1 / max(1, len(written)))
    wanted = [note.get_position()[1] for note in written]
    for note, y in zip(written, spread(wanted, gap, 0.0, 1.0), strict=True):
        note.set_position((_COLUMN, y))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the places nearest to the wanted ones that keep their order and a gap, within bounds where they fit.

    Places that are too near to each other become a block around the mean of what they want.

    Args:
        wanted: any numbers.
        gap: from one place to the next, at least, > 0.
        low: least place.
        high: largest place.

    Returns:
        The places, in the order of ``wanted``.

    Example:
        >>> spread([5.0, 5.0, 1.0], 2.0, 0.0, 10.0)
        [4.0, 6.0, 1.0]
        >>> spread([9.5, 9.5], 2.0, 0.0, 10.0)
        [8.0, 10.0]
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    blocks: list[list[int]] = []
    for place in order:
        blocks.append([place])
        while len(blocks) > 1 and _start(blocks[-1], wanted, gap, low, high) < (
            _start(blocks[-2], wanted, gap, low, high) + gap * len(blocks[-2]) - 1e-12
        ):
            last = blocks.pop()
            blocks[-1] += last
    found = [0.0] * len(wanted)
    for block in blocks:
        start = _start(block, wanted, gap, low, high)
        for number, place in enumerate(block):
            found[place] = start + gap * number
    return found


def _start(block: Sequence[int], wanted: Sequence[float], gap: float, low: float, high: float) -> float:
    """Return where the first of a block stands."""
    long = gap * (len(block) - 1)
    middle = sum(wanted[place] for place in block) / len(block)
    return max(low, min(high - long, middle - long / 2))
