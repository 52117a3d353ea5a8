"""One run from a checked configuration: data, plan, cascade, evaluation, report."""

import logging
import shutil
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.loggers import Logger
from rich.console import Console

from amc_lightning import tracking
from amc_lightning.attacks import Execution
from amc_lightning.build import build_attacks, execution, load_data, pick_device
from amc_lightning.cascade import Cascade, StageRecord
from amc_lightning.config import Config
from amc_lightning.data import ImageData
from amc_lightning.entry import SHORT, key_of
from amc_lightning.errors import NotFiniteError, StageStoppedError, TrainingDivergedError, UserError
from amc_lightning.measure import Measurement, Strengths
from amc_lightning.model_check import check_model
from amc_lightning.plan import plan_table, probe, stage_cost
from amc_lightning.recipe import stage_recipes
from amc_lightning.report import console_table, read_results, write_all
from amc_lightning.results import RunFolder, refuse_run
from amc_lightning.stages import Stage, shares_of, stages_of, validation_interval
from amc_lightning.store import Store
from amc_lightning.train import StageTrainer

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
    device = pick_device(config.trainer.accelerator, config.trainer.precision)
    measured = Execution(fast=execution(config).fast)  # what is measured is never left to bfloat16
    training = build_attacks(config, config.cascade.order, config.cascade.craft_params, execution=execution(config))
    evaluated = partial(build_attacks, config, config.evaluation.attacks, config.evaluation.params, execution=measured)
    strengths = {"paper": evaluated(), "check": evaluated(config.evaluation.check)}
    tracking.check(config.logger)
    store = Store(Path(config.store.root).expanduser())
    data = load_data(config)
    trainer = StageTrainer(config, data, training, device=device, console=console)
    net = trainer.new_net(config.seed, "probe").to(device)  # a wrong model is found before any file is read
    trainer.optimizer(net.parameters())
    data.prepare()
    x = torch.from_numpy(data.splits["validation"].x[:4]).to(device).float() / 255
    check_model(net, x, data.num_classes)
    recipes = stage_recipes(
        config, training, train=data.fingerprint_of("train"), validation=data.fingerprint_of("validation")
    )
    measurement = Measurement(config, data, strengths, store=store, device=device, console=console)
    cascade = Cascade(trainer, recipes, store=store, folder=folder, replay=tracking.replay)
    cascade.open_logger = partial(_open_logger, config, folder, cascade.keys[-1])
    identity = key_of({"stages": cascade.keys, "name": config.name, "rest": measurement.identity(cascade.keys[-1])})
    refuse_run(folder, identity)
    _show_plan(cascade, measurement, net, console)
    if config.plan_only:
        return folder
    store.prepare()
    for place, key in ((folder, "hydra.run.dir"), (store.root, "store.root")):
        _check_space(place, key)
    results = RunFolder(folder, {"identity": identity, **_header(config, data, strengths, device)})
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    _train_and_measure(cascade, measurement, results)
    console.print(console_table(read_results(folder)))
    console.print(f"Everything is in {folder}", soft_wrap=True, highlight=False, markup=False)
    return folder


