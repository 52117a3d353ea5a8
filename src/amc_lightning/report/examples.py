"""The picture of perturbed examples, in the manner of the paper's Figure 1."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from amc_lightning.report.palette import RIGHT, WRONG, footnote, new_figure
from amc_lightning.report.record import Gallery, Results, Stage

ROWS = 3  # images per model: enough to see that it is no accident, few enough to be seen
_FIGURE_1 = ("fgsm", "eap", "pgm", "vap")  # the columns of the paper's Figure 1, left to right


def draw_examples(results: Results, gallery: Gallery) -> Figure | None:
    """Draw clean and perturbed images for the first and the last model, with predictions and perturbation norms.

    The same images are shown for both models; each attack is aimed at the model whose answer stands under the
    picture. Images that fool the first model under most attacks come first.

    Returns:
        The figure; None if the gallery holds no images, or none of a stage in the results.
    """
    stages = [stage for stage in results.stages if gallery.clean_predicted(stage.index) is not None]
    stages = stages[:1] + stages[-1:] if len(stages) > 1 else stages
    attacks = [name for name in _ordered(results) if any(gallery.attacked(s.index, name) for s in stages)]
    if not attacks:
        return None
    rows = choose_rows(gallery, stages[0].index, attacks, ROWS)
    if not rows:
        return None
    figure = new_figure(max(6.6, 1.55 * (len(attacks) + 1) + 1.2), len(stages) * (1.95 * len(rows) + 0.75) + 1.0)
    figure.suptitle(f"Perturbed images of {results.dataset.name} and what the model says", fontsize=13)
    footnote(
        figure,
        "",
        "\u2713 right, \u2717 wrong (thick frame). l1, l2, linf: size of the change, pixels in [0, 1].",
        f"Every attack is made {_made_on(results)} the model it is shown under, with parameters of strength 'paper'.",
        "Chosen among the kept images: those on which most attacks fool the first model.",
    )
    blocks = np.atleast_1d(np.asarray(figure.subfigures(len(stages), 1, hspace=0.03), dtype=object))
    for block, stage in zip(blocks, stages, strict=True):
        _draw_model(block, results, gallery, stage, attacks, rows)
    return figure


def choose_rows(gallery: Gallery, stage_index: int, attacks: Sequence[str], count: int) -> list[int]:
    """Return the rows to show: right when clean, fooled by most attacks, and of different classes where possible.

    Args:
        gallery: the kept images.
        stage_index: the model that should be fooled.
        attacks: the attacks that are shown.
        count: rows wanted, at most.
    """
    clean = gallery.clean_predicted(stage_index)
    right = np.zeros(len(gallery.y), dtype=int) if clean is None else (clean == gallery.y).astype(int)
    fooled = np.zeros(len(gallery.y), dtype=int)
    for attack in attacks:
        found = gallery.attacked(stage_index, attack)
        if found is not None:
            fooled += found[1] != gallery.y
    best_first = sorted(range(len(gallery.y)), key=lambda row: (-right[row], -fooled[row], row))
    chosen: list[int] = []
    for again in (False, True):
        for row in best_first:
            new_class = gallery.y[row] not in gallery.y[chosen]
            if row not in chosen and len(chosen) < count and (again or new_class):
                chosen.append(row)
    return sorted(chosen, key=lambda row: (int(gallery.y[row]), row))


def _made_on(results: Results) -> str:
    return "on the proxy P'' of" if results.is_black_box else "for"


def _ordered(results: Results) -> list[str]:
    names = results.attack_names
    return [name for name in _FIGURE_1 if name in names] + [name for name in names if name not in _FIGURE_1]


def _draw_model(
    block: SubFigure, results: Results, gallery: Gallery, stage: Stage, attacks: Sequence[str], rows: Sequence[int]
) -> None:
    block.suptitle(f"{stage.long_label[0].upper()}{stage.long_label[1:]}", fontsize=11, fontweight="bold")
    grid = block.subplots(len(rows), len(attacks) + 1, squeeze=False)
    clean = gallery.clean_predicted(stage.index)
    for i, row in enumerate(rows):
        label = int(gallery.y[row])
        axes = grid[i]
        axes[0].set_ylabel(f"true: {_class(results, label)}", fontsize=9)
        if clean is not None:
            _draw_image(axes[0], gallery.x[row], _class(results, int(clean[row])), int(clean[row]) == label, "")
        for ax, attack in zip(axes[1:], attacks, strict=True):
            found = gallery.attacked(stage.index, attack)
            if found is None:
                ax.set_axis_off()
                continue
            x_adv, predicted = found[0][row], int(found[1][row])
            norms = _norms(x_adv - gallery.x[row], with_l1=attack in results.budget)
            _draw_image(ax, x_adv, _class(results, predicted), predicted == label, norms)
    for ax, name in zip(grid[0], ["clean", *attacks], strict=True):
        ax.set_title(f"{name}\n(no limit)" if name in results.budget else name, fontsize=10)


def _draw_image(ax: Axes, image: NDArray[np.float32], answer: str, right: bool, norms: str) -> None:
    color = RIGHT if right else WRONG
    pixels = np.clip(image, 0, 1)
    if len(pixels) == 3:
        ax.imshow(np.moveaxis(pixels, 0, -1), interpolation="nearest")
    else:
        ax.imshow(pixels.mean(axis=0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(color)
        spine.set_linewidth(1.0 if right else 3.0)
    weight = "normal" if right else "bold"
    mark = "\u2713" if right else "\u2717"
    # The empty second line keeps room for the norms, which are smaller and not bold.
    label = ax.set_xlabel(f"{answer} {mark}\n", fontsize=10, color=color, fontweight=weight, labelpad=3)
    ax.annotate(norms, (0.5, 0), (0, 5), xycoords=label, textcoords="offset points", ha="center", fontsize=7.5)


def _norms(delta: NDArray[np.float32], *, with_l1: bool) -> str:
    size = np.abs(delta.astype(np.float64))
    parts = [f"l1 {size.sum():.1f}"] if with_l1 else []
    return "  ".join([*parts, f"l2 {np.sqrt((size**2).sum()):.2f}", f"linf {size.max():.2f}"])


def _class(results: Results, index: int) -> str:
    names = results.dataset.class_names
    return names[index] if 0 <= index < len(names) else str(index)
