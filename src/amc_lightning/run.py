"""One run from a checked configuration: data, plan, cascade, evaluation, report."""

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import Tensor, nn

from amc_lightning import tracking
from amc_lightning.attacks import PLAIN, Execution, GuardedAttack, build
from amc_lightning.cascade import (
    Cascade,
    Stage,
    StageRecord,
    shares_of,
    stages_of,
    validation_interval,
)
from amc_lightning.config import Config, refuse_unfit, resolve_target
from amc_lightning.data import ImageData
from amc_lightning.data.splits import mixed_order
from amc_lightning.errors import NotFiniteError, StageStoppedError, TrainingDivergedError, UserError
from amc_lightning.evaluate import Evaluation, evaluate
from amc_lightning.model_check import check_model
from amc_lightning.plan import plan_table, probe, stage_cost
from amc_lightning.report import console_table, read_results, write_all
from amc_lightning.results import RunFolder, refuse_run

log = logging.getLogger(__name__)

DEFAULT_THREADS = torch.get_num_threads()
PROBE_ROWS = 64  # enough to fill two cores; small enough that the plan is there in seconds


def run(config: Config, folder: Path, *, console: Console | None = None) -> Path:
    """Train a cascade, measure every stage, and write everything below ``folder``.

    Args:
        config: the checked configuration.
        folder: an empty or new folder.
        console: where progress and the final table go; standard output by default.

    Returns:
        The run folder.

    Raises:
        UserError: for input that cannot be right; nothing has been trained then, or finished stages stay.
        TrainingDivergedError: if a loss stops being finite; finished stages stay.
        StageStoppedError: on Ctrl-C; finished stages stay.
    """
    console = console or Console()
    torch.set_flush_denormal(True)  # a confident net's gradients are full of them, and a CPU crawls through each
    torch.set_num_threads(config.trainer.threads or DEFAULT_THREADS)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with torch >= 2.12
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    refuse_run(folder)
    device = pick_device(config.trainer.accelerator)
    measured = Execution(fast=execution(config).fast)  # what is measured is never left to bfloat16
    training = build_attacks(config, config.cascade.order, config.cascade.craft_params, execution=execution(config))
    evaluated = partial(build_attacks, config, config.evaluation.attacks, config.evaluation.params, execution=measured)
    strengths = {"paper": evaluated(), "check": evaluated(config.evaluation.check)}
    data = load_data(config)
    cascade = Cascade(
        config,
        data,
        training,
        folder=folder,
        device=device,
        console=console,
        open_logger=partial(_open_logger, config, folder),
    )
    tracking.check(config.logger)
    net = cascade.new_net(config.seed, "probe").to(device)  # a wrong model is found before any file is read
    cascade.optimizer(net.parameters())
    data.prepare()
    x = torch.from_numpy(data.splits["validation"].x[:4]).to(device).float() / 255
    check_model(net, x, data.num_classes)
    _show_plan(cascade, net, strengths, console)
    if config.plan_only:
        return folder
    _check_space(folder)
    results = RunFolder(folder, _header(config, data, strengths, device))
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    _train_and_measure(cascade, results, strengths)
    console.print(console_table(read_results(folder)))
    console.print(f"Everything is in {folder}", soft_wrap=True, highlight=False, markup=False)
    return folder


