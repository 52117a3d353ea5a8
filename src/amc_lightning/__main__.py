"""The door: compose a configuration, check it, run it, and say plainly what went wrong."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig
    from rich.console import Console

    from amc_lightning.config import Config
    from amc_lightning.sweep import Outcome, Sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` by default.

    Returns:
        0: done. 1: training stopped by itself. 2: bad input. 130: interrupted.
    """
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
    if (problem := broken_torchvision()) is not None:
        return _fail(problem, 2)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from amc_lightning.explain import explain, secret_among
    from amc_lightning.sweep import Outcome, begun

    if (problem := secret_among(sys.argv[1:])) is not None:
        return _fail(problem, 2)
    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here, where they become one line
    outcomes: list[Outcome] = []
    begun()  # forget a sweep that an earlier call left behind
    status = 0
    try:
        _hydra(outcomes, debugging=debugging)
    except (HydraException, OmegaConfBaseException) as error:
        if debugging:
            raise
        status = _fail(explain(error, sys.argv[1:]), 2)
    except OSError as error:  # Hydra's own files: the run folder and its log
        if debugging:
            raise
        status = _fail(_about_files(error), 1)
    except BrokenExecutor as error:  # of a launcher that runs several jobs at once
        if debugging:
            raise
        status = _fail(_about_processes(error), 1)
    except KeyboardInterrupt as stop:
        status = _fail(str(stop) or "interrupted; finished stages stay on disk", 130)
    finally:
        if not debugging:
            os.environ.pop("HYDRA_FULL_ERROR")
    if (sweep := begun()) is not None:
        return _close(sweep, outcomes, status)
    for outcome in outcomes:
        if outcome.message:
            _fail(outcome.message, outcome.exit_status)
    return max([status, *(outcome.exit_status for outcome in outcomes)])


def broken_torchvision() -> str | None:
    """Say so if a torchvision is installed that cannot be imported: torchmetrics and Lightning then fail as well."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return (
            f"torchvision: the installed one cannot be imported beside this torch ({error}); needed: none, or one that "
            "matches torch. Run: python -m pip uninstall -y torchvision"
        )
    return None


def _hydra(outcomes: "list[Outcome]", *, debugging: bool) -> None:
    import hydra
    from omegaconf import DictConfig

    from amc_lightning.config import CONF_DIR, register

    register()

    @hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
    def job(cfg: DictConfig) -> "Outcome":
        outcomes.append(_run(cfg, debugging=debugging))
        return outcomes[-1]

    job()


def _run(cfg: "DictConfig", *, debugging: bool) -> "Outcome":
    """Run one job; what a user can mend becomes a line and a status, so that a sweep goes on with its other jobs."""
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    from amc_lightning.config import read
    from amc_lightning.errors import NotFiniteError, StageStoppedError, TrainingDivergedError, UserError
    from amc_lightning.explain import explain
    from amc_lightning.sweep import Outcome

    overrides = list(HydraConfig.get().overrides.task)
    try:
        config = read(cfg)
        if config.task.name == "store":
            return Outcome(_keep_store(config))
        if config.task.name == "report":
            return Outcome(_report(config))
        if config.task.name == "diagnose":
            from amc_lightning.examine import examine

            examine(config, Path(HydraConfig.get().runtime.output_dir), console=_console())
            return Outcome(0)
        from amc_lightning.run import run  # torch and Lightning take seconds; a misspelt key should not

        run(config, Path(HydraConfig.get().runtime.output_dir), console=_console())
    except (
        UserError,
        OmegaConfBaseException,
        OSError,
        NotFiniteError,
        TrainingDivergedError,
        StageStoppedError,
    ) as error:
        if debugging:
            raise
        if isinstance(error, StageStoppedError):
            raise KeyboardInterrupt(str(error)) from error  # ends a sweep as well
        if isinstance(error, OmegaConfBaseException):
            return Outcome(2, explain(error, overrides))
        if isinstance(error, OSError):
            return Outcome(1, _about_files(error))
        return Outcome(2 if isinstance(error, UserError) else 1, str(error))
    return Outcome(0)


def _keep_store(config: "Config") -> int:
    from pathlib import Path

    from rich.console import Console

    from amc_lightning.store import Store
    from amc_lightning.storekeeping import keep_store

    settings = config.store
    return keep_store(
        Store(Path(settings.root).expanduser()),
        Console(),
        action=settings.action,
        keys=settings.keys,
        unused_days=settings.unused_days,
        max_mb=settings.max_mb,
        dry_run=settings.dry_run,
    )


def _report(config: "Config") -> int:
    from pathlib import Path

    from amc_lightning.pages import write_pages
    from amc_lightning.paper.manifest import read_runs
    from amc_lightning.paper.publish import publish

    manifests = [Path(name).expanduser() for name in config.report.manifests]
    folder = manifests[0].parent if config.report.folder is None else Path(config.report.folder).expanduser()
    runs = read_runs(manifests)
    _say_pages(write_pages(runs, folder))
    if config.report.publish is not None:
        copies = Path(config.report.publish).expanduser()
        publish(runs, copies, pictures=frozenset(config.report.pictures))
    return 0


def _say_pages(pages: "Mapping[str, Path]") -> None:
    from rich.console import Console

    for what, path in pages.items():
        Console().print(f"{what}: {path}", soft_wrap=True, highlight=False, markup=False)


def _console() -> "Console | None":
    """Return where a job prints: lines with its number where others run beside it, as its run chooses elsewhere."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from amc_lightning.sweep import NamedLines, runs_beside_others

    hydra = HydraConfig.get()
    if not runs_beside_others(hydra):
        return None
    name = f"job {hydra.job.num} | "
    return Console(
        file=cast("TextIO", NamedLines(sys.stdout, name)), width=Console().width - len(name), force_terminal=False
    )


