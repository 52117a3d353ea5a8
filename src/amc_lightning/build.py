"""From a checked configuration to the objects of a run: device, dataset, attacks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from amc_lightning.attacks import PLAIN, Execution, GuardedAttack, build
from amc_lightning.config import Config, instantiate, refuse_unfit, resolve_target
from amc_lightning.data import ImageData, ProxyData, Source
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
    del settings["proxy"], settings["squeezing"]
    source = _bound(settings.pop("source"), ("root", "trust_files", "split_seed"), key="dataset.source")
    return ImageData(**settings, source=source, batch_size=config.schedule.batch_size, seed=config.seed)


def load_proxy_data(config: Config, data: ImageData, device: torch.device) -> ProxyData:
    """Return the images that proxies of a configuration are trained on, not read yet.

    Args:
        config: the checked configuration.
        data: the target's own images, which are kept out of them.
        device: where images are generated.

    Raises:
        UserError: if the dataset does not say where they come from.
    """
    settings = asdict(config.dataset.proxy)
    node = settings.pop("source")
    if node is None:
        raise UserError(
            "dataset.proxy.source",
            None,
            "is not set, but a threat model with an interface needs images for queries",
            "a function of amc_lightning.data.proxy, or one of yours",
            "Add proxy: {source: {_target_: ...}} to the dataset's YAML, or use threat_model=white_box.",
        )
    given = ("root", "trust_files", "seed", "count", "target", "class_names", "device")
    return ProxyData(**settings, source=_bound(node, given, key="dataset.proxy.source"), data=data, device=device)


def _bound(node: Mapping[str, Any], given: Sequence[str], *, key: str) -> Callable[..., Source]:
    """Return the function of a ``_target_`` node with its arguments; ``given`` are those it gets when called."""
    function = resolve_target(node, key=key)
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    refuse_unfit(function, {**arguments, **dict.fromkeys(given)}, key=key)
    return partial(function, **arguments)


def execution(config: Config, *proxies: str) -> Execution:
    """Return how attacks make their passes; ``auto`` is fast for the networks of this package, plain for others.

    Args:
        config: the configuration.
        proxies: architectures of proxies that are attacked as well; with none, it is the target alone.
    """
    choice = config.trainer.crafting
    if choice == "auto":
        nodes = [config.model, *(config.models[name] for name in proxies)]
        ours = all(str(node.get("_target_", "")).startswith("amc_lightning.models.") for node in nodes)
        choice = "fast" if ours else "plain"
    return Execution(fast=choice != "plain", bf16=choice == "fast_bf16")


def build_attacks(
    config: Config,
    names: list[str],
    column: str,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    execution: Execution = PLAIN,
    label: str = "true",
) -> dict[str, GuardedAttack]:
    """Build attacks by name with one column of Table 1; every parameter is checked now.

    Args:
        config: the configuration.
        names: which attacks.
        column: "white_box" or "black_box", or "black_box_training" for what crafts training examples under the latter.
        changes: parameters that replace those of the column, by attack.
        execution: how passes through the model are made.
        label: whose labels the attacks turn away from, "true" or "predicted".

    Raises:
        UserError: for a parameter the attack does not take, or a value out of range.
    """
    table = config.attack_params.get(column, {})
    if column == "black_box_training":
        table = {**config.attack_params.get("black_box", {}), **table}
    return {
        name: build(
            name,
            config.attacks[name],
            {**(table.get(name) or {}), **((changes or {}).get(name) or {})},
            image_shape=tuple(config.dataset.shape),
            key=f"attack_params.{column}.{name}",
            execution=execution,
            label=label,
        )
        for name in names
    }


def training_attacks(config: Config) -> dict[str, GuardedAttack]:
    """Return the attacks of the order as training examples are crafted, by name."""
    column = config.cascade.craft_params
    if config.cascade.joint == "msd":
        return _msd(config, column)
    proxies = [config.proxy.architecture] if config.threat_model.interface is not None else []
    return build_attacks(
        config,
        config.cascade.order,
        "black_box_training" if column == "black_box" else column,
        execution=execution(config, *proxies),
    )


def _msd(config: Config, column: str) -> dict[str, GuardedAttack]:
    """Return MSD in the balls of the attacks of the order, beside these attacks, which it is validated with.

    Of several attacks in one norm the largest ball holds the others; an unbounded one stands for the l1 ball of its
    budget.
    """
    how = execution(config)
    members = build_attacks(config, config.cascade.order, column, execution=how)
    balls = {"linf": 0.0, "l2": 0.0, "l1": 0.0}
    for name, attack in members.items():
        norm, radius = ("l1", config.dataset.budget[name]) if attack.norm is None else (attack.norm, attack.eps)
        balls[norm] = max(balls[norm], radius or 0.0)
    return members | build_attacks(config, ["msd"], column, {"msd": balls}, execution=how)


def evaluation_attacks(config: Config) -> dict[str, dict[str, dict[str, GuardedAttack]]]:
    """Return what models are measured with, by threat model, strength and name.

    Every threat model has the strengths ``paper`` and ``check``; a white box what else is asked for: ``predicted``,
    ``stronger``, ``judge``.
    """
    found = {}
    for name in config.evaluation.threat_models:
        model = config.threat_models[name]
        column = config.evaluation.params or model.params
        black_box = model.interface is not None
        proxies = config.evaluation.proxies if black_box else []
        measured = Execution(fast=execution(config, *proxies).fast)  # what is measured is never left to bfloat16
        changes = {"paper": None, "check": config.evaluation.check_black_box if black_box else config.evaluation.check}
        found[name] = {
            strength: build_attacks(config, config.evaluation.attacks, column, change, execution=measured)
            for strength, change in changes.items()
        }
        if not black_box:
            found[name] |= _other_strengths(config, column, measured)
    return found


def post_hoc_attacks(config: Config) -> dict[str, dict[str, GuardedAttack]]:
    """Return what examples are made with that are squeezed afterwards, by strength and name; none without squeezing.

    They are those of the white box, but at strength ``check`` with what ``evaluation.check_black_box`` changes: the
    first point that fools the model they are made on would not get through.
    """
    if not config.evaluation.squeezing or "white_box" not in config.evaluation.threat_models:
        return {}
    column = config.evaluation.params or config.threat_models["white_box"].params
    measured = Execution(fast=execution(config).fast)
    changes = {"paper": None, "check": config.evaluation.check_black_box}
    found = {
        strength: build_attacks(config, config.evaluation.attacks, column, change, execution=measured)
        for strength, change in changes.items()
    }
    return found | _other_strengths(config, column, measured)


def _other_strengths(config: Config, column: str, execution: Execution) -> dict[str, dict[str, GuardedAttack]]:
    settings, found = config.evaluation, {}
    if settings.label == "predicted":
        names = settings.attacks
        found["predicted"] = build_attacks(config, names, column, execution=execution, label="predicted")
    if settings.stronger:
        changes = config.attack_params["stronger"]
        names = [name for name in settings.attacks if name in changes]
        found["stronger"] = build_attacks(config, names, column, changes, execution=execution)
    judge = settings.judge
    if judge.attacks and (not judge.systems or config.system.name in judge.systems):
        found["judge"] = build_attacks(config, judge.attacks, column, judge.params, execution=execution)
    return {strength: members for strength, members in found.items() if members}


def squeezers(config: Config) -> dict[str, nn.Module]:
    """Return the feature squeezing that models are also measured with, by name.

    Raises:
        UserError: for a class or an argument that is not allowed.
    """
    return {
        name: instantiate(config.squeezings[name], key=f"squeezings.{name}", kind=nn.Module)
        for name in config.evaluation.squeezing
    }
