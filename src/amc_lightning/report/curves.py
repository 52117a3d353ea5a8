"""The training curves of all stages on one axis: clean error, error under each attack, loss."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amc_lightning.report.palette import CLEAN, Look, footnote, look, new_figure
from amc_lightning.report.record import Epoch, Results

_PANELS = (
    ("clean error (%)", "err/clean"),
    ("error under attack (%)", "err/"),
    ("training loss (nats)", "loss"),
)


def draw_curves(results: Results, epochs: Sequence[Epoch]) -> Figure | None:
    """Draw the metrics of metrics.csv against the epoch, counted through all stages.

    Training metrics are means over the batches of an epoch, in train mode and while the weights move; validation
    metrics are of the weights at its end. So a validation error may lie below the training error.

    Returns:
        The figure; None if there are no epochs.
    """
    if not epochs:
        return None
    ends = [index + 1 for index in range(len(epochs))]
    attacks = [name for name in results.attack_names if _has(epochs, f"err/{name}")]
    attacks += sorted(_attacks_of(epochs) - set(attacks))

    figure = new_figure(10.0, 8.4 if attacks else 5.8)
    panels = [panel for panel in _PANELS if attacks or panel[1] != "err/"]
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    for ax, (label, key) in zip(axes, panels, strict=True):
        if key == "loss":
            _curve(ax, ends, epochs, "train/loss", Look(CLEAN, ""), "train, clean and\nadversarial half")
            ax.set_ylim(bottom=0)
        else:
            for name in attacks if key == "err/" else ["clean"]:
                style = Look(CLEAN, ".") if name == "clean" else look(name, attacks)
                curve = f"{name} (no limit)" if name in results.budget else name
                _curve(ax, ends, epochs, f"val/err/{name}", style, f"{curve}, validation")
                _curve(ax, ends, epochs, f"train/err/{name}", style, f"{curve}, train", dashed=True)
            ax.set_ylim(bottom=0) if key == "err/clean" else ax.set_ylim(-2, 102)
        ax.set_ylabel(label)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)
    _mark_stages(axes, epochs)
    axes[-1].set_xlabel("epoch, counted through all stages")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlim(0.5, len(epochs) + 0.5)
    footnote(
        figure,
        "train: mean over the batches of an epoch, while the weights move (clean half: as augmented).",
        "validation: weights at the end of the epoch; attacks on a fixed part of the validation split.",
    )
    figure.suptitle(f"Training, stage by stage: {results.defence} on {results.dataset.name}", fontsize=13)
    return figure


def _curve(
    ax: Axes, ends: Sequence[int], epochs: Sequence[Epoch], metric: str, style: Look, label: str, dashed: bool = False
) -> None:
    points = [(end, epoch) for end, epoch in zip(ends, epochs, strict=True) if metric in epoch.values]
    for stage in dict.fromkeys(epoch.stage for _, epoch in points):  # a line per stage: no stroke across a boundary
        part = [(end, epoch.values[metric]) for end, epoch in points if epoch.stage == stage]
        first = stage == points[0][1].stage
        ax.plot(
            [end for end, _ in part],
            [value for _, value in part],
            color=style.color,
            marker=None if dashed and len(part) > 1 else style.marker,
            markersize=4,
            markevery=max(1, len(part) // 8),
            linestyle="--" if dashed else "-",
            linewidth=1.2 if dashed else 1.8,
            label=label if first else None,
        )


def _mark_stages(axes: Sequence[Axes], epochs: Sequence[Epoch]) -> None:
    stages = dict.fromkeys((epoch.stage, epoch.name) for epoch in epochs)
    for stage, name in stages:
        places = [index + 1 for index, epoch in enumerate(epochs) if epoch.stage == stage]
        text = "M0" if name == "undefended" else f"{stage} {name}"
        axes[0].annotate(
            text,
            (sum(places) / len(places), 1.0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        if places[0] > 1:
            for ax in axes:
                ax.axvline(places[0] - 0.5, color="0.55", linestyle=":", linewidth=1)


def _has(epochs: Sequence[Epoch], tail: str) -> bool:
    return any(f"{split}/{tail}" in epoch.values for epoch in epochs for split in ("train", "val"))


def _attacks_of(epochs: Sequence[Epoch]) -> set[str]:
    heads = ("train/err/", "val/err/")
    found = {key.split("/", 2)[2] for epoch in epochs for key in epoch.values if key.startswith(heads)}
    return found - {"clean", "mean"}
