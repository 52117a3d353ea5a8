"""From the YAML of an attack to a checked attack: every wrong name and value is found here, before any training."""

import inspect
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import cast

import numpy as np
import torch

from amc_lightning.attacks.attack import GuardedAttack, Label
from amc_lightning.attacks.ball import Norm
from amc_lightning.attacks.base import Attack
from amc_lightning.attacks.copies import PLAIN, Execution
from amc_lightning.errors import UserError
from amc_lightning.ranges import check_budget, check_ranges

NORMS = ("linf", "l2", "l1", "param", None)
LABELS = ("true", "predicted")
SPEC_KEYS = ("_target_", "norm", "uses_labels", "names", "params")


def build(
    name: str,
    spec: Mapping[str, object],
    params: Mapping[str, object],
    *,
    label: str = "true",
    image_shape: Sequence[int] | None = None,
    key: str | None = None,
    execution: Execution = PLAIN,
    seed: int = 0,
    generator: torch.Generator | None = None,
    file: str | None = None,
) -> GuardedAttack:
    """Build one attack from its YAML and overriding parameters, all checked.

    Args:
        name: the attack's name in configs, keys and tables.
        spec: content of ``conf/attack/<name>.yaml``, as plain containers.
        params: parameters that override ``spec["params"]``, under the project's names.
        label: ``true`` or ``predicted``: whose labels the attack turns away from.
        image_shape: (C, H, W) of the images, to check l2 and l1 radii.
        key: dotted setting the parameters came from, for messages, such as ``attack_params.white_box.pgm``;
            ``attacks.<name>.params`` if left out.
        execution: how passes through the model are made.
        seed: seeds the noise of calls that get neither noise nor generator.
        generator: a CPU generator for such calls, which goes on from call to call.
        file: where ``spec`` was read, for messages; ``conf/attack/<name>.yaml`` if left out.

    Returns:
        The attack, ready to be called on any model.

    Raises:
        UserError: for an unknown class, an unknown parameter, or a value out of its range.
    """
    spec_key, key = f"attacks.{name}", key or f"attacks.{name}.params"
    _check_spec(spec, spec_key, file or f"conf/attack/{name}.yaml")
    if label not in LABELS:
        raise UserError(
            f"{spec_key}.label", label, "is not a choice of labels", "allowed: true, predicted", "Pick one."
        )
    attack_class = _resolve(spec["_target_"], f"{spec_key}._target_")
    merged = {
        parameter: value.item() if isinstance(value, np.generic) else value
        for parameter, value in {**cast(Mapping[str, object], spec["params"]), **params}.items()
    }
    names = cast(Mapping[str, str], spec.get("names") or {})
    arguments = _bind(attack_class, merged, names, key)
    check_ranges(merged, key=key, foreign=not attack_class.__module__.startswith("amc_lightning."))
    if (completed := getattr(attack_class, "completed", None)) is not None:
        merged = completed(merged)
        arguments = _bind(attack_class, merged, names, key)
    # torchattacks writes Linf and L2
    norm = cast(Norm | None, str(merged.get("norm")).lower() if spec["norm"] == "param" else spec["norm"])
    eps = cast(float | None, merged.get("eps"))
    if norm is not None and eps is not None:
        check_budget(eps, norm, image_shape, key=f"{key}.eps")
    return GuardedAttack(
        name=name,
        attack_class=attack_class,
        arguments=arguments,
        params=merged,
        norm=norm,
        eps=eps,
        uses_labels=cast(bool, spec["uses_labels"]) and needs_labels(attack_class, arguments),
        label=cast(Label, label),
        execution=execution,
        seed=seed,
        generator=generator,
    )


def needs_labels(attack_class: type[Attack], arguments: Mapping[str, object]) -> bool:
    """Return whether a class reads labels with these arguments; it does unless it says otherwise."""
    says = getattr(attack_class, "needs_labels", None)
    return True if says is None else bool(says(**arguments))


def _check_spec(spec: Mapping[str, object], key: str, file: str) -> None:
    known, do = f"known: {', '.join(SPEC_KEYS)}", f"Correct {file}."
    for entry in spec:
        if entry not in SPEC_KEYS:
            raise UserError(key, entry, "is not a setting of an attack", known, do)
    for entry in SPEC_KEYS:
        if entry not in spec and entry != "names":
            raise UserError(key, entry, "is missing", known, do)
    if spec["norm"] not in NORMS:
        raise UserError(
            f"{key}.norm",
            spec["norm"],
            "is not a norm",
            "known: linf, l2, l1, param (the one in params), null (unbounded search)",
            do,
        )
    for entry in ("params", "names"):
        if not isinstance(spec.get(entry, {}), Mapping) and (entry, spec[entry]) != ("names", None):
            raise UserError(
                f"{key}.{entry}", spec[entry], "is no mapping", "needed: names and values, or {} for none", do
            )
    if not isinstance(spec["uses_labels"], bool):
        raise UserError(f"{key}.uses_labels", spec["uses_labels"], "is not a switch", "allowed: true, false", do)


def _resolve(target: object, key: str) -> type[Attack]:
    allowed = "allowed: the dotted path of a subclass of torchattacks.attack.Attack, such as torchattacks.PGD"
    try:
        found = resolve_name(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(key, target, f"cannot be imported ({error})", allowed, "Correct the path.") from error
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise UserError(key, target, "is not an attack class", allowed, "Name such a class.")
    return found


def _bind(
    attack_class: type[Attack], params: Mapping[str, object], names: Mapping[str, str], key: str
) -> dict[str, object]:
    """Turn our parameter names into the constructor's keywords, or say which one it does not have."""
    parameters = list(inspect.signature(attack_class).parameters.values())[1:]  # the first is the model
    ours = {theirs: own for own, theirs in names.items()}
    allowed = {ours.get(parameter.name, parameter.name): parameter for parameter in parameters}
    theirs = [parameter.name for parameter in parameters]
    for own, name in names.items():
        if name not in theirs:
            raise UserError(
                f"{key.removesuffix('.params')}.names.{own}",
                name,
                f"is no parameter of {attack_class.__name__}",
                f"known: {', '.join(sorted(theirs)) or 'none'}",
                "Correct names.",
            )
    known = f"known: {', '.join(sorted(allowed)) or 'none'}"
    for name, value in params.items():
        if name not in allowed:
            raise UserError(
                f"{key}.{name}", value, f"is set, but {attack_class.__name__} has no {name}", known, "Remove it."
            )
    for name, parameter in allowed.items():
        if parameter.default is parameter.empty and name not in params:
            raise UserError(f"{key}.{name}", None, f"is missing: {attack_class.__name__} needs it", known, "Set it.")
    return {names.get(name, name): value for name, value in params.items()}
