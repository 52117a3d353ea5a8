"""The union over norms: a row is wrong if it is wrong clean, or under any attack within the three balls."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.trained import Model
from amc_lightning.report.columns import Column
from amc_lightning.report.record import Rate, Strength

NORMS = ("linf", "l2", "l1")
JUDGED: tuple[Strength, ...] = ("check", "judge")
"""The strengths that have a union."""
_OWN_NORM: Mapping[str, str] = {
    "fgsm": "linf", "pgm": "linf", "vap": "l2", **{f"pgd_{norm}": norm for norm in NORMS},
}  # fmt: skip
"""Norms of the attacks that have no parameter for it."""


@dataclass(frozen=True)
class Member:
    """One attack that counts in a union.

    Args:
        attack: its name; ``<name>@budget`` for an unbounded one within its radius.
        strength: at which it was run.
        norm: of its ball.
        eps: radius of its ball, pixels in [0, 1].
        parameters: all of its parameters as text, so that two runs can be told apart.
    """

    attack: str
    strength: Strength
    norm: str
    eps: float
    parameters: str


@dataclass(frozen=True)
class Union:
    """The rows that a model gets wrong clean or under any attack within the three balls.

    Args:
        wrong: (N,) bool, rows of the attack split, at strength judge the leading ones; None where it is not known.
        members: the attacks that count.
        missing: what it is not known for want of.
    """

    wrong: Wrong | None
    members: tuple[Member, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def rate(self) -> Rate | None:
        """The error rate with Wilson's interval; None where it is not known."""
        return None if self.wrong is None else wilson_rate(self.wrong)


def union(model: Model, strength: Strength) -> Union:
    """Return the union over norms of one model.

    At strength ``check`` it is over pgd_linf, pgd_l2 and pgd_l1. At strength ``judge`` it is on the judge's rows, over
    every attack of check and of judge whose ball is one of these three: the norm and the radius on record are the same.
    An attack with another radius does not count.

    Args:
        model: as it was measured.
        strength: "check" or "judge".

    Raises:
        UserError: if the run's per-example results cannot be read.

    Reference:
        Tramer and Boneh, NeurIPS 2019; Maini, Wong and Kolter, ICML 2020: robustness to a union of balls.
    """
    balls = radii(model)
    every = [*_members(model, "check"), *(_members(model, "judge") if strength == "judge" else ())]
    three = [f"pgd_{norm}" for norm in NORMS]
    missing = [name for name in three if name.removeprefix("pgd_") not in balls]
    if strength == "check":
        counted = [one for one in every if one.attack in three and one.norm in balls]
    else:
        counted = [one for one in every if one.norm in balls and math.isclose(one.eps, balls[one.norm])]
        missing += [] if any(one.strength == "judge" for one in counted) else ["an attack of the judge in these balls"]
    flags, stage = model.run.flags, model.stage.index
    found = {one: flags.wrong(stage, one.strength, one.attack, threat_model=model.threat_model) for one in counted}
    clean = flags.clean(stage, split="attack", threat_model=model.threat_model)
    missing += [] if clean is not None else ["clean rows of the attack split"]
    missing += [f"rows under {one.attack}" for one, rows in found.items() if rows is None]
    known = [rows for rows in found.values() if rows is not None]
    if missing or clean is None:
        return Union(None, tuple(counted), tuple(dict.fromkeys(missing)))
    n = min(len(rows) for rows in known)  # at strength judge the leading rows only
    return Union(np.any([clean[:n], *(rows[:n] for rows in known)], axis=0), tuple(counted))


def radii(model: Model) -> dict[str, float]:
    """Return the radius of each ball by its norm: that of pgd_<norm> at strength check; of those that were measured."""
    measured = model.evaluation.check
    found = {norm: _parameters(model, "check", f"pgd_{norm}").get("eps") for norm in NORMS}
    return {
        norm: float(eps) for norm, eps in found.items() if isinstance(eps, int | float) and f"pgd_{norm}" in measured
    }


def column(strength: Strength) -> Column:
    """Return the column of the union at a strength."""
    return Column("summary", "union", strength, ("union", strength))


def wilson_rate(wrong: Wrong) -> Rate:
    """Return the error rate of some rows with Wilson's 95 % interval.

    Example:
        >>> rate = wilson_rate(np.array([True, False, False, False]))
        >>> rate.n, rate.wrong, rate.error, round(rate.low, 1), round(rate.high, 1)
        (4, 1, 25.0, 4.6, 69.9)
    """
    n, count = len(wrong), int(wrong.sum())
    found = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(n=n, wrong=count, error=100 * count / n, low=100 * float(found.low), high=100 * float(found.high))


def _members(model: Model, strength: Strength) -> Iterator[Member]:
    """Yield the attacks of a strength that have a ball."""
    results = model.run.results
    for key in model.evaluation.rates(strength):
        attack, _, bounded = key.partition("@")
        parameters = _parameters(model, strength, attack)
        norm, eps = parameters.get("norm", _OWN_NORM.get(attack)), parameters.get("eps")
        if bounded and attack in results.budget:
            norm, eps = results.budget[attack]
        if isinstance(norm, str) and isinstance(eps, int | float):
            yield Member(key, strength, norm, float(eps), json.dumps(parameters, sort_keys=True, default=str))


def _parameters(model: Model, strength: Strength, attack: str) -> Mapping[str, object]:
    return model.run.results.attacks.get(model.threat_model, {}).get(strength, {}).get(attack, {})
