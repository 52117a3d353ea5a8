"""The kinds of check that a claim is put to: what each asks of the rows of the systems."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from amc_lightning.paper.claim_finding import Finding, Side, not_measured
from amc_lightning.paper.claim_list import CLEAN, Claim
from amc_lightning.paper.claim_question import Change, Contrast, Counts, OverBest, Question, Sum
from amc_lightning.paper.claim_rows import Cell, column
from amc_lightning.paper.squeezed import Ways, ways, weaker_text
from amc_lightning.paper.trained import Systems
from amc_lightning.report.paper_table4 import ATTACKS
from amc_lightning.report.record import UNDEFENDED, Strength
from amc_lightning.report.wording import WHITE_BOX


def gain(systems: Systems, claim: Claim, strength: Strength) -> Question:
    """Ask by how much a system's error is below its rivals', averaged over attacks, under each threat model."""
    systems_named, over = [claim.text("system"), *claim.texts("rivals")], claim.text("over")
    attacks = _columns(systems, claim.texts("attacks"), strength)
    cells: list[Cell] = []
    contrasts: dict[str, Contrast] = {}
    names = claim.texts("threat_models")
    for threat_model in names:
        under = _under(attacks, threat_model)
        here = [_add(cells, [Cell(name, attack, strength, under) for name in systems_named]) for attack in attacks]
        contrasts[threat_model if len(names) > 1 else ""] = _gain(here, over)
    return Question(cells, contrasts, Side(above=True))


def gain_in_every_column(systems: Systems, claim: Claim, strength: Strength) -> Question:
    """Ask by how much a system's error is below its best rival's, attack by attack: all must be above 0."""
    systems_named, threat_model = [claim.text("system"), *claim.texts("rivals")], claim.text("threat_model")
    cells: list[Cell] = []
    contrasts: dict[str, Contrast] = {}
    for attack in _columns(systems, claim.texts("attacks"), strength):
        here = _add(cells, [Cell(name, attack, strength, threat_model) for name in systems_named])
        contrasts[attack] = _gain([here], "best")
    return Question(cells, contrasts, Side(above=True))


def near(systems: Systems, claim: Claim, strength: Strength) -> Question:
    """Ask by how much a system's error is above that of a reference: at most the tolerance."""
    attacks = _columns(systems, claim.texts("attacks"), strength)
    under = _under(attacks, claim.text("threat_model"))
    cells: list[Cell] = []
    own, reference = (
        _add(cells, [Cell(claim.text(which), attack, strength, under) for attack in attacks])
        for which in ("system", "reference")
    )
    return Question(cells, {"": Sum(own, reference)}, Side(above=False, bound=claim.number("tolerance")))


def no_spill(systems: Systems, claim: Claim, strength: Strength) -> Question:
    """Ask by how much hardening against one attack lowers M0's error under each other: none above the tolerance."""
    hardened, threat_model = claim.mapping("systems"), claim.text("threat_model")
    cells: list[Cell] = []
    contrasts: dict[str, Contrast] = {}
    for system, own in hardened.items():
        for attack in [name for name in ATTACKS if name in hardened.values() and name != own]:
            (key,) = _columns(systems, [attack], strength)
            bare, with_it = _add(cells, [Cell(name, key, strength, threat_model) for name in (UNDEFENDED, system)])
            contrasts[f"{system} under {key}"] = Sum((bare,), (with_it,))
    return Question(cells, contrasts, Side(above=False, bound=claim.number("tolerance")))


def every_stage(systems: Systems, claim: Claim, strength: Strength) -> Question | Finding:
    """Ask by how much the mean error falls from each stage of a cascade to the next: all must fall."""
    system, threat_model = claim.text("system"), claim.text("threat_model")
    found = systems.get(system, ())
    if not found:
        return not_measured([system])
    attacks = _columns(systems, claim.texts("attacks"), strength)
    cells: list[Cell] = []
    contrasts: dict[str, Contrast] = {}
    for before, after in pairwise(found[0].results.stages):
        here = [
            _add(cells, [Cell(system, attack, strength, threat_model, stage.index) for attack in attacks])
            for stage in (before, after)
        ]
        contrasts[f"{before.label} to {after.label}"] = Sum(*here)
    return Question(cells, contrasts, Side(above=True)) if cells else not_measured([f"{system}: stages"])


