"""Train the stages of a cascade in order: a fresh network, module and Trainer per stage; only weights cross."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger
from rich.console import Console
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config, exact_shares, instantiate, stage_epochs
from amc_lightning.data import Augment, ImageData
from amc_lightning.errors import StageStoppedError, TrainingDivergedError
from amc_lightning.evaluate import attack_rows, predict
from amc_lightning.mixer import Mixer, stage_shares
from amc_lightning.plan import PassCount, counting
from amc_lightning.progress import StageProgress
from amc_lightning.seeding import derive, generator
from amc_lightning.stage import KeepLastGood, StageModule
from amc_lightning.transfer import WeightTransfer, load_weights, save_weights


@dataclass(frozen=True)
class Stage:
    """One stage to train.

    Attributes:
        index: position; 0 is the undefended model.
        attack: the attack it is hardened against; None for stage 0.
        epochs: passes over the training set.
    """

    index: int
    attack: str | None
    epochs: int

    @property
    def name(self) -> str:
        """The attack's name, or "undefended"."""
        return self.attack or "undefended"

    @property
    def title(self) -> str:
        """Position and name, such as "2 vap"."""
        return f"{self.index} {self.name}"

    @property
    def folder(self) -> str:
        """Where it lives below the run folder."""
        return f"stages/{self.index}_{self.name}"


@dataclass(frozen=True)
class StageRecord:
    """A trained stage.

    Attributes:
        stage: which.
        net: the trained network, on the device, in eval mode.
        weights: its published weights.
        steps: training steps taken.
        rows: adversarial rows per attack, as realised.
        passes_per_image: gradient passes of the stage, crafting and training, divided by the training images.
        minutes: wall time of training.
    """

    stage: Stage
    net: nn.Module
    weights: Path
    steps: int
    rows: dict[str, int]
    passes_per_image: float
    minutes: float


def stages_of(config: Config) -> list[Stage]:
    """Return the stages of a run: M0, then one per attack of the order."""
    stages = [Stage(0, None, config.cascade.undefended_epochs)]
    pairs = zip(config.cascade.order, stage_epochs(config.cascade), strict=True)
    return stages + [Stage(index, name, epochs) for index, (name, epochs) in enumerate(pairs, start=1)]


def shares_of(config: Config, stage: Stage) -> dict[str, Any]:
    """Return the share of each attack in a stage's adversarial half, by name in cascade order; empty for stage 0."""
    if stage.index == 0:
        return {}
    current, vector = exact_shares(config.cascade)
    shares = stage_shares(stage.index, current_share=current, shares=vector)
    return dict(zip(config.cascade.order[: stage.index], shares, strict=True))


def validation_interval(config: Config, stage: Stage) -> int:
    """Return the epochs between validations: the largest divisor of the stage's epochs that is asked for at most.

    A divisor, so that the last epoch is validated: of 8 epochs with ``validate_every=5``, the 4th and the 8th.
    """
    at_most = min(stage.epochs, config.cascade.validate_every)
    return max(k for k in range(1, at_most + 1) if stage.epochs % k == 0)


