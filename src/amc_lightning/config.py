"""The typed schema of a run, the checks between its fields, and the place of the configuration files.

Hydra composes, ``read`` turns the result into plain dataclasses and checks every value that only this program knows how
to judge. Nothing behind this module sees a ``DictConfig``.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from amc_lightning.errors import UserError

_PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"
"""Where the YAML lives: inside an installed wheel, or at the top of a checkout."""


@dataclass
class AugmentConfig:
    """Augmentation of the clean half."""

    rotation: float = 0.0
    shift: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False


@dataclass
class DatasetConfig:
    """One dataset: where it comes from, how it is cut, and what goes with it."""

    name: str = MISSING
    source: dict[str, Any] = MISSING
    root: str | None = None
    trust_files: bool = False
    limit: int | None = None
    balanced: bool = True
    split_seed: int = 0
    split_rule: str = "standard"
    size: list[int] | None = None
    shape: list[int] = MISSING
    num_classes: int = MISSING
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: dict[str, int] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)


@dataclass
class ScheduleConfig:
    """Batch size, number of epochs and course of the learning rate within a stage."""

    name: str = MISSING
    shape: str = "one_cycle"
    peak_lr: float = 0.05
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    batch_size: int = 128
    undefended_epochs: int = MISSING
    stage_epochs: int = MISSING


@dataclass
class TrainerConfig:
    """The machine: what pl.Trainer is told."""

    accelerator: str = "auto"
    precision: str = "32-true"
    threads: int | None = None
    progress: str = "auto"


@dataclass
class CascadeConfig:
    """The method: which attacks, in which order, mixed how, handed on how."""

    order: list[str] = MISSING
    alpha: float = 0.5
    current_share: float = 0.8
    shares: list[float] | None = None
    transfer: str = "parent"
    pick: str = "last"
    label: str = "predicted"
    craft_params: str = "white_box"
    undefended_epochs: int = MISSING
    epochs: Any = MISSING
    start_from: str | None = None
    augment_clean: bool = True
    augment_adversarial: bool = False
    validate_every: int = 5
    validate_rows: int = 512


@dataclass
class EvaluationConfig:
    """What every stage is measured with."""

    attacks: list[str] = MISSING
    params: str = "white_box"
    check: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 512
    limit: int | None = None
    gallery: int = 12
    seed: int = 0


@dataclass
class NamedConfig:
    """A choice that carries nothing but its name."""

    name: str = MISSING


@dataclass
class Config:
    """Everything a run needs to know."""

    name: str = MISSING
    preset: NamedConfig = field(default_factory=NamedConfig)
    seed: int = 0
    plan_only: bool = False
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: dict[str, Any] = MISSING
    attacks: dict[str, Any] = field(default_factory=dict)
    attack_params: dict[str, Any] = field(default_factory=dict)
    threat_model: NamedConfig = field(default_factory=NamedConfig)
    defence: NamedConfig = field(default_factory=NamedConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    optimizer: dict[str, Any] = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml starts from."""
    ConfigStore.instance().store(name="schema", node=Config, provider="amc_lightning")


def read(cfg: DictConfig) -> Config:
    """Turn a composed configuration into checked, plain objects.

    Attacks named in the order or the evaluation but not composed are looked up as ``attack/<name>.yaml`` along
    Hydra's search path, so that a new attack is one file.

    Args:
        cfg: what Hydra composed; left as it is, except that attacks found by name are added.

    Returns:
        The configuration; every number checked, every name known.

    Raises:
        UserError: for the first value that is not allowed.
    """
    _check_keys(cfg, Config, "")
    _check_given(cfg)
    names = [*_names(cfg.cascade, "order"), *_names(cfg.evaluation, "attacks")]
    with open_dict(cfg):
        for name in names:
            if name not in cfg.attacks and (found := _known_attacks().get(name)) is not None:
                cfg.attacks[name] = yaml.safe_load(found.read_text())
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    _check(config)
    return config


