"""The tables of the comparison: robustness and cost, every attack, the judge, and the paired tests."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from amc_lightning.field.best import believe_all, with_best
from amc_lightning.field.contrast import TOLERANCE, Contrast
from amc_lightning.field.entrants import Entrant, Reasons
from amc_lightning.field.union import JUDGED, NORMS, Union, column, union
from amc_lightning.paper.cells import CLEAN, Cell, Error, Fact, error
from amc_lightning.paper.comparison import p_text
from amc_lightning.paper.document import Grid, Row, write_document
from amc_lightning.paper.measures import heads
from amc_lightning.paper.points import points_text
from amc_lightning.paper.table_notes import FOR_COMPARISON, notes
from amc_lightning.report.columns import SUMMARIES, Column, budget_text
from amc_lightning.report.record import Strength
from amc_lightning.report.wording import WHITE_BOX

STEM = "baselines"
TITLE = "AMC among the defences against several attacks: error rates (%), lower is better"
SUMMARY = "baselines"
"""Name of the first table in the CSV file."""
_FIRST = ("fgsm", "vap", "eap", "pgm", *(f"pgd_{norm}" for norm in NORMS))


def write_tables(grids: Sequence[Grid], folder: Path) -> list[Path]:
    """Write baselines.md, .csv and .tex of all tables, each in one step.

    Raises:
        OSError: if a file cannot be written.
    """
    return write_document(folder, STEM, TITLE, grids)


def summary_grid(dataset: str, rows: Sequence[Entrant], reasons: Reasons = believe_all) -> Grid:
    """Return the first table: clean, the union over norms, mean and worst case of all attacks, and what it took."""
    judged = [strength for strength in JUDGED if strength == "check" or has_judge(rows)]
    summaries = [Column("summary", name, "check", (name, "check")) for name in SUMMARIES]
    head = (
        "clean", *(f"union {strength}" for strength in judged), *heads(summaries), "passes after M0", "passes of M0",
        "minutes after M0", "minutes of M0",
    )  # fmt: skip
    made: list[tuple[Entrant, tuple[Cell, ...]]] = []
    said: list[str] = []
    for row in rows:
        unions = {strength: _unions(row, strength) for strength in judged}
        cells: list[Cell] = [error(row.system, row.models, CLEAN)]
        cells += [_union_cell(row, strength, found) for strength, found in unions.items()]
        cells += [error(row.system, row.models, each) for each in summaries]
        made.append((row, (*cells, *_costs(row))))
        said += [
            f"{row.place.name}: no union {strength}, for want of {', '.join(each.missing)}."
            for strength, found in unions.items()
            for each in found.values()
            if each.missing
        ]
    done, refused = with_best(made, ("system", *head), reasons)
    title = f"{dataset}: robustness and cost"
    below = (*_about_unions(rows, judged), *refused, *_notes(rows, done), *said, _cost_note(rows))
    return Grid(SUMMARY, dataset, title, ("system", *head), done, (*below, FOR_COMPARISON))


def attack_grids(dataset: str, rows: Sequence[Entrant], reasons: Reasons = believe_all) -> list[Grid]:
    """Return the tables of every attack: at strength check, at strength paper, and the judge's where there is one."""
    titles: dict[Strength, str] = {
        "check": "every attack, strength check",
        "paper": "every attack, strength paper",
        "judge": "the judge: attacks of another making, on leading images of the attack split",
    }
    grids = []
    for strength, title in titles.items():
        columns = _columns(rows, strength)
        if columns:
            cells = [
                (row, tuple(error(row.system, row.models, each, shows_n=strength == "judge") for each in columns))
                for row in rows
            ]
            done, refused = with_best(cells, ("system", *heads(columns)), reasons)
            said = (*refused, *_notes(rows, done), FOR_COMPARISON)
            name = f"{SUMMARY}_{strength}"
            grids.append(Grid(name, dataset, f"{dataset}: {title}", ("system", *heads(columns)), done, said))
    return grids


def paired_grid(dataset: str, found: Sequence[Contrast]) -> Grid | None:
    """Return the table of paired comparisons; None where there is none."""
    if not found:
        return None
    head = (
        "cascade", "against", "error", "its", "baseline's", "difference", "n", "only cascade wrong",
        "only baseline wrong", "p", "lower?", "passes, baseline / cascade",
    )  # fmt: skip
    rows = tuple(Row(one.cascade.place.name, tuple(_paired_cells(one))) for one in found)
    said = (
        "difference: the cascade's error less the baseline's, points, with a 95 % bootstrap interval over images; "
        "below 0 the cascade is the better one.",
        "p: exact two-sided McNemar test on the same images (of several seeds: sign test of the images that differ). "
        "Not corrected for the number of rows, and about these images and these trained models.",
        "lower?: holds, fails or within noise: the interval lies below 0, above 0, or neither; the exact test has to "
        "agree.",
        f"Passes after M0. At equal cost: between {1 - TOLERANCE:g} and {1 + TOLERANCE:g}.",
        *(f"Not from the same M0: {_pair(one)}." for one in found if not one.same_start),
        *(f"Not compared ({_quantity(one)}): {_pair(one)}, for want of {', '.join(one.missing)}." for one in found
          if one.missing),
    )  # fmt: skip
    return Grid(f"{SUMMARY}_paired", dataset, f"{dataset}: the cascades against every baseline", head, rows, said)