def squeezing(systems: Systems, claim: Claim, strength: Strength) -> Question | Finding:
    """Ask by how much each squeezing lowers a system's error, where a row is wrong in either way of attacking it.

    An attacker who knows of the squeezing can go through it or squeeze afterwards; both ways stand beside it by
    themselves. The stronger attacks have no other form at strength check than that an unbounded search counts within
    its radius only.
    """
    system, against = claim.text("system"), claim.text("against")
    if not systems.get(system):
        return not_measured([system])
    known = _squeezings(systems, system)
    if not known:
        return not_measured([f"{system} (squeezed, adaptive and post hoc)"])
    attacks = _columns(systems, claim.texts("attacks"), strength)
    strengths: list[Strength] = [] if against == "stronger" else [strength]
    strengths += [] if against == "seen" else ["stronger"]
    cells: list[Cell] = []
    bare = [_add(cells, [Cell(system, attack, one, WHITE_BOX) for attack in attacks]) for one in strengths]
    contrasts: dict[str, Contrast] = {}
    beside: dict[str, dict[str, Contrast]] = {}
    pairs: dict[str, list[tuple[str, int, int]]] = {}
    for name, both in known.items():
        made: dict[str, Contrast] = {}
        places = {}
        for way, under, also in (
            ("either way", both.adaptive, both.post_hoc),
            ("adaptive", both.adaptive, ""),
            ("post hoc", both.post_hoc, ""),
        ):
            places[way] = [
                _add(cells, [Cell(system, attack, one, under, also=also) for attack in attacks]) for one in strengths
            ]
            falls = [Sum(*pair) for pair in zip(bare, places[way], strict=True)]
            made[way] = falls[0] if len(falls) == 1 else Change(falls[1], falls[0])
        contrasts[name] = made.pop("either way")
        beside[name] = made
        titles = [f"{one}/{attack}" for one in strengths for attack in attacks]
        ends = [[place for each in places[way] for place in each] for way in ("adaptive", "post hoc")]
        pairs[name] = list(zip(titles, *ends, strict=True))
    return Question(cells, contrasts, Side(above=True), "any", beside, partial(_weaker, pairs))


def _squeezings(systems: Systems, system: str) -> dict[str, Ways]:
    """Return the squeezings of a system that every run with any of them was attacked behind both ways."""
    every = [found for run in systems[system] if (found := ways(run.results))]
    if not every:
        return {}
    return {
        name: both for name, both in every[0].items() if all(name in other and other[name].is_both for other in every)
    }


def _weaker(pairs: Mapping[str, Sequence[tuple[str, int, int]]], counts: Counts) -> str:
    said = []
    for name, found in pairs.items():
        weaker = [title for title, adaptive, post_hoc in found if counts[adaptive].sum() < counts[post_hoc].sum()]
        said += [text] if (text := weaker_text(name, weaker)) else []
    return " ".join(said).replace("**", "")


def _columns(systems: Systems, attacks: Sequence[str], strength: Strength) -> list[str]:
    return [column(systems, attack, strength) for attack in attacks]


def _under(attacks: Sequence[str], threat_model: str) -> str:
    """Return the threat model; none for the clean error, which is the same under all."""
    return "" if list(attacks) == [CLEAN] else threat_model


def _add(cells: list[Cell], more: Sequence[Cell]) -> tuple[int, ...]:
    """Append cells; return their places."""
    start = len(cells)
    cells += more
    return tuple(range(start, len(cells)))


def _gain(places: Sequence[tuple[int, ...]], over: str) -> Contrast:
    """Return the mean over attacks of the best or average rival's error minus the system's, which stands first."""
    if over == "best":
        return OverBest(tuple(places))
    rivals = [place for _, *others in places for place in others]
    return Sum(tuple(rivals), tuple(own for own, *others in places for _ in others))


ROW_KINDS: Mapping[str, Callable[[Systems, Claim, Strength], Question | Finding]] = {
    "gain": gain,
    "gain_in_every_column": gain_in_every_column,
    "near": near,
    "no_spill": no_spill,
    "every_stage": every_stage,
    "squeezing": squeezing,
}
"""The kinds that compare rows; ``claim_costs`` has the others."""
