"""The run folder: what a run leaves on disk, written so that it is whole at any moment."""

import csv
import io
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_lightning.errors import UserError

PACKAGES = ("torch", "pytorch-lightning", "torchattacks", "torchmetrics", "hydra-core", "omegaconf", "kornia", "numpy")


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old or the new content, never a part, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")  # two may write at a time
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without it a power cut may take back a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from amc_lightning import __version__

    found = {"amc_lightning": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def commit() -> str | None:
    """Return the commit of the checkout this package runs from, with "+" where it was changed; None elsewhere.

    Looked up once: what counts is what was imported.
    """
    folder = Path(__file__).parent
    if not (folder.parents[1] / "pyproject.toml").is_file():
        return None  # installed: a repository around it is somebody else's
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],  # noqa: S607 - the user's git
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def refuse_run(path: Path, identity: str) -> None:
    """Refuse a folder that already holds another run; the same one may go on in it.

    Args:
        path: the run folder.
        identity: what the run is, as its results.json has it.

    Raises:
        UserError: if it does.
    """
    file = path / "results.json"
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("identity") != identity:
        raise UserError(
            "hydra.run.dir",
            str(path),
            "already holds another run",
            "an empty or new folder, or that of the same run",
            "Choose another folder, or move that run away.",
        )


class RunFolder:
    """Write the results of a run, stage by stage.

    Args:
        path: an empty or new folder, or one that ``refuse_run`` lets go on.
        header: the entries of results.json that are known before training; ``identity`` among them.

    Raises:
        UserError: if the folder already holds another run: nothing finished is ever overwritten.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        refuse_run(path, header["identity"])
        self.path = path
        self.results: dict[str, Any] = {
            "format": 2,
            **header,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
            "versions": versions(),
            "commit": commit(),
            "stages": [],
        }
        self._examples: dict[str, NDArray[Any]] = {}
        self._gallery: dict[str, NDArray[Any]] = {}
        self.save()

    def add_images(self, x: NDArray[np.float32], y: NDArray[np.int64], labels: Mapping[str, NDArray[np.int64]]) -> None:
        """Keep the clean images of the gallery, (G, C, H, W) in [0, 1], and the true labels of the splits."""
        self._gallery |= {"x": x, "y": y}
        self._examples |= {f"labels/{split}": values for split, values in labels.items()}

    def add_stage(
        self, record: dict[str, Any], examples: Mapping[str, NDArray[Any]], gallery: Mapping[str, NDArray[Any]]
    ) -> None:
        """Publish a finished and measured stage."""
        index = record["index"]
        self._examples |= {f"{index}/{name}": values for name, values in examples.items()}
        for name, values in gallery.items():
            kind, _, attack = name.partition("/")
            self._gallery["/".join(part for part in (kind, str(index), attack) if part)] = values
        for name, arrays in (("examples.npz", self._examples), ("gallery.npz", self._gallery)):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            write_whole(self.path / name, buffer.getvalue())
        self.merge_metrics()
        self.results["stages"].append(record)
        self.save()

    def finish(self, status: str) -> None:
        """Set how the run ended: "finished", or "stopped: <why>"."""
        self.results["status"] = status
        self.merge_metrics()
        self.save()

    def save(self) -> None:
        """Write results.json."""
        text = json.dumps(self.results, indent=1, allow_nan=False)
        write_whole(self.path / "results.json", (text + "\n").encode())

    def merge_metrics(self) -> None:
        """Join the stages' own metrics files into metrics.csv, one row per logged epoch."""
        rows: list[dict[str, str]] = []
        for path in sorted(
            (self.path / "stages").glob("*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[0])
        ):
            index, _, name = path.parent.name.partition("_")
            with path.open(newline="") as file:
                rows += [{"stage": index, "name": name, **row} for row in csv.DictReader(file)]
        if not rows:
            return
        metrics = {name for row in rows for name in row} - {"stage", "name", "epoch", "step"}
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["stage", "name", "epoch", "step", *sorted(metrics)], restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / "metrics.csv", buffer.getvalue().encode())