class Cascade:
    """Run the stages of one cascade on one dataset.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        attacks: the attacks as training crafts them, by name.
        folder: the run folder; stages are written below it.
        device: where to train.
        console: where progress is shown.
        open_logger: gives a further logger for a stage beside the CSV one, or None.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        attacks: Mapping[str, GuardedAttack],
        *,
        folder: Path,
        device: torch.device,
        console: Console,
        open_logger: Callable[[Stage], Logger | None] = lambda stage: None,
    ) -> None:
        self.config = config
        self.data = data
        self.attacks = attacks
        self.folder = folder
        self.device = device
        self.console = console
        self.open_logger = open_logger
        self.logger: Logger | None = None
        """The further logger of the stage in hand; whoever runs the cascade closes it."""

    def new_net(self, *seed: int | str) -> nn.Module:
        """Return a fresh network; its initial weights depend on the seed only, and no global random state moves."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(*seed))
            net = instantiate(self.config.model, key="model", kind=nn.Module)
        assert isinstance(net, nn.Module)
        # channels last: input gradients of convolutions are 1.3 times as fast
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def run(self) -> Iterator[StageRecord]:
        """Train stage after stage, yielding each as soon as its weights are published.

        Raises:
            UserError: if ``cascade.start_from`` does not fit.
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        published: list[Path] = []
        for stage in stages_of(self.config):
            if stage.index == 0 and self.config.cascade.start_from is not None:
                record = self._given(stage, Path(self.config.cascade.start_from))
            else:
                parent = None
                if stage.index > 0:
                    parent = published[-1] if self.config.cascade.transfer == "parent" else published[0]
                record = self._train(stage, parent)
            published.append(record.weights)
            yield record

    def _given(self, stage: Stage, path: Path) -> StageRecord:
        net = self.new_net(self.config.seed, "given").to(self.device).eval()
        load_weights(net, path, key="cascade.start_from")
        weights = self.folder / stage.folder / "weights.safetensors"
        save_weights(net, weights)
        return StageRecord(stage, net, weights, steps=0, rows={}, passes_per_image=0.0, minutes=0.0)

    def _train(self, stage: Stage, parent: Path | None) -> StageRecord:
        cascade = self.config.cascade
        seed = derive(self.config.seed, "stage", stage.index)
        folder = self.folder / stage.folder
        net = self.new_net(seed)
        names = cascade.order[: stage.index]
        attacks = [self.attacks[name] for name in names]
        mixer = None
        if attacks:
            shares = list(shares_of(self.config, stage).values())
            mixer = Mixer(attacks, shares, seed=seed, label=cascade.label)  # type: ignore[arg-type]
        augment = self.config.dataset.augment
        passes = PassCount()
        module = StageModule(
            net,
            title=stage.title,
            seed=seed,
            mixer=mixer,
            alpha=cascade.alpha,
            augment=Augment(
                augment.rotation,
                augment.shift,
                horizontal_flip=augment.horizontal_flip,
                vertical_flip=augment.vertical_flip,
            ),
            augment_clean=cascade.augment_clean,
            augment_adversarial=cascade.augment_adversarial,
            make_optimizer=self.optimizer,
            make_schedule=self._schedule(stage),
            validate=partial(self._validate, attacks, passes),
        )
        keep = KeepLastGood(folder / "last_good.safetensors", save_weights)
        total = len(cascade.order)
        progress = StageProgress(
            self.console, f"stage {stage.index}/{total} {stage.name}", self.config.trainer.progress
        )
        callbacks: list[pl.Callback] = [progress, keep]
        if parent is not None:
            callbacks.append(WeightTransfer(parent))
        best = None
        if cascade.pick == "best":
            best = pl.callbacks.ModelCheckpoint(
                folder, "best-{epoch}", monitor="val/err/mean", mode="min", save_weights_only=True
            )
            callbacks.append(best)
        loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
        self.logger = self.open_logger(stage)
        if self.logger is not None:
            loggers.append(self.logger)
        trainer = pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=self.config.trainer.precision,  # type: ignore[arg-type]
            max_epochs=stage.epochs,
            callbacks=callbacks,
            logger=loggers,
            default_root_dir=folder,
            check_val_every_n_epoch=validation_interval(self.config, stage),
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=best is not None,
            inference_mode=False,  # attacks in validation need gradients
        )
        start = time.perf_counter()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), counting(net, passes):
            torch.manual_seed(derive(seed, "training"))  # dropout; everything else has generators of its own
            self._fit(trainer, module, stage, keep)
        minutes = (time.perf_counter() - start) / 60
        if best is not None and best.best_model_path:
            state = torch.load(best.best_model_path, weights_only=True, map_location="cpu")["state_dict"]
            net.load_state_dict({name[4:]: value for name, value in state.items() if name.startswith("net.")})
        if not all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values()):
            keep.write(net)
            last = stage.epochs - 1, trainer.global_step - 1
            raise TrainingDivergedError(stage.title, *last, "a weight is no longer finite")
        weights = folder / "weights.safetensors"
        save_weights(net, weights)
        rows = dict(zip(names, module.rows[1:].tolist(), strict=True))
        images = self.data.counts["train"]
        return StageRecord(
            stage,
            net.to(self.device).eval(),
            weights,
            steps=trainer.global_step,
            rows=rows,
            passes_per_image=passes.gradient / images,
            minutes=minutes,
        )

    def _fit(self, trainer: pl.Trainer, module: StageModule, stage: Stage, keep: KeepLastGood) -> None:
        batches = self.data.batches("train", shuffle_seed=derive(module.seed, "order"), device=self.device)
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, batches, [0])  # one empty validation batch; see StageModule.validation_step
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into an exit
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
            raise StageStoppedError(stage.title, keep.path, epochs=keep.epochs) from stop
        if trainer.interrupted:
            raise StageStoppedError(stage.title, keep.path, epochs=keep.epochs)

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return a fresh optimiser of the configured kind for some parameters."""
        optimizer: torch.optim.Optimizer = instantiate(
            self.config.optimizer, key="optimizer", kind=torch.optim.Optimizer, params=parameters
        )
        return optimizer

    def _schedule(self, stage: Stage) -> Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]:
        schedule = self.config.schedule

        def make(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
            if schedule.shape == "one_cycle":
                return torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=schedule.peak_lr, total_steps=steps, cycle_momentum=False
                )
            per_epoch = steps // stage.epochs
            milestones = [epoch * per_epoch for epoch in schedule.milestones] if schedule.shape == "steps" else []
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=schedule.gamma)

        return make

    def _validate(self, attacks: list[GuardedAttack], passes: PassCount, net: nn.Module) -> dict[str, float]:
        """Return clean error on the whole validation split and each attack's on a fixed seeded subset, in percent."""
        images, labels = self.data.tensors("validation", self.device)
        size = self.config.evaluation.batch_size
        counted = replace(passes)  # watching is not training: what follows is not billed
        errors = {"clean": _percent(predict(net, images, batch_size=size) != labels)}
        count = min(self.config.cascade.validate_rows, len(labels))
        if count == 0:
            return errors
        rng = generator(self.config.dataset.split_seed, "validation subset")
        subset = torch.randperm(len(labels), generator=rng)[:count].to(labels.device)
        for attack in attacks:
            outcome = attack_rows(
                net, attack, images[subset], labels[subset], seed=self.config.evaluation.seed, batch_size=size
            )
            errors[attack.name] = 100 * float(outcome.wrong.mean())
        passes.gradient, passes.forward = counted.gradient, counted.forward
        return errors


def _percent(wrong: Tensor) -> float:
    return 100 * float(wrong.double().mean())
