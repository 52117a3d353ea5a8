"""The base class of every attack, with types, and the protocol of those that start from noise."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    # torchattacks carries no types; these are the parts of its base class that this package uses.
    class Attack:
        """What `torchattacks.attack.Attack` offers to its subclasses."""

        device: torch.device
        model: nn.Module
        supported_mode: list[str]

        def __init__(self, *arguments: object, **keywords: object) -> None:
            """Take a name and the model here; in subclasses the model and their parameters."""

        def __call__(self, inputs: Tensor, labels: Tensor | None = None, **keywords: Tensor) -> Tensor:
            """Put the model in eval mode, call ``forward``, put it back in train mode if it was."""
            raise NotImplementedError

        def get_logits(self, inputs: Tensor) -> Tensor:
            """Return the model's output."""
            raise NotImplementedError
else:
    from torchattacks.attack import Attack

__all__ = ["Attack", "TakesNoise", "full_precision"]


@runtime_checkable
class TakesNoise(Protocol):
    """An attack class whose random start is given from outside, so that a row's noise belongs to the row."""

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw the start noise of a whole batch on the CPU.

        Args:
            shape: (B, C, H, W) of the images.
            generator: the only source of randomness.
            **arguments: the attack's own keywords, as bound for its constructor.

        Returns:
            (B, C, H, W) float32, in units that do not depend on eps; None where these arguments need no noise.
        """
        ...


def full_precision(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32; margins and losses lose all meaning in 8 to 11 bits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
