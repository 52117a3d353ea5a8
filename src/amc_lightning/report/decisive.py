"""Whether the numbers of a run prove anything: the decisive checks, as far as its files tell."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from amc_lightning.report import wording
from amc_lightning.report.diagnosis_reading import DECISIVE, DIAGNOSIS_FILE, read_diagnosis
from amc_lightning.report.record import UNDEFENDED, Rate, Results, Stage, Strength

BROKEN = 95.0
"""Error rate, in percent, that an attack has to reach on an undefended model (evaluation check E24)."""
DIAGNOSES = "diagnoses"
"""Folder of the diagnoses of models with a squeezing in front, one folder for each, in a run folder."""
_NORMS = {"fgsm": "linf", "pgm": "linf", "vap": "l2", "torchattacks_fgsm": "linf", "torchattacks_pgd": "linf"}
_POWERS = {"linf": 0.0, "l2": 0.5, "l1": 1.0}
_WRITTEN = {"linf": "l-inf", "l2": "l2", "l1": "l1"}
_STRENGTHS: tuple[Strength, ...] = ("paper", "check", "stronger", "judge")
_CONTROL = "noise"
"""Random points are there to lose against an attack, not to reach anything."""


@dataclass(frozen=True)
class Bounded:
    """An attack that stays in a ball, and what it did to a model.

    Args:
        name: of the attack, with its strength.
        norm: of the ball.
        eps: its radius, pixels in [0, 1].
        rate: of the model under it.
    """

    name: str
    norm: str
    eps: float
    rate: Rate


def decisive(results: Results, *, folder: Path | None = None, undefended: Iterable[Results] = ()) -> Mapping[str, str]:
    """Return the decisive checks that the last model of a run fails under the primary threat model, with the reasons.

    What is not on record is no failure. A table sets no number in bold whose run fails one of them.

    Args:
        results: of the run; ``results.under(name)`` for another threat model.
        folder: of the run, where the diagnosis of its last model may lie.
        undefended: results of other runs, in which to look for the undefended model where this run did not measure it;
            those on other data, or with other attacks, are passed over.

    Returns:
        Reasons by check, "E4" first; empty where none is known to fail.

    Raises:
        UserError: if a diagnosis is there and cannot be read.

    Reference:
        Carlini et al., 2019, On Evaluating Adversarial Robustness, https://arxiv.org/abs/1902.06705, section 4.
    """
    found: dict[str, str] = {}
    if results.measured and results.measured[-1] is results.stages[-1]:
        last = results.measured[-1]
        attacks = list(bounded(results, last))
        found = {
            "E4": _oversteps(results, last),
            "E8": beyond_the_end(attacks, results),
            "E9": impossible(attacks, results),
        }
    found["E24"] = _not_validated(results, undefended)
    if folder is not None:
        for check, reason in _diagnosed(results, Path(folder)).items():
            found[check] = found.get(check) or reason
    return {check: found[check] for check in DECISIVE if found.get(check)}


def bounded(results: Results, stage: Stage) -> Iterator[Bounded]:
    """Yield the attacks in a ball of a known norm and radius that a stage was measured under; random noise left out."""
    for strength in _STRENGTHS:
        for attack, rate in stage.rates(strength).items():
            ball = ball_of(results, strength, attack)
            if ball is not None and attack != _CONTROL:
                yield Bounded(f"{attack} ({strength})", *ball, rate)


def impossible(attacks: Iterable[Bounded], results: Results) -> str:
    """Say where a model is right more often than by chance though every image could be turned into the grey one (E9).

    Of several attacks of one radius the most harmful counts.

    Args:
        attacks: what it was attacked with.
        results: of the run, for the number of classes.
    """
    inside = [attack for attack in attacks if attack.norm == "linf" and attack.eps >= wording.GREY]
    return "; ".join(_below_chance(_most_harmful(inside), results))


def beyond_the_end(attacks: Iterable[Bounded], results: Results) -> str:
    """Say where the largest radius on record, if the grey image lies within it, leaves a model better than chance (E8).

    Args:
        attacks: what it was attacked with.
        results: of the run, for the number of classes and the size of an image.
    """
    numbers = math.prod(results.dataset.shape)
    largest: dict[str, list[Bounded]] = {}
    for attack in attacks:
        known = largest.get(attack.norm, [])
        if not known or attack.eps > known[0].eps:
            largest[attack.norm] = [attack]
        elif attack.eps == known[0].eps:
            known.append(attack)
    ends = [one for known in largest.values() for one in known if one.eps >= end_radius(one.norm, numbers)]
    return "; ".join(_below_chance(_most_harmful(ends), results))


def end_radius(norm: str, numbers: int) -> float:
    """Return the radius from which the grey image lies in the ball around every image of so many numbers.

    Example:
        >>> end_radius("linf", 784), end_radius("l2", 784), end_radius("l1", 784)
        (0.5, 14.0, 392.0)
    """
    return wording.GREY * float(numbers ** _POWERS[norm])


def chance(results: Results) -> float:
    """Return the error rate of guessing, percent."""
    return 100 * (1 - 1 / max(1, len(results.dataset.class_names)))


def ball_of(results: Results, strength: Strength, attack: str) -> tuple[str, float] | None:
    """Return norm and radius of an attack under the primary threat model; None where either is not known."""
    given = results.parameters(strength, attack)
    eps = given.get("eps")
    tail = attack.rpartition("_")[2]
    norm = given.get(
        "norm", _NORMS.get(attack, tail if tail in _POWERS else "linf" if attack == "autoattack" else None)
    )
    if not isinstance(norm, str) or norm not in _POWERS or isinstance(eps, bool) or not isinstance(eps, int | float):
        return None
    return norm, float(eps)


def _oversteps(results: Results, stage: Stage) -> str:
    numbers = math.prod(results.dataset.shape)
    said = []
    for strength in (*_STRENGTHS, "predicted"):
        for attack, rate in stage.rates(strength).items():
            ball = ball_of(results, strength, attack)
            size = None if ball is None else rate.norms.get(ball[0])
            if ball is None or size is None:
                continue
            norm, eps = ball
            # float32 rounds each pixel by at most half an ulp of 1, as the evaluation allows for.
            if size.max > eps * (1 + 1e-6) + 6e-8 * numbers ** _POWERS[norm]:
                said.append(
                    f"{attack} ({strength}) moved an image by {size.max:.6g} in {_WRITTEN[norm]}, its radius is {eps:g}"
                )
    return "; ".join(dict.fromkeys(said))


def _most_harmful(attacks: Iterable[Bounded]) -> list[Bounded]:
    """Return of all attacks in the same ball the one with the highest error rate."""
    found: dict[tuple[str, float], Bounded] = {}
    for attack in attacks:
        known = found.get((attack.norm, attack.eps))
        if known is None or attack.rate.error > known.rate.error:
            found[attack.norm, attack.eps] = attack
    return list(found.values())


def _below_chance(attacks: Iterable[Bounded], results: Results) -> Iterator[str]:
    guessing = chance(results)
    for attack in attacks:
        if attack.rate.high < guessing:
            yield (
                f"{attack.name} at {_WRITTEN[attack.norm]} {attack.eps:g}, from where every image can be turned into "
                f"the same grey one, leaves {wording.percent(attack.rate.error)} % wrong "
                f"({wording.interval(attack.rate)}), fewer than guessing ({wording.percent(guessing)} %)"
            )


def _not_validated(results: Results, others: Iterable[Results]) -> str:
    squeezed = results.primary in results.squeezings
    for known in (*(() if squeezed else (results,)), *others):
        if known is not results and not _same_attacks(known, results):
            continue
        for stage in known.measured:
            worst = stage.evaluation.check.get("worst")
            if stage.index == 0 and stage.name == UNDEFENDED and stage.steps and worst is not None:
                if worst.high >= BROKEN:
                    return ""
                return (
                    f"the attacks leave the undefended model too good: {wording.percent(worst.error)} % wrong in the "
                    f"worst case at strength check ({wording.interval(worst)}), where {BROKEN:g} % are asked for"
                )
    return ""


def _same_attacks(one: Results, other: Results) -> bool:
    a, b = (results.attacks.get(results.primary, {}).get("check") for results in (one, other))
    return one.dataset.fingerprint == other.dataset.fingerprint and bool(a) and a == b


def _diagnosed(results: Results, folder: Path) -> dict[str, str]:
    """Return the decisive checks that a diagnosis in the run folder failed."""
    squeezing = results.squeezings.get(results.primary)
    place = folder if squeezing is None else folder / DIAGNOSES / squeezing.name
    if not (place / DIAGNOSIS_FILE).exists():
        return {}
    found = read_diagnosis(place)
    return {
        check.id: f"diagnosed: {check.meaning.rstrip('.')}"
        for check in found.checks
        if check.status == "FAIL" and check.id in DECISIVE
    }
