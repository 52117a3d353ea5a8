"""Walk through the stages of a cascade in order: each is asked of the store, which trains it only if there is none."""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from amc_lightning.checkpoint import write_rows
from amc_lightning.entry import REMOVE, SHORT, Entry, Recipe, key_of
from amc_lightning.errors import UserError
from amc_lightning.recipe import read_start
from amc_lightning.results import write_whole
from amc_lightning.stages import Stage, stages_of
from amc_lightning.store import Store
from amc_lightning.train import StageTrainer
from amc_lightning.transfer import WEIGHTS, fill, weights_of

OpenLogger = Callable[[Stage], Logger | None]
Replay = Callable[[Logger | None, list[dict[str, float]]], None]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    Attributes:
        stage: which.
        key: its key in the store.
        trained: whether it was trained now; False where it was there already.
        net: the trained network, on the device, in eval mode.
        weights: its published weights, in the run folder.
        steps: training steps taken.
        rows: adversarial rows per attack, as realised.
        passes_per_image: gradient passes of the stage, crafting and training, divided by the training images.
        minutes: wall time of training, whenever that was.
    """

    stage: Stage
    key: str
    trained: bool
    net: nn.Module
    weights: Path
    steps: int
    rows: dict[str, int]
    passes_per_image: float
    minutes: float


class Cascade:
    """Run the stages of one cascade.

    Args:
        trainer: trains a stage.
        recipes: what determines each stage, in order.
        store: where finished stages are.
        folder: the run folder; weights and metrics of every stage are copied below it.
        open_logger: gives a further logger for a stage beside its own metrics, or None.
        replay: shows such a logger the curves of a stage that was not trained now.
    """

    def __init__(
        self,
        trainer: StageTrainer,
        recipes: list[dict[str, Any]],
        *,
        store: Store,
        folder: Path,
        open_logger: OpenLogger = lambda stage: None,
        replay: Replay = lambda logger, metrics: None,
    ) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.recipes = recipes
        self.keys = [key_of(recipe) for recipe in recipes]
        self.store = store
        self.folder = folder
        self.open_logger = open_logger
        self.replay = replay
        self.logger: Logger | None = None
        """The further logger of the stage in hand; whoever runs the cascade closes it."""

    def run(self) -> Iterator[StageRecord]:
        """Give stage after stage, each as soon as it is finished.

        Raises:
            UserError: if ``cascade.start_from`` does not fit.
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        done: list[bytes] = []  # what was checked when it was read, whatever becomes of the run folder's copies
        for stage, recipe in zip(stages_of(self.config), self.recipes, strict=True):
            parent = None
            if stage.index > 0:
                parent = done[-1] if self.config.cascade.transfer == "parent" else done[0]
            record, content = self._obtain(stage, recipe, parent)
            done.append(content)
            yield record

    def _obtain(self, stage: Stage, recipe: Recipe, parent: bytes | None) -> tuple[StageRecord, bytes]:
        folder, weights = self.folder / stage.folder, self.folder / stage.folder / WEIGHTS
        self.logger = None

        def make(work: Path) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
            if recipe["kind"] == "given":
                return self._given(str(recipe["weights"]))
            return self._train(stage, parent, folder=folder, work=work)

        entry, trained = self.store.obtain(recipe, make, on_wait=lambda holder: self._say(
            stage, f"waiting: {holder} is training it"))  # fmt: skip
        content = entry.file(WEIGHTS)
        net = self.trainer.new_net(self.config.seed, "loaded").to(self.trainer.device).eval()
        fill(net, content, key="store.root", source=str(entry.folder / WEIGHTS))
        facts = entry.facts
        try:
            record = StageRecord(
                stage,
                entry.key,
                trained,
                net,
                weights,
                steps=int(facts["steps"]),
                rows={str(name): int(count) for name, count in facts["rows"].items()},
                passes_per_image=float(facts["passes_per_image"]),
                minutes=float(facts["minutes"]),
            )
            metrics = [{str(name): _number(value) for name, value in row.items()} for row in facts["metrics"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "store.root", str(entry.folder), "is not a stage of this program", "what it published itself", REMOVE
            ) from error
        write_whole(weights, content)
        write_rows(folder / "metrics.csv", metrics)
        if not trained:
            self._say(stage, _from_store(entry))
            self.logger = self.open_logger(stage)
            self.replay(self.logger, metrics)
        return record, content

    def _given(self, checksum: str) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
        path = Path(str(self.config.cascade.start_from))
        content = read_start(path)
        if hashlib.sha256(content).hexdigest() != checksum:
            raise UserError(
                "cascade.start_from",
                str(path),
                "has changed since the run began",
                "a file that stays as it is",
                "Run again.",
            )
        net = self.trainer.new_net(self.config.seed, "given")
        fill(net, content, key="cascade.start_from", source=str(path))
        facts = {"steps": 0, "rows": {}, "passes_per_image": 0.0, "minutes": 0.0, "metrics": []}
        return facts, {WEIGHTS: weights_of(net)}

    def _train(
        self, stage: Stage, parent: bytes | None, *, folder: Path, work: Path
    ) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
        self.logger = self.open_logger(stage)
        done = self.trainer.train(stage, parent, folder=folder, work=work, logger=self.logger)
        config = asdict(self.config)
        del config["logger"]  # where a run is tracked is nobody's business but the run's
        facts = {
            "steps": done.steps,
            "rows": done.rows,
            "passes_per_image": done.passes_per_image,
            "minutes": done.minutes,
            "metrics": done.metrics,
            "picked_epoch": done.picked_epoch,
            "machine": _machine(self.trainer.device),
            "config": config,
        }
        return facts, {WEIGHTS: weights_of(done.net)}

    def _say(self, stage: Stage, text: str) -> None:
        total = len(self.config.cascade.order)
        self.trainer.console.print(
            f"stage {stage.index}/{total} {stage.name}  {text}", soft_wrap=True, highlight=False, markup=False
        )


def _from_store(entry: Entry) -> str:
    if entry.recipe["kind"] == "given":
        return f"given weights, from the store ({entry.key[:SHORT]})"
    return f"from the store ({entry.key[:SHORT]}, trained {entry.created[:10]} in {entry.facts['minutes']:.1f} min)"


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError
    return value


def _machine(device: torch.device) -> dict[str, Any]:
    """Return what a stage is trained on: no part of its recipe, as it changes results by rounding only."""
    name = platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {"device": device.type, "name": name, "threads": torch.get_num_threads()}
