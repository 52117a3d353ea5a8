"""A cascade against a baseline on the same images: difference, interval, exact test, verdict, and what both cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amc_lightning.field.entrants import Entrant, passes_after
from amc_lightning.field.union import Member, union
from amc_lightning.paper.cells import CLEAN
from amc_lightning.paper.claim_finding import Side, Verdict
from amc_lightning.paper.claim_reckoning import FEW
from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.paired import LEVEL, RESAMPLES, Interval, percentiles, resampled_means, sign_test
from amc_lightning.paper.trained import Model, same_rows
from amc_lightning.report.record import Strength

TOLERANCE = 0.12
"""Two systems are at equal cost if their passes differ by no more than this share of the cascade's.

Epochs are whole: one of MAX over three attacks takes 8/9 of the passes of a cascade's three stages of one epoch.
"""
LOWER = Side(above=False)
"""The claim of every contrast: the cascade's error less the baseline's is below 0."""


@dataclass(frozen=True)
class Contrast:
    """A cascade and a baseline in one error rate.

    Args:
        cascade: the one.
        rival: the other.
        quantity: "union" over norms, or "clean" error on the test split.
        strength: of the attacks; of no meaning for clean.
        cost: passes of the rival after M0 over those of the cascade, of the common seeds; None where these have none.
        missing: why there is no comparison; all that follows is of no meaning then.
        seeds: that it is over.
        n: images.
        ours: error of the cascade, percent, averaged over these seeds.
        theirs: error of the rival.
        steps: for every image, with how many seeds more the cascade gets it wrong than the rival, (N,); whole numbers,
            so that their sums are the same on any machine.
        means: of the difference in points over resampled images, (resamples,).
        same_start: whether both were hardened from the same M0.
    """

    cascade: Entrant
    rival: Entrant
    quantity: str
    strength: Strength
    cost: float | None
    missing: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    n: int = 0
    ours: float = 0.0
    theirs: float = 0.0
    steps: NDArray[np.float64] | None = None
    means: NDArray[np.float64] | None = None
    same_start: bool = True

    @property
    def is_measured(self) -> bool:
        """Whether there is a comparison."""
        return self.steps is not None

    @property
    def is_equal_cost(self) -> bool:
        """Whether the passes of both are about the same."""
        return self.cost is not None and abs(self.cost - 1) <= TOLERANCE + 1e-9

    @property
    def is_fair(self) -> bool:
        """Whether it answers the question: measured, at equal cost, from the same M0, and neither is guessing."""
        guessing = self.cascade.is_guessing or self.rival.is_guessing
        return self.is_measured and self.is_equal_cost and self.same_start and not guessing

    @property
    def only_ours(self) -> int:
        """Images that the cascade gets wrong with more seeds than the rival."""
        return 0 if self.steps is None else int((self.steps > 0).sum())

    @property
    def only_theirs(self) -> int:
        """Images that the rival gets wrong with more seeds than the cascade."""
        return 0 if self.steps is None else int((self.steps < 0).sum())

    @property
    def p(self) -> float:
        """The exact two-sided sign test of the images that differ: with one seed McNemar's."""
        return 1.0 if self.steps is None else sign_test(self.steps)

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the cascade's error less the rival's, points, with its bootstrap interval over images."""
        assert self.steps is not None
        assert self.means is not None
        return percentiles(100 / len(self.seeds) * float(self.steps.mean()), self.means, level=level)

    def verdict(self, level: float = LEVEL) -> Verdict:
        """Return whether the cascade has the lower error.

        An exact test has to agree with the interval where few images differ, or all of them by one step.
        """
        if self.steps is None:
            return "not measured"
        found, steps = LOWER.verdict(self.interval(level)), np.abs(self.steps[self.steps != 0])
        needs_test = len(steps) < FEW or steps.min() == steps.max()
        if found == "within noise" or not needs_test:
            return found
        is_above = self.only_ours > self.only_theirs
        agrees = self.p < 1 - level and is_above == (self.steps.mean() > 0)
        return found if agrees else "within noise"


def contrasts(
    cascade: Entrant,
    rivals: Sequence[Entrant],
    quantity: str,
    strength: Strength = "check",
    *,
    resamples: int = RESAMPLES,
) -> list[Contrast]:
    """Compare a cascade with every rival over the seeds that the two have in common, on the same images.

    Args:
        cascade: the one.
        rivals: the others.
        quantity: "union" or "clean".
        strength: "check" or "judge", for the union.
        resamples: of the bootstrap.

    Raises:
        UserError: if the per-example results of a run cannot be read.
    """
    found = [_contrast(cascade, rival, quantity, strength) for rival in rivals]
    return [one if one.steps is None else replace(one, means=_means(one, resamples)) for one in found]


def _means(found: Contrast, resamples: int) -> NDArray[np.float64]:
    assert found.steps is not None
    means: NDArray[np.float64] = resampled_means(found.steps[None], resamples=resamples)[:, 0]
    return 100 / len(found.seeds) * means


@dataclass(frozen=True)
class _Rows:
    """Which images a model gets wrong, and under which attacks; or why that is not known."""

    wrong: Wrong | None
    members: tuple[Member, ...] = ()
    missing: tuple[str, ...] = ()


def _contrast(cascade: Entrant, rival: Entrant, quantity: str, strength: Strength) -> Contrast:
    ours, theirs = ({model.seed: model for model in one.models} for one in (cascade, rival))
    seeds = tuple(seed for seed in ours if seed in theirs)
    empty = Contrast(cascade, rival, quantity, strength, None)
    if not seeds:
        return replace(empty, missing=("a seed that both were run with",))
    both = [(ours[seed], theirs[seed]) for seed in seeds]
    own = passes_after([one for one, _ in both])
    cost = passes_after([other for _, other in both]) / own if own else None
    pairs = [(_rows(one, quantity, strength), _rows(other, quantity, strength)) for one, other in both]
    if missing := _missing(both, pairs, "test" if quantity == "clean" else "attack", (cascade, rival)):
        return replace(empty, cost=cost, missing=missing, seeds=seeds)
    counts = [_count([pair[side].wrong for pair in pairs]) for side in (0, 1)]
    share = 100 / len(seeds)
    return Contrast(
        cascade,
        rival,
        quantity,
        strength,
        cost,
        seeds=seeds,
        n=len(counts[0]),
        ours=share * float(counts[0].mean()),
        theirs=share * float(counts[1].mean()),
        steps=counts[0] - counts[1],
        same_start=all(one.run.first.key == other.run.first.key for one, other in both),
    )


def _count(rows: Sequence[Wrong | None]) -> NDArray[np.float64]:
    """Return with how many seeds each image is wrong."""
    found: NDArray[np.float64] = np.array([one for one in rows if one is not None], dtype=np.float64).sum(axis=0)
    return found


def _missing(
    both: Sequence[tuple[Model, Model]],
    pairs: Sequence[tuple[_Rows, _Rows]],
    split: str,
    names: tuple[Entrant, Entrant],
) -> tuple[str, ...]:
    """Return why there is no comparison; nothing where there is one."""
    absent = [
        f"{name.place.label} ({what})"
        for pair in pairs
        for name, side in zip(names, pair, strict=True)
        for what in side.missing
    ]
    if absent:
        return tuple(dict.fromkeys(absent))
    first = pairs[0][0].wrong
    assert first is not None
    flat = [side for pair in pairs for side in pair]
    runs = [model.run for pair in both for model in pair]
    same = all(side.wrong is not None and side.wrong.shape == first.shape for side in flat)
    if not same or not all(same_rows(runs[0], run, split) for run in runs[1:]):
        return ("the same images for both",)
    return () if all(side.members == flat[0].members for side in flat) else ("the same attacks for both",)


def _rows(model: Model, quantity: str, strength: Strength) -> _Rows:
    if quantity != "clean":
        found = union(model, strength)
        return _Rows(found.wrong, found.members, found.missing)
    wrong = model.wrong(CLEAN)
    return _Rows(wrong, missing=() if wrong is not None else ("clean rows",))
