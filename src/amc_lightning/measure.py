"""Measure the stages of a cascade; what was measured before is taken from the store, attack by attack."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.cascade import StageRecord
from amc_lightning.config import Config
from amc_lightning.data import ImageData
from amc_lightning.data.splits import mixed_order
from amc_lightning.entry import key_of
from amc_lightning.errors import StageStoppedError
from amc_lightning.evaluate import (
    Evaluation,
    Outcome,
    Remember,
    attack_rows,
    clean_rows,
    evaluate,
    predict,
    rate_of,
)
from amc_lightning.outcome import fingerprint, packed, unpacked
from amc_lightning.proxies import Proxies, ProxyRecord
from amc_lightning.proxy_recipe import PlannedProxy, evaluation_spec
from amc_lightning.recipe import outcome_recipe
from amc_lightning.stage_recipe import StageRecipe
from amc_lightning.stages import Stage
from amc_lightning.store import Store

Strengths = Mapping[str, Mapping[str, GuardedAttack]]
DURABLE_SECONDS = 0.5
"""A measurement that took less is not worth waiting for the disk, which takes some milliseconds."""
UNDEFENDED = "undefended"
"""Stands for M0 among the models that examples are crafted on."""


@dataclass(frozen=True)
class Job:
    """One attack that a stage is measured with.

    Attributes:
        threat_model: under which threat model.
        title: strength and name, such as "check pgm".
        attack: the attack.
        crafter: what its examples are crafted on: an architecture of a proxy, or ``UNDEFENDED``; None for the model
            itself.
        recipe: what determines its outcome.
    """

    threat_model: str
    title: str
    attack: GuardedAttack
    crafter: str | None
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What was measured of a stage.

    Attributes:
        evaluations: the ``evaluations`` of results.json, by threat model.
        examples: per-row arrays by name, such as ``paper/fgsm/wrong``; of all threat models but the first with its name
            in front.
        gallery: kept images and predictions of the first threat model, such as ``x_adv/fgsm``.
        proxy: clean error and agreement of the local proxy that the stage was crafted on; None where there is none, or
            it is no longer in the store.
    """

    evaluations: dict[str, dict[str, Any]]
    examples: dict[str, NDArray[Any]]
    gallery: dict[str, NDArray[Any]]
    proxy: dict[str, Any] | None


