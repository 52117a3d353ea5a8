"""Which weights of a stage are kept beside the last ones: those of the last whole epoch, those that validate best."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from amc_lightning.stage import StageModule


class KeepLastGood(pl.Callback):
    """Keep the weights of the last whole epoch aside, or those a stage started from, and write them if it fails.

    Args:
        path: where they go.
        save: writes a net's weights to a path.
    """

    def __init__(self, path: Path, save: Callable[[nn.Module, Path], None]) -> None:
        self.path = path
        self.save = save
        self.epochs: int | None = None
        self._state: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights that the stage starts from; one that goes on has those of its checkpoint."""
        if not self._state:
            self._state = copied(_net(pl_module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights after a whole epoch, unless they are no longer finite."""
        if all(bool(torch.isfinite(tensor).all()) for tensor in _net(pl_module).parameters()):
            self._state = copied(_net(pl_module))
            self.epochs = trainer.current_epoch + 1

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the remembered weights; there are none if the stage failed before its first step."""
        if self._state:
            self.write(_net(pl_module))

    def write(self, net: nn.Module) -> None:
        """Put the remembered weights into ``net`` and on disk."""
        net.load_state_dict(self._state)
        self.save(net, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered weights, for a checkpoint."""
        return {"epochs": self.epochs, "weights": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.epochs, self._state = state_dict["epochs"], state_dict["weights"]


class KeepBest(pl.Callback):
    """Remember the weights with the lowest mean validation error; of equal ones the first."""

    def __init__(self) -> None:
        self.error = math.inf
        self.epoch: int | None = None
        self._state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the best so far."""
        error = float(trainer.callback_metrics["val/err/mean"])
        if error < self.error:
            self.error, self.epoch, self._state = error, trainer.current_epoch + 1, copied(_net(pl_module))

    def choose(self, net: nn.Module) -> None:
        """Put the best weights into ``net``; leave it as it is if none was validated."""
        if self._state:
            net.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights so far, for a checkpoint."""
        return {"error": self.error, "epoch": self.epoch, "weights": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.error, self.epoch, self._state = (state_dict[name] for name in ("error", "epoch", "weights"))


def copied(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a net's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def _net(module: pl.LightningModule) -> nn.Module:
    assert isinstance(module, StageModule)
    return module.net
