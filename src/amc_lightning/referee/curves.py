"""Checks of the error against the radius: it grows, it reaches the end, and nothing impossible is claimed."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from amc_lightning.attacks import Norm, load
from amc_lightning.errors import UserError
from amc_lightning.metrics import wilson
from amc_lightning.referee.case import Case
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.gradient_attack import tried_harder
from amc_lightning.referee.paired import compared
from amc_lightning.referee.record import evaluations_of, mapping_in, strengths_of

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Radii of the curve, in radii of the claim."""
GREY = 0.5
"""The grey pixel, and the l-inf radius from which the grey image is within reach of every image."""
LARGEST_DROP = 0.5
"""Percentage points; E7 of the project's list, after Carlini et al. 2019, section 4."""
UNBOUNDED_ERROR = 99.0
"""Percent that the upper end of the error's interval has to reach on the whole box, where every model errs on all."""
CLEARLY_WEAKER = 5.0
"""Percentage points by which a construction without gradients beats an attack that is broken."""
MIXTURES = 8
"""Other images that each image is mixed with."""


def error_by_eps(case: Case) -> Mapping[str, Any]:
    """Return the error under PGD over a grid of radii, which is kept as the curve ``error_by_eps``.

    The starts are the same noise for every radius, scaled. From the largest added radius on, half the pixel range,
    the grey image is within reach of every image.

    Returns:
        ``eps``, and in percent ``error`` with its 95 % interval ``low`` and ``high``; ``n`` rows; ``chance``, the error
        of guessing.
    """
    if "error_by_eps" not in case.curves:
        radii = _radii(case)
        rates = [_rate(_wrong(case, case.threat.norm, eps)) for eps in radii]
        case.curves["error_by_eps"] = {
            "eps": radii,
            "error": [rate["error"] for rate in rates],
            "low": [rate["low"] for rate in rates],
            "high": [rate["high"] for rate in rates],
            "n": rates[0]["n"],
            "chance": case.chance,
        }
    curve: Mapping[str, Any] = case.curves["error_by_eps"]
    return curve


def grows_with_radius(case: Case) -> Finding:
    """Check that the error does not fall from one radius to the next larger one (E7).

    PGD is not nested: a row fooled at a small radius may be missed at a larger one. A drop fails if it is more than
    0.5 percentage points and significant (McNemar, exact) on the same rows; a drop that may be chance is a warning.

    Reference:
        Carlini et al., 2019, https://arxiv.org/abs/1902.06705, section 4: a larger budget never helps the defender.
    """
    curve = error_by_eps(case)
    radii = curve["eps"]
    wrong = [_wrong(case, case.threat.norm, eps) for eps in radii]
    pairs = [compared(smaller, larger) for smaller, larger in pairwise(wrong)]
    worst = max(range(len(pairs)), key=lambda place: (pairs[place].leads_by(LARGEST_DROP), pairs[place].lead))
    pair, drop = pairs[worst], max(0.0, pairs[worst].lead)
    where = (
        f"from {curve['error'][worst]:.1f} % at radius {radii[worst]:.3g} to {curve['error'][worst + 1]:.1f} % at "
        f"{radii[worst + 1]:.3g}"
    )
    details = {"from": radii[worst], "to": radii[worst + 1], "p_value": pair.p_value, "rows": pair.n}
    status, advice = Status.PASS, ""
    if drop <= LARGEST_DROP:
        meaning = f"No larger radius lowers the error by more than {LARGEST_DROP} pp (largest drop {drop:.1f} pp)."
    elif pair.leads_by(LARGEST_DROP):
        status = Status.FAIL
        meaning = f"The error falls {where}: the attack gets stuck where it may do more, so its numbers are too good."
        advice = "Look for what hides the gradient away from the image, and attack around it."
    else:
        status = Status.WARN
        meaning = f"The error falls {where}, which may be chance on {pair.n} rows."
        advice = "Repeat it with more rows, steps and restarts."
    return Finding("E7", "error grows with eps", status, meaning, advice, drop, "pp", details)


