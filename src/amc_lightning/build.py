"""From a checked configuration to the objects of a run: device, dataset, attacks."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from amc_lightning.attacks import PLAIN, Execution, GuardedAttack, build
from amc_lightning.config import Config, refuse_unfit, resolve_target
from amc_lightning.data import ImageData
from amc_lightning.errors import UserError


def pick_device(accelerator: str, precision: str = "32-true") -> torch.device:
    """Return the device to train on: "auto" takes a GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none, or the precision is not to be had on the device.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator",
            accelerator,
            "is not at hand",
            "auto, cpu",
            "Use trainer.accelerator=cpu, or install a torch build with CUDA.",
        )
    device = torch.device("cuda", 0) if accelerator != "cpu" and torch.cuda.is_available() else torch.device("cpu")
    if precision == "16-mixed" and device.type == "cpu":  # Lightning would take bfloat16 and not say so
        raise UserError(
            "trainer.precision",
            precision,
            "is not to be had on a CPU",
            "there: 32-true, bf16-mixed",
            "Use one of them, or a GPU.",
        )
    return device


def load_data(config: Config) -> ImageData:
    """Return the dataset of a configuration, not read yet."""
    settings = asdict(config.dataset)
    source = settings.pop("source")
    function = resolve_target(source, key="dataset.source")
    arguments = {name: value for name, value in source.items() if name != "_target_"}
    given = {**arguments, "root": None, "trust_files": False, "split_seed": 0}
    refuse_unfit(function, given, key="dataset.source")
    return ImageData(
        **settings, source=partial(function, **arguments), batch_size=config.schedule.batch_size, seed=config.seed
    )


def execution(config: Config) -> Execution:
    """Return how attacks make their passes; ``auto`` is fast for the networks of this package, plain for others."""
    choice = config.trainer.crafting
    if choice == "auto":
        choice = "fast" if str(config.model.get("_target_", "")).startswith("amc_lightning.models.") else "plain"
    return Execution(fast=choice != "plain", bf16=choice == "fast_bf16")


def build_attacks(
    config: Config,
    names: list[str],
    column: str,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    execution: Execution = PLAIN,
) -> dict[str, GuardedAttack]:
    """Build attacks by name with one column of Table 1; every parameter is checked now.

    Args:
        config: the configuration.
        names: which attacks.
        column: "white_box" or "black_box".
        changes: parameters that replace those of the column, by attack.
        execution: how passes through the model are made.

    Raises:
        UserError: for a parameter the attack does not take, or a value out of range.
    """
    table = config.attack_params.get(column, {})
    return {
        name: build(
            name,
            config.attacks[name],
            {**(table.get(name) or {}), **((changes or {}).get(name) or {})},
            image_shape=tuple(config.dataset.shape),
            key=f"attack_params.{column}.{name}",
            execution=execution,
        )
        for name in names
    }
