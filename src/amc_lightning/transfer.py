"""Move weights from one stage of a cascade to the next, and nothing else."""

from pathlib import Path

import pytorch_lightning as pl
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from amc_lightning.errors import UserError
from amc_lightning.results import write_whole

WEIGHTS = "weights.safetensors"
"""Name of a stage's weights file, in the store and in run folders."""


def weights_of(net: nn.Module) -> bytes:
    """Return parameters and buffers of ``net`` as the content of a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()})


def save_weights(net: nn.Module, path: Path) -> None:
    """Write parameters and buffers of ``net`` to a safetensors file, whole or not at all."""
    write_whole(path, weights_of(net))


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
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(key, str(path), error) from error
    fill(net, content, key=key, source=str(path))


def fill(net: nn.Module, content: bytes, *, key: str, source: str) -> None:
    """Load the content of a safetensors file into ``net``: every name and shape must fit.

    Args:
        net: the network to fill, in place.
        content: what ``weights_of`` returned; nothing in it is executed, whatever it is.
        key: the setting it came from, for the message.
        source: the file it came from, for the message.

    Raises:
        UserError: if it is damaged, or of another network.
    """
    try:
        state = load(content)
    except (SafetensorError, ValueError) as error:
        raise _unreadable(key, source, error) from error
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(
            key,
            source,
            f"does not fit {type(net).__name__}",
            f"the same names and shapes ({detail[:300]})",
            "Choose the model these weights belong to.",
        ) from error


def _unreadable(key: str, source: str, error: Exception) -> UserError:
    return UserError(key, source, f"cannot be read ({error})", "a whole .safetensors file", "Use an undamaged copy.")


class WeightTransfer(pl.Callback):
    """Start a stage from another stage's published weights: parameters and batch-norm buffers of ``net`` only.

    Loads in ``setup``, which runs before Lightning restores a checkpoint (``on_fit_start`` runs after), so that a
    resumed stage keeps its own weights. Optimiser, schedule and random state never cross.

    Args:
        weights: the content of the weights file of the stage to start from, or the file.
        key: the setting they came from, for messages.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, Algorithm 2: initialise the parameters of stage i+1 with those of stage i.
    """

    def __init__(self, weights: Path | bytes, *, key: str = "cascade.transfer") -> None:
        self.weights = weights
        self.key = key

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Fill ``pl_module.net`` before the first step of a fit."""
        if stage == "fit":
            assert isinstance(pl_module.net, nn.Module)
            if isinstance(self.weights, Path):
                load_weights(pl_module.net, self.weights, key=self.key)
            else:
                fill(pl_module.net, self.weights, key=self.key, source="the weights of the stage before")
