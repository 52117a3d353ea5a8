"""From what Hydra composed to plain, checked objects. Nothing behind this module sees a ``DictConfig``."""

import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from amc_lightning.checks import check
from amc_lightning.errors import UserError
from amc_lightning.explain import refuse_unknown_keys
from amc_lightning.schema import CONF_DIR, CascadeConfig, Config, register

__all__ = ["CONF_DIR", "Config", "exact_shares", "instantiate", "read", "register", "resolve_target", "stage_epochs"]


def read(cfg: DictConfig) -> Config:
    """Turn a composed configuration into checked, plain objects.

    Attacks named in the order or the evaluation but not composed are looked up as ``attack/<name>.yaml`` along
    Hydra's search path, so that a new attack is one file. Of an attack given in part, without a ``_target_``, the
    file gives the rest.

    Args:
        cfg: what Hydra composed; left as it is, except that attacks found by name are added or completed.

    Returns:
        The configuration; every number checked, every name known.

    Raises:
        UserError: for the first value that is not allowed.
    """
    refuse_unknown_keys(cfg)
    _check_given(cfg)
    files = _known_attacks()
    with open_dict(cfg):
        for name in dict.fromkeys([*cfg.attacks, *_named(cfg)]):
            given = cfg.attacks.get(name, {})
            if name in files and isinstance(given, DictConfig | dict) and "_target_" not in given:
                cfg.attacks[name] = OmegaConf.merge(_read_attack(files[name]), given)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    check(config, known_attacks=sorted(set(files) | set(config.attacks)))
    return config


def instantiate(node: Mapping[str, Any], *, key: str, kind: type | None = None, **extra: object) -> Any:
    """Call the ``_target_`` of a plain mapping with the rest of it as keywords.

    Args:
        node: ``_target_`` and keyword arguments.
        key: the setting it came from, for messages.
        kind: if given, the target must be a subclass of it; checked before anything is called.
        **extra: further keywords.

    Raises:
        UserError: if the target cannot be imported, is of another kind, or does not take these keywords or values.
    """
    target = resolve_target(node, key=key)
    if kind is not None and not (isinstance(target, type) and issubclass(target, kind)):
        raise UserError(
            f"{key}._target_",
            node["_target_"],
            f"is not a {kind.__name__}",
            f"the path of a subclass of {kind.__module__}.{kind.__name__}",
            "Give the class's full path.",
        )
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    refuse_unfit(target, {**arguments, **extra}, key=key)
    try:
        return target(**arguments, **extra)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"is refused by {node['_target_']} ({error})"
        raise UserError(key, arguments, reason, "what it accepts", f"Change a value under {key}.") from error


def refuse_unfit(target: Callable[..., Any], arguments: Mapping[str, object], *, key: str) -> None:
    """Refuse keywords that a callable does not take, before it is called.

    Raises:
        UserError: if it cannot be called with these keywords, or at all.
    """
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        name = getattr(target, "__qualname__", repr(target))
        shown = {name: value for name, value in arguments.items() if name != "params"}
        raise UserError(
            key, shown, f"does not fit {name} ({error})", "the keywords that it takes", f"Change the keys under {key}."
        ) from error


def resolve_target(node: Mapping[str, Any], *, key: str) -> Callable[..., Any]:
    """Return what the ``_target_`` of a plain mapping names.

    Raises:
        UserError: if there is no ``_target_`` or nothing importable of that name.
    """
    path = node.get("_target_")
    if not isinstance(path, str):
        raise UserError(
            f"{key}._target_", path, "is missing", "the full path of a class or function", f"Add _target_ under {key}."
        )
    try:
        target: Callable[..., Any] = resolve_name(path)
    except (ImportError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{key}._target_",
            path,
            f"cannot be imported ({reason})",
            "an importable class or function",
            "Check the spelling, and that its package is installed.",
        ) from error
    return target


def exact_shares(config: CascadeConfig) -> tuple[Fraction, list[Fraction] | None]:
    """Return ``current_share`` and the lambda vector as exact fractions of what was written.

    Example:
        >>> exact_shares(CascadeConfig(order=["fgsm"], current_share=0.8))
        (Fraction(4, 5), None)
    """
    vector = None
    if config.shares is not None:
        written = [Fraction(str(share)) for share in config.shares]
        vector = [share / sum(written) for share in written]  # 3 x 0.333333 is meant as thirds
    return Fraction(str(config.current_share)), vector


def stage_epochs(config: CascadeConfig) -> list[int]:
    """Return the number of epochs of each stage after stage 0."""
    if isinstance(config.epochs, int):
        return [config.epochs] * len(config.order)
    return list(config.epochs)


def _named(cfg: DictConfig) -> list[str]:
    """Return the attacks that are trained against or measured with."""
    lists = ((cfg.cascade, "order"), (cfg.evaluation, "attacks"))
    return [str(name) for node, key in lists if not OmegaConf.is_missing(node, key) for name in node[key]]


def _read_attack(path: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(
            str(path), path.stem, f"is not YAML ({where})", "an attack's YAML file", "Correct it."
        ) from error
    if not isinstance(spec, dict):
        raise UserError(
            str(path), spec, "is not an attack", "keys and values, as in conf/attack/pgm.yaml", "Correct it."
        )
    return spec


def _known_attacks() -> dict[str, Path]:
    folders = [CONF_DIR]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [Path(source.path) for source in sources if source.schema == "file"]
    return {path.stem: path for folder in folders for path in sorted((folder / "attack").glob("*.yaml"))}


def _check_given(cfg: DictConfig) -> None:
    """Refuse a dataset that only its user can describe and has not been described."""
    needed = {
        "size": "the height and width its images are brought to, such as [32,32]",
        "num_classes": "the number of class folders",
    }
    missing = {
        "size": "size" in cfg.dataset.source and cfg.dataset.size is None,
        "num_classes": OmegaConf.is_missing(cfg.dataset, "num_classes"),
    }
    for name, meaning in needed.items():
        if missing[name]:
            raise UserError(
                f"dataset.{name}",
                None,
                "is not set",
                f"needed: {meaning}",
                f"Add dataset.{name}=... to the command line.",
            )
