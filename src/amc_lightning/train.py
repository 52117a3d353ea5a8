"""Train one stage: a fresh network, module and Trainer; weights come in through one callback and go out as they are."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.attacks.randomness import isolated_randomness
from amc_lightning.checkpoint import (
    MetricRows,
    StageCheckpoint,
    WholeCheckpoints,
    checkpoint_folder,
    newest_checkpoint,
    random_states,
    set_random_states,
)
from amc_lightning.config import Config, instantiate
from amc_lightning.data import Augment, ImageData
from amc_lightning.errors import StageStoppedError, TrainingDivergedError
from amc_lightning.evaluate import attack_rows, predict
from amc_lightning.keep import KeepBest, KeepLastGood
from amc_lightning.mixer import Mixer
from amc_lightning.plan import PassCount, counting
from amc_lightning.progress import StageProgress
from amc_lightning.seeding import derive, generator
from amc_lightning.stage import StageModule
from amc_lightning.stages import Stage, shares_of, stage_seed, validation_interval
from amc_lightning.transfer import WeightTransfer, save_weights


@dataclass(frozen=True)
class Trained:
    """A stage that has just been trained.

    Attributes:
        net: the trained network.
        steps: training steps taken.
        rows: adversarial rows per attack, as realised.
        passes_per_image: gradient passes of the stage, crafting and training, divided by the training images.
        minutes: wall time of training.
        metrics: what was logged, one row per epoch and kind.
        picked_epoch: the epoch whose weights were picked, from 1; None for the last.
    """

    net: nn.Module
    steps: int
    rows: dict[str, int]
    passes_per_image: float
    minutes: float
    metrics: list[dict[str, float]]
    picked_epoch: int | None


class StageTrainer:
    """Train the stages of a configuration, each by itself.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        attacks: the attacks as training crafts them, by name.
        device: where to train.
        console: where progress is shown.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        attacks: Mapping[str, GuardedAttack],
        *,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config = config
        self.data = data
        self.attacks = attacks
        self.device = device
        self.console = console

    def new_net(self, *seed: int | str) -> nn.Module:
        """Return a fresh network; its initial weights depend on the seed only, and no global random state moves."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(*seed))
            net = instantiate(self.config.model, key="model", kind=nn.Module)
        assert isinstance(net, nn.Module)
        # channels last: input gradients of convolutions are 1.3 times as fast
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return a fresh optimiser of the configured kind for some parameters."""
        optimizer: torch.optim.Optimizer = instantiate(
            self.config.optimizer, key="optimizer", kind=torch.optim.Optimizer, params=parameters
        )
        return optimizer

    def train(
        self, stage: Stage, parent: Path | bytes | None, *, folder: Path, work: Path, logger: Logger | None
    ) -> Trained:
        """Train a stage, or what is left of it where ``work`` holds a checkpoint.

        Args:
            stage: which.
            parent: weights to start from, as a file or its content; None for fresh ones.
            folder: where a person looks: metrics so far, and the last good weights if the stage fails.
            work: where checkpoints go, and are looked for.
            logger: a further logger beside the stage's own metrics.

        Raises:
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        seed = stage_seed(self.config, stage)
        net = self.new_net(seed)
        passes = PassCount()
        module = self._module(net, stage, seed, passes)
        batches = self.data.batches("train", shuffle_seed=derive(seed, "order"), device=self.device)
        metrics = MetricRows(folder / "metrics.csv")
        keep, best = KeepLastGood(folder / "last_good.safetensors", save_weights), KeepBest()
        total = len(self.config.cascade.order)
        title = f"stage {stage.index}/{total} {stage.name}"
        checkpoint = StageCheckpoint(
            checkpoint_folder(work),
            batches=batches,
            metrics=metrics,
            passes=passes,
            minutes=self.config.store.checkpoint_minutes,
            on_resume=lambda step, epoch: self.console.print(
                f"{title}  goes on after step {step} (epoch {epoch} of {stage.epochs})", soft_wrap=True, highlight=False
            ),
        )
        callbacks: list[pl.Callback] = [StageProgress(self.console, title, self.config.trainer.progress), keep]
        callbacks += [best] if self.config.cascade.pick == "best" else []
        callbacks += [WeightTransfer(parent)] if parent is not None else []
        trainer = pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=self.config.trainer.precision,  # type: ignore[arg-type]
            max_epochs=stage.epochs,
            callbacks=[*callbacks, checkpoint],
            logger=[metrics] if logger is None else [metrics, logger],
            plugins=[WholeCheckpoints()],
            default_root_dir=folder,
            check_val_every_n_epoch=validation_interval(self.config, stage),
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,  # Lightning's; a stage has its own, exact to the step
            inference_mode=False,  # attacks in validation need gradients
        )
        # dropout, and whatever a model or an attack of others draws; everything else has generators of its own
        with isolated_randomness(derive(seed, "training") % 2**32, self.device), counting(net, passes):
            self._fit(trainer, module, batches, keep, newest_checkpoint(checkpoint.folder))
        best.choose(net)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values()):
            keep.write(net)
            last = stage.epochs - 1, trainer.global_step - 1
            raise TrainingDivergedError(stage.title, *last, "a weight is no longer finite")
        return Trained(
            net,
            steps=trainer.global_step,
            rows=dict(zip(module.sources[1:], module.rows[1:].tolist(), strict=True)),
            passes_per_image=passes.gradient / self.data.counts["train"],
            minutes=checkpoint.seconds / 60,
            metrics=metrics.rows,
            picked_epoch=best.epoch,
        )

    def _module(self, net: nn.Module, stage: Stage, seed: int, passes: PassCount) -> StageModule:
        cascade, augment = self.config.cascade, self.config.dataset.augment
        shares = shares_of(self.config, stage)
        attacks = [self.attacks[name] for name in shares]
        mixer = None
        if attacks:
            mixer = Mixer(attacks, list(shares.values()), seed=seed, label=cascade.label)  # type: ignore[arg-type]
        return StageModule(
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

    def _fit(
        self, trainer: pl.Trainer, module: StageModule, batches: Any, keep: KeepLastGood, checkpoint: Path | None
    ) -> None:
        handler = signal.getsignal(signal.SIGINT)
        try:
            # one empty validation batch; see StageModule.validation_step
            trainer.fit(module, batches, [0], ckpt_path=checkpoint, weights_only=True)
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into an exit
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
            raise StageStoppedError(module.title, keep.path, epochs=keep.epochs) from stop
        if trainer.interrupted:
            raise StageStoppedError(module.title, keep.path, epochs=keep.epochs)

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
        states = random_states()  # a model may draw in eval mode too
        try:
            return self._errors(attacks, passes, net)
        finally:
            set_random_states(states)

    def _errors(self, attacks: list[GuardedAttack], passes: PassCount, net: nn.Module) -> dict[str, float]:
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
