"""Proxies of a run: each is asked of the store, which has it trained on the target's answers only if there is none."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, guarded
from amc_lightning.config import Config, instantiate
from amc_lightning.data import Batches, ProxyData
from amc_lightning.entry import REMOVE, Entry, key_of
from amc_lightning.errors import FOLDERS, UserError
from amc_lightning.fit import Fitter, Trained
from amc_lightning.mixer import Mixer
from amc_lightning.plan import PassCount
from amc_lightning.proxy import ProxyModule, distributions
from amc_lightning.proxy_recipe import PlannedProxy, ProxySpec, answers_recipe, proxy_recipe
from amc_lightning.results import write_whole
from amc_lightning.seeding import derive
from amc_lightning.store import Store
from amc_lightning.threat import PredictiveInterface, gather
from amc_lightning.transfer import WEIGHTS, fill, weights_of

log = logging.getLogger(__name__)

ANSWERS = "answers.safetensors"


@dataclass(frozen=True)
class ProxyRecord:
    """A finished proxy.

    Attributes:
        spec: how it was trained.
        target: key of the stage whose answers it learnt.
        key: its key in the store.
        trained: whether it was trained now; False where it was there already.
        net: the network, on the device, in eval mode.
        weights: its weights, as the content of a file.
        images: how many images it was trained on.
        queries: how many questions its target was asked for it.
        passes_per_image: gradient passes of its training, divided by its images.
        minutes: wall time of training, whenever that was.
    """

    spec: ProxySpec
    target: str
    key: str
    trained: bool
    net: nn.Module
    weights: bytes
    images: int
    queries: int
    passes_per_image: float
    minutes: float

    @property
    def facts(self) -> dict[str, Any]:
        """What results.json says of it."""
        return {
            "key": self.key,
            "architecture": self.spec.architecture,
            "interface": self.spec.threat_model.name,
            "images": self.images,
            "queries": self.queries,
            "epochs": self.spec.epochs,
            "minutes": self.minutes,
            "gradient_passes_per_image": self.passes_per_image,
            "from_store": not self.trained,
        }


class Proxies:
    """Ask for proxies.

    Args:
        config: the checked configuration.
        images: what the target is asked about.
        attacks: the attacks as training crafts them, by name; a proxy may be hardened against them.
        fitter: fits modules.
        store: where finished proxies and answers are.
        folder: the run folder, for what a person may want to see of a proxy in training.
        console: where progress is shown.
    """

    def __init__(
        self,
        config: Config,
        images: ProxyData,
        attacks: Mapping[str, GuardedAttack],
        *,
        fitter: Fitter,
        store: Store,
        folder: Path,
        console: Console,
    ) -> None:
        self.config = config
        self.images = images
        self.attacks = attacks
        self.fitter = fitter
        self.store = store
        self.folder = folder
        self.console = console

    def plan(self, spec: ProxySpec, target: str) -> PlannedProxy:
        """Return the recipes of a proxy trained from nothing on the answers of the target with that key."""
        answers = answers_recipe(spec, target, images=self.images.fingerprint_of(spec.part))
        recipe = proxy_recipe(self.config, spec, self.attacks, answers=key_of(answers), parent=None)
        return PlannedProxy(spec, target, answers, recipe)

    def obtain(
        self,
        planned: PlannedProxy,
        target: Callable[[], nn.Module],
        parent: Callable[[], ProxyRecord] | None = None,
    ) -> ProxyRecord:
        """Return a proxy: the finished one, or one that is trained now.

        Args:
            planned: what determines it.
            target: gives the model that is asked; only its answers are used, and it comes back as it was.
            parent: gives the proxy to go on from; None for fresh weights.

        Raises:
            QueryBudgetError: if there are more images than queries in the budget; the answers so far are kept.
            UserError: if an interface gives answers that cannot be learnt, or the store holds something else.
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        spec = planned.spec

        def make(work: Path) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
            answers, queries = self._answers(spec, planned.answers, target)
            done = self._train(spec, answers, None if parent is None else parent().weights, work)
            facts = {
                "images": len(answers),
                "queries": queries,
                "passes_per_image": done.passes_per_image,
                "minutes": done.minutes,
                "metrics": done.metrics,
            }
            return facts, {WEIGHTS: weights_of(done.net)}

        def wait(holder: str) -> None:
            text = f"{_title(spec)}  waiting: {holder} is training it"
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)

        entry, trained = self.store.obtain(planned.recipe, make, on_wait=wait)
        return self._record(planned, entry, trained)

    def find(self, planned: PlannedProxy) -> ProxyRecord | None:
        """Return a finished proxy; None if it is not in the store."""
        entry = self.store.load(planned.key)
        return None if entry is None else self._record(planned, entry, trained=False)

    def _record(self, planned: PlannedProxy, entry: Entry, trained: bool) -> ProxyRecord:
        spec, content = planned.spec, entry.file(WEIGHTS)
        net = self._new_net(spec).to(self.fitter.device).eval()
        fill(net, content, key="store.root", source=str(entry.folder / WEIGHTS))
        try:
            return ProxyRecord(
                spec,
                planned.target,
                entry.key,
                trained,
                net,
                content,
                images=int(entry.facts["images"]),
                queries=int(entry.facts["queries"]),
                passes_per_image=float(entry.facts["passes_per_image"]),
                minutes=float(entry.facts["minutes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "store.root", str(entry.folder), "is not a proxy of this program", "what it published itself", REMOVE
            ) from error

    def _answers(self, spec: ProxySpec, recipe: dict[str, Any], target: Callable[[], nn.Module]) -> tuple[Tensor, int]:
        """Return the target's answers to the images of a proxy, and how many queries they took."""
        images, _ = self.images.tensors(spec.part, self.fitter.device)

        def make(work: Path) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
            file = work / ANSWERS
            known = _known(file, len(images))  # to one that was stopped
            node = spec.threat_model.interface
            assert node is not None
            net = target()
            interface = PredictiveInterface(
                net,
                instantiate(node, key="threat_model.interface"),
                seed=spec.answers_seed,
                budget=spec.threat_model.budget,
                asked=0 if known is None else len(known),
            )
            with guarded(net):
                found = gather(
                    interface, images, known=known, keep=lambda some: write_whole(file, save({"answers": some}))
                )
            _check_answers(found, self.images.data.num_classes, str(node.get("_target_")))
            return {"queries": interface.queries}, {ANSWERS: save({"answers": found})}

        entry, _ = self.store.obtain(recipe, make)
        try:
            answers = load(entry.file(ANSWERS))["answers"]
            if len(answers) != len(images):
                raise ValueError(f"{len(answers)} answers to {len(images)} images")
            return answers, int(entry.facts["queries"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                "store.root", str(entry.folder), f"holds no answers ({error})", f"{len(images)} answers", REMOVE
            ) from error

    def _train(self, spec: ProxySpec, answers: Tensor, parent: bytes | None, work: Path) -> Trained:
        images, _ = self.images.tensors(spec.part, self.fitter.device)
        answers = answers.to(images.device)
        soft = distributions(answers) if answers.ndim == 2 else None
        net = self._new_net(spec)
        mixer = None
        if spec.shares:
            chosen = [self.attacks[name] for name in spec.shares]
            mixer = Mixer(
                chosen, list(spec.shares.values()), seed=spec.seed, label="true"
            )  # the answers are its labels
        module = ProxyModule(
            net,
            soft=soft,
            title=spec.title,
            seed=spec.seed,
            mixer=mixer,
            alpha=self.config.proxy.alpha,
            augment=self.fitter.augment(),
            augment_clean=self.config.proxy.augment,
            make_optimizer=self.fitter.proxy_optimizer,
            make_schedule=self.fitter.proxy_schedule,
        )
        passes = PassCount()
        return self.fitter.fit(
            module,
            Batches(
                images,
                answers if soft is None else soft.argmax(dim=1),
                batch_size=self.config.proxy.batch_size,
                shuffle_seed=derive(spec.seed, "order"),
            ),
            title=_title(spec),
            epochs=spec.epochs,
            validate_every=spec.epochs,
            parent=parent,
            folder=self.folder / FOLDERS["proxy"] / spec.title.replace(" ", "_"),
            work=work,
            logger=None,
            passes=passes,
            counted=[net],
        )

    def _new_net(self, spec: ProxySpec) -> nn.Module:
        key = f"models.{spec.architecture}"
        return self.fitter.new_net(self.config.models[spec.architecture], spec.seed, key=key)


def _known(file: Path, images: int) -> Tensor | None:
    """Return the answers that an earlier, stopped attempt left; None if there are none, or they are damaged."""
    if not file.is_file():
        return None
    try:
        found = load(file.read_bytes())["answers"]
        if len(found) <= images:
            return found
        problem = f"holds {len(found)} answers to {images} images"
    except (SafetensorError, KeyError) as error:
        problem = f"is damaged ({error})"
    log.warning("%s %s; the target is asked about all images again", file, problem)
    file.unlink()
    return None


def _check_answers(answers: Tensor, classes: int, kind: str) -> None:
    """Refuse answers that a proxy cannot learn, as an interface of a user's own may give them."""
    soft = answers.ndim == 2
    fits = answers.shape[1] == classes and answers.is_floating_point() if soft else answers.dtype == torch.int64
    inside = fits and bool(((answers >= 0) & (answers <= (1 if soft else classes - 1))).all())  # NaN is not
    if not inside:
        raise UserError(
            "threat_model.interface",
            kind,
            f"gives answers of shape {tuple(answers.shape)} and type {answers.dtype} that no proxy can learn",
            f"classes (N,) int64 below {classes}, or probabilities (N, {classes}) in [0, 1]",
            "Correct its answer().",
        )


def _title(spec: ProxySpec) -> str:
    return f"proxy {spec.title}"
