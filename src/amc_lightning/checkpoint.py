"""Checkpoints inside a stage, from which a killed stage goes on as if nothing had happened, bit for bit on a CPU."""

import csv
import hashlib
import io
import json
import logging
import pickle
import random
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from amc_lightning.data import Batches
from amc_lightning.plan import PassCount
from amc_lightning.results import versions, write_whole

log = logging.getLogger(__name__)

COST_SHARE = 0.01
"""Share of a stage's time that checkpoints may take: epochs of a few milliseconds do not get one each."""
LIVE_SECONDS = 10.0
"""Between two writings of a stage's metrics while it trains."""
_KEPT = 2
_SUFFIX = ".ckpt"


def checkpoint_folder(work: Path) -> Path:
    """Return the folder of a stage's checkpoints: one for each set of versions, which another set cannot go on from."""
    text = json.dumps(
        {name: version for name, version in versions().items() if name not in ("hydra-core", "omegaconf")}
    )
    return work / hashlib.sha256(text.encode()).hexdigest()[:8]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest sound checkpoint of a folder; damaged ones are removed with a warning."""
    for path in sorted(folder.glob(f"*{_SUFFIX}"), reverse=True):
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem.partition("-")[2]:
                torch.load(path, map_location="cpu", weights_only=True)
                return path
            problem = "is damaged"
        except pickle.UnpicklingError:  # an optimiser's or a model's own state, of classes that are not loaded
            problem = "holds more than tensors and plain containers"
        log.warning("checkpoint %s %s; the stage goes on from an earlier one, or begins anew", path, problem)
        path.unlink(missing_ok=True)
    return None


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints whole, under a name that holds their checksum: ``<step>-<SHA-256>.ckpt``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: object = None) -> None:
        """Write a checkpoint, fsynced and renamed, and remove all but the newest two.

        Args:
            checkpoint: Lightning's dictionary of states.
            path: folder and step; the checksum and the suffix are added.
            storage_options: not used.

        Raises:
            OSError: if the disk is full; the earlier ones stay.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content, path = buffer.getbuffer(), Path(path)
        write_whole(path.with_name(f"{path.name}-{hashlib.sha256(content).hexdigest()}{_SUFFIX}"), content)
        for old in sorted(path.parent.glob(f"*{_SUFFIX}"))[:-_KEPT]:
            old.unlink(missing_ok=True)


class MetricRows(Logger):
    """Lightning's metrics as rows in memory, one per call, written to a CSV file now and then and at the end.

    Args:
        path: the file.

    Attributes:
        rows: what was logged, oldest first; a checkpoint holds them too.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._written = time.monotonic()

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the configuration."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        epoch = int(metrics["epoch"])
        rest = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self.rows.append({"epoch": epoch, "step": -1 if step is None else step, **rest})
        if time.monotonic() - self._written > LIVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file."""
        self._written = time.monotonic()
        write_rows(self.path, self.rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write metrics of one stage as CSV: epoch, step, then the others by name; nothing if there are none."""
    if not rows:
        return
    names = sorted({name for row in rows for name in row} - {"epoch", "step"})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["epoch", "step", *names], restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue().encode())


class StageCheckpoint(pl.Callback):
    """Write checkpoints between two steps of a stage, and put back what Lightning's own state leaves out.

    One is due before the first step of every epoch, and within an epoch every so many minutes; neither if the last one
    cost more than ``COST_SHARE`` of the time since. Every checkpoint is taken at the same place, before a step, so that
    there is one way to go on: the epoch's earlier steps are done, its later ones come in the same order, and random
    states, metrics, the mixer's carry and what was counted are those of that moment. Attacks have no random state of
    their own: their noise derives from (seed, step, attack).

    Args:
        folder: where checkpoints go.
        batches: the stage's loader, whose place is restored.
        metrics: the stage's metrics so far.
        passes: the stage's passes so far.
        minutes: between two checkpoints within an epoch, > 0.
        on_resume: told the steps behind the stage and the epoch in hand, from 1, when it goes on.

    Attributes:
        seconds: training time behind the stage, that of earlier processes included.
        resumed: the step the stage went on from; None if it began anew.
    """

    def __init__(
        self,
        folder: Path,
        *,
        batches: Batches,
        metrics: MetricRows,
        passes: PassCount,
        minutes: float,
        on_resume: Callable[[int, int], None] = lambda step, epoch: None,
    ) -> None:
        self.folder = folder
        self.batches = batches
        self.metrics = metrics
        self.passes = passes
        self.minutes = minutes
        self.on_resume = on_resume
        self.resumed: int | None = None
        self._before = 0.0
        self._start = self._last = time.monotonic()
        self._cost = 0.0
        self._warned = False
        self._random: dict[str, Any] | None = None
        self._position = 0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.monotonic() - self._start

    # --- saving ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Put back random states in front of the first step; write a checkpoint if one is due."""
        if self._random is not None:
            set_random_states(self._random)
            self._random = None
            return
        pause = max(self._cost / COST_SHARE, 60 * self.minutes if batch_idx else 0.0)
        now = time.monotonic()
        if trainer.global_step == 0 or now - self._last < pause:
            return
        try:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step:010d}", weights_only=False)
        except OSError as error:
            if not self._warned:
                log.warning("no checkpoint could be written in %s (%s); training goes on", self.folder, error.strerror)
            self._warned = True
        self._last = time.monotonic()
        self._cost = self._last - now

    def state_dict(self) -> dict[str, Any]:
        """Return what a stage needs beside Lightning's own state, as plain containers and tensors."""
        return {
            "random": random_states(),
            "passes": [self.passes.gradient, self.passes.forward],
            "seconds": self.seconds,
            "metrics": self.metrics.rows,
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the loops' progress as if the batch in hand, which is fetched but not trained on, were not."""
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] -= 1
        progress["is_last_batch"] = False
        for state in loops["state_dict"].get("combined_loader", []):
            state["position"] = progress["current"]["ready"]
        checkpoint["position"] = progress["current"]["ready"]

    # --- going on ----------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self._random = state_dict["random"]
        self.passes.gradient, self.passes.forward = state_dict["passes"]
        self._before = state_dict["seconds"]
        self.metrics.rows[:] = state_dict["metrics"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the loader back; Lightning has asked for its length, and so does not do it any more."""
        self._position = checkpoint["position"]
        self.batches.load_state_dict({"position": self._position})
        self.resumed = int(checkpoint["global_step"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        if self.resumed is None:
            return
        self.on_resume(self.resumed, trainer.current_epoch + 1)
        if self._position == 0:
            # Nothing of this epoch is done: a restarting loop would count a step for the validation it skips.
            trainer.fit_loop.epoch_loop.restarting = False


def random_states() -> dict[str, Any]:
    """Return every global random state as plain containers and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what ``random_states`` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    cuda: list[Tensor] = states["cuda"]
    for index, state in enumerate(cuda[: torch.cuda.device_count()] if torch.cuda.is_available() else []):
        torch.cuda.set_rng_state(state.cpu(), index)
