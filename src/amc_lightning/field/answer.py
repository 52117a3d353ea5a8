"""Sentences that answer, from paired comparisons alone, whether a cascade with replay buys anything at equal cost."""

from collections.abc import Iterator, Sequence

from amc_lightning.field.best import believe_all, failed_text
from amc_lightning.field.contrast import TOLERANCE, Contrast
from amc_lightning.field.entrants import Entrant, Reasons
from amc_lightning.paper.claim_finding import Verdict
from amc_lightning.paper.comparison import p_text
from amc_lightning.paper.paired import LEVEL
from amc_lightning.report.wording import percent

QUESTION = "Does a cascade with replay buy anything at equal cost?"
_SHARE = f"{100 * TOLERANCE:.0f} %"


def answer(found: Sequence[Contrast], reasons: Reasons = believe_all) -> str:
    """Return the paragraph that answers the question for one cascade and one strength.

    The baselines that count are those against several attacks, at equal cost, hardened from the same M0, better than
    guessing. The cascade buys something if its union error is below that of each of them; nothing if one of them is
    below it at an interval and a p value corrected for their number (Bonferroni); else it cannot be told. To be below
    each needs no correction: every one of the comparisons has to hold.

    Args:
        found: the comparisons of one cascade in the union over norms, at one strength; at least one.
        reasons: gives the checks that a run fails.
    """
    fair = [one for one in found if one.is_fair and one.rival.place.kind == "several"]
    said = [_lead(fair), *_singles(found), *_unequal(found), *_guessing(found), *_not_compared(found)]
    said += _doubts([found[0].cascade, *(one.rival for one in found)], reasons)
    said += [_limits(found), _taken(fair)]
    return " ".join(text for text in said if text)


def sentences(found: Sequence[Contrast]) -> list[str]:
    """Return one sentence for each baseline: both errors, the difference with its interval, and the verdict."""
    return [_sentence(one) for one in found]


def clean_sentence(found: Sequence[Contrast]) -> str:
    """Return what the cascade's clean error is beside that of every baseline; empty where none was compared."""
    known = [one for one in found if one.is_measured]
    if not known:
        return ""
    groups: dict[Verdict, list[str]] = {}
    for one in known:
        groups.setdefault(one.verdict(), []).append(f"{one.rival.place.label} {percent(one.theirs)}")
    words: dict[Verdict, str] = {"holds": "lower than", "fails": "higher than", "within noise": "within noise of"}
    parts = [f"{words[verdict]} {_listed(groups[verdict])}" for verdict in words if verdict in groups]
    return f"Clean error: {percent(known[0].ours)} %; {'; '.join(parts)} (n = {known[0].n:,}, test split)."


def _lead(fair: Sequence[Contrast]) -> str:
    if not fair:
        return (
            "Whether a cascade with replay buys anything at equal cost these runs do not say: no baseline against "
            "several attacks was measured on the same images, from the same M0 and at equal cost, both of them better "
            "than guessing."
        )
    strict = 1 - (1 - LEVEL) / len(fair)
    better = [one for one in fair if one.verdict() == "holds"]
    worse = [one for one in fair if one.verdict(strict) == "fails"]
    rest = [one for one in fair if one not in better and one not in worse]
    count = "the one baseline" if len(fair) == 1 else f"each of the {len(fair)} baselines"
    if len(better) == len(fair):
        return (
            f"A cascade with replay buys a lower union error than {count} against several attacks at equal cost: "
            f"{_points(better)}."
        )
    also = f" It is better than {_points(better)}." if better else ""
    tied = f" Within noise of it: {_names(rest)}." if rest else ""
    lower = [one for one in rest if one.verdict() == "fails"]
    alone = f" Lower by itself, but not corrected for {len(fair)} comparisons: {_names(lower)}." if lower else ""
    if worse:
        return (
            "A cascade with replay buys nothing that a baseline against several attacks does not give at equal cost: "
            f"a lower union error than the cascade {_has(worse)} {_points(worse)}.{also}{tied}{alone}"
        )
    return (
        "A cascade with replay buys nothing at equal cost that can be told from noise: its union error is not shown to "
        f"be lower than that of {_names(rest)}.{also}{alone}"
    )


def _singles(found: Sequence[Contrast]) -> Iterator[str]:
    """Say what became of the adversarial training against a single attack: a lower bar."""
    single = [one for one in found if one.is_fair and one.rival.place.kind == "single"]
    if single:
        words: dict[Verdict, str] = {"holds": "below", "fails": "above", "within noise": "within noise of"}
        parts = [
            f"{words[verdict]} {_names(members) if verdict == 'within noise' else _points(members)}"
            for verdict in words
            if (members := [one for one in single if one.verdict() == verdict])
        ]
        yield f"Against a single attack, at equal cost: the cascade's error is {'; '.join(parts)}."


