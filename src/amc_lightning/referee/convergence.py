"""Checks that the attacks had converged: more steps or starts change nothing, the loss is flat, the ball in reach."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from amc_lightning.errors import UserError
from amc_lightning.referee.case import Case, lacks_gradient
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.paired import Pair, compared
from amc_lightning.referee.record import mapping_in
from amc_lightning.referee.trace import Trace, traced

CONVERGED = 1.0
"""Percentage points that twice the steps or restarts may change; E10 of the project's list, after Carlini et al."""
TOO_WEAK = 5.0
"""Percentage points from which an attack is not converged, if they are significant."""
LAST_STEPS = 10
"""Steps at whose end the loss should be flat; a quarter of all where these are fewer than 40."""
FLAT = 0.05
"""Share of the loss's whole rise that the last steps may still bring: E11 of the project's list, after Pintor et al."""
STEEP = 0.25
"""Share from which the loss rises as if the attack had been cut off: that of a straight line, 10 of 40 steps."""
_MORE = {"steps": "nb_iter", "restarts": "restarts"}
"""Of what the reference attack is given more, and the parameter's name."""
STANDING_STILL = 10.0
"""Percent of rows whose loss may never rise; sound networks had none. This project's number."""
SHOWN_STEPS = (1, 2, 5, 10, 20, 40, 100, 200)
NAMES = {"nb_iter": ("nb_iter", "steps"), "eps_iter": ("eps_iter", "alpha")}
"""Names that attacks give their number of steps and the length of one."""


def traced_attack(case: Case) -> Trace | None:
    """Return the claim's ball under PGD with twice the reference's steps, watched; None without gradients.

    Made once, and kept as the curves ``error_by_steps`` (best point so far) and ``loss`` (margin at the current one).
    """
    if "trace" not in case.memo:
        rows, steps, eps = case.level.curve_rows, case.level.steps, case.threat.eps
        case.progress(f"following PGD on {len(case.x[:rows])} rows")
        try:
            trace = traced(
                case.model, case.x[:rows], case.y[:rows], norm=case.threat.norm, eps=eps, eps_iter=2.5 * eps / steps,
                steps=2 * steps, seed=case.seed, batch_size=case.batch_size,
            )  # fmt: skip
        except UserError as error:
            if not lacks_gradient(error):
                raise
            trace = None
        case.memo["trace"] = trace
        if trace is not None:
            case.curves |= _curves(trace)
    found: Trace | None = case.memo["trace"]
    return found