def _close(sweep: "Sweep", outcomes: "Sequence[Outcome]", status: int) -> int:
    """Print what a sweep has come to, name its failed jobs, and return its exit status.

    A job that ran in another process is known by its file alone; one whose file could not be written, by its outcome.
    """
    from rich.console import Console

    from amc_lightning.errors import UserError
    from amc_lightning.report.sweep_reading import read_entries
    from amc_lightning.report.sweep_summary import SUMMARY_FILE
    from amc_lightning.report.sweep_table import sweep_table
    from amc_lightning.report.sweep_wording import WHAT_TO_DO
    from amc_lightning.sweep import written_pages

    entries = read_entries(sweep.folder)
    console = Console()
    if entries:
        console.print(sweep_table(entries))
        console.print(f"The summary is in {sweep.folder / SUMMARY_FILE}", soft_wrap=True, highlight=False, markup=False)
    try:
        _say_pages(written_pages(sweep.folder))
    except (UserError, OSError) as error:  # what the jobs measured is on disk
        status = max(status, _fail(str(error) if isinstance(error, UserError) else _about_files(error), 1))
    failed = [entry.job for entry in entries if entry.job.exit_status]
    for job in failed:
        _fail(f"{job.title} failed: {job.message}", job.exit_status)
    if failed or (status and entries):
        console.print(WHAT_TO_DO, soft_wrap=True, highlight=False, markup=False)
    if not status and sweep.total is not None and len(entries) < sweep.total:
        lost = sweep.total - len(entries)
        status = _fail(f"{sweep.folder}: {lost} of {sweep.total} jobs left no record; see the warnings above.", 1)
    return max([status, *(job.exit_status for job in failed), *(outcome.exit_status for outcome in outcomes)])


def _about_files(error: OSError) -> str:
    where = error.filename or "file system"
    return f"{where}: {error.strerror or error}; needed: room, and the right to write. Finished stages stay on disk."


def _about_processes(error: BrokenExecutor) -> str:
    why = str(error).partition(". ")[0]
    return (
        f"hydra.launcher: the process of a job ended by itself ({why}); needed: memory for all jobs that run at once. "
        "Finished stages stay. Run the same command again with fewer at once: hydra.launcher.n_jobs=1."
    )


def _fail(message: str, status: int) -> int:
    print(f"amc_lightning: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
