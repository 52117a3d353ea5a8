"""Measure the stages of a cascade; what was measured before is taken from the store, attack by attack."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.cascade import StageRecord
from amc_lightning.entry import key_of
from amc_lightning.errors import StageStoppedError
from amc_lightning.evaluate import Evaluation, Remember, evaluate, rate_of
from amc_lightning.measure_plan import BARE, UNDEFENDED, MeasurementPlan
from amc_lightning.models import Squeezed
from amc_lightning.outcome import packed, unpacked
from amc_lightning.proxies import ProxyRecord
from amc_lightning.proxy_recipe import PlannedProxy
from amc_lightning.rows import Outcome, attack_rows, clean_rows, predict

DURABLE_SECONDS = 0.5
"""A measurement that took less is not worth waiting for the disk, which takes some milliseconds."""


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
    """Measure the stages of a cascade, one after the other.

    Args:
        plan: what with.
        console: where progress is shown.
    """

    def __init__(self, plan: MeasurementPlan, console: Console) -> None:
        self.plan = plan
        self.config = plan.config
        self.splits = plan.splits
        self.proxies = plan.proxies
        self.console = console
        self._undefended: nn.Module | None = None

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
        for name in self.plan.measured_under(record.stage):
            squeezer = self.plan.squeezers.get(name)
            beside = _worst(found, squeezer.post_hoc) if squeezer is not None and squeezer.adaptive else None
            measured = self._under(record, name, beside)
            found.evaluations[name] = measured.record
            first = len(found.evaluations) == 1
            found.examples.update({key if first else f"{name}/{key}": rows for key, rows in measured.examples.items()})
            found.gallery.update(measured.gallery if first else {})
        return found

    def _under(
        self, record: StageRecord, threat_model: str, beside: Mapping[str, NDArray[np.bool_]] | None
    ) -> Evaluation:
        """Measure a stage under one threat model; ``beside`` are rows by strength that are wrong in its worst case."""
        plan, settings = self.plan, self.config.evaluation
        proxies = {
            name: self._obtain(planned, record)
            for name, planned in plan.planned_proxies(record.stage, threat_model).items()
        }
        net, others = record.net, {name: proxy.net for name, proxy in proxies.items()}
        if (squeezer := plan.squeezers.get(threat_model)) is not None:
            net = Squeezed(record.net, squeezer.module.to(plan.device)).eval()
            others = {} if squeezer.adaptive else {BARE: record.net}
        model, keys = plan.model_key(record.stage, threat_model), plan.crafter_keys(record.stage, threat_model)
        if plan.undefended is not None:
            keys[UNDEFENDED] = plan.undefended.key
        title = f"measuring {record.stage.title}" + (f" under {threat_model}" if len(plan.threats) > 1 else "")
        with self.console.status(title) as status, _explained_interrupt(record):

            def remember(
                split: str, attack: GuardedAttack | None, crafter: str | None, compute: Callable[[], Outcome]
            ) -> Outcome:
                recipe = plan.recipe(model, split, attack, None if crafter is None else keys[crafter])
                return self._remember(recipe, split, compute, lambda text: status.update(f"{title}: {text}"))

            measured = evaluate(
                net,
                self.splits,
                plan.strengths(record.stage, threat_model),
                budgets=self.config.dataset.budget,
                seed=settings.seed,
                batch_size=settings.batch_size,
                gallery=settings.gallery,
                craft_on=others or None,
                beside=beside,
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
        if record.stage.index == 0 or self.plan.undefended is None:
            return None
        found: dict[str, Any] = {}
        for strength, members in self.plan.threats[threat_model].items():
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
        assert self.plan.undefended is not None
        recipe = self.plan.recipe(self.plan.undefended.key, "attack", attack, None) | {"keep": len(labels)}

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
        x_adv = torch.from_numpy(made.kept).to(self.plan.device)
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
        planned = self.plan.planned(record.stage).proxy
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
        recipe = self.plan.recipe(key, "test", None, None)
        if net is None and not self.plan.store.has(key_of(recipe)):
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

        entry, _ = self.plan.store.obtain(
            recipe, make, on_wait=lambda holder: say(f"{holder} is at it, waiting"), worth=DURABLE_SECONDS
        )
        return unpacked(entry, self.splits[split][1].cpu().numpy())


def _worst(found: Measured, threat_model: str) -> dict[str, NDArray[np.bool_]]:
    """Return the worst case that was measured under a threat model, by strength."""
    rows = {strength: found.examples.get(f"{threat_model}/{strength}/worst/wrong") for strength in ("paper", "check")}
    return {strength: wrong for strength, wrong in rows.items() if wrong is not None}


_AGREEMENT = {"n": "n", "agree": "wrong", "share": "error", "low": "low", "high": "high"}


@contextmanager
def _explained_interrupt(record: StageRecord) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StageStoppedError(record.stage.title, record.weights, epochs=record.stage.epochs) from stop
