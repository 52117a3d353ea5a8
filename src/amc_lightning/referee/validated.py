"""Whether attacks work at all: each has to break a model without a defence (E24)."""

from typing import Any

from torch import Tensor

from amc_lightning.referee.case import Attempt, Case
from amc_lightning.referee.evidence import and_list, is_below, percent
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.reference import undefended_model
from amc_lightning.referee.suite import REFERENCE

BROKEN = 0.95
"""Share of rows that a sound attack fools of a model without a defence (evaluation.md, E24)."""

FIRST = 16
"""A radius that breaks nothing is followed by at least half the box over this, so that few are tried."""


def breaks_undefended(case: Case) -> Finding:
    """E24: the reference attack and each given one break a model that has no defence.

    The level's ``curve_rows`` are attacked. Only rows count that this model answers rightly as they are: for the others
    no attack is needed. At the claim's radius each attack has to fool 95 % of them. A small radius may not suffice for
    that; then the rows count that the best attack here fools (PGD with twice the steps; the reference attack), and of
    them a given attack has to fool 95 %. The reference attack itself has to reach 95 % of all at some radius: doubled
    until half the box (l-inf 0.5, and as much for every pixel in l2 and l1).

    FAIL where a count falls short of its share significantly (one-sided exact test, 1 %). NOT RUN if the model without
    a defence answers no row rightly; WARN if no row can be fooled at the claim's radius, so that given attacks were
    measured on nothing, or if the claim is about a weaker adversary than PGD (a black box, one target class) and its
    attack falls short of PGD. Whether examples keep to the ball is for E4.

    The project's list (E24) also asks for a planted weakness that a sound attack must find (the binarisation test of
    Zimmermann et al., 2022): that is not made here.

    Reference:
        Carlini et al., 2019, https://arxiv.org/abs/1902.06705, section 4: an attack is first tried on an undefended
        model.
    """
    title = "attacks break an undefended model"
    model = undefended_model(case)
    rows = case.level.curve_rows
    right = ~case.judged(model, case.x[:rows], case.y[:rows], case.x[:rows]).wrong
    whose = "trained here" if case.undefended is None else "given"
    details: dict[str, Any] = {"undefended": whose, "rows": int(right.sum()), "clean_error": percent(~right)}
    if not bool(right.any()):
        return Finding(
            "E24",
            title,
            Status.NOT_RUN,
            f"The undefended model ({whose}) answers none of the {len(right)} rows rightly, so no attack can be tried.",
            "Give a model that was trained on these images, or more images to train one on.",
            details=details,
        )
    reference = case.attempt(case.attack("pgd"), model=model, rows=rows)
    best = case.attempt(case.attack("pgd", nb_iter=2 * case.level.steps), model=model, rows=rows)
    reach = _reach(case, reference, right)
    fooled = reference.wrong | best.wrong
    enough = not is_below(int((fooled & right).sum()), int(right.sum()), BROKEN)
    counted = right if enough else right & fooled
    attempts = {REFERENCE: reference, **{name: case.attempt_given(name, model=model, rows=rows) for name in case.given}}
    shares = {name: percent(attempt.wrong[counted]) for name, attempt in attempts.items()}
    details |= {
        "counted": "all" if enough else "fooled by the best attack",
        "counted_rows": int(counted.sum()),
        "fooled_of_counted": shares,
        "error_at_eps": {name: attempt.error for name, attempt in attempts.items()},
        "best_error_at_eps": percent(fooled | ~right),
        **reach,
    }
    short = [name for name in case.given if _falls_short(attempts[name], counted)]
    weaker = bool(short) and reach["reached"] and not case.threat.is_measured
    problems = [f"{name} fools {shares[name]:.1f} % of the {int(counted.sum())} rows it should" for name in short]
    if not reach["reached"]:
        percents = f"{reach['reach_share']:.1f} % at {reach['reach_eps']:.3g}"
        problems.append(f"the reference PGD never fools 95 % of the rows ({percents})")
    if problems:
        return Finding(
            "E24",
            title,
            Status.WARN if weaker else Status.FAIL,
            f"On an undefended model ({whose}) {and_list(problems)}: an attack that fails without a defence proves "
            "nothing about one.",
            f"Correct {and_list(short)} (sign, step size, steps, labels; it has to attack the model that it is given) "
            "until it breaks an undefended model."
            if short
            else "Give another undefended model; if that is not broken either, report this as a bug.",
            min(shares.values()),
            "%",
            details,
        )
    named, fool = and_list(list(shares)), "fool at least" if case.given else "fools"
    if case.given and not bool(counted.any()):
        return Finding(
            "E24",
            title,
            Status.WARN,
            f"At eps {case.threat.eps:.3g} no row of the undefended model ({whose}) can be fooled, so {named} could "
            "not be tried.",
            "Try the attacks at a larger radius.",
            details=details,
        )
    return Finding(
        "E24",
        title,
        Status.PASS,
        f"Of the {int(counted.sum())} rows of an undefended model ({whose}) that can be fooled at eps "
        f"{case.threat.eps:.3g}, {named} {fool} {min(shares.values()):.1f} %; PGD "
        f"reaches {reach['reach_share']:.1f} % of all rows at {reach['reach_eps']:.3g}.",
        number=min(shares.values()),
        unit="%",
        details=details,
    )


def _falls_short(attempt: Attempt, counted: Tensor) -> bool:
    return is_below(int(attempt.wrong[counted].sum()), int(counted.sum()), BROKEN)


def _reach(case: Case, first: Attempt, right: Tensor) -> dict[str, Any]:
    """Return the smallest radius tried at which the reference attack breaks the undefended model, and its share."""
    largest = case.high_radius(case.threat.norm)
    eps, attempt = case.threat.eps, first
    while _falls_short(attempt, right) and eps < largest:
        eps = min(max(2 * eps, largest / FIRST), largest)
        attempt = case.attempt(case.attack("pgd", eps=eps), model=undefended_model(case), rows=len(right))
    share = percent(attempt.wrong[right])
    return {"reached": not _falls_short(attempt, right), "reach_eps": eps, "reach_share": share}
