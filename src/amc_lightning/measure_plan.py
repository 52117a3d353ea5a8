"""What there is to measure: which attacks, on which rows, under which threat models, and what is in the store of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config
from amc_lightning.data import ImageData
from amc_lightning.data.splits import mixed_order
from amc_lightning.entry import key_of
from amc_lightning.evaluate import JUDGE
from amc_lightning.outcome import fingerprint
from amc_lightning.proxies import Proxies
from amc_lightning.proxy_recipe import PlannedProxy, evaluation_spec
from amc_lightning.recipe import component, outcome_recipe, versions_of
from amc_lightning.stage_recipe import StageRecipe
from amc_lightning.stages import Stage
from amc_lightning.store import Store

Strengths = Mapping[str, Mapping[str, GuardedAttack]]
UNDEFENDED, BARE = "undefended", "bare"
"""Stand for M0, and for the model without what is in front of it, among the models that examples are crafted on."""
WHITE_BOX = "white_box"


@dataclass(frozen=True)
class Job:
    """One attack that a stage is measured with.

    Attributes:
        threat_model: under which threat model.
        title: strength and name, such as "check pgm".
        attack: the attack.
        crafter: what its examples are crafted on: an architecture of a proxy, ``UNDEFENDED`` or ``BARE``; None for the
            model itself.
        rows: how many.
        recipe: what determines its outcome.
    """

    threat_model: str
    title: str
    attack: GuardedAttack
    crafter: str | None
    rows: int
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Squeezer:
    """Feature squeezing in front of the models.

    Attributes:
        name: in the group ``squeezing``.
        module: what images (N, C, H, W) in [0, 1] go through.
        adaptive: whether attacks go through it; else they are made on the bare model, and squeezed afterwards. Who
            knows of it can do either, so in the worst case of the adaptive attack both count.
    """

    name: str
    module: nn.Module
    adaptive: bool

    @property
    def threat_model(self) -> str:
        """What results.json calls it, among the threat models."""
        return f"squeezed/{self.name}/adaptive" if self.adaptive else self.post_hoc

    @property
    def post_hoc(self) -> str:
        """What results.json calls the same squeezing where it comes after the attack."""
        return f"squeezed/{self.name}/post_hoc"


class MeasurementPlan:
    """What every stage of a run is measured with.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        threats: by threat model attacks by strength (``paper``, ``check``, ...), then by name.
        proxies: gives the proxies of threat models with an interface; None where there are none.
        squeezers: feature squeezing by name; measured where the white box is, squeezed after the attack and attacked
            through it, never one without the other.
        post_hoc: attacks by strength and name whose examples are squeezed afterwards.
        recipes: what determines each stage that is measured, in order.
        store: where earlier outcomes are.
        device: where to compute.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        threats: Mapping[str, Strengths],
        *,
        proxies: Proxies | None = None,
        squeezers: Mapping[str, nn.Module] | None = None,
        post_hoc: Strengths | None = None,
        recipes: Sequence[StageRecipe],
        store: Store,
        device: torch.device,
    ) -> None:
        self.config = config
        self.data = data
        self.proxies = proxies
        self.recipes = recipes
        self.store = store
        self.device = device
        pairs = [
            Squeezer(name, module, adaptive)
            for name, module in (squeezers or {}).items()
            for adaptive in (False, True)
            if WHITE_BOX in threats
        ]
        self.squeezers = {squeezer.threat_model: squeezer for squeezer in pairs}
        self.threats = dict(threats)
        for name, squeezer in self.squeezers.items():
            attacks = threats[WHITE_BOX] if squeezer.adaptive else post_hoc or {}
            self.threats[name] = {strength: attacks[strength] for strength in _SQUEEZED if strength in attacks}

    @cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of the test split, and of the rows that are attacked.

        ``judge`` are leading rows of ``attack``.
        """
        images, labels = self.data.tensors("attack", self.device)
        # a limit and the gallery take leading rows, so the rows are put into an order that mixes the classes
        order = mixed_order(labels.cpu().numpy(), self.config.dataset.split_seed)[: self.config.evaluation.limit]
        rows = torch.from_numpy(order).to(self.device)
        judged = rows[: self.config.evaluation.judge.rows]
        return {
            "test": self.data.tensors("test", self.device),
            "attack": (images[rows], labels[rows]),
            JUDGE: (images[judged], labels[judged]),
        }

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {split: fingerprint(*tensors) for split, tensors in self.splits.items()}

    def planned(self, stage: Stage) -> StageRecipe:
        """Return what determines a stage."""
        return next(recipe for recipe in self.recipes if recipe.stage.index == stage.index)

    @property
    def undefended(self) -> StageRecipe | None:
        """What determines M0; None where it is not among the stages."""
        return self.recipes[0] if self.recipes[0].stage.index == 0 else None

    def measured_under(self, stage: Stage) -> list[str]:
        """Return the threat models that a stage is measured under; none if it is not measured at all."""
        is_end = stage.index in (self.recipes[0].stage.index, self.recipes[-1].stage.index)
        if not is_end and self.config.evaluation.stages == "ends":
            return []
        return [name for name in self.threats if is_end or name not in self.squeezers]

    def strengths(self, stage: Stage, threat_model: str) -> Strengths:
        """Return the attacks that a stage is measured with under a threat model, by strength and name."""
        is_last = stage.index == self.recipes[-1].stage.index
        return {
            strength: members
            for strength, members in self.threats[threat_model].items()
            if strength != JUDGE or is_last
        }

    def planned_proxies(self, stage: Stage, threat_model: str) -> dict[str, PlannedProxy]:
        """Return the proxies P'' that a stage is attacked with, by architecture; none for a white box."""
        if threat_model in self.squeezers or self.config.threat_models[threat_model].interface is None:
            return {}
        assert self.proxies is not None
        key = self.planned(stage).key
        return {
            name: self.proxies.plan(evaluation_spec(self.config, stage, threat_model, name), key)
            for name in self.config.evaluation.proxies
        }

    def model_key(self, stage: Stage, threat_model: str) -> str:
        """Return the key of the model under attack: a stage, or that with squeezing in front."""
        key = self.planned(stage).key
        if threat_model not in self.squeezers:
            return key
        name = self.squeezers[threat_model].name
        squeezing = component(self.config.squeezings[name], key=f"squeezings.{name}")
        return key_of({"kind": "squeezed", "model": key, "squeezing": squeezing, "versions": versions_of("models")})

    def crafter_keys(self, stage: Stage, threat_model: str) -> dict[str, str]:
        """Return the keys of the other models that examples are crafted on, by name; none for attacks on the model."""
        if threat_model in self.squeezers:
            return {} if self.squeezers[threat_model].adaptive else {BARE: self.planned(stage).key}
        return {name: planned.key for name, planned in self.planned_proxies(stage, threat_model).items()}

    def jobs(self, stage: Stage) -> list[Job]:
        """Return every attack that a stage is measured with; none if it is not measured."""
        return [job for threat_model in self.measured_under(stage) for job in self._jobs(stage, threat_model)]

    def missing(self, stage: Stage) -> list[Job]:
        """Return those of ``jobs`` that were not done yet."""
        return [job for job in self.jobs(stage) if not self.store.has(key_of(job.recipe))]

    def identity(self) -> list[str]:
        """Return the keys of everything that the last stage is measured with, which stages are, and the budgets."""
        last = self.recipes[-1]
        clean = [self.recipe(last.key, split, None, None) for split in ("test", "attack")]
        keys = [key_of(recipe) for recipe in (*clean, *(job.recipe for job in self.jobs(last.stage)))]
        return [*keys, self.config.evaluation.stages, key_of(self.config.dataset.budget)]

    def recipe(self, model: str, split: str, attack: GuardedAttack | None, craft_on: str | None) -> dict[str, Any]:
        """Return what determines the outcome of one attack (None: clean) on the rows of a split."""
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

    def _jobs(self, stage: Stage, threat_model: str) -> Iterator[Job]:
        model = self.model_key(stage, threat_model)
        others = self.crafter_keys(stage, threat_model)
        crafters: dict[str | None, str | None] = dict(others.items()) if others else {None: None}
        m0 = self.undefended
        if m0 is not None and stage.index > 0 and self.planned_proxies(stage, threat_model):
            crafters[UNDEFENDED] = m0.key
        for name, key in crafters.items():
            done: list[tuple[str, GuardedAttack]] = []
            for strength, members in self.strengths(stage, threat_model).items():
                split = JUDGE if strength == JUDGE else "attack"
                for title, attack in members.items():
                    if (split, attack) not in done:
                        done.append((split, attack))
                        recipe = self.recipe(model, split, attack, key)
                        yield Job(threat_model, f"{strength} {title}", attack, name, len(self.splits[split][1]), recipe)


_SQUEEZED = ("paper", "check", "stronger")
"""The strengths that squeezed models are measured with."""
