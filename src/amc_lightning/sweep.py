"""Sweeps: what every job leaves for the summary, the summary itself, and what the door needs to know of a sweep.

Hydra calls ``on_multirun_end`` in no sweep that an error ends, so everything is written job by job, from files, under a
lock: jobs may end at the same time in several processes.
"""

import io
import json
import logging
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from amc_lightning.errors import UserError
from amc_lightning.results import write_whole

log = logging.getLogger(__name__)

LOCK_FILE = ".summary.lock"
LOCK_SECONDS = 60.0
_STATUS_OF_A_BUG = 1


@dataclass(frozen=True)
class Outcome:
    """How a job ended, as its process hands it on.

    Args:
        exit_status: 0 finished, 1 stopped by itself, 2 bad input.
        message: why it failed, one line; empty where it did not.
    """

    exit_status: int
    message: str = ""


@dataclass(frozen=True)
class Sweep:
    """A sweep that began in this process.

    Args:
        folder: where its jobs' folders are.
        total: how many jobs it has; None where that is not known.
    """

    folder: Path
    total: int | None


_BEGUN: list[Sweep] = []


def begun() -> Sweep | None:
    """Return the sweep that began in this process since the last call; None if none did."""
    latest = _BEGUN[-1] if _BEGUN else None
    _BEGUN.clear()
    return latest


class SweepSummary(Callback):
    """Write job.json and the sweep's summary after every job; in a single run it does nothing.

    Hydra sends it along to the processes of a parallel launcher.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.total: int | None = None
        self.swept: frozenset[str] = frozenset()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle where the sweep is and what it varies, and forget what an earlier one left there.

        A name made of settings that are swept, such as ``hydra.sweep.dir=multirun/${dataset.name}``, would give every
        job another sweep folder; so the folder is told to the jobs as it is now.
        """
        self.folder = Path(str(config.hydra.sweep.dir)).absolute()
        self.swept, self.total = _varied(config)
        if not set("$\\") & set(str(self.folder)):  # in an override these would mean something else
            with open_dict(config.hydra):
                quoted = str(self.folder).replace("'", "\\'")
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        _BEGUN.append(Sweep(self.folder, self.total))
        from amc_lightning.paper.manifest import MANIFEST_FILE
        from amc_lightning.report.sweep_reading import forget_jobs

        try:
            forget_jobs(self.folder)
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        except OSError as error:
            log.warning("what an earlier sweep left in %s cannot be removed (%s)", self.folder, error)

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Say which job begins."""
        if self.folder is None:
            return
        number = int(config.hydra.job.num)
        of = f" ({number + 1} of {self.total})" if self.total is not None else ""
        Console(force_terminal=False).print(
            f"job {number}{of}: {self._label(config)}", soft_wrap=True, highlight=False, markup=False
        )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record how the job ended, and write the summary anew.

        A bug becomes an outcome as well, its traceback a line of the job's log: Hydra would raise it again after the
        other jobs, leave out the batches that follow, and not every exception can be sent from process to process.
        """
        if self.folder is None:
            return
        outcome = job_return._return_value  # the public property prints, and raises what the job raised
        number, label = int(config.hydra.job.num), self._label(config)
        if job_return.status == JobStatus.FAILED:
            error, place = outcome, Path(config.hydra.runtime.output_dir)
            log.error("job %d (%s) failed", number, label, exc_info=error)
            outcome = Outcome(_STATUS_OF_A_BUG, f"{_first_line(error)} (traceback: {place / _log_name(config)})")
            job_return.status, job_return.return_value = JobStatus.COMPLETED, outcome
        elif outcome.exit_status:
            log.error("job %d (%s) failed: %s", number, label, outcome.message)
        try:
            self._write(config, outcome)
        except (OSError, UserError) as error:
            log.warning("the summary of the sweep could not be written (%s)", error)

    def _write(self, config: DictConfig, outcome: Outcome) -> None:
        from amc_lightning.report.sweep_reading import FORMAT, JOB_FILE

        assert self.folder is not None
        place = Path(config.hydra.runtime.output_dir)
        job = {
            "format": FORMAT,
            "number": int(config.hydra.job.num),
            "total": self.total,
            "folder": Path(os.path.relpath(place, self.folder)).as_posix(),
            "label": self._label(config),
            "overrides": list(config.hydra.overrides.task),
            "exit_status": outcome.exit_status,
            "message": outcome.message,
            "seed": int(config.seed),
            "order": _order(config),
            "validate_rows": int(config.cascade.validate_rows),
        }
        write_whole(place / JOB_FILE, (json.dumps(job, indent=1) + "\n").encode())
        summarise(self.folder)

    def _label(self, config: DictConfig) -> str:
        """Return the overrides in which jobs differ; all of them where that is not known, or where none differ."""
        overrides = [str(item) for item in config.hydra.overrides.task]
        varied = [item for item in overrides if item.partition("=")[0] in self.swept]
        return " ".join(varied or overrides) or "defaults"


