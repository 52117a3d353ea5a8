"""The paper's Table 5: AMC with and without feature squeezing, under normal and stronger attacks."""

from collections.abc import Sequence

from amc_lightning.paper.bold import failures, squeezed_failures, with_bold
from amc_lightning.paper.cells import CLEAN, Error, error
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.measures import budget_columns, check_columns, heads, measured
from amc_lightning.paper.numbers import table5_number
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.squeezed import ADAPTIVE, EITHER, HONEST, POST_HOC, Squeezed, squeezed_models, squeezings
from amc_lightning.paper.squeezing_verdict import verdict
from amc_lightning.paper.table_notes import FOR_COMPARISON, notes
from amc_lightning.paper.trained import AMC_SYSTEM, Model, Systems, models
from amc_lightning.report.columns import Column
from amc_lightning.report.record import Strength
from amc_lightning.report.wording import WHITE_BOX

TITLE = "Table 5: error rates (%) of AMC with feature squeezing (FS) under white-box attacks, lower is better"
ATTACKS = ("eap", "pgm")
STRENGTHS: tuple[tuple[Strength, str], ...] = (("paper", "normal"), ("stronger", "stronger"))
HALF = 0.5
"""From this radius on, in pixels of [0, 1], an l-inf ball around any image holds the grey one."""


def table5(runs: Runs) -> list[Grid]:
    """Return one table for each dataset and squeezing; where there is none, of AMC under stronger attacks alone."""
    return [grid for dataset in runs.datasets for grid in _grids(dataset, runs.of(dataset))]


def _grids(dataset: str, systems: Systems) -> list[Grid]:
    amc = models(systems, AMC_SYSTEM, WHITE_BOX)
    said: list[str] = []
    found = squeezings(systems, AMC_SYSTEM, said)
    blocks: list[Squeezed | None] = [*found] or [None]
    if not amc or not (found or any(model.evaluation.rates("stronger") for model in amc)):
        return []
    return [_grid(dataset, systems, amc, block, said) for block in blocks]


def _grid(dataset: str, systems: Systems, amc: Sequence[Model], block: Squeezed | None, said: Sequence[str]) -> Grid:
    both = [] if block is None else squeezed_models([block])
    columns = _columns([*amc, *both])
    bare = [error(AMC_SYSTEM, amc, column, paper=_paper(dataset, column, squeezed=False)) for column in columns]
    rows = [Row("AMC", tuple(bare))]
    if block is not None:
        found = [block.cells(AMC_SYSTEM, column, _paper(dataset, column, squeezed=True)) for column in columns]
        rows += [Row(f"AMC and {way}", tuple(cells[way] for cells in found)) for way in (EITHER, ADAPTIVE, POST_HOC)]
    head, parts = ("system", *heads(columns)), [f"AMC and {way}" for way in (ADAPTIVE, POST_HOC)]
    failed = [failures(amc, systems), {} if block is None else squeezed_failures(block, systems), {}, {}][: len(rows)]
    marked, bold = with_bold(rows, head, failed, aside=parts)
    errors = [cell for row in rows for cell in row.cells if isinstance(cell, Error)]
    judged = [] if block is None else [f"**{said}**" for said in list(verdict(dataset, amc, block))[:1]]
    title = f"{dataset}: AMC, without squeezing" if block is None else f"{dataset}: AMC and {block.name}"
    below = (
        *notes(amc, errors),
        "normal: strength paper. stronger: doubled, PGM in steps and eps, EAP in search steps and iterations.",
        "" if block is None else f"Feature squeezing: {block.name} ({block.settings}). {HONEST}",
        "" if block is None else block.weaker(columns),
        *judged,
        *said,
        *bold,
        f"{' and '.join(parts)} are what {EITHER} is made of, and do not compete for the best." if bold else "",
        _beyond([*amc, *both], columns),
        FOR_COMPARISON,
    )
    return Grid("table5", dataset, title, head, marked, below)


def _columns(found: Sequence[Model]) -> list[Column]:
    """Return clean, EAP and PGM, normal and stronger, then what the paper does not show: within a radius, and check."""
    columns = [CLEAN]
    for strength, name in STRENGTHS:
        columns += [Column("attack", attack, strength, (attack, name)) for attack in ATTACKS]
    for strength, name in STRENGTHS:
        bounded = budget_columns(found, strength)
        columns += [
            Column("attack", column.key, strength, (column.heading[0], f"{column.heading[1].split()[0]} {name}"))
            for column in bounded
        ]
    columns += [column for column in check_columns(found) if column.key.partition("@")[0] in ATTACKS]
    columns += [Column("summary", "worst", "check", ("worst", "check"))]
    return measured(columns, found)


def _paper(dataset: str, column: Column, *, squeezed: bool) -> float | None:
    if column.group == "clean":
        return None
    return table5_number(dataset, column.strength, column.key, squeezed=squeezed)


def _beyond(found: Sequence[Model], columns: Sequence[Column]) -> str:
    """Say where the stronger PGM's radius makes robustness impossible; empty where it does not."""
    shown = any((column.strength, column.key) == ("stronger", "pgm") for column in columns)
    eps = [given for model in found if (given := _stronger_eps(model)) is not None and given >= HALF]
    if not shown or not eps:
        return ""
    return (
        f"**The stronger PGM has eps {max(eps):g}. From {HALF:g} on every image can be turned into the same grey one, "
        "so no model can be right more often than by chance: a low error there says that the attack failed, not that "
        "the model is robust.**"
    )


def _stronger_eps(model: Model) -> float | None:
    parameters = model.run.results.attacks.get(model.threat_model, {}).get("stronger", {}).get("pgm", {})
    eps = parameters.get("eps")
    return float(eps) if isinstance(eps, int | float) else None
