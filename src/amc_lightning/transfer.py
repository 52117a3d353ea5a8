"""Move weights from one stage of a cascade to the next, and nothing else."""

import io
import pickle
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

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
    """Load the content of a file of weights into ``net``: every name and shape must fit.

    Args:
        net: the network to fill, in place.
        content: what ``weights_of`` returned, or a file that ``torch.save`` wrote of a state_dict or of a checkpoint
            with one; nothing in it is executed, whatever it is.
        key: the setting it came from, for the message.
        source: the file it came from, for the message.

    Raises:
        UserError: if it is damaged, or of another network.
    """
    try:
        state = _saved(content, net) if content.startswith(_ZIP) else load(content)
    except (SafetensorError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
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


_ZIP = b"PK\x03\x04"  # what torch.save writes begins so
_PREFIXES = ("net.", "model.", "module.")  # of modules that hold the network, as ours do, and of DataParallel


def _saved(content: bytes, net: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of a file that ``torch.save`` wrote, without the name of a module around the network."""
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ValueError("it holds no state_dict")
    wanted = net.state_dict().keys()
    for prefix in _PREFIXES:
        bare = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if state.keys() != wanted and bare.keys() == wanted:
            return bare
    return state


def _unreadable(key: str, source: str, error: Exception) -> UserError:
    detail = " ".join(str(error).split())[:300]
    allowed = "a whole .safetensors file, or a state_dict that torch.save wrote"
    return UserError(key, source, f"cannot be read ({detail})", allowed, "Use an undamaged copy.")


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
