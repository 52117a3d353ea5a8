"""Fit one module: a fresh network and Trainer, checkpoints to go on from, weights kept where it fails."""

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import nn

from amc_lightning.attacks.randomness import isolated_randomness
from amc_lightning.checkpoint import (
    MetricRows,
    StageCheckpoint,
    WholeCheckpoints,
    checkpoint_folder,
    newest_checkpoint,
)
from amc_lightning.config import Config, instantiate
from amc_lightning.data import Augment, Batches
from amc_lightning.errors import StageStoppedError, TrainingDivergedError
from amc_lightning.keep import KeepBest, KeepLastGood
from amc_lightning.plan import PassCount, counting
from amc_lightning.progress import StageProgress
from amc_lightning.seeding import derive
from amc_lightning.stage import StageModule
from amc_lightning.transfer import WeightTransfer, save_weights


@dataclass(frozen=True)
class Trained:
    """A network that has just been trained.

    Attributes:
        net: the trained network.
        steps: training steps taken.
        rows: adversarial rows per attack, as realised.
        passes_per_image: gradient passes, crafting and training, divided by the training images.
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


class Fitter:
    """Fit modules of a configuration, each by itself: stages of the cascade, and proxies.

    Args:
        config: the checked configuration.
        device: where to train.
        console: where progress is shown.
    """

    def __init__(self, config: Config, *, device: torch.device, console: Console) -> None:
        self.config = config
        self.device = device
        self.console = console

    def new_net(self, node: dict[str, Any], *seed: int | str, key: str = "model") -> nn.Module:
        """Return a fresh network of a ``_target_`` node; its initial weights depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(*seed))
            net = instantiate(node, key=key, kind=nn.Module)
        assert isinstance(net, nn.Module)
        # channels last: input gradients of convolutions are 1.3 times as fast
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return a fresh optimiser of the target's kind for some parameters."""
        return self._optimizer(self.config.optimizer, parameters, "optimizer")

    def proxy_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return a fresh optimiser of the proxies' kind for some parameters."""
        return self._optimizer(self.config.proxy.optimizer, parameters, "proxy.optimizer")

    def _optimizer(self, node: dict[str, Any], parameters: Any, key: str) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = instantiate(node, key=key, kind=torch.optim.Optimizer, params=parameters)
        return optimizer

    def schedule(self, epochs: int) -> Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]:
        """Return what makes the learning rate's course over a number of epochs, given the number of steps."""
        schedule = self.config.schedule

        def make(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
            if schedule.shape == "one_cycle":
                return _one_cycle(optimizer, schedule.peak_lr, steps)
            per_epoch = steps // epochs
            milestones = [epoch * per_epoch for epoch in schedule.milestones] if schedule.shape == "steps" else []
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=schedule.gamma)

        return make

    def proxy_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the course of a proxy's learning rate: one cycle."""
        return _one_cycle(optimizer, self.config.proxy.peak_lr, steps)

    def augment(self) -> Augment:
        """Return the augmentation of clean images."""
        augment = self.config.dataset.augment
        return Augment(
            augment.rotation,
            augment.shift,
            horizontal_flip=augment.horizontal_flip,
            vertical_flip=augment.vertical_flip,
        )

    def fit(
        self,
        module: StageModule,
        batches: Batches,
        *,
        title: str,
        epochs: int,
        validate_every: int,
        parent: Path | bytes | None,
        folder: Path,
        work: Path,
        logger: Logger | None,
        passes: PassCount,
        counted: Sequence[nn.Module],
        pick_best: bool = False,
    ) -> Trained:
        """Fit a module, or what is left of it where ``work`` holds a checkpoint.

        Args:
            module: what to fit; its ``seed`` seeds whatever its network draws.
            batches: the training batches.
            title: what it is called on the screen, such as "stage 2/4 vap".
            epochs: passes over the batches' images.
            validate_every: epochs between two validations, a divisor of ``epochs``.
            parent: weights to start from, as a file or its content; None for those that the network has.
            folder: where a person looks: metrics so far, and the last good weights if it fails.
            work: where checkpoints go, and are looked for.
            logger: a further logger beside the module's own metrics.
            passes: counts the gradient passes.
            counted: the networks whose passes are counted.
            pick_best: end with the weights that validated best instead of the last.

        Raises:
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        metrics = MetricRows(folder / "metrics.csv")
        keep, best = KeepLastGood(folder / "last_good.safetensors", save_weights), KeepBest()
        checkpoint = StageCheckpoint(
            checkpoint_folder(work),
            batches=batches,
            metrics=metrics,
            passes=passes,
            minutes=self.config.store.checkpoint_minutes,
            on_resume=lambda step, epoch: self.console.print(
                f"{title}  goes on after step {step} (epoch {epoch} of {epochs})", soft_wrap=True, highlight=False
            ),
        )
        callbacks: list[pl.Callback] = [StageProgress(self.console, title, self.config.trainer.progress), keep]
        callbacks += [best] if pick_best else []
        callbacks += [WeightTransfer(parent)] if parent is not None else []
        trainer = pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=self.config.trainer.precision,  # type: ignore[arg-type]
            max_epochs=epochs,
            callbacks=[*callbacks, checkpoint],
            logger=[metrics] if logger is None else [metrics, logger],
            plugins=[WholeCheckpoints()],
            default_root_dir=folder,
            check_val_every_n_epoch=validate_every,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,  # Lightning's; a stage has its own, exact to the step
            inference_mode=False,  # attacks in validation need gradients
        )
        # dropout, and whatever a model or an attack of others draws; everything else has generators of its own
        with ExitStack() as opened:
            opened.enter_context(isolated_randomness(derive(module.seed, "training") % 2**32, self.device))
            for net in counted:
                opened.enter_context(counting(net, passes))
            _run(trainer, module, batches, keep, newest_checkpoint(checkpoint.folder))
        net = module.net
        best.choose(net)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values()):
            keep.write(net)
            last = epochs - 1, trainer.global_step - 1
            raise TrainingDivergedError(module.title, *last, "a weight is no longer finite", kind=module.kind)
        return Trained(
            net,
            steps=trainer.global_step,
            rows=dict(zip(module.sources[1:], module.rows[1:].tolist(), strict=True)),
            passes_per_image=passes.gradient / len(batches.y),
            minutes=checkpoint.seconds / 60,
            metrics=metrics.rows,
            picked_epoch=best.epoch,
        )


def _one_cycle(optimizer: torch.optim.Optimizer, peak_lr: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak_lr, total_steps=steps, cycle_momentum=False)


def _run(trainer: pl.Trainer, module: StageModule, batches: Any, keep: KeepLastGood, checkpoint: Path | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        # one empty validation batch; see StageModule.validation_step
        trainer.fit(module, batches, [0], ckpt_path=checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into an exit
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
        raise StageStoppedError(module.title, keep.path, epochs=keep.epochs, kind=module.kind) from stop
    if trainer.interrupted:
        raise StageStoppedError(module.title, keep.path, epochs=keep.epochs, kind=module.kind)
