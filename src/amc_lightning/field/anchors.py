"""Ours beside published numbers, and what differs between the two settings."""

import math
from collections.abc import Iterator, Mapping, Sequence

from amc_lightning.field.entrants import Entrant
from amc_lightning.field.published import QUANTITIES, Published
from amc_lightning.field.tables import union_cell
from amc_lightning.field.union import NORMS, radii
from amc_lightning.paper.cells import CLEAN, Cell, Error, Fact, error
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.table_notes import epochs_text, sizes
from amc_lightning.report.columns import Column, budget_text
from amc_lightning.report.proxy_wording import span

_SEARCH = ("nb_iter", "eps_iter", "restarts")


def published_grids(dataset: str, rows: Sequence[Entrant], published: Mapping[str, Sequence[Published]]) -> list[Grid]:
    """Return a table for every published one on this dataset that has a system of ours in it.

    Args:
        dataset: its name.
        rows: the systems that were run.
        published: tables by dataset, as ``read_published`` gives them.
    """
    grids = []
    for number, table in enumerate(published.get(dataset, ())):
        shared = [row for row in rows if row.system in table.errors]
        if shared:
            head = ("system", *(f"{name} {who}" for name in QUANTITIES for who in ("ours", "published")))
            made = tuple(Row(row.place.name, tuple(_cells(row, table.errors[row.system]))) for row in shared)
            own = [cell for row in made for cell in row.cells if isinstance(cell, Error)]
            said = (*_differences(shared, table), sizes(own))
            title = f"{dataset}: beside published error rates ({table.source})"
            grids.append(Grid(f"baselines_published_{number}", dataset, title, head, made, said))
    return grids


def _cells(row: Entrant, numbers: Mapping[str, float]) -> Iterator[Cell]:
    for quantity in QUANTITIES:
        yield _ours(row, quantity)
        value = numbers.get(quantity)
        details = {"attack": quantity}
        name = "published_error"
        yield Fact("-") if value is None else Fact(f"{value:.1f}", name, value, row.system, details)


def _ours(row: Entrant, quantity: str) -> Error:
    if quantity == "union":
        return union_cell(row, "check")
    column = CLEAN if quantity == "clean" else Column("attack", f"pgd_{quantity}", "check", (quantity, "check"))
    return error(row.system, row.models, column)


def _differences(rows: Sequence[Entrant], table: Published) -> Iterator[str]:
    """Say what differs between the published setting and ours, from the results on record."""
    models = [model for row in rows for model in row.models]
    results = [model.run.results for model in models]
    yield "Not measured here and not comparable as they stand: published accuracies, shown as 100 - accuracy."
    weights = sorted({found.num_parameters for found in results if found.num_parameters is not None})
    ours = f"{span(weights)} weights" if weights else "of a size that is not on record"
    yield f"Network: published {table.network}; ours {ours}, hardened from M0 ({_epochs(rows)})."
    images = span(found.dataset.counts.get("train", 0) for found in results)
    limits = {found.dataset.limit for found in results if found.dataset.limit is not None}
    capped = f", capped by dataset.limit = {span(limits)}" if limits else ""
    yield f"Training images: ours {images}{capped}; the source trains on the whole training set."
    own = dict.fromkeys(text for model in models for text in _attack_texts(model.run.results.attacks))
    yield f"Attacks: published {table.attacks}; ours, strength check: {', '.join(own) or 'none'}."
    for norm in NORMS:
        eps = sorted({found[norm] for model in models if norm in (found := radii(model))})
        if eps and any(not math.isclose(value, table.eps[norm], rel_tol=1e-5) for value in eps):
            shown = ", ".join(f"{value:g}" for value in eps)
            yield f"**Another radius: published {budget_text(norm, table.eps[norm])}, ours {shown}.**"
    attacked = sorted({rate.n for model in models for key, rate in model.evaluation.check.items() if key in _PGD})
    there = "a number that is not on record" if table.rows is None else f"{table.rows:,}"
    yield f"Attacked images: published {there}; ours {span(attacked) if attacked else 'none'}."


_PGD = tuple(f"pgd_{norm}" for norm in NORMS)


def _attack_texts(attacks: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]]) -> Iterator[str]:
    found = attacks.get("white_box", {}).get("check", {})
    for name in _PGD:
        parameters = found.get(name)
        if parameters is not None:
            shown = [f"{key} {parameters[key]}" for key in ("eps", *_SEARCH) if parameters.get(key) is not None]
            yield f"{name} ({', '.join(shown)})"


def _epochs(rows: Sequence[Entrant]) -> str:
    later = [stage.epochs for row in rows for model in row.models for stage in model.stages if stage.index > 0]
    return f"{epochs_text(later)} a stage" if later else "no stage"