def has_judge(rows: Sequence[Entrant]) -> bool:
    """Say whether any row was measured by a judge."""
    return any("judge" in model.evaluation.others for row in rows for model in row.models)


def _unions(row: Entrant, strength: Strength) -> dict[int, Union]:
    return {model.seed: union(model, strength) for model in row.models}


def _union_cell(row: Entrant, strength: Strength, found: dict[int, Union]) -> Error:
    rates = {seed: rate for seed, each in found.items() if (rate := each.rate) is not None}
    return Error(row.system, column(strength), WHITE_BOX, rates, shows_n=strength == "judge")


def union_cell(row: Entrant, strength: Strength) -> Error:
    """Return the union over norms of a row as a cell."""
    return _union_cell(row, strength, _unions(row, strength))


def _costs(row: Entrant) -> Iterator[Fact]:
    for name, value in (("passes_after_m0", row.passes), ("passes_of_m0", row.first_passes)):
        yield Fact(f"{value:,.0f}", name, value, row.system)
    for name, value in (("minutes_after_m0", row.minutes), ("minutes_of_m0", row.first_minutes)):
        yield Fact(f"{value:.1f}", name, value, row.system)


def _cost_note(rows: Sequence[Entrant]) -> str:
    several = "; averaged over seeds" if any(len(row.seeds) > 1 for row in rows) else ""
    return (
        "passes: gradient passes per training image, crafting and training; minutes: of training, on whatever machine "
        f"it was, other work beside it included{several}."
    )


def _notes(rows: Sequence[Entrant], made: Sequence[Row]) -> Iterator[str]:
    errors = [cell for row in made for cell in row.cells if isinstance(cell, Error)]
    yield from notes([model for row in rows for model in row.models], errors)


def _about_unions(rows: Sequence[Entrant], judged: Sequence[Strength]) -> Iterator[str]:
    """Say what the unions are over: one sentence for each set of attacks that there is."""
    for strength in judged:
        for found in (each for row in rows for each in _unions(row, strength).values() if each.wrong is not None):
            balls = []
            for norm in NORMS:
                inside = [one for one in found.members if one.norm == norm]
                names = list(dict.fromkeys(one.attack for one in inside))
                balls.append(f"{budget_text(norm, inside[0].eps)} ({', '.join(names)})")
            yield f"union {strength}: wrong clean or under at least one attack in the balls {', '.join(balls)}."


def _columns(rows: Sequence[Entrant], strength: Strength) -> list[Column]:
    """Return the attacks of a strength: the four, the three norms, others; an unbounded one also within its radius."""
    keys = dict.fromkeys(key for row in rows for model in row.models for key in model.evaluation.rates(strength))
    found = [key for key in keys if key not in ("clean", *SUMMARIES)]
    found += ["worst"] if strength == "judge" and "worst" in keys else []
    return [
        Column("attack", key, strength, _heading(rows, key, strength)) for key in sorted(found, key=_place_of_attack)
    ]


def _heading(rows: Sequence[Entrant], key: str, strength: Strength) -> tuple[str, str]:
    attack, _, bounded = key.partition("@")
    budgets = [model.run.results.budget for row in rows for model in row.models]
    known = next((budget[attack] for budget in budgets if attack in budget), None)
    if known is None:
        return key, strength
    return attack, f"{budget_text(*known) if bounded else 'no limit'} {strength}"


def _place_of_attack(key: str) -> tuple[bool, int, bool]:
    attack, _, bounded = key.partition("@")
    return key == "worst", _FIRST.index(attack) if attack in _FIRST else len(_FIRST), bool(bounded)


def _paired_cells(one: Contrast) -> Iterator[Cell]:
    own, rival = one.cascade.system, one.rival.system
    against = f"{own} - {rival}"
    details = {
        "attack": one.quantity,
        "strength": "" if one.quantity == "clean" else one.strength,
        "seeds": " ".join(map(str, one.seeds)),
        "threat_model": WHITE_BOX,
    }
    yield Fact(one.rival.place.name)
    yield Fact(_quantity(one))
    if one.is_measured:
        interval = one.interval()
        yield Fact(f"{one.ours:.1f}", "error", one.ours, own, details)
        yield Fact(f"{one.theirs:.1f}", "error", one.theirs, rival, details)
        bounds = {"low": f"{interval.low:.4f}", "high": f"{interval.high:.4f}"}
        yield Fact(points_text(interval), "difference", interval.estimate, against, details | bounds)
        yield Fact(str(one.n), "n", one.n, against, details)
        yield Fact(str(one.only_ours), "only_cascade_wrong", one.only_ours, against, details)
        yield Fact(str(one.only_theirs), "only_baseline_wrong", one.only_theirs, against, details)
        yield Fact(p_text(one.p), "p", one.p, against, details)
    else:
        yield from [Fact("-")] * 7
    yield Fact(one.verdict())
    yield Fact("-") if one.cost is None else Fact(cost_text(one), "passes_ratio", one.cost, against, details)


def cost_text(one: Contrast) -> str:
    """Return the passes of the baseline over those of the cascade, and whether that is no equal cost."""
    assert one.cost is not None
    return f"{one.cost:.2f}" + ("" if one.is_equal_cost else " (not equal)")


def _quantity(one: Contrast) -> str:
    return "clean" if one.quantity == "clean" else f"union {one.strength}"


def _pair(one: Contrast) -> str:
    return f"{one.cascade.place.name} and {one.rival.place.label}"
