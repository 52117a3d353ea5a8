"""``task=diagnose``: say of one model, of the store or with weights of a user's own, whether its robustness is real."""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, Norm
from amc_lightning.build import build_attacks, evaluation_attacks, load_data, pick_device, squeezers
from amc_lightning.config import Config
from amc_lightning.data import ImageData
from amc_lightning.diagnosis_check import claimed_ball
from amc_lightning.entry import RECORD, SHORT, Entry
from amc_lightning.errors import UserError
from amc_lightning.fit import Fitter
from amc_lightning.measure_plan import MeasurementPlan
from amc_lightning.model_check import check_model, check_squeezer
from amc_lightning.models import Squeezed
from amc_lightning.referee import LEVELS, Level, Provenance, Report, ThreatModel, diagnose, row_hashes
from amc_lightning.referee.registry import CHECKS
from amc_lightning.report.diagnosis import diagnosis_table
from amc_lightning.stage_recipe import StageRecipe
from amc_lightning.store import Store
from amc_lightning.stored import refuse_other_images, stored_stage
from amc_lightning.transfer import WEIGHTS, fill

DEFAULT_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Examined:
    """The model under examination, and where it comes from.

    Attributes:
        title: what people call it.
        net: on the device, in eval mode, with the feature squeezing in front of it.
        undefended: M0 of the same cascade; None if it is not at hand.
        provenance: what is known beside it.
    """

    title: str
    net: nn.Module
    undefended: nn.Module | None
    provenance: Provenance


