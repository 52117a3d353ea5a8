"""How passes are made while crafting: through the model itself, or through copies of it that are kept and refreshed."""

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from amc_lightning.attacks.fold import CannotFold, CraftingCopy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """How passes are made while crafting.

    Attributes:
        fast: through a copy of the model with batch norm folded into convolutions and channels-last memory; the same
            logits to 1e-5, which is checked on the first batch (else the plain model, with one warning).
        bf16: gradients in bfloat16; what is decided (fooled or not, labels, distances) stays in float32.
    """

    fast: bool = False
    bf16: bool = False


PLAIN = Execution()


_COPIES: "WeakKeyDictionary[nn.Module, dict[str, CraftingCopy | None]]" = WeakKeyDictionary()


@torch.no_grad()
def copies_of(model: nn.Module, images: Tensor, execution: Execution) -> dict[str, CraftingCopy | None]:
    """Return the copies of a model, with its weights of now; made and compared with the model on its first batch."""
    made = _COPIES.setdefault(model, {})
    if "float32" not in made:
        made["float32"] = _tried(model, images, None)
    if execution.bf16 and "bfloat16" not in made:
        made["bfloat16"] = _tried(model, images, torch.bfloat16) if made["float32"] is not None else None
    wanted = {
        "float32": made["float32"] if execution.fast else None,
        "bfloat16": made["bfloat16"] if execution.bf16 else None,
    }
    for copy in wanted.values():
        if copy is None:
            continue
        try:
            copy.refresh()
        except CannotFold as error:  # it has come by a hook, say
            _warn(model, str(error))
            made["float32"] = made["bfloat16"] = None
            return dict(made)
    return wanted


def _tried(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> CraftingCopy | None:
    """Return a copy that was seen to work on a few images; None, with a warning, where there is none."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    images = images[:8].detach().to(own)
    try:
        copy = CraftingCopy(model, dtype=dtype)
        if dtype is not None:
            copy(images)
        # Not through __call__: whoever counts passes shall not see this one.
        elif not copy.agrees(images, model.forward(images)):
            _warn(model, "its logits differ by more than 1e-5")
            return None
    except CannotFold as error:
        _warn(model, str(error))
        return None
    except RuntimeError as error:
        if dtype is None:
            raise
        _warn(model, f"it does not work in {dtype} ({error})")
        return None
    return copy


def _warn(model: nn.Module, reason: str) -> None:
    _log.warning("attacks use the plain %s, not a faster copy: %s", type(model).__name__, reason)
