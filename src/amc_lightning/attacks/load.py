"""An attack by its name, for use outside Hydra."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from amc_lightning.attacks.attack import GuardedAttack
from amc_lightning.attacks.build import build
from amc_lightning.attacks.copies import Execution
from amc_lightning.errors import UserError
from amc_lightning.places import CONF_DIR


def load(
    name: str | os.PathLike[str],
    *,
    preset: str | None = None,
    label: str = "true",
    seed: int = 0,
    generator: torch.Generator | None = None,
    fast: bool = False,
    bf16: bool = False,
    image_shape: Sequence[int] | None = None,
    **hyperparameters: object,
) -> GuardedAttack:
    """Return an attack by name, ready to be called: ``attack(model, x, y) -> x_adv``.

    Args:
        name: an attack of ``conf/attack``, such as ``fgsm``, ``pgm``, ``eap``, ``vap``, ``autoattack``; or the path of
            a YAML file like those there.
        preset: start from a table of the paper instead of the file's defaults: ``paper/mnist`` for the white-box
            column, ``paper/mnist/black_box`` for the other; ``official_code`` beside ``paper``.
        label: whose labels the attack turns away from: ``true`` those given to it, ``predicted`` the model's own.
        seed: seeds the noise; each call draws the same again.
        generator: a CPU generator to draw from instead, going on from call to call.
        fast: make passes through a copy of the model with batch norm folded into convolutions and channels-last
            memory; its logits are compared with the model's on the first batch.
        bf16: take gradients in bfloat16; everything that is decided stays in float32.
        image_shape: (C, H, W) of the images, to check l2 and l1 radii against the size of the box.
        **hyperparameters: the attack's own, under CleverHans' names; the file's defaults for those left out.

    Raises:
        UserError: for an unknown attack or preset, a hyper-parameter it does not have, or a value out of range.

    Example:
        >>> attack = load("pgm", eps=8 / 255, eps_iter=2 / 255, nb_iter=10)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> x_adv = attack(model, torch.full((2, 3, 8, 8), 0.5), torch.tensor([3, 1]))
        >>> round(float((x_adv - 0.5).abs().max()) * 255, 3)
        8.0
    """
    name = os.fspath(name)
    _check_randomness(seed, generator)
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONF_DIR / "attack" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (CONF_DIR / "attack").glob("*.yaml"))
        close = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            "name",
            name,
            "is not a known attack",
            f"known: {', '.join(known)}",
            f"Did you mean {close[0]}?" if close else "Take one of these, or give the path of a YAML file.",
        )
    allowed = "keys and values, as in conf/attack/pgm.yaml"
    try:
        spec = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(str(path), path.stem, f"is not YAML ({where})", allowed, "Correct the file.") from error
    if not isinstance(spec, dict):
        raise UserError(str(path), spec, "is not an attack", allowed, "Correct the file.")
    params = dict(_preset(preset, path.stem)) if preset is not None else {}
    return build(
        path.stem,
        spec,
        {**params, **hyperparameters},
        label=label,
        image_shape=image_shape,
        key=path.stem,
        execution=Execution(fast=fast, bf16=bf16),
        seed=seed,
        generator=generator,
        file=str(path) if name.endswith((".yaml", ".yml")) else None,
    )


def _check_randomness(seed: object, generator: object) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError("seed", seed, "is no seed", "allowed: a whole number >= 0", "Give one.")
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        raise UserError(
            "generator", generator, "is no generator to draw from", "needed: a torch.Generator of the CPU", "Give one."
        )


def _preset(preset: str, name: str) -> Mapping[str, Any]:
    preset = str(preset)
    table, _, column = preset.partition("/")[2].partition("/")
    path = CONF_DIR / "attack_params" / preset.partition("/")[0] / f"{table}.yaml"
    columns = yaml.safe_load(path.read_text()) if path.is_file() else {}
    if (params := columns.get(column or "white_box", {}).get(name)) is None:
        folder = CONF_DIR / "attack_params"
        known = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.glob("*/*.yaml"))
        raise UserError(
            "preset",
            preset,
            f"has no parameters for {name}",
            f"known: {', '.join(known)}, for fgsm, vap, eap and pgm",
            "Correct it, or leave it out.",
        )
    return cast(Mapping[str, Any], params)