def instantiate(node: Mapping[str, Any], *, key: str, kind: type | None = None, **extra: object) -> Any:
    """Call the ``_target_`` of a plain mapping with the rest of it as keywords.

    Args:
        node: ``_target_`` and keyword arguments.
        key: the setting it came from, for messages.
        kind: if given, the target must be a subclass of it; checked before anything is called.
        **extra: further keywords.

    Raises:
        UserError: if the target cannot be imported, is of another kind, or does not take these keywords.
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
    try:
        return target(**arguments, **extra)
    except TypeError as error:
        raise UserError(
            key,
            arguments,
            f"does not fit {node['_target_']} ({error})",
            "the keywords that it takes",
            f"Change the keys under {key}.",
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


def _names(node: DictConfig, key: str) -> list[str]:
    if OmegaConf.is_missing(node, key):
        return []
    return [str(name) for name in node[key]]


def _known_attacks() -> dict[str, Path]:
    folders = [CONF_DIR]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [Path(source.path) for source in sources if source.schema == "file"]
    return {path.stem: path for folder in folders for path in sorted((folder / "attack").glob("*.yaml"))}


def _check_keys(cfg: DictConfig, schema: type, prefix: str) -> None:
    """Refuse keys that ``+key=value`` added where the schema is closed: nothing would ever read them."""
    hints = get_type_hints(schema)
    for name in cfg:
        key = f"{prefix}{name!s}"
        if name not in hints:
            raise _no_such_key(key, OmegaConf.select(cfg, str(name)))
        if is_dataclass(hints[name]) and isinstance(hints[name], type) and not OmegaConf.is_missing(cfg, name):
            _check_keys(cfg[name], hints[name], f"{key}.")


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


def _no_such_key(key: str, value: object) -> UserError:
    known = all_keys()
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]}?" if close else "See --cfg job for every key."
    parent = key.rpartition(".")[0]
    siblings = [other for other in known if other.rpartition(".")[0] == parent] if parent else []
    listed = ", ".join(siblings or all_keys(top_only=True))
    return UserError(key, value, "is set, but there is no such key", f"known: {listed}", hint)


def _choice(key: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        do = f"Did you mean {close[0]}?" if close else "Choose one of them."
        raise UserError(key, value, "is not known", f"known: {', '.join(allowed)}", do)


def _number(key: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        left, right = "(" if open_low else "[", ")" if high == math.inf else "]"
        upper = "infinity" if high == math.inf else f"{high:g}"
        raise UserError(key, value, "is out of range", f"allowed: {left}{low:g}, {upper}{right}", f"Change {key}.")


def _check(config: Config) -> None:
    cascade, evaluation, schedule = config.cascade, config.evaluation, config.schedule
    known = sorted(set(_known_attacks()) | set(config.attacks))
    for key, names in (("cascade.order", cascade.order), ("evaluation.attacks", evaluation.attacks)):
        for name in names:
            if name not in config.attacks:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {close[0]}? Otherwise add" if close else "Add"
                raise UserError(
                    key,
                    name,
                    "is not a known attack",
                    f"known: {', '.join(known)}",
                    f"{hint} conf/attack/{name}.yaml to define it.",
                )
        if len(set(names)) != len(names):
            raise UserError(key, names, "names an attack twice", "each attack at most once", f"Remove one from {key}.")
    _check_defence(config)
    _number("seed", config.seed, 0)
    _number("cascade.alpha", cascade.alpha, 0, 1)
    _number("cascade.current_share", cascade.current_share, 0, 1, open_low=True)
    _check_shares(cascade)
    _choice("cascade.transfer", cascade.transfer, ("parent", "none"))
    _choice("cascade.pick", cascade.pick, ("last", "best"))
    _choice("cascade.label", cascade.label, ("true", "predicted"))
    _choice("cascade.craft_params", cascade.craft_params, ("white_box", "black_box"))
    _choice("evaluation.params", evaluation.params, ("white_box", "black_box"))
    _choice("schedule.shape", schedule.shape, ("one_cycle", "steps", "constant"))
    _choice("trainer.progress", config.trainer.progress, ("auto", "bar", "lines", "none"))
    _choice("trainer.accelerator", config.trainer.accelerator, ("auto", "cpu", "gpu"))
    _choice("trainer.precision", config.trainer.precision, ("32-true", "bf16-mixed", "16-mixed"))
    _number("schedule.peak_lr", schedule.peak_lr, 0, open_low=True)
    _number("schedule.batch_size", schedule.batch_size, 1)
    _number("cascade.undefended_epochs", cascade.undefended_epochs, 1)
    _number("cascade.validate_every", cascade.validate_every, 1)
    _number("cascade.validate_rows", cascade.validate_rows, 0)
    _number("evaluation.batch_size", evaluation.batch_size, 1)
    _number("evaluation.gallery", evaluation.gallery, 0)
    _check_epochs(cascade)
    for key, value in (
        ("dataset.limit", config.dataset.limit),
        ("evaluation.limit", evaluation.limit),
        ("trainer.threads", config.trainer.threads),
    ):
        if value is not None:
            _number(key, value, 1)
    for name in evaluation.check:
        _choice("evaluation.check", name, known)


def _check_defence(config: Config) -> None:
    rules = {"undefended": (0, 0), "adversarial_training": (1, 1), "amc": (1, math.inf)}
    _choice("defence.name", config.defence.name, tuple(rules))
    low, high = rules[config.defence.name]
    if not low <= len(config.cascade.order) <= high:
        needed = {"undefended": "no attack", "adversarial_training": "exactly one attack", "amc": "at least one attack"}
        raise UserError(
            "cascade.order",
            config.cascade.order,
            f"does not fit defence={config.defence.name}",
            f"needed: {needed[config.defence.name]}",
            "Change cascade.order, attack_order or defence.",
        )


def _check_shares(cascade: CascadeConfig) -> None:
    if cascade.shares is None:
        return
    for share in cascade.shares:
        _number("cascade.shares", share, 0, 1)
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
    if isinstance(value, list) and len(value) != len(cascade.order):
        raise UserError(
            key,
            value,
            f"has {len(value)} entries",
            f"one per stage, {len(cascade.order)}",
            "Give one number of epochs per attack of cascade.order, or a single number for all.",
        )
    for epochs in value if isinstance(value, list) else [value]:
        if isinstance(epochs, bool) or not isinstance(epochs, int):
            raise UserError(key, value, "is not a number of epochs", "integers", "Write whole numbers.")
        _number(key, epochs, 1)


def explain(error: HydraException | OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """Say in one line what Hydra or OmegaConf found wrong: key, value, what is allowed, what to do.

    Args:
        error: what composing the configuration raised.
        overrides: the command line, to find the value that was given.
    """
    text = str(error) + "\n" + str(error.__cause__ or "")
    given = {key.lstrip("+~"): value for key, _, value in (item.partition("=") for item in overrides)}
    if match := re.search(r"Could not find '([\w./-]+)/([\w.-]+)'", text):
        group, choice = match.groups()
        options = sorted(re.findall(r"^\t([\w.-]+)$", text, flags=re.M)) or _choices(group)
        return str(_unknown(group, choice, options, f"Add conf/{group}/{choice}.yaml to define it."))
    if isinstance(error, OverrideParseException):
        return str(
            UserError(
                "command line",
                error.override,
                "cannot be read as key=value",
                f"({lines(text)[0]})",
                "Quote lists for the shell: 'cascade.order=[pgm,fgsm]'.",
            )
        )
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        given_key = match.group(1)
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else given_key.split("@")[0]
        return str(_no_such_key(key, given.get(given_key, given.get(key))))
    if (match := re.search(r"full_key: (\S+)", text)) and "Value" in text:
        key = match.group(1)
        problem = next(
            line
            for line in text.splitlines()
            if line.strip().startswith(("Value", "Error merging")) and "override" not in line
        )
        wanted = re.search(r"(?:converted to|of type:?) '?([\w.\[\], |]+)'?$", problem)
        allowed = f"needed: {wanted.group(1)}" if wanted else "needed: another type"
        return str(UserError(key, given.get(key), "has the wrong type", allowed, f"Change {key}."))
    if match := re.search(r"Key '(\w+)' (?:is )?not in '?\w+'?\s+full_key: (\S+)", text):
        key = match.group(2)
        close = difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.6)
        hint = f"Did you mean {close[0]}?" if close else "Remove it, or see --cfg job for the keys there are."
        return f"{key}: no such key. {hint}"
    if "Missing mandatory value" in text and (match := re.search(r"full_key: (\S+)", text)):
        return f"{match.group(1)}: has no value yet. Set it on the command line: {match.group(1)}=..."
    return " ".join(lines(text))


def lines(text: str) -> list[str]:
    """Return the lines of a message that say something, each once."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip() not in ("", "None")))


def all_keys(*, top_only: bool = False) -> list[str]:
    """Return every key of the schema, dotted, and every configuration group."""
    groups = [path.name for path in sorted(CONF_DIR.iterdir()) if path.is_dir()]
    if top_only:
        return sorted({item.name for item in fields(Config)} | set(groups))
    return sorted({*_walk(Config, ""), *groups})


def _walk(node: type, prefix: str) -> list[str]:
    keys = []
    for name, hint in get_type_hints(node).items():
        keys.append(prefix + name)
        if is_dataclass(hint) and isinstance(hint, type):
            keys += _walk(hint, f"{prefix}{name}.")
    return keys


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _unknown(group: str, choice: str, options: Sequence[str], otherwise: str) -> UserError:
    close = difflib.get_close_matches(choice, options, n=1)
    hint = f"Did you mean {group}={close[0]}? {otherwise}" if close else otherwise
    return UserError(group, choice, "is not a known choice", f"known: {', '.join(options)}", hint)