def _unequal(found: Sequence[Contrast]) -> Iterator[str]:
    known = [one for one in found if one.is_measured and not one.is_equal_cost]
    if known:
        parts = [
            one.rival.place.label if one.cost is None else f"{one.rival.place.label} ({one.cost:.2f} times its passes)"
            for one in known
        ]
        yield f"Not at equal cost (passes differ by more than {_SHARE}) and left out of this answer: {_listed(parts)}."
    moved = [one for one in found if one.is_measured and not one.same_start]
    if moved:
        yield f"Not hardened from the same M0 and left out: {_names(moved)}."


def _guessing(found: Sequence[Contrast]) -> Iterator[str]:
    rows = {row.system: row for one in found for row in (one.cascade, one.rival) if one.is_measured and row.is_guessing}
    if rows:
        parts = [f"{row.place.label} (clean error {percent(row.clean_error)} %)" for row in rows.values()]
        yield f"No better than guessing on clean images and left out: {_listed(parts)}."


def _not_compared(found: Sequence[Contrast]) -> Iterator[str]:
    absent = [one for one in found if not one.is_measured]
    if absent:
        parts = [f"{one.rival.place.label} (wanting: {', '.join(one.missing)})" for one in absent]
        yield f"Not measured: {_listed(parts)}."


def _doubts(rows: Sequence[Entrant], reasons: Reasons) -> list[str]:
    failed = {row.place.label: why for row in rows if (why := row.reasons(reasons))}
    if not failed:
        return []
    parts = [f"{name}: {failed_text(why)}" for name, why in failed.items()]
    return [f"Decisive checks do not hold, so what is said of these is not to be relied on: {'; '.join(parts)}."]


def _limits(found: Sequence[Contrast]) -> str:
    known = [one for one in found if one.is_measured]
    if not known:
        return ""
    seeds = sorted({seed for one in known for seed in one.seeds})
    images = " or ".join(f"{n:,}" for n in sorted({one.n for one in known}))
    which = f"one seed ({seeds[0]})" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return f"n = {images} images, {which}: the intervals are over images; another training may give another answer."


def _taken(fair: Sequence[Contrast]) -> str:
    """Say how far from equal the costs are of the baselines that count: fewer passes are their handicap."""
    ratios = sorted({f"{one.cost:.2f}" for one in fair if one.cost is not None})
    if not ratios:
        return ""
    return f"Passes of the baselines: {' to '.join(dict.fromkeys((ratios[0], ratios[-1])))} times those of the cascade."


def _sentence(one: Contrast) -> str:
    name = one.rival.place.label
    if not one.is_measured:
        return f"against {name}: not measured, for want of {', '.join(one.missing)}."
    cost = "" if one.is_equal_cost else f" Not at equal cost: {_cost(one)}."
    start = "" if one.same_start else " Not from the same M0."
    start += " No better than guessing on clean images." if one.rival.is_guessing else ""
    return (
        f"against {name}: {percent(one.ours)} % against {percent(one.theirs)} %, {_difference(one)}; p {_p(one)}: "
        f"**{one.verdict()}**.{cost}{start}"
    )


def _difference(one: Contrast) -> str:
    """Return the difference in words: which side is lower, and the bounds on the same side's scale."""
    interval = one.interval()
    sign, word = (-1, "lower") if interval.estimate < 0 else (1, "higher")
    low, high = sorted((sign * interval.low, sign * interval.high))
    size = percent(sign * interval.estimate)
    unit = "point" if size == "1.0" else "points"
    if size == "0.0":
        return f"no difference ({percent(interval.low)} to {percent(interval.high)} points)"
    return f"{size} {unit} {word} ({percent(low)} to {percent(high)})"


def _points(found: Sequence[Contrast]) -> str:
    """Name baselines with how far the cascade is from each."""
    return _listed([f"{one.rival.place.label} ({_gap(one)})" for one in found])


def _gap(one: Contrast) -> str:
    points = abs(one.interval().estimate)
    return f"by {percent(points)} point{'' if percent(points) == '1.0' else 's'}"


def _cost(one: Contrast) -> str:
    return "the cascade took no passes" if one.cost is None else f"{one.cost:.2f} times the cascade's passes"


def _p(one: Contrast) -> str:
    text = p_text(one.p)
    return text if text.startswith("<") else f"= {text}"


def _names(found: Sequence[Contrast]) -> str:
    return _listed([one.rival.place.label for one in found])


def _has(found: Sequence[Contrast]) -> str:
    return "has" if len(found) == 1 else "have"


def _listed(parts: Sequence[str]) -> str:
    """Return a list in words.

    Example:
        >>> _listed(["A"]), _listed(["A", "B", "C"])
        ('A', 'A, B and C')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