def examine(config: Config, folder: Path, *, console: Console | None = None) -> Path:
    """Examine one model, print what every check came to, and write it below ``folder``.

    Args:
        config: the checked configuration of ``task=diagnose``.
        folder: where diagnosis.json, diagnosis.md and the plots go.
        console: where progress and the table go; standard output by default.

    Returns:
        The folder.

    Raises:
        UserError: for a model or images that cannot be right.
        KeyboardInterrupt: on Ctrl-C; the checks that are done are on disk then.
    """
    console = console or Console()
    torch.set_flush_denormal(True)  # as a run does
    torch.set_num_threads(config.trainer.threads or DEFAULT_THREADS)
    _check_names(config.diagnosis.only)
    device = pick_device(config.trainer.accelerator, config.trainer.precision)
    store, stored = Store(Path(config.store.root).expanduser()), None
    if config.evaluation.stage is not None:
        config, stored = stored_stage(config, store)
    norm, eps = claimed_ball(config)
    threat = ThreatModel(cast(Norm, norm), eps)
    data = load_data(config)
    fitter = Fitter(config, device=device, console=console)
    fitter.new_net(config.model, "probe")  # a wrong model is found before any file is read
    data.prepare()
    if stored is not None:
        refuse_other_images(config.dataset.name, data.fingerprint_of("train"), stored)
    plan = MeasurementPlan(
        config, data, evaluation_attacks(config), recipes=[] if stored is None else [stored], store=store, device=device
    )
    x, y = _as_floats(plan.splits["attack"])
    examined = _model(config, data, fitter, store, stored, plan, x)
    own = build_attacks(config, config.diagnosis.attacks, "white_box")
    level = _level(config)
    console.print(
        f"{examined.title}: {min(len(x), level.rows):,} images, {threat}, level {level.name}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    done: list[Report] = []
    try:
        with console.status("examining") as status:
            report = diagnose(
                examined.net,
                x,
                y,
                threat,
                level=level,
                attacks={name: _as_function(attack) for name, attack in own.items()},
                undefended=examined.undefended,
                train=_as_floats(data.tensors("validation", device)),
                provenance=examined.provenance,
                only=config.diagnosis.only or None,
                batch_size=config.evaluation.batch_size,
                seed=config.evaluation.seed,
                progress=lambda text: status.update(f"examining: {text}"),
                so_far=done.append,
            )
    except KeyboardInterrupt as stop:
        if not done:
            raise
        _finish(replace(done[-1], model=examined.title), folder, console)
        count = len(done[-1].findings)
        raise KeyboardInterrupt(f"interrupted; the {count} checks that were made are in {folder}") from stop
    _finish(replace(report, model=examined.title), folder, console)
    return folder


def _finish(report: Report, folder: Path, console: Console) -> None:
    page = report.save(folder)
    console.print(diagnosis_table(report.as_json()))
    console.print(f"Everything is in {page}", soft_wrap=True, highlight=False, markup=False)


def _check_names(only: list[str]) -> None:
    known = [check.id for check in CHECKS]
    for name in only:
        if name not in known:
            raise UserError(
                "diagnosis.only", name, "is not a check", f"known: {', '.join(known)}", "Take one of these."
            )


def _level(config: Config) -> Level:
    level, rows = LEVELS[config.diagnosis.level], config.diagnosis.rows
    return level if rows is None else replace(level, rows=rows, curve_rows=min(rows, level.curve_rows))


def _model(
    config: Config,
    data: ImageData,
    fitter: Fitter,
    store: Store,
    stored: StageRecipe | None,
    plan: MeasurementPlan,
    x: Tensor,
) -> Examined:
    """Build what is examined; ``x`` are images that it must take."""

    def built(content: bytes, *, key: str, source: str) -> nn.Module:
        net = fitter.new_net(config.model, config.seed, "loaded")
        fill(net, content, key=key, source=source)
        return net.to(fitter.device).eval()

    name = type(fitter.new_net(config.model, "probe")).__name__
    record = {"attacks": _params(plan)}
    if stored is None:
        assert config.evaluation.weights is not None
        path = Path(config.evaluation.weights)
        content = path.read_bytes()
        net, undefended = built(content, key="evaluation.weights", source=str(path)), None
        title = f"{name} of {path.name}"
        told = Provenance(record=record, artefacts=_artefacts(config, hashlib.sha256(content).hexdigest()))
    else:
        entry = _entry(store, stored.key)
        net = built(entry.file(WEIGHTS), key="store.root", source=str(entry.folder / WEIGHTS))
        undefended = _undefended(entry, store, built)
        title = f"{name}, stage {stored.stage.title} ({entry.key[:SHORT]})"
        told = _told(config, data, entry, record)
    check_model(net, x[:4], data.num_classes)
    for squeezing, squeezer in squeezers(config).items():
        check_squeezer(squeezer.to(fitter.device), x[:4], key=f"squeezings.{squeezing}")
        net = Squeezed(net, squeezer).eval()
        title += f", behind {squeezing}"
    return Examined(title, net, undefended, told)  # nobody said what is deployed: its own hash would prove nothing


def _undefended(entry: Entry, store: Store, built: Callable[..., nn.Module]) -> nn.Module | None:
    """Return M0 of a stage's cascade; None where the store does not hold the whole way back to it."""
    parent: Entry | None = entry
    while parent is not None and parent.recipe.get("kind") == "stage":
        if parent.recipe["index"] == 0:
            return built(parent.file(WEIGHTS), key="store.root", source=str(parent.folder / WEIGHTS))
        parent = store.load(str(parent.recipe["parent"]))
    return None  # weights that were given may be hardened ones


def _entry(store: Store, key: str) -> Entry:
    entry = store.load(key)
    if entry is None:  # damaged since it was found
        raise UserError(
            "evaluation.stage", key, "is no longer in the store", "a stage; task=store lists them", "Run again."
        )
    return entry


def _told(config: Config, data: ImageData, entry: Entry, record: Mapping[str, Any]) -> Provenance:
    """Return what the store knows of a stage."""
    recipe = entry.recipe
    written = json.loads((entry.folder / RECORD).read_bytes())  # checked when it was loaded
    return Provenance(
        trained_against=tuple(str(attack["name"]) for attack in recipe.get("attacks", ())),
        picked=recipe["pick"]["rule"],
        chosen_on=row_hashes(torch.from_numpy(data.splits["validation"].x)),
        trained_on=row_hashes(torch.from_numpy(data.splits["train"].x)),
        seeds=1,
        record=record,
        artefacts={
            **_artefacts(config, hashlib.sha256(entry.file(WEIGHTS)).hexdigest()),
            "config": f"config.yaml; how it was trained: stage {entry.key} of the store",
            "seed": f"training {recipe['seed']}, evaluation {config.evaluation.seed}",
            "versions": ", ".join(f"{name} {version}" for name, version in written["versions"].items()),
        },
    )


def _artefacts(config: Config, weights: str) -> dict[str, str]:
    return {
        "config": "config.yaml",
        "command": shlex.join(["python", "-m", "amc_lightning", *sys.argv[1:]]),
        "weights": weights,
    }


def _params(plan: MeasurementPlan) -> dict[str, Any]:
    """Return the parameters of the attacks that the model is measured with, as results.json has them."""
    return {
        threat_model: {
            strength: {name: dict(attack.params) for name, attack in members.items()}
            for strength, members in strengths.items()
        }
        for threat_model, strengths in plan.threats.items()
    }


def _as_function(attack: GuardedAttack) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def crafted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack(model, x, y)

    return crafted


def _as_floats(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, labels = pair
    return images.float() / 255, labels
