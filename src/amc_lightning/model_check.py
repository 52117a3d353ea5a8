"""Is this network a classifier of these images that returns logits?"""

import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.errors import UserError


def check_squeezer(squeezer: nn.Module, x: Tensor, *, key: str) -> None:
    """Refuse feature squeezing that does not return images like those it gets.

    Args:
        squeezer: the layer, on the device of x.
        x: a few images, (B, C, H, W) float32 in [0, 1].
        key: the setting it comes from, for messages.

    Raises:
        UserError: if it cannot take the images, or returns another shape, or leaves [0, 1].
    """
    name = type(squeezer).__name__
    try:
        with torch.no_grad():
            found = squeezer(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        problem = f"cannot take images of shape {tuple(x.shape[1:])} ({error})"
        raise UserError(key, name, problem, "a layer from images to images", f"Correct {key}.") from error
    if not isinstance(found, Tensor) or found.shape != x.shape or not bool(((found >= 0) & (found <= 1)).all()):
        raise UserError(
            key, name, "does not return images", f"shape {tuple(x.shape)} in [0, 1], as it gets", f"Correct {key}."
        )


def check_model(net: nn.Module, x: Tensor, num_classes: int, *, key: str = "model") -> None:
    """Refuse a model that does not return one logit per class.

    Args:
        net: the model, on the device of x.
        x: a few images, (B, C, H, W) float32 in [0, 1].
        num_classes: K.
        key: the setting it comes from, for messages.

    Raises:
        UserError: if the model cannot take the images, returns another shape, or returns probabilities.
    """
    name = type(net).__name__
    try:
        with guarded(net), torch.no_grad():
            logits = net(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            key,
            name,
            f"cannot take images of shape {tuple(x.shape[1:])} ({error})",
            "a model for the shape of the dataset",
            "Change the model's arguments, or dataset.",
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (len(x), num_classes):
        raise UserError(
            key,
            name,
            f"returns {shape} for {len(x)} images",
            f"needed: logits of shape ({len(x)}, {num_classes})",
            "Match num_classes to the dataset.",
        )
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise UserError(
            key,
            name,
            "returns probabilities",
            "needed: logits, before any softmax",
            "Remove the softmax from the end of the model.",
        )
