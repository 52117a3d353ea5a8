"""How each proxy of a run is trained, and the recipes of its answers and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config, ThreatModelConfig, resolve_target
from amc_lightning.data import Part
from amc_lightning.entry import key_of
from amc_lightning.recipe import attack_recipe, component, model_versions, versions_of
from amc_lightning.seeding import derive
from amc_lightning.stages import Stage, shares_of, stages_of


@dataclass(frozen=True)
class ProxySpec:
    """How one proxy is trained.

    Attributes:
        title: what it is called in messages and folders, such as "2 vap".
        threat_model: the interface through which the target is asked, and its budget.
        architecture: name of the network, a key of ``models``.
        part: the images it is trained on.
        seed: seeds its weights, the order of its batches, its dropout and its attacks' noise.
        answers_seed: seeds the noise of the answers.
        epochs: passes over the images.
        shares: share of each attack in its own adversarial half; empty for plain training.
    """

    title: str
    threat_model: ThreatModelConfig
    architecture: str
    part: Part
    seed: int
    answers_seed: int
    epochs: int
    shares: Mapping[str, Fraction]


@dataclass(frozen=True)
class PlannedProxy:
    """A proxy that a run needs, and what determines it.

    Attributes:
        spec: how it is trained.
        target: key of the stage whose answers it learns.
        answers: recipe of those answers.
        recipe: its own.
    """

    spec: ProxySpec
    target: str
    answers: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def key(self) -> str:
        """Its key in the store."""
        return key_of(self.recipe)


def crafts_on_proxy(config: Config) -> bool:
    """Say whether the defender of a configuration crafts on local proxies."""
    return config.threat_model.interface is not None and bool(config.cascade.order)


def hardening_part(config: Config) -> Part:
    """Return which of the proxy images a defender's proxies are trained on."""
    return "first" if config.proxy.halves else "all"


def evaluation_part(config: Config) -> Part:
    """Return which of the proxy images the evaluation's proxies are trained on."""
    return "second" if config.proxy.halves else "all"


def hardening_spec(config: Config, stage: Stage) -> ProxySpec:
    """Return how the defender's proxy P' of a stage >= 1 is trained.

    It goes on from the proxy of the stage before, and is itself trained on the attacks of the stages before, mixed as
    in the stage before: the newest gets most.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, Algorithm 2 and section 4.4; spec.md sections 2 and 10.
    """
    before = stages_of(config)[stage.index - 1]
    return ProxySpec(
        title=stage.title,
        threat_model=config.threat_model,
        architecture=config.proxy.architecture,
        part=hardening_part(config),
        seed=derive(config.seed, "hardening proxy", stage.index),
        answers_seed=derive(config.seed, "answers", stage.index),
        epochs=config.proxy.epochs if stage.index == 1 else config.proxy.fine_tune_epochs,
        shares=shares_of(config, before) if config.proxy.adversarial else {},
    )


def evaluation_spec(config: Config, stage: Stage, threat_model: str, architecture: str) -> ProxySpec:
    """Return how a proxy P'' is trained on the answers of a stage's model, to attack it: plainly, from nothing."""
    return ProxySpec(
        title=f"{stage.title} {threat_model} {architecture}",
        threat_model=config.threat_models[threat_model],
        architecture=architecture,
        part=evaluation_part(config),
        seed=derive(config.evaluation.seed, "evaluation proxy"),
        answers_seed=derive(config.evaluation.seed, "evaluation answers"),
        epochs=config.proxy.epochs,
        shares={},
    )


def answers_recipe(spec: ProxySpec, target: str, *, images: str) -> dict[str, Any]:
    """Return what determines the answers of a target to all images; the budget does not, if it reaches.

    Args:
        spec: of the proxy that they are for.
        target: key of the stage that is asked.
        images: fingerprint of the images, in their order.
    """
    node = spec.threat_model.interface
    assert node is not None
    key = "threat_model.interface"
    draws = getattr(resolve_target(node, key=key), "draws", True)
    return {
        "kind": "answers",
        "model": target,
        "interface": component(node, key=key),
        "images": images,
        "seed": spec.answers_seed if draws else None,
        "versions": versions_of("proxies"),
    }


def proxy_recipe(
    config: Config, spec: ProxySpec, attacks: Mapping[str, GuardedAttack], *, answers: str, parent: str | None
) -> dict[str, Any]:
    """Return what determines the weights of a proxy.

    Args:
        config: the checked configuration.
        spec: how it is trained.
        attacks: the attacks as training crafts them, by name.
        answers: key of the answers it learns.
        parent: key of the proxy that it goes on from.
    """
    model = config.models[spec.architecture]
    recipe: dict[str, Any] = {
        "kind": "proxy",
        "seed": spec.seed,
        "parent": parent,
        "answers": answers,
        "model": component(model, key=f"models.{spec.architecture}"),
        "epochs": spec.epochs,
        "batch_size": config.proxy.batch_size,
        "precision": config.trainer.precision,
        "optimizer": component(config.proxy.optimizer, key="proxy.optimizer"),
        "schedule": {"shape": "one_cycle", "peak_lr": config.proxy.peak_lr},
        "augment": vars(config.dataset.augment) if config.proxy.augment else None,
        "versions": versions_of("proxies", "training", *model_versions(model)),
    }
    if not spec.shares:
        return recipe
    return recipe | {
        "alpha": config.proxy.alpha,
        "attacks": [{**attack_recipe(attacks[name]), "share": share} for name, share in spec.shares.items()],
        "versions": recipe["versions"] | versions_of("attacks"),
    }
