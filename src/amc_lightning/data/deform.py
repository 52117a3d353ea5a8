"""Deformed digits: as many new images as are wanted, each a smooth distortion of a given one.

Images are made in blocks of 512, each from random numbers of its own that are drawn whole on the CPU. So image i is the
same whatever the device, however many are made, and whatever the batch. Arithmetic is in float64: what devices round
differently is then too small to change a pixel once it is a byte.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d

from amc_lightning.data.images import Images
from amc_lightning.errors import UserError
from amc_lightning.seeding import derive, generator

BLOCK = 512
# Chosen by eye, see docs/figures/deformed_digits.png: more is hard to read, less looks like the image it came from.
DISPLACEMENT = 1.0
SMOOTHNESS = 4.0
ROTATION = 15.0
SCALE = 0.12
THICKNESS = 0.4
_SIDE = 28  # pixels of the image side for which strengths in pixels are given: MNIST's


def deform(
    images: Tensor,
    *,
    seed: int,
    first: int = 0,
    displacement: float = DISPLACEMENT,
    smoothness: float = SMOOTHNESS,
    rotation: float = ROTATION,
    scale: float = SCALE,
    thickness: float = THICKNESS,
) -> Tensor:
    """Return a distorted version of each image, on the images' device.

    Stroke thickness changes first, then the image is resampled once: along a random smooth displacement field, turned
    and scaled about its centre. Outside the image it is black. Pixels of a 28x28 image grow and shrink with the shorter
    side, so that digits of 16x16 are distorted alike.

    Args:
        images: images, (N, C, H, W) uint8 in [0, 255]; bright on black.
        seed: determines every random number.
        first: number of the first image in the endless sequence of this seed, >= 0; image ``first + i`` gets the same
            distortion however the sequence is cut.
        displacement: standard deviation of the displacement in either direction, pixels of a 28x28 image, >= 0.
        smoothness: standard deviation of the Gaussian that smooths the field, pixels of a 28x28 image, > 0.
        rotation: largest angle, degrees in [0, 180]; uniform in both directions.
        scale: largest change of size as a share of it, in [0, 1); uniform in both directions.
        thickness: largest change of a stroke at either edge, pixels of a 28x28 image, >= 0; uniform in both directions.

    Returns:
        Images, (N, C, H, W) uint8 in [0, 255].

    Raises:
        UserError: if a strength is out of range.

    Reference:
        Loosli, Canu and Bottou, "Training Invariant Support Vector Machines using Selective Sampling", 2007, section 3
        (infinite MNIST). They add first-order changes along tangent directions (shifts by a smoothed random field,
        rotation, scale, thickness); here the image is resampled along the same directions, which does not break down
        for larger changes. The field is theirs: noise smoothed by a Gaussian. Thickness is a dilation or erosion by a
        part of a pixel, which is their thickness tangent, the norm of the gradient, taken upwind.
    """
    _check(displacement, smoothness, rotation, scale, thickness)
    height, width = images.shape[2:]
    pixels = min(height, width) / _SIDE
    parts = []
    done = 0
    while done < len(images):
        block, skip = divmod(first + done, BLOCK)
        rows = images[done : done + BLOCK - skip]
        mine = slice(skip, skip + len(rows))
        noise, numbers = _draw(seed, block, height, width, smoothness * pixels)
        field = _smoothed(noise[mine].to(rows.device, torch.float64), height, width, smoothness * pixels)
        angle, size, thick = numbers[:, mine].to(rows.device, torch.float64)
        x = _thickened(rows.double() / 255, thick * thickness * pixels, thickness * pixels)
        grid = _grid(field * displacement * pixels, angle * math.radians(rotation), 1 + size * scale)
        x = grid_sample(x, grid, mode="bicubic", padding_mode="zeros", align_corners=True)
        parts.append((x.clamp(0, 1) * 255).round().to(torch.uint8))
        done += len(rows)
    return torch.cat(parts) if parts else images.clone()


def deformed(base: Images, count: int, *, seed: int, device: torch.device | str = "cpu", **strengths: float) -> Images:
    """Return so many distorted images, the classes in turn, each going through its own images again and again.

    The first n images are the same whatever ``count`` is.

    Args:
        base: what is distorted; uint8, at least one image.
        count: how many, >= 0.
        seed: determines the order within each class, and every distortion.
        device: where the images are made.
        strengths: keywords of ``deform``.

    Returns:
        Images on the CPU, with the labels of those they were made from.
    """
    rng = np.random.default_rng(derive(seed, "deform", "order"))
    orders = [rng.permutation(np.flatnonzero(base.y == k)) for k in np.unique(base.y)]
    turn, classes = np.arange(count) // len(orders), np.arange(count) % len(orders)
    rows = np.empty(count, np.int64)
    for k, order in enumerate(orders):
        rows[classes == k] = order[turn[classes == k] % len(order)]
    x = np.empty((count, *base.x.shape[1:]), np.uint8)
    for start in range(0, count, BLOCK):
        block = torch.from_numpy(base.x[rows[start : start + BLOCK]]).to(device)
        x[start : start + BLOCK] = deform(block, seed=seed, first=start, **strengths).cpu().numpy()
    return Images(x, base.y[rows])


def _reach(sigma: float) -> int:
    return math.ceil(3 * sigma)


def _draw(seed: int, block: int, height: int, width: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return a block's noise, two planes for each image and a margin around them, and three numbers in [-1, 1] each."""
    random = generator(seed, "deform", block)
    numbers = 2 * torch.rand(3, BLOCK, generator=random) - 1
    margin = 2 * _reach(sigma)
    return torch.randn(BLOCK, 2, height + margin, width + margin, generator=random), numbers


