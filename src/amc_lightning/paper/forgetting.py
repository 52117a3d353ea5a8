"""Forgetting: the error under every attack of the order by stage, with and without replay of earlier attacks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from amc_lightning.paper.claim_rows import Cell, gather
from amc_lightning.paper.paired import bootstrap
from amc_lightning.paper.points import points_text
from amc_lightning.paper.runs import Run, Runs
from amc_lightning.paper.trained import AMC_SYSTEM, NO_REPLAY
from amc_lightning.report.markdown_table import markdown_table, short_rate
from amc_lightning.report.palette import footnote, look, new_figure, save
from amc_lightning.report.record import Rate, Strength

REPLAY = AMC_SYSTEM
FIGURE = Path("figures") / "forgetting.png"
_TITLES = {REPLAY: "AMC, with replay", NO_REPLAY: "without replay"}


@dataclass(frozen=True)
class Pair:
    """The cascades with and without replay on one dataset, of the same seed and order, measured at every stage."""

    replay: Run
    no_replay: Run

    @property
    def each(self) -> tuple[Run, Run]:
        """Both of them."""
        return self.replay, self.no_replay

    @property
    def columns(self) -> dict[str, str]:
        """The attacks of the order, each with the name of the rate shown: within its radius for an unbounded one."""
        results = self.replay.results
        return {attack: f"{attack}@budget" if attack in results.budget else attack for attack in results.order}


def find_pairs(runs: Runs) -> list[Pair]:
    """Return the pairs there are, one for each dataset: the lowest seed that both were run with."""
    found = []
    for dataset in runs.datasets:
        systems = runs.of(dataset)
        without = {run.seed: run for run in systems.get(NO_REPLAY, ()) if _is_whole(run)}
        for run in systems.get(REPLAY, ()):
            other = without.get(run.seed)
            if other is not None and _is_whole(run) and run.results.order == other.results.order:
                found.append(Pair(run, other))
                break
    return found


def write_forgetting(runs: Runs, folder: Path) -> Path | None:
    """Draw the curves of all datasets, a row of two panels each.

    Args:
        runs: all runs of the report.
        folder: of the report.

    Returns:
        Path of the picture; None if no dataset has both cascades, measured at all their stages.
    """
    pairs = find_pairs(runs)
    if not pairs:
        return None
    figure = new_figure(10.0, 3.4 * len(pairs) + 1.0)
    grid = figure.subplots(len(pairs), 2, squeeze=False, sharey=True)
    for axes, pair in zip(grid, pairs, strict=True):
        for ax, run in zip(axes, pair.each, strict=True):
            _draw(ax, run, pair.columns)
            ax.set_title(f"{run.dataset}: {_TITLES[run.system]}", fontsize=11)
        axes[0].set_ylabel("error under attack (%)")
        axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.suptitle("Forgetting: what later stages do to the error under earlier attacks", fontsize=13)
    footnote(figure, "", *_notes(pairs))
    return save(figure, Path(folder) / FIGURE)


def forgetting_text(runs: Runs) -> str:
    """Return the same numbers as Markdown tables, with the change of each error since its own stage; '' if none."""
    blocks: list[str] = []
    pairs = find_pairs(runs)
    for pair in pairs:
        blocks.append(f"### {pair.replay.dataset}")
        rows = [row for run in pair.each for row in _rows(run, pair)]
        labels = [f"{stage.index}" if stage.index else "M0" for stage in pair.replay.results.stages]
        blocks.append(markdown_table(["cascade", "attack", *(f"after {x}" for x in labels), "since its stage"], rows))
    if blocks:
        blocks.append(
            " ".join(_notes(pairs)) + " since its stage: change of the error from the stage trained on the attack to "
            "the last one, points, with its paired 95 % bootstrap interval over images; above 0 is forgetting."
        )
    return "\n\n".join(blocks)


def _is_whole(run: Run) -> bool:
    stages, order = run.results.stages, run.results.order
    return len(order) > 1 and len(stages) == len(order) + 1 and len(run.results.measured) == len(stages)


def _rate(run: Run, stage: int, key: str, strength: Strength) -> Rate | None:
    return run.results.stages[stage].rates(strength).get(key)


def _draw(ax: Axes, run: Run, columns: dict[str, str]) -> None:
    stages = run.results.stages
    for place, (attack, key) in enumerate(columns.items()):
        rates = [(i, rate) for i in range(len(stages)) if (rate := _rate(run, i, key, "paper")) is not None]
        if not rates:
            continue
        style = look(attack, run.results.order)
        x = np.array([i for i, _ in rates]) + 0.06 * (place - (len(columns) - 1) / 2)  # bars beside one another
        y = np.array([rate.error for _, rate in rates])
        bars = [[rate.error - rate.low for _, rate in rates], [rate.high - rate.error for _, rate in rates]]
        ax.errorbar(
            x, y, yerr=np.maximum(bars, 0), color=style.color, marker=style.marker, markersize=5, capsize=2, label=key
        )
        own = [i for i, (stage, _) in enumerate(rates) if run.results.stages[stage].attack == attack]
        ax.plot(x[own], y[own], linestyle="", marker="o", markersize=13, mfc="none", mec=style.color)
    ax.set_xticks(range(len(stages)), [stage.label for stage in stages])
    ax.set_ylim(-2, 102)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _rows(run: Run, pair: Pair) -> Iterator[list[str]]:
    for attack, key in pair.columns.items():
        strengths: list[Strength] = ["paper", "check"]
        of = run.results.attacks.get(run.results.primary, {})
        if of.get("paper", {}).get(attack) == of.get("check", {}).get(attack):
            strengths.remove("check")
        for strength in strengths:
            name = key if len(strengths) == 1 else f"{key} ({strength})"
            cells = [short_rate(_rate(run, i, key, strength)) for i in range(len(run.results.stages))]
            yield [_TITLES[run.system], name, *cells, _change(run, attack, key, strength)]


def _change(run: Run, attack: str, key: str, strength: Strength) -> str:
    own = next((stage.index for stage in run.results.stages if stage.attack == attack), None)
    if own is None or own == run.last.index:
        return "-"
    cells = [Cell(run.system, key, strength, stage=stage) for stage in (run.last.index, own)]
    counts = gather({run.system: [run]}, cells).counts
    if counts is None:
        return "-"
    return points_text(bootstrap(100 * (counts[0] - counts[1])))


def _notes(pairs: Sequence[Pair]) -> list[str]:
    sizes = "; ".join(f"{pair.replay.dataset} seed {pair.replay.seed}, n = {_n(pair)}" for pair in pairs)
    return [
        f"White-box attacks with the paper's parameters, 95 % Wilson intervals over images ({sizes}). "
        "In the picture, a circle marks the stage that was trained on the attack.",
        "@budget: rows fooled within the attack's l1 radius, as the search itself is unbounded. Only rates at strength "
        "check may be called robust; the picture is about what was trained with.",
    ]


def _n(pair: Pair) -> str:
    rates = [_rate(pair.replay, 0, key, "paper") for key in pair.columns.values()]
    return f"{next((rate.n for rate in rates if rate is not None), 0):,}"
