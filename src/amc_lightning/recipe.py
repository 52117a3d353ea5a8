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
from amc_lightning.config import resolve_target
from amc_lightning.entry import canonical
from amc_lightning.errors import UserError

VERSIONS: Mapping[str, int] = {"attacks": 1, "evaluation": 1, "models": 1, "proxies": 1, "training": 1}
"""Raised by hand when a change of the source changes what is computed, so that older results are not taken for it.

``tests/test_versions.py`` fails when a component's source changes without that, or without a note that says why nothing
computed changes.
"""
COMPONENTS: Mapping[str, Sequence[str]] = {
    "attacks": ("attacks/*.py",),
    "evaluation": ("evaluate.py", "measure.py", "measure_plan.py", "outcome.py", "rows.py", "seeding.py"),
    "models": ("models/*.py",),
    "proxies": ("proxies.py", "proxy.py", "proxy_recipe.py", "threat.py"),
    "training": (
        "attacks/randomness.py", "checkpoint.py", "data/augment.py", "data/batches.py", "fit.py", "joint.py", "keep.py",
        "mixed_batch.py", "mixer.py", "plan.py", "seeding.py", "stage.py", "stages.py", "train.py", "transfer.py",
    ),
}  # fmt: skip
"""The source files of each component, as patterns below the package."""


def outcome_recipe(
    model: str,
    attack: GuardedAttack | None,
    *,
    rows: str,
    seed: int,
    batch_size: int,
    keep: int,
    craft_on: str | None = None,
) -> dict[str, Any]:
    """Return the recipe of one measurement: what a model answers to some rows, clean or under one attack.

    Args:
        model: key of the model: of a stage, or of a proxy.
        attack: the attack; None for clean images.
        rows: fingerprint of the images and labels, in their order.
        seed: the evaluation's seed.
        batch_size: rows per call.
        keep: number of leading rows whose perturbed images are kept.
        craft_on: key of another model that the examples are crafted on.
    """
    recipe: dict[str, Any] = {"kind": "outcome", "model": model, "rows": rows, "attack": None}
    if attack is None:
        return recipe | {"versions": versions_of("attacks", "evaluation")}
    if craft_on is not None:
        recipe |= {"craft_on": craft_on}
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


def model_versions(node: Mapping[str, Any]) -> list[str]:
    """Return the component a model depends on: its class, or one it inherits from, may be this package's."""
    target = resolve_target(node, key="model")
    classes = target.__mro__ if isinstance(target, type) else (target,)
    return ["models"] if any(cls.__module__.startswith("amc_lightning.") for cls in classes) else []
