"""The per-example results of a run folder, examples.npz: every rate can be counted again from them."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amc_lightning.errors import UserError
from amc_lightning.report import Results
from amc_lightning.report.node import DO
from amc_lightning.report.record import Strength

EXAMPLES_FILE = "examples.npz"

Wrong = NDArray[np.bool_]


@dataclass(frozen=True)
class Flags:
    """Which rows every model of a run got wrong.

    Args:
        results: of the same run.
        arrays: every array of the file, by its key.
    """

    results: Results
    arrays: dict[str, NDArray[np.generic]]

    def labels(self, split: str) -> NDArray[np.int64] | None:
        """Return the true classes of the split ``test`` or ``attack``, (N,) int64; None if they were not kept."""
        found = self.arrays.get(f"labels/{split}")
        return None if found is None else found.astype(np.int64)

    def clean(self, stage: int, *, split: str = "test", threat_model: str = "") -> Wrong | None:
        """Return which rows of a split a model got wrong as they are, (N,) bool; None if not kept."""
        return self._find(stage, threat_model, f"clean/{split}/wrong")

    def wrong(self, stage: int, strength: Strength, attack: str, *, threat_model: str = "") -> Wrong | None:
        """Return which rows of the attack split a model got wrong under an attack.

        Args:
            stage: index of the model.
            strength: of the attack.
            attack: its name; ``<name>@budget`` for an unbounded one within its radius, ``worst`` for the worst case.
            threat_model: under which; the primary one by default.

        Returns:
            (N,) bool; the leading rows only at strength judge; None if it was not measured.
        """
        return self._find(stage, threat_model, f"{strength}/{attack}/wrong")

    def _find(self, stage: int, threat_model: str, name: str) -> Wrong | None:
        place = "" if threat_model in ("", self.results.threat_models[0]) else f"{threat_model}/"
        found = self.arrays.get(f"{stage}/{place}{name}")
        return None if found is None else found.astype(np.bool_)


def read_flags(folder: Path, results: Results) -> Flags:
    """Read examples.npz of a run folder.

    Args:
        folder: the run's output folder.
        results: its results.json; ``results`` must not be a view of it under another threat model.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = Path(folder) / EXAMPLES_FILE
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return Flags(results, {key: file[key] for key in file.files})
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        problem = f"cannot be read ({error})"
        raise UserError(EXAMPLES_FILE, str(path), problem, "a whole .npz of per-example results", DO) from None