def reaches_the_end(case: Case) -> Finding:
    """Check that a large radius brings the error to chance, and the whole box brings it to 100 % (E8).

    The large radius is that from which the grey image is within reach: half the pixel range in l-inf, half of
    sqrt(CHW) in l2, half of CHW in l1. The whole box is attacked in l-inf with radius 1, which is the same set in
    every norm. Bounds get the 95 % interval as slack. Rows left standing are attacked once more from other starts; if
    that is what it takes, it is a warning.

    Reference:
        Carlini et al., 2019, https://arxiv.org/abs/1902.06705, section 4; Athalye et al., ICML 2018,
        https://arxiv.org/abs/1802.00420, section 3.1, sign 3.
    """
    error_by_eps(case)
    high = case.high_radius(case.threat.norm)
    shown: dict[str, float] = {}
    short, slow = [], False
    for name, norm, eps in (("high", case.threat.norm, high), ("unbounded", "linf", 1.0)):
        wrong = _wrong(case, norm, eps)
        shown[name] = _rate(wrong)["error"]
        if not _is_enough(case, name, wrong):
            wrong, slow = tried_harder(case, wrong, norm=norm, eps=eps), True
            shown[f"{name} tried harder"] = _rate(wrong)["error"]
            if not _is_enough(case, name, wrong):
                short.append(name)
    details = {**shown, "high radius": high, "chance": case.chance, "short": short, "rows": len(wrong)}
    ends = {
        "high": f"{_last(shown, 'high'):.1f} % at radius {high:.3g} (chance: {case.chance:.1f} %)",
        "unbounded": f"{_last(shown, 'unbounded'):.1f} % on the whole box (every model: 100 %)",
    }
    status, advice = Status.PASS, ""
    meaning = f"The attack reaches {ends['high']} and {ends['unbounded']}."
    if short:
        status = Status.FAIL
        meaning = f"The attack reaches only {' and '.join(ends[name] for name in short)}: it is broken on this model."
        advice = "Make the attack fit the model (gradients, loss, steps) until it reaches both, then measure again."
    elif slow:
        status = Status.WARN
        meaning = f"Only from other starts the attack reaches {ends['high']} and {ends['unbounded']}."
        advice = "Give the reference attack more restarts, one of them at the image itself."
    number = _last(shown, short[0] if short else "high")
    return Finding("E8", "reaches the end", status, meaning, advice, number, "%", details)


def claims_nothing_impossible(case: Case) -> Finding:
    """Check that no accuracy above chance is found, or claimed, where the grey image is within reach (E9).

    On one image a model has one answer, so that on grey for all it is right on the rows of one class only. What does
    better at l-inf 0.5 has not been attacked. The attack with gradients is compared, on the same rows, with the grey
    image and with others of the rows clamped into the ball: a construction that needs no gradient. The check fails if
    the attack is significantly weaker than grey, or than all constructions together by 5 percentage points; if the
    claim's own radius reaches grey, and the reference attack, or all of the claim together, leave an accuracy above
    that; and if the record holds an iterative white-box attack with l-inf 0.5 or more whose error is below chance. A
    number counts as below chance if the upper end of its interval is, and so far as the rows' classes are not balanced,
    below what the largest class alone leaves wrong.

    Reference:
        Carlini et al., 2019, https://arxiv.org/abs/1902.06705, section 4: accuracy above chance at 0.5 is impossible.
    """
    wrong = _wrong(case, "linf", GREY)
    x, y = case.x[: len(wrong)], case.y[: len(wrong)]
    grey = case.judged(case.model, x, y, torch.full_like(x, GREY)).wrong
    built = grey | _mixed(case, x, y)
    details: dict[str, Any] = {"gradient attack": _rate(wrong)["error"], "grey": _rate(grey)["error"]}
    hard = False
    if _is_beaten(wrong, grey, built):
        wrong, hard = tried_harder(case, wrong, norm="linf", eps=GREY), True
        details["gradient attack tried harder"] = _rate(wrong)["error"]
    details |= {"constructed": _rate(built)["error"], "chance": case.chance, "rows": len(wrong)}
    accuracy, possible = 100 - _rate(wrong)["error"], 100 - _rate(grey)["error"]
    impossible = list(_impossible_claims(case))
    details["impossible claims"] = impossible
    status, advice = Status.PASS, ""
    meaning = f"At l-inf 0.5 the attack leaves {accuracy:.1f} % right, and no more than {possible:.1f} % are possible."
    if impossible:
        status = Status.FAIL
        meaning = (
            f"Where grey is within reach nothing can be robust above chance, but this is: {'; '.join(impossible)}."
        )
        advice = "Withdraw the number: the attack behind it is broken, or did not see the whole model."
    elif _is_beaten(wrong, grey, built):
        status = Status.FAIL
        meaning = (
            f"Robustness above chance at eps 0.5 is impossible, but the attack leaves {accuracy:.1f} % right there, "
            f"where grey and mixed images, made without gradients, leave {100 - _rate(built)['error']:.1f} %."
        )
        advice = "Trust no number of this attack on this model; look for what hides the gradient."
    elif hard:
        status = Status.WARN
        meaning = f"At l-inf 0.5 the attack leaves only {accuracy:.1f} % right, but not from its usual start."
        advice = "Give the reference attack more restarts, one of them at the image itself."
    return Finding("E9", "nothing impossible", status, meaning, advice, accuracy, "%", details)