def has_converged(case: Case) -> Finding:
    """Check that twice the steps or restarts do not change the error, and no attack of the claim is far weaker (E10).

    Twice the steps (each half as long) and twice the restarts are tried on the rows of the curves. A change of 1
    percentage point is a warning, but for a single row. From 5 points on, with a significant lead (McNemar, exact),
    it is doubled once more; if that brings 5 points again, the check fails: there is no end in sight. Steps of the
    claim's own attacks cannot be doubled: they are compared with the reference attack. One that is weaker by
    more than 5 points fails, unless another one of the claim is not, or the claim is about a weaker adversary than
    the reference (a black box, one target class): then it is a warning. The project's list (E10) asks for less than 1
    point; 5 points, and doubling again, are this project's slack for few rows and starts that differ.

    Reference:
        Carlini et al., 2019, https://arxiv.org/abs/1902.06705, section 4: doubling the iterations changes nothing.
    """
    trace, level = traced_attack(case), case.level
    reference = case.attempt(case.attack("pgd"))
    usual = reference.wrong[: level.curve_rows]
    twice = {name: _multiplied(case, name, 2) for name in _MORE}
    doubled = {f"twice the {name}": compared(wrong, usual) for name, wrong in twice.items()}
    given = {name: compared(reference.wrong, case.attempt_given(name).wrong) for name in case.given}
    weak = [name for name, pair in given.items() if pair.leads_by(TOO_WEAK)]
    most = max(doubled, key=lambda name: abs(doubled[name].lead))
    change = doubled[most].lead
    details: dict[str, Any] = {
        "reference error": reference.error,
        "rows doubled": len(usual),
        **{name: pair.lead for name, pair in doubled.items()},
        "behind the reference": {name: pair.lead for name, pair in given.items()},
        "too weak": weak,
    }
    status, advice, number = Status.PASS, "", abs(change)
    meaning = f"With {most} the error of the reference attack changes by {change:+.1f} pp."
    far = [name for name in _MORE if _is_far(compared(twice[name], usual))]
    again = {name: compared(_multiplied(case, name, 4), twice[name]) for name in far}
    details |= {f"four times the {name}": pair.lead for name, pair in again.items()}
    far = [name for name in far if _is_far(again[name])]
    if weak:
        number = max(given[name].lead for name in weak)
        meaning = f"Weaker than the reference: {', '.join(f'{name} by {given[name].lead:.1f} pp' for name in weak)}"
        advice = "Give it more and longer steps, and keep its best point; quote the worst case over all attacks."
        if len(weak) < len(given):
            status = Status.WARN
            meaning += "; another attack of the claim is not, so its worst case stands, but not these numbers alone."
        elif case.threat.is_measured:
            status = Status.FAIL
            meaning += "; the claim's attack is not converged, or too weak."
        else:
            status = Status.WARN
            meaning += "; the reference has the weights and any wrong class as its aim, the claim's adversary less."
            advice = "Say beside the number that it does not hold for a white-box adversary."
    if far and status is not Status.FAIL:
        status, number = Status.FAIL, doubled[f"twice the {far[0]}"].lead
        meaning = (
            f"With twice the {far[0]} the error rises by {number:.1f} pp, and with four times by "
            f"{again[far[0]].lead:.1f} pp more: the attack is far from converged."
        )
        advice = "Take more steps and restarts until nothing changes (level full), and quote that number."
    elif status is Status.PASS and _is_noticeable(doubled[most]):
        status, advice = Status.WARN, "Take more steps and restarts until nothing changes (level full)."
    if trace is None and status is Status.PASS:
        status, advice = Status.NOT_RUN, "See the checks of gradients."
        meaning = "The model passes no gradient back, so that no number of steps changes anything."
    return Finding("E10", "converged", status, meaning, advice, number, "pp", details)


