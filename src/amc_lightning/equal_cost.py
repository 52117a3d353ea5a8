"""Epochs that cost the same: defences are compared at equal gradient passes per training image."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import floor

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config
from amc_lightning.errors import UserError
from amc_lightning.stages import adversarial_copies, shares_of, stages_of


def passes_per_epoch(config: Config, attacks: Mapping[str, GuardedAttack]) -> Fraction:
    """Return the gradient passes per training image of one epoch of every stage after M0, together.

    One pass of each clean and each adversarial row that is trained on, and those of crafting, at most: an attack that
    stops early takes fewer.

    Args:
        config: the checked configuration.
        attacks: the attacks as training crafts them, by name.

    Raises:
        UserError: if an attack does not say how many passes it makes.
    """
    total = Fraction(0)
    for stage in stages_of(config)[1:]:
        total += 1 + adversarial_copies(config)
        for name, share in shares_of(config, stage).items():
            passes = attacks[name].max_passes
            if passes is None:
                raise UserError(
                    "cascade.passes",
                    config.cascade.passes,
                    f"cannot be shared out: {name} does not say how many passes it makes",
                    "attacks of this package, or a class with gradient_passes",
                    "Set cascade.epochs instead.",
                )
            total += share * passes
    return total


def at_equal_cost(config: Config, attacks: Mapping[str, GuardedAttack]) -> Config:
    """Return the configuration with the epochs that ``cascade.passes`` buys, alike for every stage and at least one.

    Args:
        config: the checked configuration.
        attacks: the attacks as training crafts them, by name.

    Raises:
        UserError: if an attack does not say how many passes it makes.
    """
    cascade = config.cascade
    if cascade.passes is None or not cascade.order:
        return config
    bought = Fraction(cascade.passes) / passes_per_epoch(config, attacks)
    epochs = max(1, floor(bought + Fraction(1, 2)))
    return replace(config, cascade=replace(cascade, epochs=epochs))
