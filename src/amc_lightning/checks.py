"""Ranges, choices, and what must hold between the settings of a run."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc_lightning.cascade_checks import check_cascade
from amc_lightning.diagnosis_check import check_diagnosis
from amc_lightning.errors import UserError
from amc_lightning.ranges import check_budget, check_choice, check_number, check_ranges
from amc_lightning.schema import Config

COLUMNS = ("white_box", "black_box")
"""The columns of the paper's Table 1."""
OTHER_COLUMNS = ("black_box_training", "stronger")
"""What these change to a column: black_box where training examples are crafted, white_box in the paper's Table 5."""


def check(config: Config, *, known_attacks: Sequence[str]) -> None:
    """Refuse the first value that is out of range, unknown, or does not go with the others.

    Args:
        config: plain objects.
        known_attacks: names that ``cascade.order`` may hold.

    Raises:
        UserError: with key, value, what is allowed, and what to do.
    """
    cascade, evaluation, schedule = config.cascade, config.evaluation, config.schedule
    known = known_attacks
    for key, names in (
        ("cascade.order", cascade.order),
        ("evaluation.attacks", evaluation.attacks),
        ("evaluation.judge.attacks", evaluation.judge.attacks),
        ("diagnosis.attacks", config.diagnosis.attacks),
    ):
        for name in names:
            if name not in config.attacks:
                raise unknown_choice(key, name, known, "attack")
        if len(set(names)) != len(names):
            raise UserError(key, names, "names an attack twice", "each attack at most once", f"Remove one from {key}.")
    check_cascade(config)
    _check_threat_models(config)
    check_number("seed", config.seed, 0)
    check_number("dataset.split_seed", config.dataset.split_seed, 0)
    check_number("evaluation.seed", evaluation.seed, 0)
    for name, radius in config.dataset.budget.items():
        check_number(f"dataset.budget.{name}", radius, 0)
    check_number("dataset.augment.rotation", config.dataset.augment.rotation, 0, 180)
    check_number("dataset.augment.shift", config.dataset.augment.shift, 0, 1)
    check_number("schedule.gamma", schedule.gamma, 0, 1, open_low=True)
    for milestone in schedule.milestones:
        check_number("schedule.milestones", milestone, 1)
    for key, path in (("evaluation.weights", evaluation.weights), ("cascade.start_from", cascade.start_from)):
        if path is not None and not Path(path).is_file():
            raise UserError(
                key,
                path,
                "does not exist",
                "a file of weights, .safetensors or .pt",
                "Check the path; it is relative to the working directory.",
            )
    check_number("cascade.alpha", cascade.alpha, 0, 1)
    check_number("cascade.current_share", cascade.current_share, 0, 1, open_low=True)
    if cascade.augment_adversarial and not cascade.augment_clean:
        raise UserError(
            "cascade.augment_adversarial",
            True,
            "does nothing without cascade.augment_clean=true",
            "both, the first off, or both off",
            "Change one of the two.",
        )
    check_choice("cascade.transfer", cascade.transfer, ("parent", "none"))
    check_choice("cascade.pick", cascade.pick, ("last", "best"))
    check_choice("cascade.label", cascade.label, ("true", "predicted"))
    check_choice("cascade.craft_params", cascade.craft_params, COLUMNS)
    if evaluation.params is not None:
        check_choice("evaluation.params", evaluation.params, COLUMNS)
    check_choice("evaluation.stages", evaluation.stages, ("all", "ends"))
    check_choice("evaluation.label", evaluation.label, ("true", "predicted"))
    check_choice("schedule.shape", schedule.shape, ("one_cycle", "steps", "constant"))
    check_number("store.checkpoint_minutes", config.store.checkpoint_minutes, 0, open_low=True)
    check_choice("task.name", config.task.name, ("run", "evaluate", "diagnose", "report", "store"))
    check_choice("store.action", config.store.action, ("list", "explain", "verify", "prune"))
    for name in ("unused_days", "max_mb"):
        if (value := getattr(config.store, name)) is not None:
            check_number(f"store.{name}", value, 0)
    check_choice("trainer.progress", config.trainer.progress, ("auto", "bar", "lines", "none"))
    check_choice("trainer.accelerator", config.trainer.accelerator, ("auto", "cpu", "gpu"))
    check_choice("trainer.crafting", config.trainer.crafting, ("auto", "plain", "fast", "fast_bf16"))
    check_choice("trainer.precision", config.trainer.precision, ("32-true", "bf16-mixed", "16-mixed"))
    check_number("schedule.peak_lr", schedule.peak_lr, 0, open_low=True)
    check_number("schedule.batch_size", schedule.batch_size, 1)
    check_number("cascade.undefended_epochs", cascade.undefended_epochs, 1)
    check_number("cascade.validate_every", cascade.validate_every, 1)
    check_number("cascade.validate_rows", cascade.validate_rows, 0)
    check_number("evaluation.batch_size", evaluation.batch_size, 1)
    check_number("evaluation.gallery", evaluation.gallery, 0)
    for key, value in (
        ("dataset.limit", config.dataset.limit),
        ("evaluation.limit", evaluation.limit),
        ("evaluation.judge.rows", evaluation.judge.rows),
        ("trainer.threads", config.trainer.threads),
    ):
        if value is not None:
            check_number(key, value, 1)
    for key, changes in (
        ("check", evaluation.check),
        ("check_black_box", evaluation.check_black_box),
        ("judge.params", evaluation.judge.params),
    ):
        for name in changes:
            check_choice(f"evaluation.{key}", name, known)
    _check_attacks(config, known)
    _check_budgets(config)
    _check_evaluation(config)
    check_diagnosis(config)


