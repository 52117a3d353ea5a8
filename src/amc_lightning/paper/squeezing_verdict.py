"""Whether the gain of feature squeezing in the paper's Table 5 is real, in words and from the numbers of the runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.numbers import table5_number
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.squeezed import Squeezed, squeezings, union_rate
from amc_lightning.paper.trained import AMC_SYSTEM, Model, models
from amc_lightning.report import wording
from amc_lightning.report.columns import Column
from amc_lightning.report.decisive import DIAGNOSES, ball_of, chance
from amc_lightning.report.diagnosis_reading import DECISIVE, DIAGNOSIS_FILE, Check, Diagnosis, read_diagnosis
from amc_lightning.report.record import Strength
from amc_lightning.report.wording import WHITE_BOX

STRONGER_ATTACK = ("E15", "E16", "E22")
"""Checks that fail where another attack does more than the gradients of the model: Square, transfer, BPDA."""
NEARLY_ALL = 0.9
"""Share of the gain that has to remain for it to be called real."""
PAPERS: tuple[tuple[Strength, str], ...] = (("paper", "normal"), ("stronger", "stronger"))
CHECKED = "check"
_OF_ROWS = ("pp", "%")
"""Units of the number of those checks in which it is the share of rows that the other attack gets on top."""
_ONE_BIT = 0.5
"""Threshold of rounding a pixel to one bit."""


@dataclass(frozen=True)
class Gain:
    """By how many points squeezing lowers the error, the mean over some attacks.

    Args:
        post_hoc: if examples are made on the bare model and squeezed afterwards.
        either: if the attacker may also go through the squeezing: what remains.
        low: lower end of the 95 % interval of ``either``, normal, over images.
        high: its upper end.
        n: images.
        attacks: how many attacks.
    """

    post_hoc: float
    either: float
    low: float
    high: float
    n: int
    attacks: int

    @property
    def text(self) -> str:
        """What remains of what, such as "2.8 (2.4 to 3.1) of 30.7 points"."""
        low, high = map(wording.percent, (self.low, self.high))
        return f"{wording.percent(self.either)} ({low} to {high}) of {wording.percent(self.post_hoc)} points"


def squeezing_text(runs: Runs) -> str:
    """Return a paragraph for each dataset and squeezing of AMC that was attacked both ways; empty where none was.

    Raises:
        UserError: if the per-example results of a run, or a diagnosis that is there, cannot be read.
    """
    blocks = []
    for dataset in runs.datasets:
        systems = runs.of(dataset)
        amc = models(systems, AMC_SYSTEM, WHITE_BOX)
        for found in squeezings(systems, AMC_SYSTEM, []) if amc else ():
            said = list(verdict(dataset, amc, found))
            blocks += [" ".join([f"**{said[0]}**", *said[1:]])] if said else []
    return "\n\n".join(blocks)


def verdict(dataset: str, amc: Sequence[Model], found: Squeezed) -> Iterator[str]:
    """Yield sentences on whether the gain of one squeezing is real, the conclusion first; nothing without its numbers.

    Args:
        dataset: its name.
        amc: the bare models.
        found: the same models with the squeezing in front, attacked both ways.
    """
    gains = {name: gain(amc, found, _columns(strength)) for strength, name in PAPERS}
    whole = gain(amc, found, [column for strength, _ in PAPERS for column in _columns(strength)])
    check = gain(amc, found, [Column("attack", key, "check", (key, "")) for key in ("eap@budget", "pgm")])
    if whole is None:
        return
    diagnoses = [known for model in found.adaptive if (known := _diagnosis(model, found.name)) is not None]
    failed = [check for known in diagnoses for check in known.checks if check.status == "FAIL"]
    outdone = [check for check in failed if check.id in STRONGER_ATTACK]
    yield f"{dataset}, {found.name}: the gain of the paper's Table 5 is {_judged(whole, outdone)}."
    each = "; ".join(f"{name}: {known.text}" for name, known in gains.items() if known is not None)
    yield (
        "Over EAP and PGM, normal and stronger, squeezing examples that were made on the bare model lowers AMC's "
        f"error by {wording.percent(whole.post_hoc)} points; against an attacker who may also go through the "
        f"squeezing, {wording.percent(whole.either)} remain ({each})."
    )
    if check is not None:
        extra = max((known.number for known in outdone if known.unit in _OF_ROWS and known.number), default=0.0)
        yield (
            f"Under the check (EAP within its radius, PGM with more steps) the gain is "
            f"{_judged(check, outdone, extra=extra)}."
        )
    yield from _one_bit(found)
    yield from _judge(amc, found, diagnosed=bool(diagnoses))
    yield from _impossible(dataset, found)
    yield from _diagnosed(diagnoses)


def gain(amc: Sequence[Model], found: Squeezed, columns: Sequence[Column]) -> Gain | None:
    """Return what squeezing gains over some attacks; None where the rows of none of them were kept in all three ways.

    A number that is impossible (E9) is no gain: there nothing remains.
    """
    post_hoc, either, kept = [], [], set()
    for column in columns:
        for bare, one, other in _together(amc, found):
            rows = [model.wrong(column) for model in (bare, one, other)]
            known = [flags for flags in rows if flags is not None]
            if len(known) < 3 or len({flags.shape for flags in known}) > 1:
                continue
            kept.add(column)
            post_hoc.append(_less(known[0], known[1]))
            left = _less(known[0], known[1] | known[2])
            either.append(np.zeros_like(left) if _is_impossible(one, other, column) else left)
    if not kept or len({rows.shape for rows in either}) > 1:
        return None
    share: NDArray[np.float64] = 100 * np.mean(either, axis=0)
    n = len(share)
    half = 1.96 * float(share.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    mean = float(share.mean())
    return Gain(100 * float(np.mean(post_hoc)), mean, mean - half, mean + half, n, len(kept))


def _judged(found: Gain, outdone: Sequence[Check], *, extra: float = 0.0) -> str:
    """Return the verdict on a gain.

    Args:
        found: the gain.
        outdone: checks of a diagnosis that found an attack that does more.
        extra: how many more rows that attack gets, percentage points.
    """
    if found.post_hoc <= 0:
        return "not there: not even examples that are squeezed afterwards do less"
    if found.low <= 0:
        return f"not real: of {wording.percent(found.post_hoc)} points none remains that could be told from 0"
    named = ", ".join(dict.fromkeys(check.id for check in outdone))
    if outdone and extra >= found.low:
        return (
            f"not real: {found.text} remain, but the diagnosis ({named}) found an attack that gets "
            f"{wording.percent(extra)} points more than the one through the squeezing"
        )
    if outdone:
        return (
            f"at most partly real: {found.text} remain, and the diagnosis ({named}) found an attack that does more "
            "than the one through the squeezing"
        )
    if found.either >= NEARLY_ALL * found.post_hoc:
        return f"real as far as these attacks show: {found.text} remain"
    return f"partly real: {found.text} remain"


def _one_bit(found: Squeezed) -> Iterator[str]:
    """Say what rounding to one bit does to small perturbations, whatever the attack."""
    model = found.adaptive[0]
    ball = ball_of(model.view, "check", "pgm")
    is_one_bit = model.run.results.squeezings[model.threat_model].settings.get("bits") == 1
    if is_one_bit and ball is not None and ball[0] == "linf" and ball[1] < _ONE_BIT:
        low, high = _ONE_BIT - ball[1], _ONE_BIT + ball[1]
        yield (
            f"Within l-inf {ball[1]:g} no attack takes a pixel below {low:.3g} or above {high:.3g} across the "
            "threshold of one bit, so a part of the gain there needs no hidden gradient to explain it; how much, these "
            "runs do not tell."
        )


def _judge(amc: Sequence[Model], found: Squeezed, *, diagnosed: bool) -> Iterator[str]:
    """Say where the judge takes much more of the bare model than the check does, and was not asked of the squeezed."""
    worst = [Column("summary", "worst", strength, ("worst", strength)) for strength in ("judge", "check")]
    for bare, _, other in _together(amc, found):
        judge, check = (bare.rate(column) for column in worst)
        if judge is None or check is None or other.rate(worst[0]) is not None or judge.low <= check.high:
            continue
        yield (
            f"On the bare model the judge's attacks leave {wording.percent(judge.error)} % wrong "
            f"({wording.interval(judge)}), the check {wording.percent(check.error)} %; the squeezed model was not "
            + (
                "judged by them, but diagnosed."
                if diagnosed
                else "judged, so its numbers under the check may be as far from the worst case."
            )
        )
        return


def _impossible(dataset: str, found: Squeezed) -> Iterator[str]:
    """Say of the attacks at eps 0.5 or more whether a squeezed number is impossible (E9)."""
    column = Column("attack", "pgm", "stronger", ("pgm", "stronger"))
    model = found.adaptive[0]
    ball = ball_of(model.view, "stronger", "pgm")
    if ball is None or ball[0] != "linf" or ball[1] < wording.GREY:
        return
    guessing = chance(model.run.results)
    at = f"Under the stronger PGM, at eps {ball[1]:g}, every image can be turned into the same grey one"
    rates = [rate for one, other in _pairs(found) if (rate := union_rate(one, other, column)) is not None]
    below = [rate for rate in rates if rate.high < guessing]
    if below:
        errors = ", ".join(f"{wording.percent(rate.error)} %" for rate in below)
        yield (
            f"{at}: the {errors} there, either way, are fewer than guessing ({wording.percent(guessing)} %), which is "
            "impossible (E9): the attack failed, and this is counted as no gain."
        )
    elif rates:
        yield f"{at}: no number there, either way, is below guessing ({wording.percent(guessing)} %), as it must be."
    paper = table5_number(dataset, "stronger", "pgm", squeezed=True)
    if paper is not None and paper < guessing and model.run.results.preset == "paper":
        yield f"The paper's own {paper:g} % at this radius is impossible (E9), so it is no robustness."


def _diagnosed(diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    if not diagnoses:
        yield f"The squeezed model was not diagnosed, so {', '.join(STRONGER_ATTACK)} say nothing here."
    for known in diagnoses:
        asked = [check for check in known.checks if check.id in (*STRONGER_ATTACK, *DECISIVE)]
        failed = [check for check in asked if check.status == "FAIL"]
        size = f"Diagnosed on {known.rows:,} images (level {known.level}, {known.threat_model})"
        for check in failed:
            yield f"{size}: {check.id} FAILs ({check.figure}): {check.meaning}"
        doubt = [check.id for check in asked if check.status == "WARN"]
        passed = [check.id for check in asked if check.status == "PASS"]
        if passed or doubt:
            rest = [f"{', '.join(ids)} {status}" for ids, status in ((passed, "PASS"), (doubt, "WARN")) if ids]
            yield f"{'The same' if failed else size}: {'; '.join(rest)}."
        worst = next((check for check in known.checks if check.id == "E5"), None)
        if worst is not None:
            yield f"In the worst case over the diagnosis's own attacks: {worst.meaning}"


def _diagnosis(model: Model, squeezing: str) -> Diagnosis | None:
    place = model.run.folder / DIAGNOSES / squeezing
    return read_diagnosis(place) if (place / DIAGNOSIS_FILE).exists() else None


def _columns(strength: Strength) -> list[Column]:
    return [Column("attack", attack, strength, (attack, strength)) for attack in ("eap", "pgm")]


def _pairs(found: Squeezed) -> Iterator[tuple[Model, Model]]:
    yield from zip(found.post_hoc, found.adaptive, strict=True)


def _together(amc: Sequence[Model], found: Squeezed) -> Iterator[tuple[Model, Model, Model]]:
    """Yield bare, squeezed afterwards, and attacked through the squeezing, of every seed that has all three."""
    bare = {model.seed: model for model in amc}
    yield from ((bare[one.seed], one, other) for one, other in _pairs(found) if one.seed in bare)


def _is_impossible(one: Model, other: Model, column: Column) -> bool:
    ball, rate = ball_of(other.view, column.strength, column.key), union_rate(one, other, column)
    if ball is None or rate is None or ball[0] != "linf" or ball[1] < wording.GREY:
        return False
    return rate.high < chance(other.run.results)


def _less(bare: Wrong, squeezed: Wrong) -> NDArray[np.float64]:
    return bare.astype(np.float64) - squeezed.astype(np.float64)
