"""Models that return probabilities, made fit to be examined."""

import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.errors import UserError


class LogProbabilities(nn.Module):
    """The logarithm of a model's probabilities: logits that have the same softmax.

    Args:
        model: returns probabilities, (B, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (B, K), of images (B, C, H, W); zeros are taken as the smallest float32."""
        found: Tensor = self.model(x)
        return found.clamp_min(torch.finfo(found.dtype).tiny).log()


def as_logits(model: nn.Module, x: Tensor, y: Tensor) -> tuple[nn.Module, bool]:
    """Return a model that gives logits, and whether the one given returned probabilities.

    Args:
        model: as its owner gave it.
        x: a few images, (B, C, H, W) float32 in [0, 1], on its device.
        y: labels of all images that will be examined, (N,) int64.

    Raises:
        UserError: if it does not take the images, or does not return one number for each row and class.
    """
    name = type(model).__name__
    try:
        with guarded(model), torch.no_grad():
            found = model(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            "model",
            name,
            f"cannot take images of shape {tuple(x.shape[1:])} ({error})",
            "a model of these images",
            "Give the images it was made for.",
        ) from error
    fits = isinstance(found, Tensor) and found.dim() == 2 and len(found) == len(x) and found.shape[1] >= 2
    if not fits or not found.is_floating_point() or int(y.max()) >= found.shape[1] or int(y.min()) < 0:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            "model",
            name,
            f"returns {shape} for {len(x)} images with labels up to {int(y.max())}",
            "needed: logits of shape (B, K), K above the largest label",
            "Give another model, or other labels.",
        )
    sums = found.float().sum(1)
    if bool((found >= 0).all() & (found <= 1).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return LogProbabilities(model), True
    return model, False
