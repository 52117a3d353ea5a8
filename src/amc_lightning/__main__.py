"""The door: compose a configuration, check it, run it, and say plainly what went wrong."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


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

    from amc_lightning.explain import explain

    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here, where they become one line
    statuses: list[int] = []
    try:
        _hydra(statuses, debugging=debugging)
    except (HydraException, OmegaConfBaseException) as error:
        if debugging:
            raise
        return _fail(explain(error, sys.argv[1:]), 2)
    except OSError as error:  # Hydra's own files: the run folder and its log
        if debugging:
            raise
        return _fail(_about_files(error), 1)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted; finished stages stay on disk", 130)
    finally:
        if not debugging:
            os.environ.pop("HYDRA_FULL_ERROR")
    return max(statuses, default=0)


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


def _hydra(statuses: list[int], *, debugging: bool) -> None:
    import hydra
    from omegaconf import DictConfig

    from amc_lightning.config import CONF_DIR, register

    register()

    @hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
    def job(cfg: DictConfig) -> int:
        statuses.append(_run(cfg, debugging=debugging))
        return statuses[-1]

    job()


def _run(cfg: "DictConfig", *, debugging: bool) -> int:
    """Run one job; what a user can mend becomes a line and a status, so that a sweep goes on with its other jobs."""
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    from amc_lightning.config import read
    from amc_lightning.errors import NotFiniteError, StageStoppedError, TrainingDivergedError, UserError
    from amc_lightning.explain import explain

    overrides = list(HydraConfig.get().overrides.task)
    try:
        config = read(cfg)
        from amc_lightning.run import run  # torch and Lightning take seconds; a misspelt key should not

        run(config, Path(HydraConfig.get().runtime.output_dir))
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
            return _fail(explain(error, overrides), 2)
        if isinstance(error, OSError):
            return _fail(_about_files(error), 1)
        return _fail(str(error), 2 if isinstance(error, UserError) else 1)
    return 0


def _about_files(error: OSError) -> str:
    where = error.filename or "file system"
    return f"{where}: {error.strerror or error}; needed: room, and the right to write. Finished stages stay on disk."


def _fail(message: str, status: int) -> int:
    print(f"amc_lightning: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
