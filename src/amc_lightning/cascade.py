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
from amc_lightning.entry import REMOVE, SHORT, Entry
from amc_lightning.errors import UserError
from amc_lightning.proxies import Proxies, ProxyRecord
from amc_lightning.results import write_whole
from amc_lightning.stage_recipe import StageRecipe, read_start
from amc_lightning.stages import Stage
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
        proxy: what results.json says of the local proxy that it was crafted on; None where that is its own network.
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
    proxy: dict[str, Any] | None = None


class Cascade:
    """Run the stages of one cascade.

    Args:
        trainer: trains a stage.
        recipes: what determines each stage, in order.
        proxies: gives the local proxies that stages are crafted on; None where there are none.
        store: where finished stages are.
        folder: the run folder; weights and metrics of every stage are copied below it.
        open_logger: gives a further logger for a stage beside its own metrics, or None.
        replay: shows such a logger the curves of a stage that was not trained now.
    """

    def __init__(
        self,
        trainer: StageTrainer,
        recipes: list[StageRecipe],
        *,
        store: Store,
        folder: Path,
        proxies: Proxies | None = None,
        open_logger: OpenLogger = lambda stage: None,
        replay: Replay = lambda logger, metrics: None,
    ) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.recipes = recipes
        self.keys = [recipe.key for recipe in recipes]
        self.proxies = proxies
        self.store = store
        self.folder = folder
        self.open_logger = open_logger
        self.replay = replay
        self.logger: Logger | None = None
        """The further logger of the stage in hand; whoever runs the cascade closes it."""

    def run(self) -> Iterator[StageRecord]:
        """Give stage after stage, each as soon as it is finished.

        Raises:
            UserError: if ``cascade.start_from`` does not fit, or the store holds something else than it should.
            QueryBudgetError: if a local proxy's budget of queries does not reach.
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        self._done: list[bytes] = []  # what was checked when it was read, whatever becomes of the run folder's copies
        for planned in self.recipes:
            record, content = self._obtain(planned)
            self._done.append(content)
            yield record

    def _obtain(self, planned: StageRecipe) -> tuple[StageRecord, bytes]:
        stage, recipe = planned.stage, planned.recipe
        folder, weights = self.folder / stage.folder, self.folder / stage.folder / WEIGHTS
        self.logger = None
        used: list[ProxyRecord] = []

        def make(work: Path) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
            if recipe["kind"] == "given":
                return self._given(str(recipe["weights"]))
            if planned.proxy is not None:
                used.append(self._local_proxy(stage.index))
            return self._train(planned, used[0] if used else None, folder=folder, work=work)

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
                proxy=used[0].facts if used else _proxy_facts(facts),
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
        named = "cascade.start_from" if self.config.evaluation.weights is None else "evaluation.weights"
        fill(net, content, key=named, source=str(path))
        facts = {"steps": 0, "rows": {}, "passes_per_image": 0.0, "minutes": 0.0, "metrics": []}
        return facts, {WEIGHTS: weights_of(net)}

    def _local_proxy(self, index: int) -> ProxyRecord:
        """Return the local proxy of a stage; it learns from the answers of the target as it is before that stage."""
        planned = self.recipes[index].proxy
        assert planned is not None
        assert self.proxies is not None

        def target() -> nn.Module:
            net = self.trainer.new_net(self.config.seed, "loaded").to(self.trainer.device).eval()
            place = self.keys.index(planned.target)
            fill(net, self._done[place], key="store.root", source=str(self.folder / WEIGHTS))
            return net

        return self.proxies.obtain(planned, target, (lambda: self._local_proxy(index - 1)) if index > 1 else None)

    def _train(
        self, planned: StageRecipe, proxy: ProxyRecord | None, *, folder: Path, work: Path
    ) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
        stage, parent = planned.stage, planned.recipe["parent"]
        self.logger = self.open_logger(stage)
        done = self.trainer.train(
            stage,
            None if parent is None else self._done[self.keys.index(parent)],
            craft_on=None if proxy is None else proxy.net,
            folder=folder,
            work=work,
            logger=self.logger,
        )
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
        if proxy is not None:
            facts["proxy"] = {name: value for name, value in proxy.facts.items() if name != "from_store"}
        return facts, {WEIGHTS: weights_of(done.net)}

    def _say(self, stage: Stage, text: str) -> None:
        total = self.recipes[-1].stage.index
        self.trainer.console.print(
            f"stage {stage.index}/{total} {stage.name}  {text}", soft_wrap=True, highlight=False, markup=False
        )


def _from_store(entry: Entry) -> str:
    if entry.recipe["kind"] == "given":
        return f"given weights, from the store ({entry.key[:SHORT]})"
    return f"from the store ({entry.key[:SHORT]}, trained {entry.created[:10]} in {entry.facts['minutes']:.1f} min)"


def _proxy_facts(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    return {**facts["proxy"], "from_store": True} if "proxy" in facts else None


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError
    return value


def _machine(device: torch.device) -> dict[str, Any]:
    """Return what a stage is trained on: no part of its recipe, as it changes results by rounding only."""
    name = platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {"device": device.type, "name": name, "threads": torch.get_num_threads()}