class Measurement:
    """What every stage of a run is measured with.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        threats: by threat model attacks by strength (``paper``, ``check``), then by name.
        proxies: gives the proxies of threat models with an interface; None where there are none.
        recipes: what determines each stage of the cascade, in order.
        store: where earlier outcomes are, and new ones go.
        device: where to compute.
        console: where progress is shown.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        threats: Mapping[str, Strengths],
        *,
        proxies: Proxies | None = None,
        recipes: Sequence[StageRecipe],
        store: Store,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config = config
        self.data = data
        self.threats = threats
        self.proxies = proxies
        self.recipes = recipes
        self.store = store
        self.device = device
        self.console = console
        self._undefended: nn.Module | None = None

    @cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of the test split, and of the rows that are attacked."""
        images, labels = self.data.tensors("attack", self.device)
        # a limit and the gallery take leading rows, so the rows are put into an order that mixes the classes
        order = mixed_order(labels.cpu().numpy(), self.config.dataset.split_seed)[: self.config.evaluation.limit]
        rows = torch.from_numpy(order).to(self.device)
        return {"test": self.data.tensors("test", self.device), "attack": (images[rows], labels[rows])}

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {split: fingerprint(*tensors) for split, tensors in self.splits.items()}

    # --- what there is to do -----------------------------------------------------------------------------------------

    def covers(self, stage: Stage) -> bool:
        """Say whether a stage is measured at all."""
        return self.config.evaluation.stages == "all" or stage.index in (0, len(self.recipes) - 1)

    def distinct(self, threat_model: str) -> dict[str, GuardedAttack]:
        """Return the attacks that are another one than those before, by strength and name, such as "check pgm"."""
        found: dict[str, GuardedAttack] = {}
        for strength, members in self.threats[threat_model].items():
            found |= {f"{strength} {name}": attack for name, attack in members.items() if attack not in found.values()}
        return found

    def planned_proxies(self, stage: Stage, threat_model: str) -> dict[str, PlannedProxy]:
        """Return the proxies P'' that a stage is attacked with, by architecture; none for a white box."""
        if self.config.threat_models[threat_model].interface is None:
            return {}
        assert self.proxies is not None
        key = self.recipes[stage.index].key
        return {
            name: self.proxies.plan(evaluation_spec(self.config, stage, threat_model, name), key)
            for name in self.config.evaluation.proxies
        }

    def jobs(self, stage: Stage) -> list[Job]:
        """Return every attack that a stage is measured with; none if it is not measured."""
        found = []
        model = self.recipes[stage.index].key
        for threat_model in self.threats if self.covers(stage) else ():
            crafters: dict[str | None, str | None] = {None: None}
            if proxies := self.planned_proxies(stage, threat_model):
                crafters = {name: planned.key for name, planned in proxies.items()}
                if stage.index > 0:
                    crafters[UNDEFENDED] = self.recipes[0].key
            found += [
                Job(threat_model, title, attack, name, self._recipe(model, "attack", attack, key))
                for name, key in crafters.items()
                for title, attack in self.distinct(threat_model).items()
            ]
        return found

    def missing(self, stage: Stage) -> list[Job]:
        """Return those of ``jobs`` that were not done yet."""
        return [job for job in self.jobs(stage) if not self.store.has(key_of(job.recipe))]

    def identity(self) -> list[str]:
        """Return the keys of everything that the last stage is measured with, which stages are, and the budgets."""
        last = self.recipes[-1]
        clean = [self._recipe(last.key, split, None, None) for split in ("test", "attack")]
        keys = [key_of(recipe) for recipe in (*clean, *(job.recipe for job in self.jobs(last.stage)))]
        return [*keys, self.config.evaluation.stages, key_of(self.config.dataset.budget)]

    def _recipe(self, model: str, split: str, attack: GuardedAttack | None, craft_on: str | None) -> dict[str, Any]:
        settings = self.config.evaluation
        return outcome_recipe(
            model,
            attack,
            rows=self._fingerprints[split],
            seed=settings.seed,
            batch_size=settings.batch_size,
            keep=settings.gallery,
            craft_on=craft_on,
        )

    # --- doing it ----------------------------------------------------------------------------------------------------

    def measure(self, record: StageRecord) -> Measured:
        """Measure a finished stage, or take what is known of it; stages come in order.

        Raises:
            StageStoppedError: on Ctrl-C; what was measured of the stage stays in the store.
            QueryBudgetError: if a proxy's budget of queries does not reach.
            TrainingDivergedError: if the loss of a proxy stops being finite.
            UserError: if an outcome in the store is not one of these rows.
        """
        if record.stage.index == 0:
            self._undefended = record.net
        if self.proxies is not None:
            self._clean(record.key, record.net)  # what the agreement of the next stage's proxy is with
        found = Measured({}, {}, {}, self._local_proxy(record))
        for name in self.threats if self.covers(record.stage) else ():
            measured = self._under(record, name)
            found.evaluations[name] = measured.record
            first = len(found.evaluations) == 1
            found.examples.update({key if first else f"{name}/{key}": rows for key, rows in measured.examples.items()})
            found.gallery.update(measured.gallery if first else {})
        return found

    def _under(self, record: StageRecord, threat_model: str) -> Evaluation:
        """Measure a stage under one threat model."""
        proxies = {
            name: self._obtain(planned, record)
            for name, planned in self.planned_proxies(record.stage, threat_model).items()
        }
        keys = {name: proxy.key for name, proxy in proxies.items()} | {UNDEFENDED: self.recipes[0].key}
        settings = self.config.evaluation
        title = f"measuring {record.stage.title}" + (f" under {threat_model}" if len(self.threats) > 1 else "")
        with self.console.status(title) as status, _explained_interrupt(record):

            def remember(
                split: str, attack: GuardedAttack | None, crafter: str | None, compute: Callable[[], Outcome]
            ) -> Outcome:
                recipe = self._recipe(record.key, split, attack, None if crafter is None else keys[crafter])
                return self._remember(recipe, split, compute, lambda text: status.update(f"{title}: {text}"))

            measured = evaluate(
                record.net,
                self.splits,
                self.threats[threat_model],
                budgets=self.config.dataset.budget,
                seed=settings.seed,
                batch_size=settings.batch_size,
                gallery=settings.gallery,
                craft_on={name: proxy.net for name, proxy in proxies.items()} or None,
                on_attack=lambda name: status.update(f"{title}, {name}"),
                remember=remember,
            )
            if proxies:
                measured.record["proxies"] = {
                    name: {**proxy.facts, **self._quality(proxy, record)} for name, proxy in proxies.items()
                }
                measured.record["transfer"] = self._transfer(record, threat_model, remember)
        return measured

    def _transfer(self, record: StageRecord, threat_model: str, remember: Remember) -> dict[str, Any] | None:
        """Return the error rates of a stage on examples crafted on M0; None for M0 itself."""
        if record.stage.index == 0:
            return None
        found: dict[str, Any] = {}
        for strength, members in self.threats[threat_model].items():
            rates = {}
            for name, attack in members.items():
                outcome = remember("attack", attack, UNDEFENDED, partial(self._shown, record, attack))
                rates[name] = rate_of(outcome.wrong)
                if attack.norm is None and name in self.config.dataset.budget:
                    inside = outcome.wrong & (outcome.norms["l1"] <= self.config.dataset.budget[name])
                    rates[f"{name}@budget"] = rate_of(inside)
            found[strength] = rates
        return found

    def _shown(self, record: StageRecord, attack: GuardedAttack) -> Outcome:
        """Show a stage the examples of an attack on M0, which are crafted once and kept for every other stage."""
        settings = self.config.evaluation
        images, labels = self.splits["attack"]
        recipe = self._recipe(self.recipes[0].key, "attack", attack, None) | {"keep": len(labels)}

        def craft() -> Outcome:
            assert self._undefended is not None
            return attack_rows(
                self._undefended,
                attack,
                images,
                labels,
                seed=settings.seed,
                batch_size=settings.batch_size,
                keep=len(labels),
            )

        made = self._remember(recipe, "attack", craft, lambda text: None)
        x_adv = torch.from_numpy(made.kept).to(self.device)
        predicted = predict(record.net, x_adv, batch_size=settings.batch_size).cpu().numpy()
        return replace(
            made,
            wrong=predicted != labels.cpu().numpy(),
            predicted=predicted,
            kept=made.kept[: settings.gallery],
            crafter_predicted=made.predicted,
        )

    def _obtain(self, planned: PlannedProxy, record: StageRecord) -> ProxyRecord:
        assert self.proxies is not None
        return self.proxies.obtain(planned, lambda: record.net)

    def _local_proxy(self, record: StageRecord) -> dict[str, Any] | None:
        """Return how good the local proxy of a stage was, by the answers of the target that it had."""
        planned = self.recipes[record.stage.index].proxy
        if planned is None or self.proxies is None or (proxy := self.proxies.find(planned)) is None:
            return None
        return self._quality(proxy, None)

    def _quality(self, proxy: ProxyRecord, record: StageRecord | None) -> dict[str, Any]:
        """Return a proxy's clean error and its agreement with its target, both on the test split."""
        own = self._clean(proxy.key, proxy.net)
        target = proxy.target if record is None else record.key
        answers = self._clean(target, None if record is None else record.net)
        agreement = None
        if answers is not None and own is not None:
            rate = rate_of(own.predicted == answers.predicted)
            agreement = {name: rate[key] for name, key in _AGREEMENT.items()}
        return {"clean": None if own is None else rate_of(own.wrong), "agreement": agreement}

    def _clean(self, key: str, net: nn.Module | None) -> Outcome | None:
        """Return a model's answers to the test split; without the model None if they are not known."""
        recipe = self._recipe(key, "test", None, None)
        if net is None and not self.store.has(key_of(recipe)):
            return None

        def compute() -> Outcome:
            assert net is not None
            return clean_rows(net, *self.splits["test"], batch_size=self.config.evaluation.batch_size)

        return self._remember(recipe, "test", compute, lambda text: None)

    def _remember(
        self, recipe: dict[str, Any], split: str, compute: Callable[[], Outcome], say: Callable[[str], None]
    ) -> Outcome:
        """Return an outcome from the store, or compute and keep it."""

        def make(work: Path) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
            start = time.perf_counter()
            facts, files = packed(compute())
            return {**facts, "seconds": time.perf_counter() - start}, files

        entry, _ = self.store.obtain(
            recipe, make, on_wait=lambda holder: say(f"{holder} is at it, waiting"), worth=DURABLE_SECONDS
        )
        return unpacked(entry, self.splits[split][1].cpu().numpy())


_AGREEMENT = {"n": "n", "agree": "wrong", "share": "error", "low": "low", "high": "high"}


@contextmanager
def _explained_interrupt(record: StageRecord) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StageStoppedError(record.stage.title, record.weights, epochs=record.stage.epochs) from stop
