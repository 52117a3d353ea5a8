"""Runs of a report, made up but consistent: every rate is counted from the per-example results beside it."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_lightning.paper.document import Grid, csv_text, markdown_text
from amc_lightning.paper.runs import Run, Runs
from amc_lightning.report import read_results
from tests.report.conftest import results, wilson

N_TEST, N_ATTACK, N_JUDGE = 200, 100, 20
FOUR = ("fgsm", "vap", "eap", "pgm")
ORDERS = {
    "undefended": (),
    **{f"at_{attack}": (attack,) for attack in FOUR},
    "amc_target_hardened": FOUR,
    "amc_no_transfer": FOUR,
    "amc_reverse": FOUR[::-1],
    "amc_no_replay": FOUR,
    **{f"amc_without_{left}": tuple(attack for attack in FOUR if attack != left) for left in FOUR},
}


@dataclass(frozen=True)
class Wrong:
    """How many rows a model gets wrong; the first ones, or from ``start`` on.

    Clean rows are of the test split, all others of the attack split, of which none is wrong clean.
    """

    clean: int = 10
    fgsm: int = 40
    vap: int = 30
    eap: int = 90
    budget: int = 20
    pgm: int = 50
    check: int = 60
    start: int = 0
    stronger: tuple[int, int, int] | None = None
    """eap, its budget, pgm."""
    judge: int | None = None
    predicted: bool = False

    def flags(self) -> dict[str, NDArray[np.bool_]]:
        """Return the per-example results of one evaluation."""
        bounded = {"eap": self.eap, "eap@budget": self.budget}
        paper = {"fgsm": self.fgsm, "vap": self.vap, **bounded, "pgm": self.pgm}
        counts: dict[str, dict[str, int]] = {"paper": paper, "check": {**paper, "pgm": self.check}}
        if self.stronger is not None:
            counts["stronger"] = dict(zip(("eap", "eap@budget", "pgm"), self.stronger, strict=True))
        if self.predicted:
            counts["predicted"] = {"fgsm": self.fgsm + 1}
        found = {"clean/test/wrong": self._rows(self.clean, N_TEST), "clean/attack/wrong": self._rows(0, N_ATTACK)}
        for strength, members in counts.items():
            found |= {f"{strength}/{name}/wrong": self._rows(count, N_ATTACK) for name, count in members.items()}
            if strength in ("paper", "check"):
                reached = [found[f"{strength}/{name}/wrong"] for name in members if name != "eap"]
                found[f"{strength}/worst/wrong"] = np.any(reached, axis=0)
        if self.judge is not None:
            found |= {f"judge/{name}/wrong": self._rows(self.judge, N_JUDGE) for name in ("autoattack", "worst")}
        return found

    def _rows(self, count: int, n: int) -> NDArray[np.bool_]:
        return np.roll(np.arange(n) < count, self.start)


def evaluation(flags: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """Return an evaluation as results.json has it, counted from per-example results."""
    found: dict[str, Any] = {}
    for key, wrong in flags.items():
        strength, name, _ = key.split("/")
        rate = wilson(int(wrong.sum()), len(wrong))
        if strength == "clean":
            found["clean"] = found.get("clean", rate)
        else:
            found.setdefault(strength, {"clean": wilson(0, len(wrong))})[name] = rate
    for strength in ("paper", "check"):
        share = np.mean([flags[f"{strength}/{name}/wrong"] for name in FOUR], axis=0)
        found[strength]["mean"] = wilson(float(share.sum()), N_ATTACK)
    return found


@dataclass
class Book:
    """Writes run folders and remembers them."""

    folder: Path
    runs: list[Run] = field(default_factory=list)

    def add(
        self,
        system: str,
        wrong: Wrong,
        *,
        undefended: Wrong | None = None,
        squeezed: Mapping[str, Wrong] | None = None,
        seed: int = 0,
        dataset: str = "mnist",
        limit: int | None = None,
        eps: float = 0.6,
        also: Sequence[Mapping[str, Any]] = (),
    ) -> Run:
        """Write the folder of a white-box run and add it.

        Args:
            system: its name, which says its order.
            wrong: of the last model.
            undefended: of M0, where it was measured too.
            squeezed: of the last model, by "<name>/post_hoc" or "<name>/adaptive".
            seed: of the run.
            dataset: its name.
            limit: cap on training images.
            eps: of the stronger PGM.
            also: changes to results.json.
        """
        order = ORDERS[system]
        raw = results(order, FOUR, (1, 28, 28))
        models = {"white_box": wrong, **{f"squeezed/{name}": found for name, found in (squeezed or {}).items()}}
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {
            "labels/test": rng.integers(10, size=N_TEST),
            "labels/attack": rng.integers(10, size=N_ATTACK),
        }
        last = len(order)
        for stage in raw["stages"]:
            stage["evaluations"] = {}
            measured = models if stage["index"] == last else {"white_box": undefended} if stage["index"] == 0 else {}
            for name, found in measured.items():
                if found is not None:
                    flags = found.flags()
                    place = f"{stage['index']}/" + ("" if name == "white_box" else f"{name}/")
                    arrays |= {f"{place}{key}": rows for key, rows in flags.items()}
                    stage["evaluations"][name] = evaluation(flags)
        raw |= {
            "seed": seed,
            "system": system,
            "threat_models": list(models),
            "squeezings": {
                name: {
                    "name": name.split("/")[1],
                    "settings": {"bits": 1},
                    "adaptive": name.endswith("adaptive"),
                }
                for name in models
                if name != "white_box"
            },
            "attacks": {
                name: {**raw["attacks"]["white_box"], "stronger": {"pgm": {"eps": eps}, "eap": {}}} for name in models
            },
        }
        raw["dataset"] = {**raw["dataset"], "name": dataset, "limit": limit}
        for change in also:
            raw |= change
        return self.write(system, raw, arrays)

    def write(self, system: str, raw: Mapping[str, Any], arrays: Mapping[str, Any]) -> Run:
        """Write a run folder from its results.json and its per-example results, and add it."""
        folder = self.folder / str(len(self.runs))
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(raw))
        np.savez(folder / "examples.npz", **arrays)
        run = Run(system, read_results(folder), folder)
        self.runs.append(run)
        return run

    @property
    def all(self) -> Runs:
        """The runs that were added."""
        return Runs(tuple(self.runs))


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the first row of that name in a Markdown text."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return line.strip("| ").split(" | ")[1:]


def text_of(grids: Sequence[Grid], title: str = "title") -> str:
    """Return tables as Markdown."""
    return markdown_text(title, grids)


def rows_of(grids: Sequence[Grid], **given: str) -> list[dict[str, str]]:
    """Return the rows of the CSV file that have the given values."""
    found = list(csv.DictReader(io.StringIO(csv_text(grids))))
    return [row for row in found if all(row[key] == value for key, value in given.items())]


def assert_balanced(text: str) -> None:
    """Assert that braces pair, environments close, and every row of a table has as many cells as it has columns."""
    depth = 0
    for letter in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") > 0
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l?c*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line != "\\hline"]
        assert len(lines) > 1
        for line in lines:
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
    assert not re.search(r"(?<!\\)[%#_]", text)
