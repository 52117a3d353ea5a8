"""The answer to a claim's question: every number with its interval, and the verdict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_lightning.paper.claim_finding import Finding, Part, Side, Verdict, not_measured
from amc_lightning.paper.claim_question import Contrast, Counts, Question
from amc_lightning.paper.claim_rows import gather
from amc_lightning.paper.paired import (
    LEVEL,
    RESAMPLES,
    Interval,
    exact_interval,
    percentiles,
    resampled_means,
    sign_test,
)
from amc_lightning.paper.trained import Systems

FEW = 40
"""With fewer rows that differ a percentile interval is too narrow: four rows of one side would do."""


def reckon(systems: Systems, question: Question, *, resamples: int = RESAMPLES) -> Finding:
    """Answer a question.

    Args:
        systems: the runs on one dataset.
        question: what is asked.
        resamples: of the bootstrap.
    """
    gathered = gather(systems, question.cells)
    if gathered.counts is None:
        return not_measured(gathered.missing, gathered.seeds)
    counts, seeds = gathered.counts, len(gathered.seeds)
    beside = {(name, more): found for name, known in question.beside.items() for more, found in known.items()}
    main = {(name, ""): found for name, found in question.contrasts.items()}
    numbers = dict(_numbers(counts, seeds, main | beside, resamples))
    side = question.side
    parts = tuple(
        Part(
            name,
            numbers[name, ""].interval(LEVEL),
            numbers[name, ""].verdict(side, LEVEL),
            numbers[name, ""].in_sample,
            tuple(
                Part(more, numbers[name, more].interval(LEVEL), numbers[name, more].verdict(side, LEVEL))
                for more in question.beside.get(name, ())
            ),
        )
        for name in question.contrasts
    )
    # One of many intervals misses its number by chance more often than a single one: hence Bonferroni's level.
    widened = 1 - (1 - LEVEL) / len(parts)
    strict = [numbers[name, ""].verdict(side, widened) for name in question.contrasts]
    each = [part.verdict for part in parts]
    verdict: Verdict
    if question.rule == "all":
        verdict = "fails" if "fails" in strict else "holds" if set(each) == {"holds"} else "within noise"
    else:
        verdict = "holds" if "holds" in strict else "fails" if set(each) == {"fails"} else "within noise"
    sign = 1 if side.above == (question.rule == "all") else -1
    return Finding(
        tuple(sorted(parts, key=lambda part: sign * part.interval.estimate)),
        verdict,
        seeds=gathered.seeds,
        n=counts.shape[1],
        words=question.say(counts),
        rule=question.rule,
    )


@dataclass(frozen=True)
class _Number:
    """A difference in points, row by row, with its means over resampled rows."""

    points: NDArray[np.float64]
    means: NDArray[np.float64]
    in_sample: float | None

    def interval(self, level: float) -> Interval:
        return percentiles(float(self.points.mean()), self.means, level=level)

    def verdict(self, side: Side, level: float) -> Verdict:
        """Return the verdict of the interval, if an exact test agrees where few rows differ."""
        found, steps = side.verdict(self.interval(level)), np.abs(self.points[self.points != 0])
        is_mcnemar = len(steps) > 0 and steps.min() == steps.max()
        if found == "within noise" or (len(steps) >= FEW and not (is_mcnemar and side.bound == 0)):
            return found
        if side.bound:
            return found if side.verdict(exact_interval(self.points, 100.0, level=level)) == found else "within noise"
        is_above = bool((self.points > 0).sum() > (self.points < 0).sum())
        agrees = sign_test(self.points) < 1 - level and is_above == (self.points.mean() > 0)
        return found if agrees else "within noise"


def _numbers(
    counts: Counts, seeds: int, contrasts: Mapping[tuple[str, str], Contrast], resamples: int
) -> Iterator[tuple[tuple[str, str], _Number]]:
    found: Sequence[Contrast] = list(contrasts.values())
    rows = [contrast.rows(counts) for contrast in found]
    means = resampled_means(np.array([one.values for one in rows]), resamples=resamples)
    for place, (key, one, contrast) in enumerate(zip(contrasts, rows, found, strict=True)):
        share = 100 / (seeds * contrast.divisor)
        in_sample = None if one.in_sample is None else share * one.in_sample
        yield key, _Number(share * one.values, share * means[:, place], in_sample)