def loss_is_flat(case: Case) -> Finding:
    """Check that the loss no longer rises at the end of the reference attack (E11).

    Of each row the best margin so far is scaled by its whole rise; the median share of the last 10 steps counts (of
    the last quarter where the attack has fewer than 40). Above 5 % is a warning; above 25 %, as much as a straight
    line, it fails. It is also a warning if the loss of more than 10 % of the rows never rose.

    Reference:
        Pintor et al., Indicators of Attack Failure, NeurIPS 2022, https://arxiv.org/abs/2106.09947, the indicator of
        incomplete optimisation. There the loss of the path itself counts; a fixed step makes it jitter.
    """
    title, trace = "loss is flat at the end", traced_attack(case)
    if trace is None:
        return Finding(
            "E11", title, Status.NOT_RUN, "The model passes no gradient back: there is no loss to follow.",
            "See the checks of gradients.",
        )  # fmt: skip
    steps = case.level.steps
    last = max(1, min(LAST_STEPS, steps // 4))
    rise = float(trace.last_rise(steps, last).median())
    best = trace.margins[: steps + 1].amax(0)
    still = 100 * float((best <= trace.margins[0]).double().mean())
    details = {"last steps": last, "steps": steps, "rows": trace.margins.shape[1], "rows that never rose": still}
    status, advice = Status.PASS, ""
    meaning = f"The last {last} of {steps} steps bring {100 * rise:.1f} % of the loss's rise (median row)."
    if rise > FLAT:
        status = Status.FAIL if rise > STEEP else Status.WARN
        meaning = meaning[:-1] + ": the attack was cut off."
        advice = "Take more steps, or longer ones."
    elif still > STANDING_STILL:
        status = Status.WARN
        meaning = f"The loss of {still:.1f} % of the rows never rose along the attack: nothing was optimised there."
        advice = "Look for what hides the gradient; see the checks of gradients."
    return Finding("E11", title, status, meaning, advice, rise, "", details)


def steps_reach_the_ball(case: Case) -> Finding:
    """Check that steps times their length are at least the radius, for every attack whose parameters are known (E12).

    Known are those of the reference attack, of the attacks of the claim that are this package's own, and of those on
    record. The paper's PGM on MNIST makes 15 steps of 0.01, 0.15 together, in a ball of radius 0.3.
    """
    reach = {name: steps * length / eps for name, (steps, length, eps) in _known(case)}
    short = {name: share for name, share in reach.items() if share < 1 - 1e-9}
    nearest = min(reach, key=lambda name: reach[name])
    status, advice = Status.PASS, ""
    meaning = (
        f"Steps times their length cover the radius in every attack whose parameters are known ({', '.join(reach)})."
    )
    if short:
        status = Status.WARN
        shown = ", ".join(f"{name} {share:.2f}" for name, share in short.items())
        meaning = f"These attacks cannot reach the edge of their ball from its middle, in radii: {shown}."
        advice = "Take eps_iter = 2.5 eps / nb_iter; the paper's PGM, 15 x 0.01 = 0.15 < 0.3, is the known example."
    return Finding("E12", "steps reach the ball", status, meaning, advice, reach[nearest], "radii", {"reach": reach})


def _curves(trace: Trace) -> dict[str, Any]:
    shown = sorted({step for step in SHOWN_STEPS if step < trace.steps} | {trace.steps})
    low, median, high = torch.quantile(trace.margins, torch.tensor([0.25, 0.5, 0.75]), dim=1)
    return {
        "error_by_steps": {
            "steps": shown,
            "error": [100 * float(trace.fooled[step].double().mean()) for step in shown],
            "n": trace.fooled.shape[1],
        },
        "loss": {
            "steps": list(range(trace.steps + 1)),
            "median": median.tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        },
    }


def _multiplied(case: Case, what: str, factor: int) -> Tensor:
    """Return which of the curve's rows the reference fools with more of something, (N,) bool."""
    name = _MORE[what]
    more: dict[str, Any] = {name: factor * getattr(case.level, what)}
    return case.attempt(case.attack("pgd", compact=True, **more), rows=case.level.curve_rows).wrong


def _is_far(pair: Pair) -> bool:
    return pair.lead >= TOO_WEAK and pair.leads_by(0.0)


def _is_noticeable(pair: Pair) -> bool:
    return abs(pair.lead) >= CONVERGED and abs(pair.first_only - pair.second_only) > 1


def _known(case: Case) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Give names of attacks, with number of steps, length of one, and radius."""
    groups: dict[str, Mapping[str, Any]] = {"": {"reference": case.attack("pgd").params}}
    groups["given "] = {name: getattr(attack, "params", None) for name, attack in case.given.items()}
    for threat_model, strengths in mapping_in((case.provenance.record or {}).get("attacks")).items():
        for strength, members in mapping_in(strengths).items():
            groups[f"{threat_model} {strength} "] = mapping_in(members)
    for group, members in groups.items():
        for name, params in members.items():
            found = _stepped(mapping_in(params))
            if found is not None:
                yield f"{group}{name}", found


def _stepped(params: Mapping[str, Any]) -> tuple[float, float, float] | None:
    lengths = [next((params[name] for name in names if name in params), None) for names in NAMES.values()]
    values = [params.get("eps"), *lengths]
    if not all(isinstance(value, int | float) and value > 0 for value in values):
        return None
    eps, steps, length = (float(value) for value in values if value is not None)
    return steps, length, eps
