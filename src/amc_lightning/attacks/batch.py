"""Is this a batch that can be attacked?"""

import torch
from torch import Tensor, nn

from amc_lightning.errors import UserError

# Images read from 8 bits and resized may leave the box by rounding.
BOX_TOLERANCE = 1e-6


def check_types(model: nn.Module, x: Tensor, y: Tensor | None) -> None:
    """Refuse a batch of a wrong shape, dtype or device, without waiting for the device.

    Args:
        model: the model under attack.
        x: should be (B, C, H, W) float32 or float64.
        y: should be (B,) int64, or None.

    Raises:
        UserError: saying what is wrong with which of the two.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in (torch.float32, torch.float64):
        found, do = type(x).__name__, "Give a tensor."
        if isinstance(x, Tensor):
            found = f"{tuple(x.shape)} {x.dtype}"
            do = "Add .float() / 255 to 8-bit images."
            if x.dim() == 3:
                do = "Add x.unsqueeze(0) for a single image."
            elif x.dtype in (torch.float16, torch.bfloat16):
                do = "Add .float(): attacks decide in float32, whatever the model computes in."
        raise UserError("x", found, "are no images", "needed: (B, C, H, W) float32 in [0, 1]", do)
    if y is not None and not (isinstance(y, Tensor) and y.shape == (len(x),) and y.dtype == torch.int64):
        raise UserError(
            "y",
            f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__,
            f"are no labels of {len(x)} images",
            f"needed: class indices, ({len(x)},) int64",
            "Give one class index per image.",
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) == 1 and x.device not in devices:
        raise UserError(
            "x", str(x.device), "is not where the model is", f"needed: {devices.pop()}", "Move one to the other."
        )


def check_values(x: Tensor, y: Tensor | None) -> int:
    """Refuse images outside [0, 1] and negative labels; waits for the device once.

    Args:
        x: (B, C, H, W) float.
        y: (B,) int64, or None.

    Returns:
        The largest label; -1 if there is none.

    Raises:
        UserError: saying what was found.
    """
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