def _check_space(folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 50e6:
        raise UserError(
            key,
            str(folder),
            f"has {free / 1e6:.0f} MB free",
            "at least 50 MB",
            "Free some space, or choose another folder.",
        )


def _show_plan(cascade: Cascade, measurement: Measurement, net: torch.nn.Module, console: Console) -> None:
    """Print what there is to do; what is in the store already is not."""
    config, data, device = cascade.config, cascade.trainer.data, cascade.trainer.device
    counts = data.counts
    console.print(
        f"[bold]{config.name}[/]: {config.defence.name} on {data.name}; {counts['train']:,} training images, held out "
        f"{counts['validation']:,} validation / {counts['attack']:,} attack / {counts['test']:,} test "
        f"(of {sum(data.counts_read.values()):,} read); preset {config.preset.name}, "
        f"seed {config.seed}",
        highlight=False,
    )
    stages = stages_of(config)
    stored = [cascade.store.has(key) for key in cascade.keys]
    missing = [measurement.missing(key) for key in cascade.keys]
    if all(stored) and not any(missing):
        return
    images, labels = data.tensors("train", device)
    batch = slice(0, min(config.schedule.batch_size, PROBE_ROWS))
    attacks = {**cascade.trainer.attacks, **measurement.distinct()}
    measured = probe(net, attacks, images[batch].float() / 255, labels[batch])
    steps = -(-counts["train"] // config.schedule.batch_size)
    rows = min(config.cascade.validate_rows, counts["validation"])
    costs = [
        stage_cost(
            measured,
            title=stage.title,
            shares=shares_of(config, stage),
            validated=stage.epochs // validation_interval(config, stage) * rows,
            rows=counts["train"],
            steps_per_epoch=steps,
            epochs=stage.epochs,
        )
        for stage, finished in zip(stages, stored, strict=True)
        if not finished and (stage.index > 0 or config.cascade.start_from is None)
    ]
    attacked = len(measurement.splits["attack"][1])
    evaluation = sum(measured.attack[name] for names in missing for name in names) * attacked / 60
    console.print(
        plan_table(costs, evaluation, stored=[s.title for s, there in zip(stages, stored, strict=True) if there])
    )


def _header(config: Config, data: ImageData, strengths: Strengths, device: torch.device) -> dict[str, Any]:
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


def _train_and_measure(cascade: Cascade, measurement: Measurement, results: RunFolder) -> None:
    images, labels = measurement.splits["attack"]
    count = cascade.config.evaluation.gallery
    results.add_images(
        (images[:count].float() / 255).cpu().numpy(),
        labels[:count].cpu().numpy(),
        {name: pair[1].cpu().numpy() for name, pair in measurement.splits.items()},
    )
    last = len(cascade.keys) - 1
    try:
        for record in cascade.run():
            measured = measurement.measure(record)
            entry = _stage_entry(record, measured.record)
            results.add_stage(entry, measured.examples, measured.gallery)
            tracking.log_stage_result(cascade.logger, entry)
            if record.stage.index < last:
                tracking.close(cascade.logger)
        results.finish("finished")
        write_all(results.path, figures=cascade.config.figures)
        tracking.log_report(cascade.logger, results.path)
    except BaseException as stop:
        _keep_what_is_finished(results, stop, figures=cascade.config.figures)
        raise
    finally:
        tracking.close(cascade.logger)


def _keep_what_is_finished(results: RunFolder, stop: BaseException, *, figures: bool) -> None:
    """Say in the run folder how the run ended, and report on its finished stages; the error itself goes on."""
    known = isinstance(stop, StageStoppedError | TrainingDivergedError | UserError | NotFiniteError | OSError)
    try:
        results.finish(f"stopped: {stop if known else type(stop).__name__}")
        if results.results["stages"]:
            write_all(results.path, figures=figures)
    except (OSError, ValueError, RuntimeError) as error:  # must not hide what stopped the run
        log.error("the report on the finished stages could not be written (%s)", error)


def _open_logger(config: Config, folder: Path, cascade_key: str, stage: Stage) -> Logger | None:
    if config.logger["name"] == "csv":
        return None
    return tracking.open_stage_logger(
        config.logger,
        run_folder=folder,
        group=f"{config.name}-{cascade_key[:SHORT]}",
        run_id=key_of({"cascade": cascade_key, "stage": stage.index})[:16],  # the same whenever the cascade goes on
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
        "key": record.key,
        "from_store": not record.trained,
        "epochs": record.stage.epochs if record.steps else 0,
        "steps": record.steps,
        "minutes": record.minutes,
        "rows": record.rows,
        "gradient_passes_per_image": record.passes_per_image,
        "evaluation": evaluation,
    }