def summarise(folder: Path) -> Path | None:
    """Write the summary of a sweep anew from its files, and the manifest of its rows of the paper's tables.

    Alone among all processes: jobs may end at the same time.

    Args:
        folder: the sweep's folder.

    Returns:
        Path of summary.md; None if no job has ended.

    Raises:
        OSError: if a file cannot be written, or another process holds the lock for a minute.
    """
    from amc_lightning.paper.manifest import MANIFEST_FILE, rows_of, write_manifest
    from amc_lightning.report.sweep_reading import read_entries
    from amc_lightning.report.sweep_summary import write_summary

    with FileLock(folder / LOCK_FILE, timeout=LOCK_SECONDS):
        entries = read_entries(folder)
        if rows := rows_of(entries):
            write_manifest(folder, rows)
        else:  # as soon as two jobs are the same row
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
        return write_summary(folder, entries)


def written_pages(folder: Path) -> dict[str, Path]:
    """Write the pages that the systems of a sweep make, from its manifest.

    Args:
        folder: the sweep's folder.

    Returns:
        What each page is, and where it lies; none where no job is a system.

    Raises:
        UserError: if a file of a run cannot be read.
        OSError: if a file cannot be written.
    """
    from amc_lightning.pages import write_pages
    from amc_lightning.paper.manifest import MANIFEST_FILE, read_runs

    manifest = folder / MANIFEST_FILE
    return write_pages(read_runs([manifest]), folder) if manifest.exists() else {}


def is_sweep(hydra: HydraConf) -> bool:
    """Say whether a job is one of several."""
    return bool(hydra.mode == RunMode.MULTIRUN)


def runs_beside_others(hydra: HydraConf) -> bool:
    """Say whether other jobs of the sweep run at the same time, so that no job may have the terminal to itself."""
    return is_sweep(hydra) and hydra.launcher.get("n_jobs", 1) != 1


class NamedLines(io.TextIOBase):
    """A text stream that says before every line which job it comes from; whole lines only reach the other stream.

    Args:
        stream: where the lines go.
        name: what is put before each.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__()
        self.stream = stream
        self.name = name
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The other stream's encoding, so that only what it can show is drawn."""
        return self.stream.encoding

    def writable(self) -> bool:
        """Say that this can be written to."""
        return True

    def write(self, text: str) -> int:
        """Take some text; its whole lines go on at once, so that lines of two jobs do not mix."""
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.name}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)


def _varied(config: DictConfig) -> tuple[frozenset[str], int | None]:
    """Return the keys that a sweep varies, and its number of jobs; None where only its sweeper knows that."""
    parameters = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(parameters, dict)
    given = [*(f"{key!s}={value!s}" for key, value in parameters.items()), *config.hydra.overrides.task]
    parsed = {item.get_key_element(): item for item in OverridesParser.create().parse_overrides(given)}
    swept = {key: item for key, item in parsed.items() if item.is_sweep_override()}
    total: int | None = 1
    for item in swept.values():
        count = _choices(item)
        total = None if total is None or count is None else total * count
    known = str(config.hydra.sweeper.get("_target_")).endswith(f".{BasicSweeper.__name__}")
    return frozenset(swept), total if known else None


def _choices(item: Override) -> int | None:
    """Return the number of values of a swept key; None where they stand in files or form a range of real numbers."""
    if item.value_type == ValueType.GLOB_CHOICE_SWEEP or not item.is_discrete_sweep():
        return None
    return sum(1 for _ in item.sweep_string_iterator())


def _order(config: DictConfig) -> Sequence[str]:
    try:
        return [str(name) for name in OmegaConf.select(config, "cascade.order") or []]
    except OmegaConfBaseException:  # what cannot be resolved has been told as the job's own error
        return []


def _log_name(config: DictConfig) -> str:
    return f"{config.hydra.job.name}.log"


def _first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return traceback.format_exception_only(error)[-1].splitlines()[0].strip()
