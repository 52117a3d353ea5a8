"""One stage of a cascade as a LightningModule: the step, the loss, what is logged."""

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor, nn
from torchmetrics import MeanMetric

from amc_lightning.data import Augment
from amc_lightning.errors import NotFiniteError, TrainingDivergedError
from amc_lightning.metrics import MeanBySource
from amc_lightning.mixed_batch import MakesBatches
from amc_lightning.seeding import derive


class StageModule(pl.LightningModule):
    """Train ``net`` on clean images and, from stage 1 on, on their adversarial copies.

    The loss is alpha * J(clean) + (1 - alpha) * J(adversarial); both halves go through ``net`` together, in train mode.
    The sum over attacks with weights lambda acts through the rows each attack gets, so the adversarial term is a plain
    mean.

    Args:
        net: the model being trained (the target), from images (B, C, H, W) in [0, 1] to logits (B, K).
        title: what the stage is called in messages, such as "2 vap".
        seed: the stage's seed, from which every step derives its randomness.
        mixer: makes the adversarial half; None for stage 0.
        alpha: weight of the clean half, in [0, 1].
        augment: applied to the clean half.
        augment_clean: whether it is.
        augment_adversarial: craft from the augmented images instead of the plain ones.
        craft_on: a local proxy that examples are crafted on instead of ``net`` (AMC with a local proxy); it is neither
            trained nor saved with this module, and ``net`` is not differentiated for crafting.
        make_optimizer: from parameters to an optimiser.
        make_schedule: from (optimiser, number of steps) to a scheduler stepped every batch.
        validate: called with the net after each validation epoch; returns error rates in percent by source name.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, sections 2.3 and 3.2 (the objective); spec.md section 2 (what is augmented).
    """

    kind: Literal["stage", "proxy"] = "stage"

    def __init__(
        self,
        net: nn.Module,
        *,
        title: str,
        seed: int,
        mixer: MakesBatches | None,
        alpha: float,
        augment: Augment,
        augment_clean: bool = True,
        augment_adversarial: bool = False,
        craft_on: nn.Module | None = None,
        make_optimizer: Callable[[Any], torch.optim.Optimizer],
        make_schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler],
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.title = title
        self.seed = seed
        self.mixer = mixer
        self.alpha = alpha
        self.augment = augment
        self.augment_clean = augment_clean
        self.augment_adversarial = augment_adversarial
        self._craft_on = (craft_on or net,)  # in a tuple, so that it is no part of this module
        self.make_optimizer = make_optimizer
        self.make_schedule = make_schedule
        self.validate = validate
        self.sources = ("clean", *(attack.name for attack in (mixer.attacks if mixer else ())))
        self.error = MeanBySource(len(self.sources), scale=100)
        self.delta = MeanBySource(len(self.sources))
        self.loss = MeanMetric()
        for metric in (self.error, self.delta, self.loss):
            metric.persistent(True)  # a stage that goes on within an epoch logs the whole epoch
        self.register_buffer("rows", torch.zeros(len(self.sources), dtype=torch.int64))
        self.rows: Tensor

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch: x (B, C, H, W) float32 in [0, 1], y (B,), rows (B,) of the training set."""
        x, y, rows = batch
        step = self.global_step
        goals = self.goals(y, rows)
        augmented = self.augment(x, seed=derive(self.seed, step, "augment")) if self.augment_clean else x
        source = torch.zeros_like(y)
        if self.mixer is None:
            logits = self.net(augmented)
            loss = F.cross_entropy(logits, goals)
        else:
            origin = augmented if self.augment_adversarial else x
            try:
                adv = self.mixer(self._craft_on[0], origin, y, step=step)
            except NotFiniteError as error:
                raise self._diverged(step, str(error)) from error
            logits = self.net(torch.cat([augmented, adv.x]))
            copies = len(adv.x) // len(x)  # row i was made from row i modulo B
            loss = self.alpha * F.cross_entropy(logits[: len(x)], goals)
            loss = loss + (1 - self.alpha) * F.cross_entropy(logits[len(x) :], torch.cat([goals] * copies))
            for part, made_by in zip(torch.split(adv.x, len(x)), torch.split(adv.source, len(x)), strict=True):
                self.delta.update((part - origin).flatten(1).norm(dim=1), made_by + 1)
            source = torch.cat([source, adv.source + 1])
            y = torch.cat([y, adv.y])
        if not torch.isfinite(loss):
            raise self._diverged(step, f"the loss became {float(loss.detach())}")
        with torch.no_grad():
            wrong = logits.argmax(dim=1) != y
            if self.mixer is not None:
                self.mixer.observe(wrong[len(x) :], source[len(x) :] - 1)
            self.error.update(wrong, source)
            self.loss.update(loss.detach(), weight=len(x))
            self.rows.index_add_(0, source, torch.ones_like(source))
        return loss

    def goals(self, y: Tensor, rows: Tensor) -> Tensor:
        """Return what the logits of a batch shall come to: the labels, (B,)."""
        return y

    def _diverged(self, step: int, problem: str) -> TrainingDivergedError:
        return TrainingDivergedError(self.title, self.current_epoch, step, problem, kind=self.kind)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means and start the next ones from zero."""
        values = {"train/loss": float(self.loss.compute())}
        errors, deltas = self.error.by_source(), self.delta.by_source()
        for index, name in enumerate(self.sources):
            values[f"train/err/{name}"] = errors[index]
            if index:
                values[f"train/delta/{name}"] = deltas[index]
                values[f"train/rows/{name}"] = float(self.rows[index])
        self.log_dict({name: value for name, value in values.items() if value == value})  # NaN: no rows this epoch
        for metric in (self.error, self.delta, self.loss):
            metric.reset()

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Do nothing: the validation split lies in memory and is measured whole, in ``on_validation_epoch_end``."""

    def on_validation_epoch_end(self) -> None:
        """Log validation errors: clean on the whole split, attacks on the fixed subset, and their mean."""
        if self.validate is None:
            return
        try:
            errors = self.validate(self.net)
        except NotFiniteError as error:
            raise self._diverged(self.global_step - 1, str(error)) from error
        values = {f"val/err/{name}": value for name, value in errors.items()}
        values["val/err/mean"] = sum(errors.values()) / len(errors)
        self.log_dict(values, batch_size=1)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, stepped every batch; made afresh, never transferred."""
        optimizer = self.make_optimizer(self.net.parameters())
        schedule = self.make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the mixer's carry."""
        if self.mixer is not None:
            checkpoint["mixer"] = self.mixer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the mixer's carry."""
        if self.mixer is not None:
            self.mixer.load_state_dict(checkpoint["mixer"])
