"""Is the claim itself whole? Its threat model, the object it is about, and the numbers that belong beside it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amc_lightning.metrics import wilson
from amc_lightning.referee.case import Case
from amc_lightning.referee.evidence import percent
from amc_lightning.referee.finding import Finding, Status, ended
from amc_lightning.referee.pipeline import pipeline_hash
from amc_lightning.referee.record import evaluations_of, rate_in, strengths_of
from amc_lightning.referee.threat_model import NAMES

OVERSTATED = 2.0
"""Percentage points that a quoted error may lie below the worst case before it misleads."""


def stated_threat_model(case: Case) -> Finding:
    """E1: what the adversary may do is written down, in units that mean something.

    Reference:
        Carlini et al., 2019, On Evaluating Adversarial Robustness, https://arxiv.org/abs/1902.06705, section 2.2.
    """
    threat = case.threat
    details = {**threat.as_json(), "units": "pixels in [0, 1]", "box": [0.0, 1.0]}
    asked = "any number of queries" if threat.queries is None else f"{threat.queries:,} queries"
    aim = "one given class" if threat.targeted else "any wrong class"
    whose = "true labels" if threat.labels == "true" else "the model's own answers as labels"
    eps = f"{NAMES[threat.norm]} radius {threat.eps:.4g} in pixel units of [0, 1]"
    meaning = f"The claim holds for a {threat.knowledge.replace('_', '-')} adversary, {eps}, {aim}, {whose}, {asked}"
    found = Finding("E1", "threat model stated", Status.PASS, f"{meaning}.", details=details)
    if threat.knowledge == "black_box" and threat.queries is None:
        return ended(
            found,
            Status.WARN,
            f"{meaning}, and a black-box claim means little while the number of queries is open.",
            "State how many answers the adversary may ask for: ThreatModel(..., queries=...).",
        )
    return found


def same_object(case: Case) -> Finding:
    """E2: what was attacked is what is deployed, end to end, and it is still the same.

    The hash is over modules, parameters and buffers (``pipeline_hash``). It sees whatever the diagnosis did before
    this check, which therefore belongs at its end.

    Reference:
        Carlini et al., 2019, section 4.2: attack the full defence, end to end.
    """
    before, now, named = case.pipeline_before, pipeline_hash(case.model), case.provenance.pipeline
    found = Finding(
        "E2",
        "the deployed object was attacked",
        Status.PASS,
        f"The attacked pipeline is the deployed one, hash {now[:12]}, and stayed so to the end.",
        details={"pipeline": before, "pipeline_at_the_end": now, "deployed": named},
    )
    if now != before:
        return ended(
            found,
            Status.FAIL,
            f"The model changed while it was examined (its hash was {before[:12]} and is {now[:12]}), so its numbers "
            "are those of several models.",
            "Give a model whose weights and buffers stay as they are in eval mode.",
        )
    if named is None:
        return ended(
            found,
            Status.WARN,
            f"Nobody named the deployed pipeline; what was examined has the hash {now[:12]}.",
            "Name it: Provenance(pipeline=pipeline_hash(deployed)), both from amc_lightning.referee.",
        )
    if named != now:
        return ended(
            found,
            Status.FAIL,
            f"The deployed pipeline has the hash {named[:12]}, what was examined {now[:12]}: it is another object.",
            "Examine the deployed object end to end, with everything that stands in front of the network.",
        )
    return found


def clean_error(case: Case) -> Finding:
    """E3: the clean error stands beside every robust number.

    Reference:
        Carlini et al., 2019, section 4.1.
    """
    low, high = _interval(case.clean_wrong)
    error = case.clean_error
    record = evaluations_of(case.provenance.record)
    lacking = [one.title for one in record if rate_in(one.block, "clean") is None]
    found = Finding(
        "E3",
        "clean error beside it",
        Status.PASS,
        f"Without any attack {error:.1f} % of {len(case.x)} rows are wrong (95 % interval {low:.1f} to {high:.1f} %).",
        number=error,
        unit="%",
        details={"n": len(case.x), "low": low, "high": high, "chance": case.chance, "record_without": lacking},
    )
    if low <= case.chance <= high or error > case.chance:
        return ended(
            found,
            Status.WARN,
            f"Without any attack {error:.1f} % of {len(case.x)} rows are wrong, where guessing gives {case.chance:.1f} "
            "%: there is nothing for an adversary to take.",
            "Check that images, labels and the model belong to each other.",
        )
    if lacking:
        return ended(
            found,
            Status.WARN,
            f"The record gives no clean error for {', '.join(lacking)}; here it is {error:.1f} %.",
            "Put the clean error of the same model beside every robust number.",
        )
    return found


def worst_case(case: Case) -> Finding:
    """E5: a row counts as robust only if it is right clean and under every attack: the headline number.

    The union is over all attempts so far at the claim's ball, random points included; this check belongs after those
    that make them. FAIL if the error that the claim quotes lies more than 2 points below the union's interval, WARN if
    only the record's headline does, or if the claim is about another adversary than the one here (a black box, one
    target class, predicted labels).

    Reference:
        Carlini et al., 2019, section 4.4; Tramèr and Boneh, 2019, https://arxiv.org/abs/1904.13000.
    """
    case.attempt(case.attack("pgd"))
    for name in case.given:
        case.attempt_given(name)
    union = case.clean_wrong.clone()
    single: dict[str, float] = {}
    for name, attempt in case.attempts_at_claim():
        union |= attempt.wrong
        single[name] = max(single.get(name, 0.0), attempt.error)
    if (noise := case.memo.get("fooled by noise")) is not None:
        union |= noise
        single["random points"] = percent(noise)
    error = percent(union)
    low, high = _interval(union)
    strongest = max(single, key=lambda name: single[name])
    details = {
        "n": len(union),
        "low": low,
        "high": high,
        "clean": case.clean_error,
        "single": single,
        "quoted": _quoted(case),
    }
    found = Finding(
        "E5",
        "worst case of each image",
        Status.PASS,
        f"{error:.1f} % of the rows are wrong clean or under {_counted(len(single))} (95 % interval {low:.1f} to "
        f"{high:.1f} %); the strongest alone, {strongest}, gets {single[strongest]:.1f} %.",
        number=error,
        unit="%",
        details=details,
    )
    claimed = case.provenance.claimed_error
    if claimed is not None and low > claimed + OVERSTATED and not case.threat.is_measured:
        return ended(
            found,
            Status.WARN,
            f"The claim quotes an error of {claimed:.1f} % for its adversary; one with the weights, true labels and "
            f"any wrong class as its aim makes {error:.1f} % of the rows wrong.",
            "Say beside the number that it does not hold for a stronger adversary.",
        )
    if claimed is not None and low > claimed + OVERSTATED:
        return ended(
            found,
            Status.FAIL,
            f"The claim quotes an error of {claimed:.1f} %, but {error:.1f} % of the rows are wrong within its threat "
            f"model (at least {low:.1f} % with 95 % confidence).",
            "Quote the worst case over all attacks and the clean images.",
        )
    quoted = details["quoted"]
    if isinstance(quoted, Mapping) and low > quoted["error"] + OVERSTATED:
        return ended(
            found,
            Status.WARN,
            f"The record quotes {quoted['error']:.1f} % ({quoted['what']}), but {error:.1f} % of the rows are wrong "
            "clean or under some attack.",
            "Quote the worst case over all attacks and the clean images as the headline.",
        )
    return found


def _quoted(case: Case) -> dict[str, Any] | None:
    """Return the headline of the record's last evaluation under the claim's knowledge; None if it has none.

    A worst case if there is one, of several the highest; else a mean; else the strongest single attack.
    """
    evaluated = [one for one in evaluations_of(case.provenance.record) if case.threat.knowledge in one.threat_model]
    if not evaluated:
        return None
    rates = [
        (f"{strength} {name}", error)
        for strength, members in strengths_of(evaluated[-1])
        for name in members
        if name != "clean" and (error := rate_in(members, name)) is not None
    ]
    for kind in (" worst", " mean", ""):
        chosen = [(what, error) for what, error in rates if what.endswith(kind)]
        if chosen:
            what, error = max(chosen, key=lambda pair: pair[1])
            return {"what": what, "error": error}
    return None


def _counted(attacks: int) -> str:
    return "one attack" if attacks == 1 else f"one of {attacks} attacks"


def _interval(wrong: Tensor) -> tuple[float, float]:
    return wilson(int(wrong.sum()), len(wrong))
