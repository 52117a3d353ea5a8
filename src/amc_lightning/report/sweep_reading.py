"""A sweep's folder as typed values: every job.json, and what the jobs measured."""

import csv
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amc_lightning.errors import UserError
from amc_lightning.report.node import RESULTS_FILE
from amc_lightning.report.reading import METRICS_FILE, read_results
from amc_lightning.report.record import Results
from amc_lightning.report.sweep_record import Entry, Job

log = logging.getLogger(__name__)

JOB_FILE = "job.json"
FORMAT = 1
VALIDATION = "val/err/mean"


def read_jobs(folder: Path) -> list[Job]:
    """Read the job.json of every job of a sweep that has ended, by number.

    A job.json that names another place than the one where it lies belongs to another sweep further down and is left
    out; so is one that cannot be read, with a warning.

    Args:
        folder: the sweep's folder.
    """
    jobs = []
    for path in _job_files(folder):
        try:
            job = _read_job(path)
        except UserError as error:
            log.warning("left out of the summary: %s", error)
            continue
        if Path(job.folder) == path.parent.relative_to(folder):
            jobs.append(job)
    return sorted(jobs, key=lambda job: job.number)


def read_entries(folder: Path) -> list[Entry]:
    """Read every job of a sweep that has ended, with its results.

    Args:
        folder: the sweep's folder.
    """
    return [_entry(job, folder / job.folder) for job in read_jobs(folder)]


def forget_jobs(folder: Path) -> None:
    """Remove the job.json files of an earlier sweep into the same folder, and nothing else.

    Raises:
        OSError: if one cannot be removed.
    """
    for job in read_jobs(folder):
        (folder / job.folder / JOB_FILE).unlink()


def last_validation(folder: Path, stage: int) -> float | None:
    """Return the last validated mean error of a stage, percent; None where there is none.

    Read from the end: only the last rows matter, and a long run logs many.

    Raises:
        UserError: if a row of metrics.csv cannot be read.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        lines = file.read().splitlines()
    names = next(csv.reader(lines[:1]), [])
    try:
        at_stage, at_value = names.index("stage"), names.index(VALIDATION)
        for line in reversed(lines[1:]):
            cells = next(csv.reader([line]))
            if int(cells[at_stage]) == stage and cells[at_value]:
                value = float(cells[at_value])
                return value if math.isfinite(value) else None
            if int(cells[at_stage]) < stage:
                break
    except (ValueError, IndexError, csv.Error) as error:
        if VALIDATION not in names:
            return None
        raise UserError(
            METRICS_FILE,
            str(path),
            f"has a row that cannot be read ({error!r})",
            "columns stage, name, epoch, step, then numbers",
            "Run the job again into a new folder.",
        ) from None
    return None


def _job_files(folder: Path) -> Iterator[Path]:
    """Find the job.json files below a folder, without going into a run or a hidden folder."""
    for place, below, files in os.walk(folder):
        if JOB_FILE in files:
            yield Path(place) / JOB_FILE
        inside = JOB_FILE in files or RESULTS_FILE in files
        below[:] = [] if inside else sorted(name for name in below if not name.startswith("."))


def _read_job(path: Path) -> Job:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        return Job(
            number=int(raw["number"]),
            total=None if raw["total"] is None else int(raw["total"]),
            folder=str(raw["folder"]),
            label=str(raw["label"]),
            overrides=tuple(str(item) for item in raw["overrides"]),
            exit_status=int(raw["exit_status"]),
            message=str(raw["message"]),
            seed=int(raw["seed"]),
            order=tuple(str(item) for item in raw["order"]),
            validate_rows=int(raw["validate_rows"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            JOB_FILE,
            str(path),
            f"cannot be read ({error!r})",
            f"a whole file of format {FORMAT} is read",
            "Run the sweep again.",
        ) from error


def _entry(job: Job, folder: Path) -> Entry:
    """Return a job with its results; those of a job that failed are of stages before its last one, and left out."""
    if job.exit_status or not (folder / RESULTS_FILE).exists():
        return Entry(job)
    try:
        results: Results = read_results(folder)
        if results.status != "finished" or not results.stages:
            return Entry(job)
        return Entry(job, results, last_validation(folder, results.stages[-1].index))
    except (UserError, OSError) as error:
        return Entry(job, problem=" ".join(str(error).split()))
