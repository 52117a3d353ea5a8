"""The variations of AMC (paper, section 5.3) and one of ours: without transfer, in reverse order, without replay."""

from collections.abc import Iterator, Mapping, Sequence

from amc_lightning.paper.cells import Cell, Error, Fact, error
from amc_lightning.paper.comparison import p_text, pairs
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.measures import all_columns, heads, measured
from amc_lightning.paper.points import signed
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.table2 import cost_cells
from amc_lightning.paper.table_notes import FOR_COMPARISON, cost, notes
from amc_lightning.paper.trained import AMC_SYSTEM, NAMES, NO_REPLAY, Model, models
from amc_lightning.report.columns import Column
from amc_lightning.report.wording import WHITE_BOX

TITLE = "Variations of AMC: error rates (%) under white-box attacks, lower is better"
ABLATIONS = ("amc_no_transfer", "amc_reverse", NO_REPLAY)
WORST = Column("summary", "worst", "check", ("worst", "check"))


def ablations(runs: Runs) -> list[Grid]:
    """Return two tables for each dataset that has a variation: the errors, and their differences to AMC's."""
    grids = []
    for dataset in runs.datasets:
        systems = runs.of(dataset)
        varied = {system: found for system in ABLATIONS if (found := models(systems, system, WHITE_BOX))}
        if varied:
            amc = models(systems, AMC_SYSTEM, WHITE_BOX)
            rows = {**({AMC_SYSTEM: amc} if amc else {}), **varied}
            grids.append(_errors(dataset, rows))
            grids += _differences(dataset, amc, varied) if amc else []
    return grids


def _errors(dataset: str, rows: Mapping[str, list[Model]]) -> Grid:
    every = [model for found in rows.values() for model in found]
    columns = measured(all_columns(every), every)
    made = tuple(
        Row(
            NAMES[system],
            (*(error(system, found, column) for column in columns), *cost_cells(system, found)),
        )
        for system, found in rows.items()
    )
    errors = [cell for row in made for cell in row.cells if isinstance(cell, Error)]
    said = (
        *notes(every, errors),
        "no transfer: every stage starts from M0, not from the stage before. reverse order: pgm, eap, vap, fgsm. no "
        "replay: every stage trains with its own attack alone.",
        "The paper gives no numbers for these: it calls the result without transfer dismal, and finds more robustness "
        "in the first order than in the reverse one.",
        "" if AMC_SYSTEM in rows else f"Nothing to compare with: there is no {AMC_SYSTEM}.",
        cost(every),
        FOR_COMPARISON,
    )
    head = ("system", *heads(columns), "minutes", "passes per image")
    return Grid("ablations", dataset, f"{dataset}: the variations", head, made, said)


def _differences(dataset: str, amc: Sequence[Model], varied: Mapping[str, list[Model]]) -> list[Grid]:
    every = [*amc, *(model for found in varied.values() for model in found)]
    columns = measured(all_columns(every), every)
    rows = [
        row
        for system, found in varied.items()
        for model in found
        if (row := _difference(system, model, amc, columns)) is not None
    ]
    if not rows:
        return []
    head = ("system", "seed", *heads(columns), "worst check: only this wrong", "only AMC wrong", "p")
    said = (
        "Points; above 0 AMC is the better one. Each is compared with AMC of the same seed.",
        "p: exact two-sided McNemar test of the worst case at strength check, on the same images; not corrected for "
        "the number of rows, and about these images and these trained models, not about other trainings.",
    )
    return [Grid("ablations_paired", dataset, f"{dataset}: difference to AMC", head, tuple(rows), said)]


def _difference(system: str, model: Model, amc: Sequence[Model], columns: Sequence[Column]) -> Row | None:
    """Return how a model differs from AMC of the same seed in every column; None where there is no such AMC."""
    other = next((one for one in amc if one.seed == model.seed), None)
    if other is None:
        return None
    cells: list[Cell] = [Fact(str(model.seed))]
    for column in columns:
        one, two = model.rate(column), other.rate(column)
        if one is None or two is None or one.n != two.n:
            cells.append(Fact("-"))
            continue
        points = one.error - two.error
        details = _details(column, model.seed)
        cells.append(Fact(signed(points), "difference", points, f"{system} - {AMC_SYSTEM}", details))
    return Row(NAMES[system], (*cells, *_test(system, model, other)))


def _test(system: str, model: Model, other: Model) -> Iterator[Cell]:
    pair = next(pairs([model], [other], WORST), None)
    if pair is None:
        yield from (Fact("-"), Fact("-"), Fact("-"))
        return
    details, against = _details(WORST, model.seed), f"{system} - {AMC_SYSTEM}"
    yield Fact(str(pair.test.only_a), "only_this_wrong", pair.test.only_a, against, details)
    yield Fact(str(pair.test.only_b), "only_amc_wrong", pair.test.only_b, against, details)
    yield Fact(p_text(pair.test.p), "p", pair.test.p, against, details)


def _details(column: Column, seed: int) -> dict[str, str]:
    strength = "" if column.group == "clean" else column.strength
    return {"attack": column.key, "strength": strength, "seeds": str(seed), "threat_model": WHITE_BOX}