def unknown_choice(key: str, name: str, known: Sequence[str], group: str) -> UserError:
    """Return the error on a name that a YAML of some group would define."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}? Otherwise add" if close else "Add"
    problem = f"is not a known {group.replace('_', ' ')}"
    return UserError(key, name, problem, f"known: {', '.join(known)}", f"{hint} conf/{group}/{name}.yaml to define it.")


def _check_threat_models(config: Config) -> None:
    names = config.evaluation.threat_models
    if not names or len(set(names)) != len(names):
        raise UserError(
            "evaluation.threat_models",
            names,
            "names none, or one twice",
            "each threat model once, such as [white_box,black_box_label]",
            "Correct evaluation.threat_models.",
        )
    for name, model in config.threat_models.items():
        key = "threat_model" if name == config.threat_model.name else f"threat_models.{name}"
        if (name == "white_box") != (model.interface is None):
            raise UserError(
                f"{key}.interface",
                model.interface,
                f"is not what {name} means",
                "none for white_box, the _target_ of an interface for others",
                f"Choose another threat model, or leave {key}.interface as it is.",
            )
        check_choice(f"{key}.params", model.params, COLUMNS)
        if model.budget is not None:
            check_number(f"{key}.budget", model.budget, 1)
    if all(model.interface is None for model in config.threat_models.values()):
        return
    check_number("proxy.epochs", config.proxy.epochs, 1)
    check_number("proxy.peak_lr", config.proxy.peak_lr, 0, open_low=True)
    check_number("proxy.alpha", config.proxy.alpha, 0, 1)
    check_number("proxy.batch_size", config.proxy.batch_size, 1)
    check_number("proxy.fine_tune_epochs", config.proxy.fine_tune_epochs, 1)
    check_number("dataset.proxy.seed", config.dataset.proxy.seed, 0)
    if config.dataset.proxy.limit is not None:
        check_number("dataset.proxy.limit", config.dataset.proxy.limit, 2)
    if not config.evaluation.proxies or len(set(config.evaluation.proxies)) != len(config.evaluation.proxies):
        raise UserError(
            "evaluation.proxies",
            config.evaluation.proxies,
            "names none, or one twice",
            "each architecture once, such as [proxy_cnn,lenet]",
            "Correct evaluation.proxies.",
        )


def _check_attacks(config: Config, known: Sequence[str]) -> None:
    """Check values here already: building an attack finds the same, but only once torch is loaded."""
    for name, spec in config.attacks.items():
        if not isinstance(spec, Mapping):
            allowed = "keys and values, as in conf/attack/pgm.yaml"
            raise UserError(f"attacks.{name}", spec, "is not an attack", allowed, f"Correct attacks.{name}.")
    for column, table in config.attack_params.items():
        check_choice("attack_params", column, (*COLUMNS, *OTHER_COLUMNS))
        for name, params in _mapping(table, f"attack_params.{column}", "attacks and their parameters").items():
            check_choice(f"attack_params.{column}", name, known)
            _check_values(config, name, {}, {} if params is None else params, key=f"attack_params.{column}.{name}")
    for name in dict.fromkeys([*config.cascade.order, *config.evaluation.attacks]):
        key = f"attacks.{name}.params"
        replaced = {entry for table in config.attack_params.values() for entry in table.get(name) or {}}
        own = _mapping(config.attacks[name].get("params", {}), key, "parameters, such as {eps: 0.1}")
        under = {"norm": None} if "norm" in replaced else {}  # a radius is in the norm that replaces this one
        _check_values(config, name, under, {entry: own[entry] for entry in own if entry not in replaced}, key=key)
    for key, black_box in (("check", False), ("check_black_box", True)):
        for model in config.threat_models.values():
            if (model.interface is not None) != black_box:
                continue
            used = config.attack_params.get(config.evaluation.params or model.params, {})
            for name, params in getattr(config.evaluation, key).items():
                under, given = used.get(name) or {}, {} if params is None else params
                _check_values(config, name, under, given, key=f"evaluation.{key}.{name}")


def _check_values(config: Config, name: str, under: Mapping[str, object], params: object, *, key: str) -> None:
    """Check parameters of one attack that replace those in ``under`` and in the attack's own file."""
    given = _mapping(params, key, "parameters, such as {eps: 0.1}")
    spec = config.attacks.get(name)
    if spec is None:
        return
    check_ranges(given, key=key, foreign=not str(spec.get("_target_")).startswith("amc_lightning."))
    norm, eps = spec.get("norm"), given.get("eps")
    if norm == "param":
        own = _mapping(spec.get("params", {}), f"attacks.{name}.params", "parameters, such as {eps: 0.1}")
        norm = {**own, **under, **given}.get("norm")
    if isinstance(norm, str) and isinstance(eps, int | float):
        check_budget(eps, norm, config.dataset.shape, key=f"{key}.eps")


