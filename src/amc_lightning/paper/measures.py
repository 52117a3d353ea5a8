"""The columns of the paper's tables, and those of ours beside them."""

from collections.abc import Iterable, Iterator, Sequence

from amc_lightning.paper.cells import CLEAN, Error
from amc_lightning.paper.trained import Model
from amc_lightning.report.columns import SUMMARIES, Column, budget_text
from amc_lightning.report.paper_table4 import ATTACKS
from amc_lightning.report.record import Results, Strength

LETTERS = {"fgsm": "F", "eap": "E", "pgm": "P", "vap": "V"}
_JUDGES = {"autoattack": "AutoAttack"}
_NO_ATTACKS = ("clean", *SUMMARIES)
BOTH: tuple[Strength, ...] = ("paper", "check")


def paper_columns() -> list[Column]:
    """Return F, E, P, V, the four columns of the paper's Tables 3 and 4."""
    return [Column("attack", attack, "paper", (LETTERS[attack], f"({attack})")) for attack in ATTACKS]


def budget_columns(found: Sequence[Model], strength: Strength = "paper") -> list[Column]:
    """Return the unbounded attacks within their radius, as any of some models was measured."""
    columns = []
    for key in _keys(found, strength):
        attack, _, bounded = key.partition("@")
        if bounded:
            columns.append(Column("attack", key, strength, (attack, f"{_budget(found, attack)}{_suffix(strength)}")))
    return columns


def check_columns(found: Sequence[Model]) -> list[Column]:
    """Return the attacks whose check is another attack than the paper's."""
    columns = []
    for key in _keys(found, "check"):
        attack, _, bounded = key.partition("@")
        if key not in _NO_ATTACKS and any(model.view.differs(attack) for model in found):
            second = f"{_budget(found, attack)} check" if bounded else "check"
            columns.append(Column("attack", key, "check", (attack, second)))
    return columns


def summary_columns(found: Sequence[Model]) -> list[Column]:
    """Return mean and worst case at both strengths, as far as any of some models was measured so."""
    columns = [Column("summary", name, strength, (name, strength)) for name in SUMMARIES for strength in BOTH]
    return [column for column in columns if any(model.rate(column) is not None for model in found)]


def own_columns(found: Sequence[Model]) -> list[Column]:
    """Return what the paper has no column for, except clean, the judge and the predicted labels."""
    others = [
        Column("attack", key, "paper", (key, ""))
        for key in _keys(found, "paper")
        if key not in (*ATTACKS, *_NO_ATTACKS) and "@" not in key
    ]
    return [*budget_columns(found), *others, *check_columns(found), *summary_columns(found)]


def judge_columns(found: Sequence[Model]) -> list[Column]:
    """Return the attacks of the judge, and the worst case over them; those rows are fewer."""
    keys = [key for key in _keys(found, "judge") if key not in ("clean", "mean")]
    return [Column("attack", key, "judge", (_JUDGES.get(key, key), "judge")) for key in keys]


def predicted_columns(found: Sequence[Model]) -> list[Column]:
    """Return the paper's attacks aimed at the model's own answers."""
    keys = [key for key in _keys(found, "predicted") if key != "clean"]
    return [Column("attack", key, "predicted", (key.replace("@budget", "@"), "predicted")) for key in keys]


def all_columns(found: Sequence[Model]) -> list[Column]:
    """Return clean, the paper's four columns and ours."""
    return [CLEAN, *paper_columns(), *own_columns(found)]


def measured(columns: Iterable[Column], found: Sequence[Model]) -> list[Column]:
    """Return the columns in which any of some models was measured."""
    return [column for column in columns if any(model.rate(column) is not None for model in found)]


def heads(columns: Iterable[Column]) -> tuple[str, ...]:
    """Return the headings of some columns."""
    return tuple(column.title for column in columns)


def clean_or_attack(errors: Iterable[Error]) -> Iterator[tuple[bool, int]]:
    """Yield of every rate whether it is clean, on the test split, and on how many images it is; the judge left out."""
    for error in errors:
        if error.column.strength != "judge":
            yield from ((error.column.group == "clean", rate.n) for rate in error.rates.values())


def _keys(found: Sequence[Model], strength: Strength) -> list[str]:
    """Return the names of the rates at a strength: the paper's attacks in its order, others, summaries."""
    keys = dict.fromkeys(key for model in found for key in model.evaluation.rates(strength))
    return sorted(keys, key=_place)


def _place(key: str) -> tuple[bool, int, bool]:
    attack, _, bounded = key.partition("@")
    return key in SUMMARIES, ATTACKS.index(attack) if attack in ATTACKS else len(ATTACKS), bool(bounded)


def _budget(found: Sequence[Model], attack: str) -> str:
    budgets: list[Results] = [model.run.results for model in found if attack in model.run.results.budget]
    return budget_text(*budgets[0].budget[attack]) if budgets else "@budget"


def _suffix(strength: Strength) -> str:
    return "" if strength == "paper" else f" {strength}"
