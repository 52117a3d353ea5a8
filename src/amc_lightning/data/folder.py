"""Read the user's own images: one folder per class."""

import logging
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from amc_lightning.data.images import Images, Source
from amc_lightning.data.splits import split_train
from amc_lightning.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}
_TRAIN_TENTHS = 8
# What Pillow raises for files that are cut short or damaged.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def folder(
    root: Path, *, size: Sequence[int] | None, channels: int = 3, trust_files: bool = False, split_seed: int = 0
) -> Source:
    """Read ``root/<class>/*``, or ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Without the two sub-folders, 80 % of each class train and the rest is held out, drawn with ``split_seed``. Classes
    are numbered in the order of their names. Images are turned upright (EXIF), made grey or RGB, and resized with an
    antialiasing filter, without regard to their proportions.

    Args:
        root: the folder.
        size: height and width to resize to, pixels.
        channels: 1 (grey) or 3 (RGB).
        trust_files: not read: images run no code.
        split_seed: ``dataset.split_seed``.

    Raises:
        UserError: if the size is missing, a folder is missing or empty, or a file is not a whole image.
    """
    if size is None or len(size) != 2 or min(size) < 1:
        raise UserError(
            "dataset.size",
            size,
            "is not a height and a width",
            "two numbers of pixels are needed, such as [32, 32]",
            "Set dataset.size.",
        )
    if channels not in _MODES:
        raise UserError(
            "dataset.source.channels", channels, "is not a kind of image", "1 is grey, 3 is RGB", "Set either."
        )
    if not root.is_dir():
        raise UserError(
            "dataset.root", str(root), "is not a folder", "it must hold one folder per class", "Set dataset.root."
        )
    parts = [root / "train", root / "test"]
    if not all(part.is_dir() for part in parts):
        names = _class_names(root)
        images = read_classes(root, names, size, channels)
        train, held_out = split_train(images.y, split_seed, tenths=_TRAIN_TENTHS, class_names=names)
        return Source(images.take(train), images.take(held_out), names, verified=True)
    names = _class_names(parts[0])
    if names != _class_names(parts[1]):
        raise UserError(
            str(parts[1]),
            _class_names(parts[1]),
            "are its classes",
            f"they must be those of train: {', '.join(names)}",
            "Give both folders the same sub-folders.",
        )
    train_images, test_images = (read_classes(part, names, size, channels) for part in parts)
    return Source(train_images, test_images, names, verified=True)


def sub_folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _class_names(root: Path) -> tuple[str, ...]:
    names = sub_folders(root)
    if len(names) < 2:
        raise UserError(
            str(root),
            names,
            "are the folders in it",
            "at least two classes are needed, one folder each",
            "Put the images of each class into a folder named after it.",
        )
    return names


def read_classes(root: Path, names: Sequence[str], size: Sequence[int], channels: int) -> Images:
    """Return the images in ``root/<name>``, labelled 0, 1, ... in the order of the names.

    Args:
        root: the folder.
        names: its sub-folders to read.
        size: height and width to resize to, pixels.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        UserError: if a sub-folder has no images, or a file is not a whole image.
    """
    images, labels, ignored = [], [], 0
    for label, name in enumerate(names):
        paths, others = _image_files(
            root / name, (root / name).iterdir(), "Add images of this class, or remove the folder."
        )
        ignored += others
        images += [_decode(path, size, channels) for path in paths]
        labels += [label] * len(paths)
    _warn_ignored(root, ignored)
    return Images(np.stack(images), np.array(labels, np.int64))


def read_unlabelled(root: Path, size: Sequence[int], channels: int) -> NDArray[np.uint8]:
    """Return all images in a folder and those below it, in the order of their paths, (N, C, H, W) uint8.

    Args:
        root: the folder.
        size: height and width to resize to, pixels.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        UserError: if there are no images, or a file is not a whole image.
    """
    found = (path for path in root.rglob("*") if not any(part.startswith(".") for part in path.relative_to(root).parts))
    paths, ignored = _image_files(root, found, "Add images, or name another folder.")
    _warn_ignored(root, ignored)
    return np.stack([_decode(path, size, channels) for path in paths])


def _image_files(folder: Path, found: Iterable[Path], do: str) -> tuple[list[Path], int]:
    """Return the images among the paths found in a folder, sorted, and how many other files there are."""
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise UserError(
            str(folder), 0, "images were found in this folder", f"files ending in {', '.join(SUFFIXES)} are read", do
        )
    return paths, len(files) - len(paths)


def _warn_ignored(root: Path, ignored: int) -> None:
    if ignored:
        logger.warning("%s: %d files are ignored, because their names do not end as images' do", root, ignored)


def _decode(path: Path, size: Sequence[int], channels: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(
                    str(path),
                    image.mode,
                    "is a kind of pixel with more than 8 bits",
                    "images have 8 bits per channel",
                    "Convert the image to 8 bits.",
                )
            upright = ImageOps.exif_transpose(image).convert(_MODES[channels])
        height, width = size
        pixels = np.asarray(upright.resize((width, height), Image.Resampling.LANCZOS))
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(
            str(path),
            f"{path.stat().st_size} bytes",
            f"are not a whole image ({error})",
            "the file is cut short, damaged or no image",
            "Remove or replace it.",
        ) from error
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)
