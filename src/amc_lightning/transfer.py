"""Move weights from one stage of a cascade to the next, and nothing else."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from amc_lightning.errors import UserError
from amc_lightning.results import write_whole

logger = logging.getLogger(__name__)


def save_weights(net: nn.Module, path: Path) -> None:
    """Write parameters and buffers of ``net`` to a safetensors file, whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    write_whole(path, save(state))


def load_weights(net: nn.Module, path: Path, *, key: str = "weights") -> None:
    """Load a safetensors file into ``net``: every name and shape must fit.

    Args:
        net: the network to fill, in place.
        path: a file written by ``save_weights``.
        key: the setting the path came from, for the message.

    Raises:
        UserError: if the file is missing, damaged, or of another network.
    """
    if not path.is_file():
        raise UserError(key, str(path), "does not exist", "a .safetensors file", "Check the path.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            key, str(path), f"cannot be read ({error})", "a whole .safetensors file", "Use an undamaged copy."
        ) from error
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(
            key,
            str(path),
            f"does not fit {type(net).__name__}",
            f"the same names and shapes ({detail[:300]})",
            "Choose the model these weights belong to.",
        ) from error


class WeightTransfer(pl.Callback):
    """Start a stage from another stage's published weights: parameters and batch-norm buffers of ``net`` only.

    Loads in ``setup``, which runs before Lightning restores a checkpoint (``on_fit_start`` runs after), so that a
    resumed stage keeps its own weights. Optimiser, schedule and random state never cross.

    Args:
        path: the weights file of the stage to start from.
        key: the setting the path came from, for messages.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, Algorithm 2: initialise the parameters of stage i+1 with those of stage i.
    """

    def __init__(self, path: Path, *, key: str = "cascade.transfer") -> None:
        self.path = path
        self.key = key

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Fill ``pl_module.net`` before the first step of a fit."""
        if stage == "fit":
            assert isinstance(pl_module.net, nn.Module)
            load_weights(pl_module.net, self.path, key=self.key)
            logger.debug("stage starts from %s", self.path)