def pick_device(accelerator: str) -> torch.device:
    """Return the device to train on: "auto" takes a GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator",
            accelerator,
            "is not at hand",
            "auto, cpu",
            "Use trainer.accelerator=cpu, or install a torch build with CUDA.",
        )
    return torch.device("cuda", 0) if accelerator != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def load_data(config: Config) -> ImageData:
    """Return the dataset of a configuration, not read yet."""
    settings = asdict(config.dataset)
    source = settings.pop("source")
    function = resolve_target(source, key="dataset.source")
    arguments = {name: value for name, value in source.items() if name != "_target_"}
    given = {**arguments, "root": None, "trust_files": False, "split_seed": 0}
    refuse_unfit(function, given, key="dataset.source")
    return ImageData(
        **settings, source=partial(function, **arguments), batch_size=config.schedule.batch_size, seed=config.seed
    )


def execution(config: Config) -> Execution:
    """Return how attacks make their passes; ``auto`` is fast for the networks of this package, plain for others."""
    choice = config.trainer.crafting
    if choice == "auto":
        choice = "fast" if str(config.model.get("_target_", "")).startswith("amc_lightning.models.") else "plain"
    return Execution(fast=choice != "plain", bf16=choice == "fast_bf16")


def build_attacks(
    config: Config,
    names: list[str],
    column: str,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    execution: Execution = PLAIN,
) -> dict[str, GuardedAttack]:
    """Build attacks by name with one column of Table 1; every parameter is checked now.

    Args:
        config: the configuration.
        names: which attacks.
        column: "white_box" or "black_box".
        changes: parameters that replace those of the column, by attack.
        execution: how passes through the model are made.

    Raises:
        UserError: for a parameter the attack does not take, or a value out of range.
    """
    table = config.attack_params.get(column, {})
    return {
        name: build(
            name,
            config.attacks[name],
            {**(table.get(name) or {}), **((changes or {}).get(name) or {})},
            image_shape=tuple(config.dataset.shape),
            key=f"attack_params.{column}.{name}",
            execution=execution,
        )
        for name in names
    }


def _check_space(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 50e6:
        raise UserError(
            "hydra.run.dir",
            str(folder),
            f"has {free / 1e6:.0f} MB free",
            "at least 50 MB",
            "Free some space, or choose another folder.",
        )


def _show_plan(
    cascade: Cascade, net: nn.Module, strengths: Mapping[str, Mapping[str, GuardedAttack]], console: Console
) -> None:
    config, data = cascade.config, cascade.data
    counts = data.counts
    console.print(
        f"[bold]{config.name}[/]: {config.defence.name} on {data.name}; {counts['train']:,} training images, held out "
        f"{counts['validation']:,} validation / {counts['attack']:,} attack / {counts['test']:,} test "
        f"(of {sum(data.counts_read.values()):,} read); preset {config.preset.name}, "
        f"seed {config.seed}",
        highlight=False,
    )
    images, labels = data.tensors("train", cascade.device)
    batch = slice(0, min(config.schedule.batch_size, PROBE_ROWS))
    evaluated: dict[str, GuardedAttack] = {}
    for strength, members in strengths.items():
        evaluated |= {
            f"{strength} {name}": attack for name, attack in members.items() if attack not in evaluated.values()
        }
    measured = probe(net, {**cascade.attacks, **evaluated}, images[batch].float() / 255, labels[batch])
    steps = -(-counts["train"] // config.schedule.batch_size)
    stages = stages_of(config)
    cascade_rows = config.cascade.validate_rows
    costs = [
        stage_cost(
            measured,
            title=stage.title,
            shares=shares_of(config, stage),
            validated=stage.epochs // validation_interval(config, stage) * min(cascade_rows, counts["validation"]),
            rows=counts["train"],
            steps_per_epoch=steps,
            epochs=stage.epochs,
        )
        for stage in stages
        if stage.index > 0 or config.cascade.start_from is None
    ]
    attacked = min(counts["attack"], config.evaluation.limit or counts["attack"])
    evaluation = sum(measured.attack[key] for key in evaluated) * attacked * len(stages) / 60
    console.print(plan_table(costs, evaluation))


def _header(
    config: Config, data: ImageData, strengths: Mapping[str, Mapping[str, GuardedAttack]], device: torch.device
) -> dict[str, Any]:
    return {
        "experiment": config.name,
        "defence": config.defence.name,
        "seed": config.seed,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "dataset": {
            "name": data.name,
            "verified": data.verified,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "shape": list(data.shape),
            "counts": data.counts,
            "counts_read": data.counts_read,
            "limit": config.dataset.limit,
        },
        "threat_model": config.threat_model.name,
        "preset": config.preset.name,
        "order": config.cascade.order,
        "evaluated": config.evaluation.attacks,
        "budget": {name: {"norm": "l1", "radius": radius} for name, radius in config.dataset.budget.items()},
        "attacks": {
            strength: {name: dict(attack.params) for name, attack in members.items()}
            for strength, members in strengths.items()
        },
    }


def _train_and_measure(
    cascade: Cascade, results: RunFolder, strengths: Mapping[str, Mapping[str, GuardedAttack]]
) -> None:
    config, data = cascade.config, cascade.data
    limit, count = config.evaluation.limit, config.evaluation.gallery
    images, labels = data.tensors("attack", cascade.device)
    # a limit and the gallery take leading rows, so the rows are put into an order that mixes the classes
    order = torch.from_numpy(mixed_order(labels.cpu().numpy(), config.dataset.split_seed)[:limit]).to(cascade.device)
    images, labels = images[order], labels[order]
    splits = {"test": data.tensors("test", cascade.device), "attack": (images, labels)}
    results.add_images(
        (images[:count].float() / 255).cpu().numpy(),
        labels[:count].cpu().numpy(),
        {name: pair[1].cpu().numpy() for name, pair in splits.items()},
    )
    last = len(stages_of(config)) - 1
    try:
        for record in cascade.run():
            measured = _measure(cascade, record, splits, strengths)
            entry = _stage_entry(record, measured.record)
            results.add_stage(entry, measured.examples, measured.gallery)
            tracking.log_stage_result(cascade.logger, entry)
            if record.stage.index < last:
                tracking.close(cascade.logger)
        results.finish("finished")
        write_all(results.path)
        tracking.log_report(cascade.logger, results.path)
    except BaseException as stop:
        _keep_what_is_finished(results, stop)
        raise
    finally:
        tracking.close(cascade.logger)


def _keep_what_is_finished(results: RunFolder, stop: BaseException) -> None:
    """Say in the run folder how the run ended, and report on its finished stages; the error itself goes on."""
    known = isinstance(stop, StageStoppedError | TrainingDivergedError | UserError | NotFiniteError | OSError)
    try:
        results.finish(f"stopped: {stop if known else type(stop).__name__}")
        if results.results["stages"]:
            write_all(results.path)
    except (OSError, ValueError, RuntimeError) as error:  # must not hide what stopped the run
        log.error("the report on the finished stages could not be written (%s)", error)


def _measure(
    cascade: Cascade,
    record: StageRecord,
    splits: Mapping[str, tuple[Tensor, Tensor]],
    strengths: Mapping[str, Mapping[str, GuardedAttack]],
) -> Evaluation:
    settings = cascade.config.evaluation
    title = f"measuring {record.stage.title}"
    with cascade.console.status(title) as status, _explained_interrupt(record):
        return evaluate(
            record.net,
            splits,
            strengths,
            budgets=cascade.config.dataset.budget,
            seed=settings.seed,
            batch_size=settings.batch_size,
            gallery=settings.gallery,
            on_attack=lambda name: status.update(f"{title} under {name}"),
        )


@contextmanager
def _explained_interrupt(record: StageRecord) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StageStoppedError(record.stage.title, record.weights, epochs=record.stage.epochs) from stop


def _open_logger(config: Config, folder: Path, stage: Stage) -> Logger | None:
    if config.logger["name"] == "csv":
        return None
    return tracking.open_stage_logger(
        config.logger,
        run_folder=folder,
        run_name=config.name,
        stage_index=stage.index,
        stage_name=stage.name,
        hparams=asdict(config),
    )


def _stage_entry(record: StageRecord, evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": record.stage.index,
        "name": record.stage.name,
        "attack": record.stage.attack,
        "folder": record.stage.folder,
        "epochs": record.stage.epochs if record.steps else 0,
        "steps": record.steps,
        "minutes": record.minutes,
        "rows": record.rows,
        "gradient_passes_per_image": record.passes_per_image,
        "evaluation": evaluation,
    }
