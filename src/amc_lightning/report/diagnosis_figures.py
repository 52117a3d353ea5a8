"""The pictures of a diagnosis: error against radius, error against steps, and the loss along the attack."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amc_lightning.report import wording
from amc_lightning.report.diagnosis_reading import Diagnosis
from amc_lightning.report.palette import RIGHT, WRONG, footnote, new_figure, save

FIGURES_FOLDER = "figures"
TITLES: Mapping[str, str] = {
    "error_by_eps": "Error against the radius of the attack",
    "error_by_steps": "Error against the steps of the attack",
    "loss": "Loss along the attack",
}
_SIZE = (7.4, 4.6)
_LETTERS = 80
"""Of a title, in a line."""
_MOST_TICKS = 9
_GREY = "0.45"
_CROWDED = 4
"""From this many times the claim's radius on, an even axis would press the curve to its left edge."""


def write_diagnosis_figures(found: Diagnosis, folder: Path) -> dict[str, str]:
    """Draw and write the curves that a diagnosis has.

    Returns:
        Titles of the pictures by their path relative to the folder.

    Raises:
        OSError: if a file cannot be written.
    """
    drawn = {"error_by_eps": draw_by_eps, "error_by_steps": draw_by_steps, "loss": draw_loss}
    written = {}
    for name, draw in drawn.items():
        figure = draw(found)
        if figure is not None:
            path = f"{FIGURES_FOLDER}/{name}.png"
            save(figure, folder / path)
            written[path] = TITLES[name]
    return written


def draw_by_eps(found: Diagnosis) -> Figure | None:
    """Draw the error rate against the radius, with its interval, chance and the claim's radius; None without points."""
    curve = found.curves.get("error_by_eps")
    if curve is None or not curve["eps"]:
        return None
    figure, ax = _new(found, "error_by_eps")
    eps = curve["eps"]
    ax.fill_between(eps, curve["low"], curve["high"], color=WRONG, alpha=0.18, linewidth=0, label="95 % interval")
    ax.plot(
        eps, curve["error"], color=WRONG, marker="o", markersize=4, linewidth=1.8, label="error rate", clip_on=False
    )
    if found.chance is not None:
        label = f"guessing, {wording.percent(found.chance)} %"
        ax.axhline(found.chance, color=_GREY, linestyle="--", linewidth=1.2, label=label)
    ax.axvline(found.eps, color=RIGHT, linestyle=":", linewidth=1.6, label=f"radius of the claim, {found.eps:.3g}")
    is_long = max(eps) > _CROWDED * found.eps
    if is_long:
        ax.set_xscale("symlog", linthresh=found.eps, linscale=1.0)
    wanted = [0.0, found.eps / 2, found.eps, 2 * found.eps, max(eps)]
    _ticks(ax, [tick for tick in wanted if tick <= max(eps)])
    ax.set_xlim(left=0)
    ax.set_xlabel(f"radius ({found.norm.replace('linf', 'l-inf')}, pixels in [0, 1])")
    _percent_axis(ax)
    _legend(ax)
    notes = ["A sound attack does no less at a larger radius, and ends at guessing or above."]
    notes += ["The axis is even up to the claim's radius, logarithmic beyond."] if is_long else []
    footnote(figure, _images(found, "error_by_eps") + " ".join(notes))
    return figure


def draw_by_steps(found: Diagnosis) -> Figure | None:
    """Draw the error rate against the number of steps, on a logarithmic axis; None without points."""
    curve = found.curves.get("error_by_steps")
    points = [] if curve is None else _points(curve, "steps", "error")
    if not points:
        return None
    figure, ax = _new(found, "error_by_steps")
    steps, error = ([point[place] for point in points] for place in (0, 1))
    ax.plot(steps, error, color=WRONG, marker="o", markersize=4, linewidth=1.8, label="error rate")
    if found.clean_error is not None:
        label = f"clean, {wording.percent(found.clean_error)} %"
        ax.axhline(found.clean_error, color=_GREY, linestyle="--", linewidth=1.2, label=label)
    ax.set_xscale("log")
    _ticks(ax, steps[:: -(-len(steps) // _MOST_TICKS)])
    ax.set_xlabel("steps")
    _percent_axis(ax)
    _legend(ax)
    note = "Where the curve still rises at its end, the attack was stopped before it was done."
    footnote(figure, _images(found, "error_by_steps") + note)
    return figure


def draw_loss(found: Diagnosis) -> Figure | None:
    """Draw the median of the loss over rows against the step, with its quartiles; None without points."""
    curve = found.curves.get("loss")
    if curve is None or not curve["steps"]:
        return None
    figure, ax = _new(found, "loss")
    ax.fill_between(
        curve["steps"], curve["low"], curve["high"], color=RIGHT, alpha=0.18, linewidth=0, label="quartiles"
    )
    marker = "o" if len(curve["steps"]) == 1 else None
    ax.plot(curve["steps"], curve["median"], color=RIGHT, linewidth=1.8, marker=marker, label="median over images")
    ax.axhline(0, color=_GREY, linestyle="--", linewidth=1.2, label="above: wrong class")
    ax.set_xlabel("step")
    ax.set_ylabel("largest other logit - true logit")
    _legend(ax)
    note = "Flat from the start: the attack gets no useful gradient. Rising at its end: it was stopped too early."
    footnote(figure, _images(found, "loss") + note)
    return figure


def _new(found: Diagnosis, name: str) -> tuple[Figure, Axes]:
    figure = new_figure(*_SIZE)
    title = f"{TITLES[name]}: {found.model}, {found.threat_model}"
    figure.suptitle(textwrap.fill(title, _LETTERS), fontsize=12)
    ax = figure.subplots()
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _percent_axis(ax: Axes) -> None:
    ax.set_ylim(-2, 102)
    ax.set_ylabel("error rate (%)")


def _legend(ax: Axes) -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.11), ncols=4, frameon=False, fontsize=8.5)


def _ticks(ax: Axes, places: Sequence[float]) -> None:
    ax.xaxis.set_major_locator(FixedLocator(list(places)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _points(curve: Mapping[str, Sequence[float]], *names: str) -> list[tuple[float, ...]]:
    """Return the points that stand on a logarithmic axis."""
    return [point for point in zip(*(curve[name] for name in names), strict=True) if point[0] > 0]


def _images(found: Diagnosis, name: str) -> str:
    n = found.images.get(name)
    return "" if n is None else f"n = {n:,} images. "
