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

from amc_lightning.checks import check, unknown_choice
from amc_lightning.errors import UserError
from amc_lightning.explain import refuse_unknown_keys
from amc_lightning.schema import CONF_DIR, CascadeConfig, Config, ThreatModelConfig, register

__all__ = [
    "CONF_DIR",
    "Config",
    "ThreatModelConfig",
    "exact_shares",
    "instantiate",
    "read",
    "register",
    "resolve_target",
    "stage_epochs",
    "stage_names",
]


def read(cfg: DictConfig) -> Config:
    """Turn a composed configuration into checked, plain objects.

    Attacks named in the order or the evaluation but not composed are looked up as ``attack/<name>.yaml`` along
    Hydra's search path, so that a new attack is one file. Of an attack given in part, without a ``_target_``, the
    file gives the rest. The same holds for the threat models of the evaluation and the architectures of proxies.

    Args:
        cfg: what Hydra composed; left as it is, except that what is found by name is added or completed.

    Returns:
        The configuration; every number checked, every name known.

    Raises:
        UserError: for the first value that is not allowed.
    """
    refuse_unknown_keys(cfg)
    _check_given(cfg)
    files = _known("attack")
    with open_dict(cfg):
        for name in dict.fromkeys([*cfg.attacks, *_named(cfg)]):
            given = cfg.attacks.get(name, {})
            if name in files and isinstance(given, DictConfig | dict) and "_target_" not in given:
                cfg.attacks[name] = OmegaConf.merge(_read_choice(files[name], "an attack", "attack/pgm"), given)
        _complete_threat_models(cfg)
        for name in map(str, cfg.evaluation.squeezing):
            cfg.squeezings[name] = _completed("evaluation.squeezing", name, "squeezing", cfg.squeezings.get(name, {}))
        systems = _known("system")
        for name in map(str, cfg.evaluation.judge.systems):
            if name not in systems:
                raise unknown_choice("evaluation.judge.systems", name, sorted(systems), "system")
        for node in (cfg.cascade, cfg.evaluation):  # true on a command line is a truth value
            if not OmegaConf.is_missing(node, "label"):
                node.label = str(node.label).lower()
        if any(cfg.threat_models[name].interface is not None for name in cfg.threat_models):
            _complete_models(cfg)
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


def stage_names(config: CascadeConfig) -> list[str]:
    """Return the names of the stages after stage 0: one per attack of the order, or the one joint stage."""
    return list(config.order) if config.joint is None else [config.joint]


def stage_epochs(config: CascadeConfig) -> list[int]:
    """Return the number of epochs of each stage after stage 0."""
    if isinstance(config.epochs, int):
        return [config.epochs] * len(stage_names(config))
    return list(config.epochs)


def _named(cfg: DictConfig) -> list[str]:
    """Return the attacks that are trained against or measured with."""
    if cfg.cascade.joint == "msd":
        return ["msd", *_listed(cfg)]
    return _listed(cfg)


def _listed(cfg: DictConfig) -> list[str]:
    lists = (
        (cfg.cascade, "order"), (cfg.evaluation, "attacks"), (cfg.evaluation.judge, "attacks"),
        (cfg.diagnosis, "attacks"),
    )  # fmt: skip
    return [str(name) for node, key in lists if not OmegaConf.is_missing(node, key) for name in node[key]]


def _complete_threat_models(cfg: DictConfig) -> None:
    """Put every threat model that hardens or measures under its name: the composed one, or ``threat_model/<name>``."""
    files = _known("threat_model")
    own = str(cfg.threat_model.name)
    if own not in files:  # a name stands in every table, so nobody gives one by the way
        raise unknown_choice("threat_model.name", own, sorted(files), "threat_model")
    wanted = dict.fromkeys([own, *map(str, cfg.evaluation.threat_models)])
    for name in cfg.threat_models:
        if name not in wanted:
            raise UserError(
                f"threat_models.{name}",
                dict(cfg.threat_models[name]),
                "is set, but nothing is hardened or measured under it",
                f"used: {', '.join(wanted)}",
                "Add it to evaluation.threat_models, or remove it.",
            )
    for name in wanted:
        given = cfg.threat_models.get(name, {})
        if name == own:
            under: Any = cfg.threat_model
        elif name in files:
            under = _read_choice(files[name], "a threat model", "threat_model/black_box_label")
        else:
            raise unknown_choice("evaluation.threat_models", name, sorted({*files, own}), "threat_model")
        cfg.threat_models[name] = OmegaConf.merge(OmegaConf.structured(ThreatModelConfig), under, given)
        if name == own:
            cfg.threat_model = cfg.threat_models[name]
        if cfg.threat_models[name].name != name:
            raise UserError(
                f"threat_models.{name}.name",
                str(cfg.threat_models[name].name),
                "is another name",
                "the file's own name",
                f"Correct threat_model/{name}.yaml.",
            )


def _complete_models(cfg: DictConfig) -> None:
    """Put every architecture of a proxy under its name: what was given, or ``model/<name>``."""
    for key, names in (
        ("proxy.architecture", [cfg.proxy.architecture]),
        ("evaluation.proxies", cfg.evaluation.proxies),
    ):
        for name in map(str, names):
            cfg.models[name] = _completed(key, name, "model", cfg.models.get(name, {}))


def _completed(key: str, name: str, group: str, given: Mapping[str, Any]) -> Any:
    """Return a choice of a group by its name, over which what was given has its way; what has a target is whole.

    Raises:
        UserError: if there is no such choice.
    """
    files = _known(group)
    if "_target_" in given:
        return given
    if name not in files:
        raise unknown_choice(key, name, sorted(files), group)
    like = {"model": "model/lenet", "squeezing": "squeezing/bit_depth_1"}[group]
    return OmegaConf.merge(_read_choice(files[name], f"a {group}", like), given)


def _read_choice(path: Path, what: str, like: str) -> dict[str, Any]:
    """Read one YAML of a group that Hydra has not composed.

    Args:
        path: the file.
        what: what it describes, with its article, for messages.
        like: a file of that group to look at, for messages.

    Raises:
        UserError: if it is not YAML, or no mapping.
    """
    try:
        spec = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(
            str(path), path.stem, f"is not YAML ({where})", f"{what.partition(' ')[2]}'s YAML file", "Correct it."
        ) from error
    if not isinstance(spec, dict):
        raise UserError(str(path), spec, f"is not {what}", f"keys and values, as in conf/{like}.yaml", "Correct it.")
    return spec


def _known(group: str) -> dict[str, Path]:
    """Return the files of a group along Hydra's search path, by name."""
    folders = [CONF_DIR]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [Path(source.path) for source in sources if source.schema == "file"]
    return {path.stem: path for folder in folders for path in sorted((folder / group).glob("*.yaml"))}


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
