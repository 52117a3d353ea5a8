"""One run from a checked configuration: data, plan, cascade, evaluation, report."""

import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.loggers import Logger
from rich.console import Console

from amc_lightning import tracking
from amc_lightning.attacks import GuardedAttack
from amc_lightning.build import (
    evaluation_attacks,
    load_data,
    load_proxy_data,
    pick_device,
    post_hoc_attacks,
    squeezers,
    training_attacks,
)
from amc_lightning.cascade import Cascade, StageRecord
from amc_lightning.config import Config, instantiate
from amc_lightning.data import ImageData
from amc_lightning.entry import SHORT, key_of
from amc_lightning.equal_cost import at_equal_cost
from amc_lightning.errors import NotFiniteError, StageStoppedError, TrainingDivergedError, UserError
from amc_lightning.fit import Fitter
from amc_lightning.header import header
from amc_lightning.measure import Measured, Measurement
from amc_lightning.measure_plan import MeasurementPlan
from amc_lightning.model_check import check_model, check_squeezer
from amc_lightning.planning import show_plan
from amc_lightning.proxies import Proxies
from amc_lightning.proxy_recipe import crafts_on_proxy, evaluation_part, hardening_part
from amc_lightning.report import console_table, read_results, write_all
from amc_lightning.results import RunFolder, refuse_run
from amc_lightning.stage_recipe import StageRecipe, stage_recipes
from amc_lightning.stages import Stage
from amc_lightning.store import Store
from amc_lightning.stored import refuse_other_images, stored_stage
from amc_lightning.train import StageTrainer

log = logging.getLogger(__name__)

DEFAULT_THREADS = torch.get_num_threads()


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
    store = Store(Path(config.store.root).expanduser())
    stored = None
    if config.evaluation.stage is not None:
        config, stored = stored_stage(config, store)
    training = {} if stored is not None else training_attacks(config)
    config = config if stored is not None else at_equal_cost(config, training)
    threats = evaluation_attacks(config)
    squeezing = squeezers(config)
    tracking.check(config.logger)
    data = load_data(config)
    trainer = StageTrainer(config, data, training, device=device, console=console)
    net = trainer.new_net(config.seed, "probe").to(device)  # a wrong model is found before any file is read
    trainer.fitter.optimizer(net.parameters())
    data.prepare()
    x = torch.from_numpy(data.splits["validation"].x[:4]).to(device).float() / 255
    check_model(net, x, data.num_classes)
    for name, squeezer in squeezing.items():
        check_squeezer(squeezer.to(device), x, key=f"squeezings.{name}")
    if stored is not None:
        refuse_other_images(config.dataset.name, data.fingerprint_of("train"), stored)
    for name, node in config.models.items():  # before images for queries are read or made, which takes longer
        key = f"models.{name}"
        check_model(trainer.fitter.new_net(node, "probe", key=key).to(device), x, data.num_classes, key=key)
    proxies = _proxies(config, data, training, trainer.fitter, store, folder, console)
    recipes = [stored] if stored is not None else _recipes(config, data, training, proxies)
    plan = MeasurementPlan(
        config,
        data,
        threats,
        proxies=proxies,
        squeezers=squeezing,
        post_hoc=post_hoc_attacks(config),
        recipes=recipes,
        store=store,
        device=device,
    )
    measurement = Measurement(plan, console)
    cascade = Cascade(trainer, recipes, store=store, folder=folder, proxies=proxies, replay=tracking.replay)
    cascade.open_logger = partial(_open_logger, config, folder, cascade.keys[-1])
    identity = key_of({"stages": cascade.keys, "name": config.name, "rest": plan.identity()})
    refuse_run(folder, identity)
    show_plan(cascade, plan, console)
    if config.plan_only:
        return folder
    store.prepare()
    for place, key in ((folder, "hydra.run.dir"), (store.root, "store.root")):
        _check_space(place, key)
    results = RunFolder(folder, {"identity": identity, **header(config, data, training, plan, net)})
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    _train_and_measure(cascade, measurement, results)
    console.print(console_table(read_results(folder)))
    console.print(f"Everything is in {folder}", soft_wrap=True, highlight=False, markup=False)
    return folder


def _recipes(
    config: Config, data: ImageData, training: Mapping[str, GuardedAttack], proxies: Proxies | None
) -> list[StageRecipe]:
    queries = proxies.images.fingerprint_of(hardening_part(config)) if proxies and crafts_on_proxy(config) else None
    recipes = stage_recipes(
        config,
        training,
        train=data.fingerprint_of("train"),
        validation=data.fingerprint_of("validation"),
        queries=queries,
    )
    if config.cascade.transfer == "none" and config.evaluation.stages == "ends" and queries is None:
        return [*recipes[:1], *recipes[1:][-1:]]  # nothing starts from the stages between, and nobody measures them
    return recipes


def _proxies(
    config: Config,
    data: ImageData,
    attacks: Mapping[str, GuardedAttack],
    fitter: Fitter,
    store: Store,
    folder: Path,
    console: Console,
) -> Proxies | None:
    """Return what gives the proxies of a run; None where no threat model has an interface."""
    if not config.models:
        return None
    images = load_proxy_data(config, data, fitter.device)
    fitter.proxy_optimizer(fitter.new_net(config.models[config.proxy.architecture], "probe").parameters())
    for model in config.threat_models.values():
        if model.interface is not None:
            instantiate(model.interface, key=f"threat_models.{model.name}.interface")
    images.prepare()
    for model in config.threat_models.values():
        if model.interface is None:
            continue
        needed = max(len(images.images(part)) for part in {hardening_part(config), evaluation_part(config)})
        if model.budget is not None and model.budget < needed:
            raise UserError(
                f"threat_models.{model.name}.budget",
                model.budget,
                f"is fewer queries than the {needed:,} images that a proxy is trained on",
                f"at least {needed}, or null for any number",
                f"Raise the budget, or set dataset.proxy.limit={model.budget}.",
            )
    return Proxies(config, images, attacks, fitter=fitter, store=store, folder=folder, console=console)


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
            entry = _stage_entry(record, measured)
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


def _stage_entry(record: StageRecord, measured: Measured) -> dict[str, Any]:
    proxy = None
    if record.proxy is not None:
        proxy = {**record.proxy, **(measured.proxy or {"clean": None, "agreement": None})}
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
        "proxy": proxy,
        "evaluations": measured.evaluations,
    }
