"""Run folders of defences against several attacks, made up but consistent: rates are counted from their rows."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amc_lightning.paper.runs import Run
from tests.paper.made import N_ATTACK, N_JUDGE, N_TEST, Book
from tests.report.conftest import results, wilson

NORMS = {"pgd_linf": 0.3, "pgd_l2": 2.0, "pgd_l1": 10.0}
CHECK: Mapping[str, Mapping[str, Any]] = {
    **{name: {"eps": eps, "nb_iter": 40, "restarts": 1} for name, eps in NORMS.items()},
    "fgsm": {"eps": 0.1},
    "pgm": {"eps": 0.3, "nb_iter": 40},
    "vap": {"eps": 5.0},
    "eap": {"beta": 0.01},
}


def first(count: int, start: int = 0) -> range:
    """Return the indices of some rows."""
    return range(start, start + count)


class Field(Book):
    """Writes run folders of the comparison and remembers them."""

    def enter(
        self,
        system: str,
        check: Mapping[str, Iterable[int]],
        *,
        clean: int = 5,
        clean_attack: Iterable[int] = (),
        judge: Mapping[str, tuple[str, float, Iterable[int]]] | None = None,
        passes: float = 400.0,
        order: Sequence[str] = ("pgd_l1", "pgd_l2", "pgd_linf"),
        seed: int = 0,
        start: str = "0a",
        dataset: str = "mnist",
        parameters: Mapping[str, Mapping[str, Any]] = CHECK,
        limit: int | None = None,
        undefended: bool = False,
    ) -> Run:
        """Write the folder of one system and add it.

        Args:
            system: its name.
            check: rows of the attack split that are wrong, by attack at strength check; "eap@budget" beside eap.
            clean: how many rows of the test split are wrong.
            clean_attack: rows of the attack split that are wrong as they are.
            judge: norm, radius and wrong leading rows, by attack of the judge.
            passes: gradient passes per image of every stage after M0; M0 took 40.
            order: attacks of its stages.
            seed: of the run.
            start: key of M0.
            dataset: its name.
            parameters: of the attacks at strength check.
            limit: cap on training images.
            undefended: whether it is a run of M0 alone.
        """
        raw = results((), (), (1, 28, 28))
        order = () if undefended else tuple(order)
        last = len(order)
        (m0,) = raw["stages"]
        arrays: dict[str, Any] = {
            "labels/test": np.arange(N_TEST) % 10,
            "labels/attack": np.arange(N_ATTACK) % 10,
            f"{last}/clean/test/wrong": rows_of(first(clean), N_TEST),
            f"{last}/clean/attack/wrong": rows_of(clean_attack, N_ATTACK),
        }
        found: dict[str, Any] = {"clean": wilson(clean, N_TEST)}
        strengths = {"paper": check, "check": check}
        for strength, members in strengths.items():
            wrong = {name: rows_of(rows, N_ATTACK) for name, rows in members.items()}
            arrays |= {f"{last}/{strength}/{name}/wrong": rows for name, rows in wrong.items()}
            rates = {name: wilson(int(rows.sum()), N_ATTACK) for name, rows in wrong.items()}
            bounded = [arrays[f"{last}/clean/attack/wrong"], *(r for name, r in wrong.items() if name != "eap")]
            rates |= {"worst": wilson(int(np.any(bounded, axis=0).sum()), N_ATTACK)}
            rates |= {"mean": wilson(float(np.mean([*wrong.values()], axis=0).sum()) if wrong else 0.0, N_ATTACK)}
            found[strength] = {"clean": wilson(len(set(clean_attack)), N_ATTACK), **rates}
        if judge is not None:
            wrong = {name: rows_of(rows, N_JUDGE) for name, (_, _, rows) in judge.items()}
            arrays |= {f"{last}/judge/{name}/wrong": rows for name, rows in wrong.items()}
            found["judge"] = {name: wilson(int(rows.sum()), N_JUDGE) for name, rows in wrong.items()}
        stages = [{**m0, "key": start * 32, "evaluations": {}, "gradient_passes_per_image": 40.0, "minutes": 1.0}]
        for index, attack in enumerate(order, start=1):
            own = {"index": index, "name": attack, "attack": attack, "folder": f"stages/{index}_{attack}"}
            cost = {"gradient_passes_per_image": float(passes) / last, "minutes": 2.0, "epochs": 4}
            stages.append({**m0, **own, **cost, "key": f"{index}b" * 32, "evaluations": {}})
        stages[-1]["evaluations"] = {"white_box": found}
        names = {name.partition("@")[0] for name in check}
        strong = {name: dict(parameters[name]) for name in parameters if name in names}
        of_judge = {name: {"norm": norm, "eps": eps} for name, (norm, eps, _) in (judge or {}).items()}
        raw |= {
            "seed": seed,
            "system": system,
            "order": list(order),
            "evaluated": sorted(names),
            "parameters": 44426,
            "crafting": {"column": "white_box", "attacks": {}, "epochs": [4] * last, "transfer": "parent"},
            "attacks": {
                "white_box": {"paper": strong, "check": strong, **({"judge": of_judge} if judge is not None else {})}
            },
            "stages": stages,
        }
        raw["dataset"] = {**raw["dataset"], "name": dataset, "limit": limit}
        return self.write(system, raw, arrays)

    def norms(self, system: str, linf: int, l2: int = 0, l1: int = 0, **kwargs: Any) -> Run:
        """Add a system that gets the first rows wrong in each norm: its union is the largest of the three counts."""
        check = {"pgd_linf": first(linf), "pgd_l2": first(l2), "pgd_l1": first(l1)}
        return self.enter(system, check, **kwargs)


def rows_of(rows: Iterable[int], n: int) -> Any:
    """Return (n,) bool, True at the given indices."""
    found = np.zeros(n, dtype=bool)
    found[list(rows)] = True
    return found


def field(folder: Path) -> Field:
    """Return an empty book of runs in a folder."""
    return Field(folder)
