"""The base class of every attack, with types, and what an attack class may offer beyond it.

Everything here is optional: any subclass of `torchattacks.attack.Attack` works. A class that says more is treated
better: noise given from outside makes a row's result its own, a clean pass can be shared, work can be foretold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

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

        def __call__(self, inputs: Tensor, labels: Tensor | None = None, **keywords: object) -> Tensor:
            """Put the model in eval mode, call ``forward``, put it back in train mode if it was."""
            raise NotImplementedError

        def get_logits(self, inputs: Tensor) -> Tensor:
            """Return the model's output."""
            raise NotImplementedError
else:
    from torchattacks.attack import Attack

__all__ = [
    "Attack",
    "CleanNeed",
    "Start",
    "StartsClean",
    "TakesNoise",
    "cross_entropy_direction",
    "full_precision",
    "gradient_logits",
    "is_fooled",
    "is_unknown",
    "is_zero",
    "largest_entries",
    "loss_order",
    "nan_where",
    "rows_like",
]


CleanNeed = Literal["nothing", "logits", "gradient"]


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
            (B, ..., C, H, W) float32, in units that do not depend on eps, to be cut along the first axis; None where
            these arguments need no noise.
        """
        ...


@dataclass(frozen=True)
class Start:
    """What one pass at the clean images told, so that no attack that starts there makes it again.

    Attributes:
        logits: the model's at the clean images, (B, K), in at least float32, without graph.
        gradient: by the images, of the attack's own direction in logit space there, (B, C, H, W); None if that was
            not asked for.
    """

    logits: Tensor
    gradient: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Start":
        """Return the same in another float type."""
        return Start(self.logits.to(dtype), None if self.gradient is None else self.gradient.to(dtype))


@runtime_checkable
class StartsClean(Protocol):
    """An attack class that can use a pass at the clean images, given to its ``forward`` as ``start``."""

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return what the attack needs of the clean images, with these constructor arguments."""
        ...

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return the vector in logit space, (B, K), whose pull-back to the clean images is ``start.gradient``.

        Asked for only where the need is a gradient.
        """
        ...


def gradient_logits(attack: Attack, images: Tensor) -> Tensor:
    """Return logits to be differentiated, in at least float32.

    They may come from a faster copy of the model, or one in bfloat16; what is decided (fooled or not, a label, a
    distance) is never decided on them but on ``model(images)``.
    """
    faster = getattr(attack.model, "gradient_logits", None)
    return full_precision(attack.get_logits(images) if faster is None else faster(images))


def full_precision(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32; margins and losses lose all meaning in 8 to 11 bits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy_direction(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy by the logits, up to a positive factor per row, at any confidence.

    With q the softmax over the classes other than the label, the gradient p - onehot(y) is (1 - p_y) (q - onehot(y)).
    Leaving out the factor changes no sign and no normalised direction, but where p_y rounds to 1 it is what keeps the
    gradient from being all zero: a confident model would otherwise look robust.

    Args:
        logits: (B, K), K >= 2, in at least float32.
        labels: class indices, (B,) int64.

    Returns:
        (B, K); rows sum to 0, the label's entry is -1.

    Reference:
        The masking of gradients by a saturated softmax: Carlini and Wagner, S&P 2017,
        https://arxiv.org/abs/1608.04644, section 5.

    Example:
        >>> cross_entropy_direction(torch.tensor([[90.0, 0.0, 0.0]]), torch.tensor([0]))
        tensor([[-1.0000,  0.5000,  0.5000]])
    """
    column = labels.unsqueeze(1)
    others = logits.detach().scatter(1, column, -torch.inf).softmax(dim=1)
    return others.scatter(1, column, -1.0)


def loss_order(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what orders points as their cross-entropy does, (B,).

    The cross-entropy is the softplus of it, and saturates where it does not.

    Args:
        logits: (B, K), in at least float32.
        labels: class indices, (B,) int64.

    Example:
        >>> loss_order(torch.tensor([[90.0, 0.0], [95.0, 0.0]]), torch.tensor([0, 0]))
        tensor([-90., -95.])
    """
    column = labels.unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf).logsumexp(dim=1)
    return others - logits.gather(1, column).squeeze(1)


def is_unknown(logits: Tensor) -> Tensor:
    """Return which rows of (B, K) have an entry that is no number, (B,) bool: an answer that tells nothing."""
    return logits.isnan().any(dim=1)


def is_fooled(logits: Tensor, labels: Tensor, confidence: float = 0.0) -> Tensor:
    """Return which rows are answered wrongly, (B,) bool; one that holds NaN, whose argmax means nothing, is not.

    Args:
        logits: (B, K), of the model's own precision or better.
        labels: class indices, (B,) int64.
        confidence: margin by which another class must lead.

    Example:
        >>> is_fooled(torch.tensor([[2.0, 1.0], [1.0, 2.0], [torch.nan, 1.0]]), torch.tensor([0, 0, 1]))
        tensor([False,  True, False])
    """
    known = ~is_unknown(logits)
    if confidence != 0:
        handicap = torch.full_like(logits[:, :1], confidence)
        logits = logits.scatter_add(1, labels.unsqueeze(1), handicap)
    return (logits.argmax(dim=1) != labels) & known


def nan_where(unknown: Tensor, images: Tensor) -> Tensor:
    """Return images with NaN in place of the rows marked by (B,) bool, so that whoever gets them notices."""
    return torch.where(rows_like(unknown, images), torch.nan, images)


def largest_entries(images: Tensor) -> Tensor:
    """Return the largest absolute value of each row of (B, C, H, W), (B,); NaN where one is."""
    return images.flatten(1).abs().amax(dim=1)


def is_zero(images: Tensor) -> Tensor:
    """Return which rows of (B, C, H, W) are zero throughout, (B,) bool; NaN is not."""
    return largest_entries(images) == 0  # on a CPU several times as fast as any()


def rows_like(values: Tensor, images: Tensor) -> Tensor:
    """View one value per row, (B,), so that it multiplies images (B, C, H, W)."""
    return values.view(-1, *[1] * (images.dim() - 1))
