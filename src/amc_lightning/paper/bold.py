"""The best number of a column in bold, where the decisive checks of the runs that it is of hold."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from amc_lightning.paper.cells import Cell, Error
from amc_lightning.paper.document import Row
from amc_lightning.paper.runs import undefended
from amc_lightning.paper.squeezed import Squeezed, union_rate
from amc_lightning.paper.trained import Model, Systems
from amc_lightning.report import Results
from amc_lightning.report.bold import marks
from amc_lightning.report.columns import Column
from amc_lightning.report.decisive import decisive
from amc_lightning.report.diagnosis_reading import DECISIVE
from amc_lightning.report.record import UNDEFENDED, Rate, Strength
from amc_lightning.report.wording import WHITE_BOX


def with_bold(
    rows: Sequence[Row], head: Sequence[str], failed: Sequence[Mapping[str, str]], *, aside: Container[str] = ()
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Set the lowest error rate of every column in bold, unless a decisive check of its run fails.

    Args:
        rows: of the table.
        head: its headings, that of the rows' names the first.
        failed: the checks that each row fails, with the reasons; as ``failures`` gives them.
        aside: names of rows that do not compete.

    Returns:
        The rows, and the notes on what is bold and what is not.
    """
    values = [
        [cell.value if isinstance(cell, Error) and row.name not in aside else None for cell in row.cells]
        for row in rows
    ]
    found = marks([row.name for row in rows], head[1:], values, failed)
    made = tuple(
        replace(row, cells=tuple(_marked(cell, (i, j) in found.bold) for j, cell in enumerate(row.cells)))
        for i, row in enumerate(rows)
    )
    return made, found.notes


def failures(found: Sequence[Model], systems: Systems) -> Mapping[str, str]:
    """Return the decisive checks that a row's models fail, with the reasons; of several seeds any that fails counts.

    Args:
        found: the models of the row, one a seed.
        systems: the runs of the dataset, in which the undefended model is looked for.

    Raises:
        UserError: if a diagnosis lies in a run folder and cannot be read.
    """
    return _together((model, _failures(model, model.view, systems)) for model in found)


def squeezed_failures(found: Squeezed, systems: Systems) -> Mapping[str, str]:
    """Return the decisive checks that squeezed models fail against an attacker who may do either; as ``failures``."""
    return _together(
        (other, {**_failures(one, one.view, systems, {"E4"}), **_failures(other, _either(one, other), systems)})
        for one, other in zip(found.post_hoc, found.adaptive, strict=True)
    )


def _failures(model: Model, view: Results, systems: Systems, checks: Container[str] = DECISIVE) -> Mapping[str, str]:
    folder = model.run.folder if model.stage is model.run.last else None
    failed = decisive(view, folder=folder, undefended=_undefended(model, systems))
    return {check: reason for check, reason in failed.items() if check in checks}


def _together(found: Iterable[tuple[Model, Mapping[str, str]]]) -> Mapping[str, str]:
    known = list(found)
    reasons: dict[str, list[str]] = {}
    for model, failed in known:
        for check, reason in failed.items():
            reasons.setdefault(check, []).append(f"seed {model.seed}: {reason}" if len(known) > 1 else reason)
    return {check: "; ".join(said) for check, said in reasons.items()}


def _either(one: Model, other: Model) -> Results:
    """Return the results of the adaptive way, with the rows counted as wrong that are wrong in either."""

    def union(strength: Strength, rates: Mapping[str, Rate]) -> dict[str, Rate]:
        return {
            key: replace(found, norms=rate.norms)
            if (found := union_rate(one, other, Column("attack", key, strength, (key, ""))))
            else rate
            for key, rate in rates.items()
        }

    known = other.evaluation
    others: dict[Strength, Mapping[str, Rate]] = {name: union(name, rates) for name, rates in known.others.items()}
    rates = replace(known, paper=union("paper", known.paper), check=union("check", known.check), others=others)
    view = other.view
    return replace(view, stages=tuple(replace(stage, evaluations={view.primary: rates}) for stage in view.stages))


def _marked(cell: Cell, is_best: bool) -> Cell:
    return replace(cell, is_best=True) if isinstance(cell, Error) and is_best else cell


def _undefended(model: Model, systems: Systems) -> Iterator[Results]:
    """Yield what the undefended model was measured to be under a model's threat model: of its own run first."""
    name = WHITE_BOX if model.threat_model in model.run.results.squeezings else model.threat_model
    order = sorted(systems, key=lambda system: system != UNDEFENDED)
    for run in (model.run, *(run for system in order for run in systems[system])):
        same_way = run.results.interfaces.get(name) == model.run.results.interfaces.get(name)
        if undefended([run]) is not None and name in run.first.evaluations and same_way:
            yield Model(run, run.first, name).view