def _mapping(value: object, key: str, needed: str) -> Mapping[str, Any]:
    """Return a mapping as it is; refuse anything else."""
    if not isinstance(value, Mapping):
        raise UserError(key, value, "is no mapping", f"needed: {needed}", f"Correct {key}.")
    return value


def _check_evaluation(config: Config) -> None:
    """Check what is measured beside the two strengths, and what the other tasks are about."""
    evaluation, task = config.evaluation, config.task.name
    of_one_model = task in ("evaluate", "diagnose")
    if evaluation.stronger and not config.attack_params.get("stronger"):
        raise UserError(
            "evaluation.stronger",
            True,
            "has nothing to measure with",
            "attack_params.stronger: what it changes to white_box, by attack",
            "Add it to the file of attack_params, or set evaluation.stronger=false.",
        )
    if len(set(evaluation.squeezing)) != len(evaluation.squeezing):
        raise UserError(
            "evaluation.squeezing", evaluation.squeezing, "names one twice", "each at most once", "Correct it."
        )
    given = [name for name in ("stage", "weights") if getattr(evaluation, name) is not None]
    if len(given) != (1 if of_one_model else 0):
        which = f"task={task}" if of_one_model else "task=evaluate or task=diagnose"
        raise UserError(
            "task" if of_one_model else f"evaluation.{given[0]}",
            task if of_one_model else getattr(evaluation, given[0]),
            "needs to know one model" if of_one_model else "is for task=evaluate and task=diagnose",
            f"one of evaluation.stage (a key in the store) and evaluation.weights (a file), with {which}",
            "Give one of them." if of_one_model else f"Add {which}, or remove it.",
        )
    if of_one_model and config.cascade.order:
        raise UserError(
            "cascade.order",
            config.cascade.order,
            f"would be trained, and task={task} trains nothing",
            "no attack order",
            "Remove defence, attack_order, system and cascade.order from the command line.",
        )
    for name in config.squeezings:
        if name not in evaluation.squeezing:
            raise UserError(
                f"squeezings.{name}",
                config.squeezings[name],
                "is set, but nothing is squeezed so",
                f"used: {', '.join(evaluation.squeezing) or 'none'}",
                "Add it to evaluation.squeezing, or remove it.",
            )
    if (task == "report") != bool(config.report.manifests):
        raise UserError(
            "report.manifests",
            config.report.manifests,
            "names no manifest" if task == "report" else "is for task=report",
            "manifest.json files of sweeps, such as [multirun/digits_tables/.../manifest.json], with task=report",
            "Give at least one." if task == "report" else "Add task=report, or remove it.",
        )


def _check_budgets(config: Config) -> None:
    """Ask for the budgets of all unbounded attacks at once."""
    budgets = config.dataset.budget
    missing = [
        name
        for name in dict.fromkeys([*config.evaluation.attacks, *config.evaluation.judge.attacks])
        if config.attacks[name].get("norm", "none given") is None and name not in budgets
    ]
    if missing:
        raise UserError(
            "dataset.budget",
            missing,
            "is not set" if len(missing) == 1 else "are not set",
            "needed: for each of these unbounded attacks the l1 radius at which it counts in the worst case",
            f"Add {' '.join(f'+dataset.budget.{name}=10' for name in missing)}.",
        )
