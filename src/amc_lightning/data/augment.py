"""Random rotation, shift and flips of a whole batch, on its device."""

from typing import cast

import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor, nn

from amc_lightning.errors import UserError
from amc_lightning.seeding import generator


class Augment(nn.Module):
    """Rotate, shift and flip each image of a batch at random, about its centre.

    What moves in from outside repeats the border, and pixels between pixels are interpolated (bilinear): the authors'
    Keras filled likewise with the nearest pixel, but did not interpolate. With all options off the batch is returned as
    it is. Random numbers come from the seed given and are drawn on the CPU: they are the same on every device, and no
    global random state is read or changed.

    Args:
        rotation: largest angle, degrees in [0, 180]; uniform in both directions.
        shift: largest shift as a share of height and width, in [0, 1); uniform in all four directions.
        horizontal_flip: mirror left and right with probability 1/2.
        vertical_flip: mirror top and bottom with probability 1/2.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        rotation: float = 0.0,
        shift: float = 0.0,
        *,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= rotation <= 180:
            raise UserError(
                "dataset.augment.rotation", rotation, "is out of range", "degrees in [0, 180]", "0 turns it off."
            )
        if not 0 <= shift < 1:
            raise UserError(
                "dataset.augment.shift", shift, "is out of range", "a share of the image in [0, 1)", "0 turns it off."
            )
        self.rotation = rotation
        self.shift = shift
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return self.rotation == 0 and self.shift == 0 and not self.horizontal_flip and not self.vertical_flip

    @torch.no_grad()
    def forward(self, x: Tensor, seed: int) -> Tensor:
        """Return the augmented images, of the same shape and range.

        Args:
            x: images, (B, C, H, W) float32 in [0, 1].
            seed: determines every random number.
        """
        if self.is_identity or len(x) == 0:
            return x
        numbers = torch.rand(5, len(x), generator=generator(seed)).to(x.device)
        for wanted, number, axis in ((self.horizontal_flip, numbers[0], 3), (self.vertical_flip, numbers[1], 2)):
            if wanted:
                x = torch.where((number < 0.5)[:, None, None, None], x.flip(axis), x)
        if self.rotation > 0 or self.shift > 0:
            angle, right, down = 2 * numbers[2:] - 1
            height, width = x.shape[2:]
            x = moved(
                x, angle * self.rotation, torch.stack([right * self.shift * width, down * self.shift * height], dim=1)
            )
        return x.clamp(0, 1)

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return (
            f"rotation={self.rotation}, shift={self.shift}, "
            f"horizontal_flip={self.horizontal_flip}, vertical_flip={self.vertical_flip}"
        )


def moved(x: Tensor, angles: Tensor, shifts: Tensor) -> Tensor:
    """Rotate each image about its centre, then shift it; the border is repeated.

    Args:
        x: images, (B, C, H, W) float32.
        angles: degrees, clockwise, (B,).
        shifts: pixels to the right and down, (B, 2).

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> moved(x, torch.zeros(1), torch.tensor([[1.0, 0.0]])).flatten().tolist()
        [1.0, 1.0, 2.0]
    """
    height, width = x.shape[2:]
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=x.dtype, device=x.device).expand(len(x), 2)
    matrices = get_affine_matrix2d(shifts.to(x.dtype), centre, torch.ones_like(centre), angles.to(x.dtype))
    warped = warp_affine(x, matrices[:, :2], (height, width), padding_mode="border", align_corners=True)
    return cast(Tensor, warped)