def _smoothed(noise: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Return displacement fields of variance 1, (B, 2, H, W)."""
    down, right = (_smoothing(n, sigma).to(noise.device) for n in (height, width))
    return down @ noise @ right.T


def _smoothing(n: int, sigma: float) -> Tensor:
    """Return the matrix, float64, that smooths n values of noise and their margins to n, and keeps the variance."""
    reach = _reach(sigma)
    offsets = torch.arange(n + 2 * reach, dtype=torch.float64) - torch.arange(n)[:, None] - reach
    weights = torch.exp(-0.5 * (offsets / sigma).square()) * (offsets.abs() <= reach)
    return weights / weights.square().sum(1, keepdim=True).sqrt()


def _thickened(x: Tensor, change: Tensor, largest: float) -> Tensor:
    """Move the edges of bright strokes outwards (> 0) or inwards (< 0) by ``change`` pixels, (B,)."""
    change = change[:, None, None, None]
    sign = torch.where(change > 0, 1.0, -1.0)  # the smallest neighbour is minus the largest of minus the image
    for done in range(math.ceil(largest)):
        amount = (change.abs() - done).clamp(0, 1)
        x = x + amount * (sign * max_pool2d(sign * x, 3, 1, 1) - x)
    return x


def _grid(field: Tensor, angle: Tensor, size: Tensor) -> Tensor:
    """Return where each pixel comes from, (B, H, W, 2) in grid_sample's units; ``field`` is (B, 2, H, W) pixels."""
    height, width = field.shape[2:]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    right = torch.arange(width, dtype=field.dtype, device=field.device) - middle_x
    down = (torch.arange(height, dtype=field.dtype, device=field.device) - middle_y)[:, None]
    cosine, sine = (torch.cos(angle) / size)[:, None, None], (torch.sin(angle) / size)[:, None, None]
    x = cosine * right + sine * down + field[:, 0]
    y = cosine * down - sine * right + field[:, 1]
    return torch.stack([x / max(middle_x, 0.5), y / max(middle_y, 0.5)], dim=3)


def _check(displacement: float, smoothness: float, rotation: float, scale: float, thickness: float) -> None:
    for name, value, sound, allowed in (
        ("displacement", displacement, 0 <= displacement < math.inf, "pixels of a 28x28 image, >= 0"),
        ("smoothness", smoothness, 0 < smoothness < math.inf, "pixels of a 28x28 image, > 0"),
        ("rotation", rotation, 0 <= rotation <= 180, "degrees in [0, 180]"),
        ("scale", scale, 0 <= scale < 1, "a share of the size in [0, 1)"),
        ("thickness", thickness, 0 <= thickness < math.inf, "pixels of a 28x28 image, >= 0"),
    ):
        if not sound:
            raise UserError(
                f"dataset.proxy.source.{name}", value, "is out of range", allowed, "Leave it out for the default."
            )
