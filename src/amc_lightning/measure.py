"""Measure the stages of a cascade; what was measured before is taken from the store, attack by attack."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from amc_lightning.attacks import GuardedAttack
from amc_lightning.cascade import StageRecord
from amc_lightning.config import Config
from amc_lightning.data import ImageData
from amc_lightning.data.splits import mixed_order
from amc_lightning.entry import REMOVE, Entry, key_of
from amc_lightning.errors import StageStoppedError, UserError
from amc_lightning.evaluate import NORMS, Evaluation, Outcome, evaluate
from amc_lightning.recipe import outcome_recipe
from amc_lightning.store import Store

Strengths = Mapping[str, Mapping[str, GuardedAttack]]
OUTCOME = "outcome.safetensors"
DURABLE_SECONDS = 0.5
"""A measurement that took less is not worth waiting for the disk, which takes some milliseconds."""


class Measurement:
    """What every stage of a run is measured with.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        strengths: attacks by strength (``paper``, ``check``), then by name.
        store: where earlier outcomes are, and new ones go.
        device: where to compute.
        console: where progress is shown.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        strengths: Strengths,
        *,
        store: Store,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config = config
        self.data = data
        self.strengths = strengths
        self.store = store
        self.device = device
        self.console = console

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
        return {split: _fingerprint(*tensors) for split, tensors in self.splits.items()}

    def distinct(self) -> dict[str, GuardedAttack]:
        """Return the attacks that are another one than those before, by strength and name, such as "check pgm"."""
        found: dict[str, GuardedAttack] = {}
        for strength, members in self.strengths.items():
            found |= {f"{strength} {name}": attack for name, attack in members.items() if attack not in found.values()}
        return found

    def recipe(self, model: str, split: str, attack: GuardedAttack | None) -> dict[str, Any]:
        """Return what determines the outcome of a split on the model with that key."""
        settings = self.config.evaluation
        return outcome_recipe(
            model,
            attack,
            rows=self._fingerprints[split],
            seed=settings.seed,
            batch_size=settings.batch_size,
            keep=settings.gallery,
        )

    def identity(self, model: str) -> list[str]:
        """Return the keys of everything that the model with that key is measured with, and the budgets."""
        recipes = [self.recipe(model, split, None) for split in ("test", "attack")]
        recipes += [self.recipe(model, "attack", attack) for attack in self.distinct().values()]
        return [*map(key_of, recipes), key_of(self.config.dataset.budget)]

    def missing(self, model: str) -> list[str]:
        """Return those of ``distinct`` that were not measured yet on the model with that key."""
        return [
            name
            for name, attack in self.distinct().items()
            if not self.store.has(key_of(self.recipe(model, "attack", attack)))
        ]

    def measure(self, record: StageRecord) -> Evaluation:
        """Measure a finished stage, or take what is known of it.

        Raises:
            StageStoppedError: on Ctrl-C; what was measured of the stage stays in the store.
            UserError: if an outcome in the store is not one of these rows.
        """
        settings = self.config.evaluation
        title = f"measuring {record.stage.title}"
        with self.console.status(title) as status, _explained_interrupt(record):

            def remember(split: str, attack: GuardedAttack | None, compute: Callable[[], Outcome]) -> Outcome:
                def make(work: Path) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
                    start = time.perf_counter()
                    facts, files = _packed(compute())
                    return {**facts, "seconds": time.perf_counter() - start}, files

                recipe = self.recipe(record.key, split, attack)
                entry, _ = self.store.obtain(
                    recipe,
                    make,
                    on_wait=lambda holder: status.update(f"{title}: {holder} is at it, waiting"),
                    worth=DURABLE_SECONDS,
                )
                return _unpacked(entry, self.splits[split][1].cpu().numpy())

            return evaluate(
                record.net,
                self.splits,
                self.strengths,
                budgets=self.config.dataset.budget,
                seed=settings.seed,
                batch_size=settings.batch_size,
                gallery=settings.gallery,
                on_attack=lambda name: status.update(f"{title} under {name}"),
                remember=remember,
            )


@contextmanager
def _explained_interrupt(record: StageRecord) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StageStoppedError(record.stage.title, record.weights, epochs=record.stage.epochs) from stop


def _packed(outcome: Outcome) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    arrays = {"predicted": outcome.predicted, "kept": outcome.kept}
    arrays |= {f"norm_{name}": sizes for name, sizes in outcome.norms.items()}
    facts = {"gradient_passes": outcome.gradient_passes, "zero_gradient": outcome.zero_gradient}
    return facts, {OUTCOME: save({name: np.ascontiguousarray(array) for name, array in arrays.items()})}


def _unpacked(entry: Entry, labels: NDArray[np.int64]) -> Outcome:
    wrong = UserError("store.root", str(entry.folder), "is not an outcome of these rows", f"{len(labels)} rows", REMOVE)
    try:
        arrays = load(entry.file(OUTCOME))
        predicted, kept = arrays["predicted"], arrays["kept"]
        passes = float(entry.facts["gradient_passes"])
        unmoved = entry.facts["zero_gradient"]
        unmoved = None if unmoved is None else int(unmoved)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise wrong from error
    # in our order: that of the file's table is anyone's
    norms: dict[str, NDArray[np.float64]] = {name: arrays[f"norm_{name}"] for name in NORMS if f"norm_{name}" in arrays}
    if any(array.shape != labels.shape for array in (predicted, *norms.values())):
        raise wrong
    return Outcome(predicted != labels, predicted, norms, kept, passes, unmoved)


def _fingerprint(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for tensor in (images, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