def _radii(case: Case) -> list[float]:
    """Return the radii of the curve in rising order, none twice."""
    most = case.whole_box(case.threat.norm)
    radii = {min(factor * case.threat.eps, most) for factor in FACTORS} | {case.high_radius(case.threat.norm)}
    return sorted({float(f"{eps:.12g}") for eps in radii})  # 0.3, not 0.30000000000000004


def _wrong(case: Case, norm: Norm, eps: float) -> Tensor:
    """Return which of the curve's rows PGD fools at a radius, (N,) bool."""
    rows = case.level.curve_rows
    if eps == 0:
        return case.clean_wrong[:rows]
    attack = case.attack("pgd", norm=norm, eps=eps, nb_iter=case.level.curve_steps, restarts=1, compact=True)
    return case.attempt(attack, rows=rows).wrong


def _rate(wrong: Tensor) -> dict[str, Any]:
    count, n = int(wrong.sum()), len(wrong)
    low, high = wilson(count, n)
    return {"n": n, "error": 100 * count / n, "low": low, "high": high}


def _is_enough(case: Case, end: str, wrong: Tensor) -> bool:
    """Return whether the error at one of the two ends is high enough, but for the noise of few rows."""
    rate = _rate(wrong)
    if end == "high":
        return bool(rate["error"] >= case.chance - (rate["high"] - rate["low"]) / 2)
    return bool(rate["high"] >= UNBOUNDED_ERROR)


def _last(shown: Mapping[str, float], end: str) -> float:
    return shown.get(f"{end} tried harder", shown[end])


def _mixed(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """Return rows that are fooled by one of the other images, brought within l-inf 0.5 of them, (N,) bool."""
    wrong = torch.zeros(len(x), dtype=torch.bool)
    for shift in range(1, min(MIXTURES, len(x) - 1) + 1):
        inside = torch.minimum(torch.maximum(x.roll(shift, 0), x - GREY), x + GREY)
        wrong |= case.judged(case.model, x, y, inside).wrong
    return wrong


def _is_beaten(wrong: Tensor, grey: Tensor, built: Tensor) -> bool:
    return compared(grey, wrong).leads_by(0.0) or compared(built, wrong).leads_by(CLEARLY_WEAKER)


def _impossible_claims(case: Case) -> Iterator[str]:
    """Give the accuracies that cannot be: of the claim's own radius where it reaches grey, and on record."""
    grey = case.judged(case.model, case.x, case.y, torch.full_like(case.x, GREY))
    chance = min(case.chance, case.least_error_on_grey)
    if float(grey.distances[case.threat.norm].max()) <= case.largest_norm:
        possible = 100 - grey.error
        found = {"the reference attack": case.attempt(case.attack("pgd")).wrong}
        if case.given:
            attempts = [case.attempt_given(name).wrong for name in case.given]
            found[f"the claim's attacks ({', '.join(case.given)})"] = torch.stack(attempts).any(0)
        for name, wrong in found.items():
            if compared(grey.wrong, wrong).leads_by(0.0) and _rate(wrong)["high"] < chance:
                yield f"{100 - _rate(wrong)['error']:.1f} % right under {name} ({possible:.1f} % are possible)"
    for title, name, params, rate in _recorded(case.provenance.record):
        if float(rate["high"]) < chance:
            yield f"{100 - float(rate['error']):.1f} % right under {name} with eps {params['eps']:.3g} ({title})"


def _recorded(record: Mapping[str, Any] | None) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """Give the iterative white-box attacks on record with an l-inf radius of 0.5 or more, and what they reached."""
    known = record or {}
    black = set(mapping_in(known.get("interfaces")))
    for evaluated in evaluations_of(record):
        if evaluated.threat_model in black or "black" in evaluated.threat_model:
            continue
        attacks = mapping_in(mapping_in(known.get("attacks")).get(evaluated.threat_model))
        for strength, members in strengths_of(evaluated):
            for name, params in mapping_in(attacks.get(strength)).items():
                rate = mapping_in(members.get(name))
                if {"error", "high"} <= rate.keys() and _reaches_grey(name, mapping_in(params)):
                    yield evaluated.title, f"{strength} {name}", params, rate


def _reaches_grey(name: str, params: Mapping[str, Any]) -> bool:
    if "nb_iter" not in params or not isinstance(params.get("eps"), int | float) or params["eps"] < GREY:
        return False
    try:
        return load(name, **params).norm == "linf"
    except UserError:
        return False
