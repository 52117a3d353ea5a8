"""The paper's Figure 1: perturbed images that fool the undefended model, one row for each dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from amc_lightning.paper.runs import Run, Runs, undefended
from amc_lightning.report.palette import RIGHT, WRONG, footnote, new_figure, save
from amc_lightning.report.reading import read_gallery
from amc_lightning.report.record import Gallery, Results
from amc_lightning.report.wording import WHITE_BOX

ATTACKS = ("fgsm", "eap", "pgm", "vap")
"""The columns, left to right, after the unperturbed image."""
FIGURE = Path("figures") / "figure1.png"
NOTHING = "no kept image\nis fooled"
# Of each attack's parameters those that the paper's Table 1 has.
_TABLE_1 = {
    "fgsm": ("eps",),
    "eap": ("beta", "binary_search_steps", "max_iterations", "initial_const", "learning_rate"),
    "pgm": ("eps", "nb_iter"),
    "vap": ("xi", "num_iters", "eps"),
}
_INSET = 0.3  # side of the small clean picture, of that of the cell


@dataclass(frozen=True)
class Choice:
    """Which kept images a row shows.

    Args:
        row: the image that stands unperturbed in front.
        shown: by attack, the image whose perturbed copy is shown; that of ``row`` where the attack fooled the model on
            it, otherwise another one; no entry where the attack fooled it on none.
    """

    row: int
    shown: Mapping[str, int]

    @property
    def own(self) -> int:
        """By how many attacks the model was fooled on the image in front."""
        return sum(row == self.row for row in self.shown.values())


def choose(gallery: Gallery, attacks: Sequence[str] = ATTACKS) -> Choice | None:
    """Choose images that the undefended model is right about when clean and wrong about when perturbed.

    One image for the whole row, if there is one that every attack fooled the model on; else the one that most did,
    with others in its place where it was not fooled. Of equal ones the first kept.

    Args:
        gallery: the kept images.
        attacks: the columns.

    Returns:
        The images; None if M0 was fooled on no kept image.
    """
    clean = gallery.clean_predicted(0)
    if clean is None:
        return None
    fooled = {
        attack: (clean == gallery.y) & (found[1] != gallery.y)
        for attack in attacks
        if (found := gallery.attacked(0, attack)) is not None
    }
    counts = np.sum(list(fooled.values()), axis=0) if fooled else np.zeros(len(gallery.y), dtype=int)
    if not counts.any():
        return None
    best = int(np.argmax(counts))
    # An image that stands in for the first is one that many attacks fooled the model on, so that few are needed.
    order = sorted(range(len(counts)), key=lambda row: (row != best, -counts[row], row))
    shown = {attack: next(row for row in order if rows[row]) for attack, rows in fooled.items() if rows.any()}
    return Choice(best, shown)


@dataclass(frozen=True)
class _Row:
    results: Results
    gallery: Gallery
    choice: Choice


def write_figure1(runs: Runs, folder: Path) -> Path | None:
    """Draw the figure of all datasets of which a run kept images that fool M0.

    Args:
        runs: all runs of the report.
        folder: of the report.

    Returns:
        Path of the picture; None if there is nothing to show.

    Raises:
        UserError: if a gallery is damaged.
    """
    rows = [row for dataset in runs.datasets if (row := _row_of(runs.of(dataset))) is not None]
    if not rows:
        return None
    figure = new_figure(9.0, 1.95 * len(rows) + 1.0 + 0.55 * len(rows))
    grid = figure.subplots(len(rows), 1 + len(ATTACKS), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        _draw(list(axes), row)
    for ax, title in zip(grid[0], ("unperturbed", *(name.upper() for name in ATTACKS)), strict=True):
        ax.set_title(title, fontsize=11)
    figure.suptitle("Perturbed images that fool the undefended model", fontsize=13)
    footnote(figure, "", *_notes(rows))
    return save(figure, Path(folder) / FIGURE)


def _row_of(systems: Mapping[str, Sequence[Run]]) -> _Row | None:
    """Return what the best run kept: a white box before others, then the image that most attacks fooled M0 on."""
    found = []
    for run in (run for members in systems.values() for run in members):
        if undefended([run]) is None or (gallery := read_gallery(run.folder)) is None:
            continue
        if (choice := choose(gallery)) is not None:
            found.append(_Row(run.results, gallery, choice))
    return min(found, key=lambda row: (row.results.primary != WHITE_BOX, -row.choice.own), default=None)


def _draw(axes: Sequence[Axes], row: _Row) -> None:
    gallery, choice = row.gallery, row.choice
    names = row.results.dataset.class_names
    first, *others = axes
    first.set_ylabel(row.results.dataset.name, fontsize=11)
    _image(first, gallery.x[choice.row], RIGHT)
    label = _class(names, int(gallery.y[choice.row]))
    first.set_xlabel(f"{label} \u2192 {label}", fontsize=10, color=RIGHT)
    for ax, attack in zip(others, ATTACKS, strict=True):
        place, found = choice.shown.get(attack), gallery.attacked(0, attack)
        if place is None or found is None:
            _empty(ax, NOTHING if found is not None else "not kept")
            continue
        _image(ax, found[0][place], WRONG)
        answer = _class(names, int(found[1][place]))
        text = f"{_class(names, int(gallery.y[place]))} \u2192 {answer}"
        ax.set_xlabel(text, fontsize=10, color=WRONG, fontweight="bold")
        if place != choice.row:
            small = ax.inset_axes((0.0, 1 - _INSET, _INSET, _INSET))
            _image(small, gallery.x[place], RIGHT)


def _image(ax: Axes, image: NDArray[np.float32], color: str) -> None:
    pixels = np.clip(image, 0, 1)
    if len(pixels) == 3:
        ax.imshow(np.moveaxis(pixels, 0, -1), interpolation="nearest")
    else:
        ax.imshow(pixels.mean(axis=0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(color)
        spine.set_linewidth(1.5)


def _empty(ax: Axes, text: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal")
    ax.spines[:].set_color("0.8")
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=8.5, color="0.35")


def _class(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _notes(rows: Sequence[_Row]) -> list[str]:
    notes = [
        "Under each picture: true class \u2192 answer of M0, the undefended model. Only images are shown that it is "
        "right about unperturbed and wrong about perturbed."
    ]
    if any(row.choice.own < len(row.choice.shown) for row in rows):
        notes.append(
            "No kept image is fooled by every attack: where the first is not, another one stands, its unperturbed "
            "picture small in the corner."
        )
    for row in rows:
        results = row.results
        primary = results.attacks.get(results.primary, {}).get("paper", {})
        texts = [f"{attack} {_parameters(attack, primary.get(attack, {}))}".strip() for attack in ATTACKS]
        n = len(row.gallery.y)
        where = "" if results.primary == WHITE_BOX else f" ({results.primary}: made on a proxy)"
        notes.append(f"{results.dataset.name}{where}: {'; '.join(texts)}. Chosen from {n} kept images.")
    return notes


def _parameters(attack: str, parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {parameters[name]}" for name in _TABLE_1[attack] if name in parameters)
