"""The adversarial half of a batch, and what makes it: the cascade's mixer, or a joint rule."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack


@dataclass(frozen=True)
class MixedBatch:
    """Adversarial rows of one batch of B, in the order of the clean rows they were made from.

    Attributes:
        x: adversarial images, (k B, C, H, W) float32 in [0, 1]; row i was made from row i modulo B. A cascade's mixer
            makes one of each (k = 1), a joint stage may make more.
        y: true class indices, (k B,) int64.
        source: index into the stage's attacks of the one that made each row, (k B,) int64.
    """

    x: Tensor
    y: Tensor
    source: Tensor


class MakesBatches(Protocol):
    """What makes the adversarial half of a stage's batches: the cascade's mixer, or a joint rule."""

    attacks: tuple[GuardedAttack, ...]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Perturb the rows of a batch; see ``Mixer``."""
        ...

    def observe(self, wrong: Tensor, source: Tensor) -> None:
        """Be told which adversarial rows, (k B,) bool, the model being trained got wrong, and their sources."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what an in-stage checkpoint has to hold, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
