"""Is this a batch that can be attacked?"""

import torch
from torch import Tensor, nn

from amc_lightning.errors import UserError

# Images read from 8 bits and resized may leave the box by rounding.
BOX_TOLERANCE = 1e-6


def check_batch(model: nn.Module, x: Tensor, y: Tensor | None) -> int:
    """Refuse a batch that no attack could use; return its largest label."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in (torch.float32, torch.float64):
        found = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            "x", found, "are no images", "needed: (B, C, H, W) float32 in [0, 1]", "Add .float() / 255 to 8-bit images."
        )
    if y is not None and not isinstance(y, Tensor):
        raise UserError(
            "y",
            type(y).__name__,
            f"are no labels of {len(x)} images",
            f"needed: class indices, ({len(x)},) int64",
            "Give one class index per image.",
        )
    if y is not None and (y.dim() != 1 or len(y) != len(x) or y.dtype != torch.int64):
        raise UserError(
            "y",
            f"{tuple(y.shape)} {y.dtype}",
            f"are no labels of {len(x)} images",
            f"needed: class indices, ({len(x)},) int64",
            "Give one class index per image.",
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) == 1 and x.device not in devices:
        raise UserError(
            "x", str(x.device), "is not where the model is", f"needed: {devices.pop()}", "Move one to the other."
        )
    if x.numel() == 0:
        return -1
    lowest, highest = x.detach().aminmax()
    ends = [lowest.double(), highest.double()]
    if y is not None:
        ends += [end.to(x.device).double() for end in y.aminmax()]
    low, high, *labels = torch.stack(ends).tolist()  # the one wait for the device before an attack
    if not (low >= -BOX_TOLERANCE and high <= 1 + BOX_TOLERANCE):
        values = "NaN among its values" if low != low else f"values from {low:.4g} to {high:.4g}"
        raise UserError(
            "x",
            values,
            "is not a range of pixels",
            "allowed: [0, 1]",
            "Divide 8-bit images by 255, and normalise inside the model.",
        )
    if labels and labels[0] < 0:
        raise UserError("y", int(labels[0]), "is no class", "allowed: 0 to K - 1", "Correct the labels.")
    return int(labels[1]) if labels else -1
