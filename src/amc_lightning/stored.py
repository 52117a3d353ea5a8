"""A stage that is in the store already, to be measured by itself."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from amc_lightning.config import Config, ThreatModelConfig
from amc_lightning.entry import Entry
from amc_lightning.errors import UserError
from amc_lightning.schema import CascadeConfig, NamedConfig
from amc_lightning.stage_recipe import StageRecipe
from amc_lightning.stages import Stage
from amc_lightning.store import Store


def stored_stage(config: Config, store: Store) -> tuple[Config, StageRecipe]:
    """Find the stage that ``evaluation.stage`` names.

    Args:
        config: the checked configuration.
        store: where it is.

    Returns:
        The configuration with all that the stage was trained with: network, seed, defence, order, threat model; how it
        is measured stays as it was. Beside it the stage, with its own recipe.

    Raises:
        UserError: if there is no such stage, or it is of another dataset.
    """
    assert config.evaluation.stage is not None
    key = store.find(config.evaluation.stage, setting="evaluation.stage")
    entry = store.load(key)
    if entry is None or entry.recipe.get("kind") not in ("stage", "given"):
        kind = "damaged" if entry is None else f"a stored {entry.recipe.get('kind')}, not a stage"
        raise UserError("evaluation.stage", key, f"is {kind}", "a stage; task=store lists them", "Choose one of these.")
    if entry.recipe["kind"] == "given":
        raise UserError(
            "evaluation.stage",
            key,
            "are weights that were given",
            "a stage that was trained",
            "Use evaluation.weights=<the file>.",
        )
    try:
        trained = entry.facts["config"]
        if trained["dataset"]["name"] != config.dataset.name:
            raise UserError(
                "dataset",
                config.dataset.name,
                f"is not what stage {key[:12]} was trained on",
                f"it was {trained['dataset']['name']}",
                f"Add dataset={trained['dataset']['name']}.",
            )
        return _as_trained(config, trained, int(entry.recipe["index"])), _recipe(entry)
    except (KeyError, TypeError) as error:
        raise UserError(
            "evaluation.stage",
            key,
            f"has settings of another version ({error!r})",
            "a stage that this version trained",
            "Use evaluation.weights=<its weights.safetensors> instead.",
        ) from error


def refuse_other_images(name: str, train: str, stored: StageRecipe) -> None:
    """Refuse images that a stage was not trained on: those held out here may be among its own.

    Args:
        name: of the dataset.
        train: fingerprint of its training split.
        stored: the stage.

    Raises:
        UserError: if they are others.
    """
    if train != stored.recipe["training_data"]:
        raise UserError(
            "dataset",
            name,
            "is not what the stage was trained on: its held-out images may be among those",
            "the same files, split and cap",
            "Give dataset.root, dataset.split_seed and so on as in the run that trained it.",
        )


_OF_THE_SPLIT = ("limit", "balanced", "split_seed", "split_rule", "size")
"""What decides which images are held out: on another split a stage would meet images that it was trained on."""


def _as_trained(config: Config, trained: Mapping[str, Any], index: int) -> Config:
    cascade = CascadeConfig(**trained["cascade"])
    epochs = cascade.epochs if isinstance(cascade.epochs, int) else cascade.epochs[:index]
    order = cascade.order[:index] if cascade.joint is None or index == 0 else cascade.order
    hardened = ThreatModelConfig(**trained["threat_model"])
    return replace(
        config,
        model=trained["model"],
        dataset=replace(config.dataset, **{name: trained["dataset"][name] for name in _OF_THE_SPLIT}),
        seed=trained["seed"],
        defence=NamedConfig(trained["defence"]["name"]),
        cascade=replace(cascade, order=order, epochs=epochs),
        threat_model=hardened,
        threat_models={hardened.name: hardened, **config.threat_models},
    )


def _recipe(entry: Entry) -> StageRecipe:
    recipe = dict(entry.recipe)
    return StageRecipe(Stage(int(recipe["index"]), recipe["attack"], int(recipe["epochs"])), recipe)
