"""What comes of checking a claim: its numbers, each with an interval, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from amc_lightning.paper.claim_list import Claim
from amc_lightning.paper.paired import Interval

Verdict = Literal["holds", "fails", "within noise", "not measured", "not marked"]
Unit = Literal["points", "ratio"]
Rule = Literal["all", "any"]


@dataclass(frozen=True)
class Part:
    """One number of a finding, with a verdict of its own.

    Args:
        name: what it is of; empty for the only one.
        interval: the number with its bounds.
        verdict: of this number.
        in_sample: the number where the best rival is chosen on the rows that it is compared on, as in the paper; None
            where none is chosen.
        beside: numbers that are shown with it and have no say in the verdict of the claim.
    """

    name: str
    interval: Interval
    verdict: Verdict
    in_sample: float | None = None
    beside: "tuple[Part, ...]" = ()


@dataclass(frozen=True)
class Finding:
    """What came of one claim on one dataset at one strength.

    Args:
        parts: its numbers. The first is the headline: of several that must all hold, the one that speaks most against
            the claim; of several of which any will do, the one that speaks most for it. None where the claim was not
            measured.
        verdict: of the claim.
        unit: of the numbers.
        seeds: that they are averaged over.
        n: rows that they are of; 0 for a number that is not of rows.
        missing: what was not measured.
        words: more to be said, empty for nothing.
        rule: whether the claim needs all its parts, or any of them.
    """

    parts: tuple[Part, ...]
    verdict: Verdict
    unit: Unit = "points"
    seeds: tuple[int, ...] = ()
    n: int = 0
    missing: tuple[str, ...] = ()
    words: str = ""
    rule: Rule = "all"

    @property
    def is_measured(self) -> bool:
        """Whether there are numbers."""
        return bool(self.parts)


@dataclass(frozen=True)
class Side:
    """On which side of a bound the claim puts its number."""

    above: bool
    bound: float = 0.0

    def verdict(self, interval: Interval) -> Verdict:
        """Return "holds" where the interval is wholly on the claimed side, "fails" where wholly on the other."""
        over, under = interval.low > self.bound, interval.high < self.bound
        if over or under:
            return "holds" if over == self.above else "fails"
        return "within noise"


def not_measured(missing: Sequence[str], seeds: tuple[int, ...] = ()) -> Finding:
    """Return the finding of a claim that something is missing for."""
    return Finding((), "not measured", seeds=seeds, missing=tuple(missing))


@dataclass(frozen=True)
class Checked:
    """One claim on one dataset.

    Args:
        claim: what the paper says.
        findings: by strength; under "" alone where the claim is not about attacks.
    """

    claim: Claim
    findings: Mapping[str, Finding]
