"""One look for all figures: a colour-blind-safe palette, the same colour and marker for an attack everywhere."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from amc_lightning.results import write_whole

DOTS_PER_INCH = 130
# The palette of Okabe and Ito, which people with any common colour blindness can tell apart.
RIGHT, WRONG, CLEAN = "#0072B2", "#D55E00", "#000000"
_KNOWN = {"fgsm": ("#E69F00", "o"), "vap": ("#56B4E9", "s"), "eap": ("#009E73", "^"), "pgm": ("#D55E00", "D")}
_OTHERS = (("#CC79A7", "v"), ("#0072B2", "P"), ("#7A6A00", "X"), ("#666666", "*"))


@dataclass(frozen=True)
class Look:
    """How a curve of one attack is drawn."""

    color: str
    marker: str


def look(attack: str, attacks: Sequence[str]) -> Look:
    """Return the look of one attack: fixed for the paper's four, by position for any other.

    Args:
        attack: the attack.
        attacks: all attacks of the run, so that two of them get two colours.
    """
    if attack in _KNOWN:
        return Look(*_KNOWN[attack])
    others = [name for name in attacks if name not in _KNOWN]
    return Look(*_OTHERS[others.index(attack) % len(_OTHERS)])


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches, that draws without a screen and touches no global state."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def footnote(figure: Figure, *lines: str) -> None:
    """Put small lines under a figure, broken where they would be wider than it."""
    letters = int(figure.get_figwidth() * 14)  # of the default font at 8.5 points, about, in an inch
    figure.supxlabel("\n".join(textwrap.fill(line, letters) for line in lines), fontsize=8.5)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG in one step; return its path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
    return path
