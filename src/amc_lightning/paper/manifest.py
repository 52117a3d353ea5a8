"""The manifest of a report: which run folder is which row of the paper's tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_lightning.errors import UserError
from amc_lightning.paper.runs import Run, Runs
from amc_lightning.report import read_results
from amc_lightning.report.sweep_record import Entry
from amc_lightning.results import write_whole

MANIFEST_FILE = "manifest.json"
FORMAT = 1
_DO = "Give the manifest.json of a sweep over systems, or run the sweep again."


@dataclass(frozen=True)
class Row:
    """One line of a manifest.

    Args:
        system: name of the system.
        dataset: name of the dataset.
        seed: the seed.
        key: key of its last stage in the store; results of another model are refused.
        folder: its run folder, relative to the manifest.
    """

    system: str
    dataset: str
    seed: int
    key: str
    folder: str


def rows_of(entries: Sequence[Entry]) -> list[Row]:
    """Return the lines of a sweep's finished jobs that are rows of the paper's tables.

    There are none where two jobs are the same system on the same dataset with the same seed: they differ in a setting
    that the tables do not show.
    """
    rows = [
        Row(run.system, run.dataset.name, run.seed, run.stages[-1].key, entry.job.folder)
        for entry in entries
        if (run := entry.results) is not None and run.system
    ]
    return rows if len({(row.system, row.dataset, row.seed) for row in rows}) == len(rows) else []


def write_manifest(folder: Path, rows: Sequence[Row]) -> Path:
    """Write manifest.json of a sweep's folder, in one step.

    Raises:
        OSError: if it cannot be written.
    """
    text = json.dumps({"format": FORMAT, "runs": [vars(row) for row in rows]}, indent=1)
    write_whole(folder / MANIFEST_FILE, (text + "\n").encode())
    return folder / MANIFEST_FILE


def read_runs(manifests: Sequence[Path]) -> Runs:
    """Read every run that some manifests name.

    Args:
        manifests: manifest.json files; a run that two of them name is one run.

    Raises:
        UserError: if a file cannot be read, a run is not finished or is not the one that the manifest means, or two
            different runs are of the same system, dataset and seed.
    """
    found: dict[tuple[str, str, int], tuple[Row, Run]] = {}
    for path in manifests:
        for row in _read(path):
            run = _run(path, row)
            place = (row.dataset, row.system, row.seed)
            if place in found and found[place][0].key != row.key:
                raise UserError(
                    "report.manifests",
                    str(path),
                    f"has another {row.system} on {row.dataset} with seed {row.seed} than {found[place][1].folder}",
                    "one model for each system, dataset and seed",
                    "Leave one of the two manifests out.",
                )
            found.setdefault(place, (row, run))
    return Runs(tuple(run for _, run in found.values()))


def _read(path: Path) -> list[Row]:
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        return [
            Row(str(row["system"]), str(row["dataset"]), int(row["seed"]), str(row["key"]), str(row["folder"]))
            for row in raw["runs"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({error!r})"
        raise UserError("report.manifests", str(path), problem, f"a manifest of format {FORMAT}", _DO) from error


def _run(path: Path, row: Row) -> Run:
    folder = path.parent / row.folder
    results = read_results(folder)
    same = (results.system, results.dataset.name, results.seed) == (row.system, row.dataset, row.seed)
    if not same or not results.stages or results.stages[-1].key != row.key or results.status != "finished":
        raise UserError(
            "report.manifests",
            str(folder),
            f"is not the finished run of {row.system} on {row.dataset}, seed {row.seed}, key {row.key[:12]}",
            "the results that the manifest was written with",
            _DO,
        )
    return Run(row.system, results, folder)
