"""What must hold between the defence, its attacks, their shares and its epochs."""

import math

from amc_lightning.errors import UserError
from amc_lightning.ranges import check_choice, check_number
from amc_lightning.schema import CascadeConfig, Config

JOINT = ("avg", "max", "msd", "sat", "e_at")
"""The multi-attack baselines, by defence and by ``cascade.joint``."""


def check_cascade(config: Config) -> None:
    """Refuse a defence that does not go with its attacks, shares or epochs.

    Raises:
        UserError: for the first value that is not allowed.
    """
    _check_defence(config)
    _check_shares(config.cascade)
    _check_epochs(config.cascade)


def _check_defence(config: Config) -> None:
    rules = {"undefended": (0, 0), "adversarial_training": (1, 1), "amc": (1, math.inf)}
    rules |= dict.fromkeys(JOINT, (2, math.inf))
    check_choice("defence.name", config.defence.name, tuple(rules))
    _check_joint(config)
    low, high = rules[config.defence.name]
    if not low <= len(config.cascade.order) <= high:
        needed = {"undefended": "no attack", "adversarial_training": "exactly one attack", "amc": "at least one attack"}
        needed |= dict.fromkeys(JOINT, "at least two attacks")
        raise UserError(
            "cascade.order",
            config.cascade.order,
            f"does not fit defence={config.defence.name}",
            f"needed: {needed[config.defence.name]}",
            "Change cascade.order, attack_order or defence.",
        )


def _check_joint(config: Config) -> None:
    """Check what belongs to the multi-attack baselines, whose one stage is trained against all attacks of the order."""
    cascade, name = config.cascade, config.defence.name
    expected = name if name in JOINT else None
    if cascade.joint != expected:
        raise UserError(
            "cascade.joint",
            cascade.joint,
            f"does not fit defence={name}",
            f"needed: {expected or 'null'}",
            "Choose the defence, which sets it.",
        )
    if cascade.passes is not None:
        check_number("cascade.passes", cascade.passes, 0, open_low=True)
    if expected is None:
        return
    for key, value, needed in (
        ("cascade.shares", cascade.shares, None),
        ("threat_model", config.threat_model.name, "white_box"),
        ("cascade.transfer", cascade.transfer, "parent"),
    ):
        if value != needed:
            raise UserError(
                key,
                value,
                f"does nothing with defence={name}, which trains one stage on its own gradients",
                f"needed: {'null' if needed is None else needed}",
                f"Leave {key} out, or choose defence=amc.",
            )
    unbounded = [attack for attack in cascade.order if config.attacks[attack].get("norm", "none given") is None]
    missing = [attack for attack in unbounded if attack not in config.dataset.budget]
    if name == "msd" and missing:
        raise UserError(
            "dataset.budget",
            missing,
            "has no l1 radius, and MSD needs a ball for every attack",
            "a radius for each unbounded attack of the order",
            f"Add {' '.join(f'+dataset.budget.{attack}=10' for attack in missing)}.",
        )


def _check_shares(cascade: CascadeConfig) -> None:
    if cascade.shares is None:
        return
    for share in cascade.shares:
        check_number("cascade.shares", share, 0, 1)
    if len(cascade.shares) != len(cascade.order):
        raise UserError(
            "cascade.shares",
            cascade.shares,
            f"has {len(cascade.shares)} entries",
            f"one per attack of cascade.order, {len(cascade.order)}",
            "Give one share per attack.",
        )
    if abs(sum(cascade.shares) - 1) > 1e-5:
        raise UserError(
            "cascade.shares",
            cascade.shares,
            f"sums to {sum(cascade.shares):g}",
            "a sum of 1",
            "Change the shares so that they sum to 1.",
        )
    if cascade.order and cascade.shares[0] == 0:
        raise UserError(
            "cascade.shares",
            cascade.shares,
            "leaves stage 1 without rows",
            "a first share above 0",
            "Drop the first attack from the order, or give it a share.",
        )


def _check_epochs(cascade: CascadeConfig) -> None:
    key, value = "cascade.epochs", cascade.epochs
    if isinstance(value, bool) or not isinstance(value, int | list):
        raise UserError(
            key,
            value,
            "is not a number of epochs",
            "an integer, or a list with one per stage",
            "Write e.g. cascade.epochs=8 or 'cascade.epochs=[8,8,8,8]'.",
        )
    stages = len(cascade.order) if cascade.joint is None else 1
    if isinstance(value, list) and len(value) != stages:
        raise UserError(
            key,
            value,
            f"has {len(value)} entries",
            f"one per stage, {stages}",
            "Give one number of epochs per attack of cascade.order, or a single number for all.",
        )
    for epochs in value if isinstance(value, list) else [value]:
        if isinstance(epochs, bool) or not isinstance(epochs, int):
            raise UserError(key, value, "is not a number of epochs", "integers", "Write whole numbers.")
        check_number(key, epochs, 1)
