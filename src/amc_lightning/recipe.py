"""What determines a result: the recipe that its key in the store is a hash of.

In a recipe stands everything that a result depends on, and nothing else. Not in it: where files lie, what is logged or
drawn, the device and its threads (their rounding differs; an entry says on what it was made), the names of runs,
presets and defences, and settings that this stage does not use, such as ``alpha`` for the undefended model.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config, resolve_target
from amc_lightning.entry import canonical, key_of
from amc_lightning.errors import UserError
from amc_lightning.stages import Stage, shares_of, stages_of, validation_interval

VERSIONS: Mapping[str, int] = {"attacks": 1, "evaluation": 1, "models": 1, "training": 1}
"""Raised by hand when a change of the source changes what is computed, so that older results are not taken for it.

``tests/test_versions.py`` fails when a component's source changes without that, or without a note that says why nothing
computed changes.
"""
COMPONENTS: Mapping[str, Sequence[str]] = {
    "attacks": ("attacks/*.py",),
    "evaluation": ("evaluate.py", "measure.py", "seeding.py"),
    "models": ("models/*.py",),
    "training": (
        "attacks/randomness.py", "checkpoint.py", "data/augment.py", "data/batches.py", "keep.py", "mixer.py",
        "plan.py", "seeding.py", "stage.py", "stages.py", "train.py", "transfer.py",
    ),
}  # fmt: skip
"""The source files of each component, as patterns below the package."""


def stage_recipes(
    config: Config, attacks: Mapping[str, GuardedAttack], *, train: str, validation: str
) -> list[dict[str, Any]]:
    """Return the recipe of every stage of a cascade, known before anything is trained.

    Args:
        config: the checked configuration.
        attacks: the attacks as training crafts them, by name.
        train: fingerprint of the training images and labels.
        validation: fingerprint of the validation split; it matters only where it chooses the weights.

    Returns:
        One recipe per stage; a stage's ``parent`` is the key of the one whose weights it starts from.

    Raises:
        UserError: if the weights to start from cannot be read.
    """
    recipes: list[dict[str, Any]] = []
    for stage in stages_of(config):
        if stage.index == 0 and config.cascade.start_from is not None:
            weights = hashlib.sha256(read_start(Path(config.cascade.start_from))).hexdigest()
            model = component(config.model, key="model")
            versions = versions_of(*_model_version(config.model))
            recipes.append({"kind": "given", "index": 0, "weights": weights, "model": model, "versions": versions})
            continue
        parent = None
        if stage.index > 0:
            parent = key_of(recipes[-1] if config.cascade.transfer == "parent" else recipes[0])
        recipes.append(_trained(config, stage, attacks, parent=parent, train=train, validation=validation))
    return recipes


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
        "versions": versions_of("training", *_model_version(config.model), *watched),
    }
    if stage.index == 0:
        return recipe
    shares = shares_of(config, stage)
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
            "cascade.start_from", str(path), f"cannot be read ({error.strerror})", "a .safetensors file", "Check it."
        ) from error


def outcome_recipe(
    model: str, attack: GuardedAttack | None, *, rows: str, seed: int, batch_size: int, keep: int
) -> dict[str, Any]:
    """Return the recipe of one measurement: what a model answers to some rows, clean or under one attack.

    Args:
        model: key of the model's stage.
        attack: the attack; None for clean images.
        rows: fingerprint of the images and labels, in their order.
        seed: the evaluation's seed.
        batch_size: rows per call.
        keep: number of leading rows whose perturbed images are kept.
    """
    recipe = {"kind": "outcome", "model": model, "rows": rows, "attack": None}
    if attack is None:
        return recipe | {"versions": versions_of("attacks", "evaluation")}
    return recipe | {
        "attack": {**attack_recipe(attack), "label": attack.label},
        "seed": seed,
        "batch_size": batch_size,
        "keep": keep,
        "versions": versions_of("attacks", "evaluation"),
    }


def attack_recipe(attack: GuardedAttack) -> dict[str, Any]:
    """Return what an attack computes with: class, arguments, how it makes its passes, and the name, which seeds it."""
    cls = attack.attack_class
    return {
        "name": attack.name,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "source": source_of(cls.__module__),
        "arguments": _on_record(attack.arguments, key=f"attacks.{attack.name}"),
        "uses_labels": attack.uses_labels,
        "execution": vars(attack.execution),
    }


def component(node: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """Return a ``_target_`` node with the full name of what it names, and the hash of its source if that is a user's.

    Raises:
        UserError: if it names nothing, or has an argument that is not finite.
    """
    target = resolve_target(node, key=key)
    arguments = _on_record({name: value for name, value in node.items() if name != "_target_"}, key=key)
    return {"class": _name_of(target, node["_target_"]), "source": source_of(target.__module__), "arguments": arguments}


def _name_of(target: Callable[..., Any], written: str) -> str:
    """Return the full name of a class or function; as it was written where that name is another's, or nobody's.

    Two classes that one function made have one name between them.
    """
    name = f"{target.__module__}.{target.__qualname__}"
    try:
        return name if resolve_name(name) is target else written
    except (ImportError, AttributeError, ValueError):
        return written


def _on_record(arguments: Mapping[str, object], *, key: str) -> dict[str, object]:
    for name, value in arguments.items():
        try:
            canonical(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{key}.{name}", value, f"cannot be kept on record ({error})", "finite numbers and text", "Change it."
            ) from error
    return dict(arguments)


def source_of(module: str) -> str | None:
    """Return SHA-256 of the source of a module of the user's own, which may change any day.

    It is read once, and again when the module is reloaded: what counts in a sweep of hours is what was imported, not
    what the file has become since. Modules that it imports are not looked into. None for this package, whose
    ``VERSIONS`` say when it changes, for installed packages, whose versions an entry records, and for modules without
    a source file.
    """
    imported = sys.modules.get(module)
    file = getattr(imported, "__file__", None)
    if module.partition(".")[0] == "amc_lightning" or file is None or not file.endswith(".py"):
        return None
    if any(Path(file).is_relative_to(place) for place in _INSTALLED):
        return None
    spec = getattr(imported, "__spec__", None)  # a new one after each import
    if module not in _SOURCES or _SOURCES[module][0] is not spec:
        _SOURCES[module] = spec, hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return _SOURCES[module][1]


_SOURCES: dict[str, tuple[object, str]] = {}
_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def versions_of(*names: str) -> dict[str, int]:
    """Return the versions of some components."""
    return {name: VERSIONS[name] for name in names}


def _model_version(node: Mapping[str, Any]) -> list[str]:
    """Return the component a model depends on: its class, or one it inherits from, may be this package's."""
    target = resolve_target(node, key="model")
    classes = target.__mro__ if isinstance(target, type) else (target,)
    return ["models"] if any(cls.__module__.startswith("amc_lightning.") for cls in classes) else []


def _schedule(config: Config) -> dict[str, Any]:
    """Return the settings of the learning rate's course that its shape uses."""
    schedule = config.schedule
    used = {"one_cycle": ("peak_lr",), "steps": ("milestones", "gamma"), "constant": ()}[schedule.shape]
    return {"shape": schedule.shape, **{name: getattr(schedule, name) for name in used}}


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
