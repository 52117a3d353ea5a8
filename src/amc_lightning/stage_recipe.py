"""The recipes of a cascade's stages, and of the proxies that they are crafted on; known before anything is trained."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config
from amc_lightning.entry import key_of
from amc_lightning.errors import UserError
from amc_lightning.proxy_recipe import PlannedProxy, answers_recipe, hardening_spec, proxy_recipe
from amc_lightning.recipe import attack_recipe, component, model_versions, versions_of
from amc_lightning.stages import Stage, shares_of, stages_of, validation_interval


@dataclass(frozen=True)
class StageRecipe:
    """What determines a stage.

    Attributes:
        stage: which.
        recipe: its recipe; ``parent`` is the key of the stage whose weights it starts from.
        proxy: the proxy it is crafted on; None where that is the stage's own network.
    """

    stage: Stage
    recipe: dict[str, Any]
    proxy: PlannedProxy | None = None

    @property
    def key(self) -> str:
        """Its key in the store."""
        return key_of(self.recipe)


def stage_recipes(
    config: Config, attacks: Mapping[str, GuardedAttack], *, train: str, validation: str, queries: str | None = None
) -> list[StageRecipe]:
    """Return the recipe of every stage of a cascade, known before anything is trained.

    Args:
        config: the checked configuration.
        attacks: the attacks as training crafts them, by name.
        train: fingerprint of the training images and labels.
        validation: fingerprint of the validation split; it matters only where it chooses the weights.
        queries: fingerprint of the images that local proxies are trained on; None where the threat model has none.

    Raises:
        UserError: if the weights to start from cannot be read.
    """
    found: list[StageRecipe] = []
    for stage in stages_of(config):
        if stage.index == 0 and config.cascade.start_from is not None:
            weights = hashlib.sha256(read_start(Path(config.cascade.start_from))).hexdigest()
            model = component(config.model, key="model")
            versions = versions_of(*model_versions(config.model))
            given = {"kind": "given", "index": 0, "weights": weights, "model": model, "versions": versions}
            found.append(StageRecipe(stage, given))
            continue
        parent, proxy = None, None
        if stage.index > 0:
            parent = found[-1 if config.cascade.transfer == "parent" else 0].key
            if queries is not None:
                proxy = _local_proxy(config, stage, attacks, parent, found[-1].proxy, queries)
        recipe = _trained(config, stage, attacks, parent=parent, train=train, validation=validation)
        if proxy is not None:
            recipe |= {"craft_on": proxy.key}
        found.append(StageRecipe(stage, recipe, proxy))
    return found


def _local_proxy(
    config: Config,
    stage: Stage,
    attacks: Mapping[str, GuardedAttack],
    target: str,
    before: PlannedProxy | None,
    queries: str,
) -> PlannedProxy:
    spec = hardening_spec(config, stage)
    answers = answers_recipe(spec, target, images=queries)
    recipe = proxy_recipe(config, spec, attacks, answers=key_of(answers), parent=None if before is None else before.key)
    return PlannedProxy(spec, target, answers, recipe)


def _trained(
    config: Config,
    stage: Stage,
    attacks: Mapping[str, GuardedAttack],
    *,
    parent: str | None,
    train: str,
    validation: str,
) -> dict[str, Any]:
    cascade = config.cascade
    model = component(config.model, key="model")
    watched = ["attacks", "evaluation"] if cascade.pick == "best" else []
    recipe: dict[str, Any] = {
        "kind": "stage",
        "index": stage.index,
        "attack": stage.attack,
        "seed": config.seed,
        "parent": parent,
        "training_data": train,
        "model": model,
        "epochs": stage.epochs,
        "batch_size": config.schedule.batch_size,
        "precision": config.trainer.precision,
        "optimizer": component(config.optimizer, key="optimizer"),
        "schedule": _schedule(config),
        "augment": vars(config.dataset.augment) if cascade.augment_clean else None,
        "pick": _pick(config, stage, validation),
        "versions": versions_of("training", *model_versions(config.model), *watched),
    }
    if stage.index == 0:
        return recipe
    shares = shares_of(config, stage)
    if cascade.joint is not None:
        recipe |= {"joint": cascade.joint}
    if cascade.joint == "msd" and cascade.pick == "best":  # chosen by the attacks of the order, not by MSD itself
        recipe |= {"watched": [attack_recipe(attacks[name]) for name in cascade.order]}
    return recipe | {
        "alpha": cascade.alpha,
        "label": cascade.label,
        "augment_adversarial": cascade.augment_adversarial,
        "attacks": [{**attack_recipe(attacks[name]), "share": share} for name, share in shares.items()],
        "versions": recipe["versions"] | versions_of("attacks"),
    }


def read_start(path: Path) -> bytes:
    """Return the content of ``cascade.start_from``.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            "cascade.start_from",
            str(path),
            f"cannot be read ({error.strerror})",
            "a file of weights, .safetensors or .pt",
            "Check it.",
        ) from error


def _pick(config: Config, stage: Stage, validation: str) -> dict[str, Any]:
    """Return how the weights are chosen: validation matters only where it chooses."""
    if config.cascade.pick == "last":
        return {"rule": "last"}
    best = {"rule": config.cascade.pick, "every": validation_interval(config, stage), "data": validation}
    if stage.index == 0:  # no attack, so no subset to attack
        return best
    return best | {
        "rows": config.cascade.validate_rows,
        "split_seed": config.dataset.split_seed,
        "seed": config.evaluation.seed,
        "batch_size": config.evaluation.batch_size,
    }


def _schedule(config: Config) -> dict[str, Any]:
    """Return the settings of the learning rate's course that its shape uses."""
    schedule = config.schedule
    used = {"one_cycle": ("peak_lr",), "steps": ("milestones", "gamma"), "constant": ()}[schedule.shape]
    return {"shape": schedule.shape, **{name: getattr(schedule, name) for name in used}}
