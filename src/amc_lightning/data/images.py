"""What a dataset is once it is read: arrays of images and labels, checked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_lightning.errors import UserError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Images and their labels, in one order.

    Args:
        x: images, (N, C, H, W) uint8 in [0, 255]; a source may give floats in [0, 1], see ``as_uint8``.
        y: class indices, (N,) int64.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.y)

    def take(self, rows: Rows) -> "Images":
        """Return a copy of some rows, in the order asked for."""
        return Images(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Source:
    """One dataset as read from its files, before balancing and splitting.

    Args:
        train: the official training images.
        test: the official test images; ``None`` where a set has no official split.
        class_names: one name per class index.
        verified: whether every file has the checksum of the official one.
    """

    train: Images
    test: Images | None
    class_names: tuple[str, ...]
    verified: bool


def as_uint8(x: NDArray[np.generic], key: str) -> NDArray[np.uint8]:
    """Return images as uint8 in [0, 255]: uint8 as they are, floats in [0, 1] scaled by 255 and rounded.

    Args:
        x: images of any shape.
        key: where they came from, for the message.

    Raises:
        UserError: if the images are of another type, hold NaN, or leave [0, 1].

    Example:
        >>> as_uint8(np.array([0.0, 0.5, 1.0]), "dataset.root").tolist()
        [0, 128, 255]
    """
    if x.dtype == np.uint8:
        return x.view(np.uint8)
    allowed = "images are uint8 in 0..255, or floats in [0, 1]"
    do = "Scale the images to [0, 1] (not standardised), or store them as uint8."
    if not np.issubdtype(x.dtype, np.floating):
        raise UserError(key, str(x.dtype), "is not a type of image this reads", allowed, do)
    values = x.astype(np.float64)
    if np.isnan(values).any():
        raise UserError(key, int(np.isnan(values).sum()), "pixels are NaN", allowed, do)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if low < 0 or high > 1:
        raise UserError(key, (low, high), "is the range of the pixels", allowed, do)
    return np.round(values * 255).astype(np.uint8)


def checked(images: Images, num_classes: int, key: str) -> Images:
    """Return the images as uint8 and the labels as int64, or say what is wrong with them.

    Args:
        images: what a source read.
        num_classes: K; labels must be 0..K-1.
        key: where they came from, for the message.

    Raises:
        UserError: for a wrong shape or type, pixels that ``as_uint8`` refuses, or labels out of range.
    """
    x, y = images.x, images.y
    if x.ndim != 4 or 0 in x.shape:
        raise UserError(
            key, x.shape, "is the shape of the images", "it must be (N, C, H, W), none of them 0", "Check the files."
        )
    if y.shape != (len(x),):
        raise UserError(key, y.shape, f"is the shape of the labels of {len(x)} images", "one each", "Check the files.")
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(key, str(y.dtype), "is the type of the labels", "they must be integers", "Check the files.")
    outside = np.unique(y[(y < 0) | (y >= num_classes)])
    if outside.size:
        raise UserError(
            key,
            outside[:5].tolist(),
            "are labels out of range",
            f"{num_classes} classes are numbered 0..{num_classes - 1}",
            "Number the classes from 0, or correct dataset.num_classes.",
        )
    return Images(as_uint8(x, key), y.astype(np.int64))
