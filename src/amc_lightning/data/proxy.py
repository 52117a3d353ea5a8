"""The images that a black-box adversary asks the target about: never the target's own.

A proxy source is a function that a YAML in ``conf/dataset`` names under ``proxy``. It takes ``root``
(``dataset.proxy.root``), ``trust_files``, ``seed``, ``count`` (how many images are wanted; only generators heed it),
``target`` (the target's training images), ``class_names`` (the target's) and ``device``, beside keywords of its own
from the YAML, and returns a ``Source`` whose test part is ``None``. Label -1 says that the class is unknown: no proxy
trains on these labels, only on the target's answers; they serve to balance the classes.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pooch
import torch
from torch import Tensor

from amc_lightning.data import stl10 as stl10_files
from amc_lightning.data import svhn
from amc_lightning.data.deform import DISPLACEMENT, ROTATION, SCALE, SMOOTHNESS, THICKNESS, deformed
from amc_lightning.data.folder import SUFFIXES, read_classes, read_unlabelled, sub_folders
from amc_lightning.data.images import Images, Rows, Source, checked
from amc_lightning.data.module import ImageData
from amc_lightning.data.splits import mixed_order, take_per_class
from amc_lightning.errors import UserError
from amc_lightning.seeding import derive

logger = logging.getLogger(__name__)

Part = Literal["all", "first", "second"]
"""Which of the proxy images: all, or one of two halves without a common image."""
PARTS: tuple[Part, ...] = ("all", "first", "second")
UNKNOWN = -1
_TRIES = 5  # how often a generator is asked for more, where some of its images had to go

# --- sources ---------------------------------------------------------------------------------------------------------


def deformed_digits(
    root: Path | None,
    *,
    trust_files: bool,
    seed: int,
    count: int | None,
    target: Images,
    class_names: tuple[str, ...],
    device: torch.device,
    displacement: float = DISPLACEMENT,
    smoothness: float = SMOOTHNESS,
    rotation: float = ROTATION,
    scale: float = SCALE,
    thickness: float = THICKNESS,
) -> Source:
    """Make deformed versions of the target's training images, as many of each class; see ``deform.deform``.

    ``count`` is how many, by default as many as there are training images. Nothing is read.

    Raises:
        UserError: if a strength is out of range.
    """
    made = deformed(
        target,
        len(target) if count is None else count,
        seed=seed,
        device=device,
        displacement=displacement,
        smoothness=smoothness,
        rotation=rotation,
        scale=scale,
        thickness=thickness,
    )
    return Source(made, None, class_names, verified=True)


def svhn_extra(
    root: Path | None,
    *,
    trust_files: bool,
    seed: int,
    count: int | None,
    target: Images,
    class_names: tuple[str, ...],
    device: torch.device,
) -> Source:
    """Read SVHN's ``extra`` set, 531,131 digits; ``root`` is by default the user's cache folder of SVHN.

    Raises:
        UserError: as ``svhn.svhn``.
    """
    return svhn.svhn_extra(_cache("svhn") if root is None else root, trust_files=trust_files, key="dataset.proxy.root")


def stl10(
    root: Path | None,
    *,
    trust_files: bool,
    seed: int,
    count: int | None,
    target: Images,
    class_names: tuple[str, ...],
    device: torch.device,
    frogs: str | None = None,
) -> Source:
    """Read STL-10's images of CIFAR-10's classes, and frogs from a folder; ``root`` is by default a cache folder.

    Raises:
        UserError: as ``stl10.stl10``.
    """
    return stl10_files.stl10(_cache("stl10") if root is None else root, frogs=frogs)


def folder(
    root: Path | None,
    *,
    trust_files: bool,
    seed: int,
    count: int | None,
    target: Images,
    class_names: tuple[str, ...],
    device: torch.device,
) -> Source:
    """Read the user's images, resized to the target's: ``root/<class>/*``, or ``root/*`` where there are no classes.

    Sub-folders are classes of the target, not necessarily all; without sub-folders every label is -1.

    Raises:
        UserError: if ``root`` is not given or is no folder, a sub-folder is no class of the target or is empty, or a
            file is not a whole image.
    """
    if root is None or not root.is_dir():
        raise UserError(
            "dataset.proxy.root",
            None if root is None else str(root),
            "is not a folder",
            "the folder of the images that the proxy is trained on, which must not be the target's",
            "Set dataset.proxy.root.",
        )
    channels, *size = target.x.shape[1:]
    if channels not in (1, 3):
        raise UserError(
            "dataset.shape",
            list(target.x.shape[1:]),
            "has a number of channels that no image file has",
            "1 is grey, 3 is RGB",
            "Write a proxy source of your own.",
        )
    names = sub_folders(root)
    if not names:
        x = read_unlabelled(root, size, channels)
        return Source(Images(x, np.full(len(x), UNKNOWN)), None, class_names, verified=True)
    strange = [name for name in names if name not in class_names]
    if strange:
        raise UserError(
            str(root),
            strange,
            "are sub-folders that are no classes of the target",
            f"known: {', '.join(class_names)}",
            "Rename or remove them, or put all images into one folder without sub-folders.",
        )
    loose = sum(path.suffix.lower() in SUFFIXES for path in root.iterdir())
    if loose:
        logger.warning("%s: %d images are ignored, because they lie beside the folders of the classes", root, loose)
    images = read_classes(root, names, size, channels)
    number = np.array([class_names.index(name) for name in names])
    return Source(Images(images.x, number[images.y]), None, class_names, verified=True)


def _cache(name: str) -> Path:
    return Path(pooch.os_cache("amc_lightning")) / name


# --- what proxies are trained on -------------------------------------------------------------------------------------


class ProxyData:
    """The images that proxies are trained on, none of which is in any split of the target's data.

    The keyword arguments are the keys of ``dataset.proxy``, with ``source`` a function. Reading and making happen in
    ``prepare``, which all that needs images calls. Two images are the same where all their pixels are: crops or copies
    in another format are not found.

    Args:
        source: see this module's docstring.
        data: the target's data.
        root: folder of the files; what ``None`` means is the source's choice.
        trust_files: given to the source.
        limit: at most so many images, >= 2; class-balanced where the data are and the classes are known. A generator
            makes exactly so many (down to a multiple of the classes where balanced).
        seed: makes generated images, chooses which images stay, and draws the halves.
        device: where images are generated, and the default of ``tensors``.

    Attributes:
        counts: images ``read`` or generated, ``overlapping`` (dropped: the same as one of the target's, whichever its
            split), ``repeated`` (dropped: copies of another proxy image), and ``kept``; filled by ``prepare``.
        verified: whether every file was the official one by checksum; set by ``prepare``.

    Raises:
        UserError: for a limit that cannot be; from ``prepare``, for files that cannot be read, images that are not as
            the target's, or too few left.
    """

    counts: dict[str, int]
    verified: bool

    def __init__(
        self,
        *,
        source: Callable[..., Source],
        data: ImageData,
        root: str | Path | None = None,
        trust_files: bool = False,
        limit: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if limit is not None and limit < 2:
            raise UserError(
                "dataset.proxy.limit",
                limit,
                "is too few images to train a proxy on",
                "at least 2, or null for all",
                "Raise it.",
            )
        self.source = source
        self.data = data
        self.root = None if root is None else Path(root).expanduser()
        self.trust_files = trust_files
        self.limit = limit
        self.seed = seed
        self.device = torch.device(device)
        self._rows: dict[Part, Rows] = {}
        self._parts: dict[Part, Images] = {}
        self._fingerprints: dict[Part, str] = {}
        self._on_device: dict[tuple[Part, torch.device], tuple[Tensor, Tensor]] = {}

    def prepare(self) -> "ProxyData":
        """Read or generate, drop what is the target's and what is repeated, and halve, once; return itself."""
        if self._rows:
            return self
        self.data.prepare()
        own = {key for images in (self.data.pool, *self.data.splits.values()) for key in _keys(images)}
        asked = self.limit
        for _ in range(_TRIES):
            source = self._read(asked)
            images = source.train
            fresh, overlapping = _fresh(images, own)
            rows, short, classes = self._choose(images.y[fresh])
            # Only a generator returns as many images as it is asked for; files hold what they hold.
            if not short or len(images) != asked:
                break
            asked += 2 * short * classes
        if overlapping:
            logger.warning("%d of %d proxy images are the target's own, and dropped", overlapping, len(images))
        if len(rows) < 2:
            raise UserError(
                "dataset.proxy",
                len(rows),
                f"images are left of {len(images)}, after dropping {overlapping} of the target's own and copies",
                "a proxy needs at least 2 that the target has not",
                "Give it other images: dataset.proxy.root or dataset.proxy.source.",
            )
        self.verified = source.verified
        self.counts = {
            "read": len(images),
            "overlapping": overlapping,
            "repeated": len(images) - overlapping - len(fresh),
            "kept": len(rows),
        }
        self._parts["all"] = images.take(fresh[rows])
        order = mixed_order(self._parts["all"].y, derive(self.seed, "proxy", "halves"))
        middle = (len(order) + 1) // 2
        self._rows = {"first": np.sort(order[:middle]), "second": np.sort(order[middle:])}
        return self

    def _read(self, count: int | None) -> Source:
        """Return the source with its images checked: as the target's in shape, labels -1 or the target's classes."""
        data = self.data
        source = self.source(
            root=self.root,
            trust_files=self.trust_files,
            seed=self.seed,
            count=count,
            target=data.pool,
            class_names=data.class_names,
            device=self.device,
        )
        y = source.train.y
        known = checked(Images(source.train.x, np.where(y == UNKNOWN, 0, y)), data.num_classes, "dataset.proxy.source")
        if known.x.shape[1:] != data.shape:
            raise UserError(
                "dataset.proxy.source",
                list(known.x.shape[1:]),
                "is the shape of the proxy's images",
                f"those of {data.name} are {list(data.shape)} (channels, height, width)",
                "Choose a proxy source that fits the dataset.",
            )
        return replace(source, train=Images(known.x, y.astype(np.int64)))

    def _choose(self, y: Rows) -> tuple[Rows, int, int]:
        """Return which rows stay, how many are lacking, and how many classes were balanced (1: none)."""
        if self.limit is None:
            return np.arange(len(y)), 0, 1
        random = np.random.default_rng(derive(self.seed, "proxy", "limit"))
        classes = len(np.unique(y))
        if not self.data.balanced or classes > self.limit or (y == UNKNOWN).any():
            rows, wanted, classes = np.sort(random.permutation(len(y))[: self.limit]), self.limit, 1
        else:
            wanted = self.limit // max(classes, 1) * classes
            if len(y) <= wanted:
                rows = np.arange(len(y))
            else:
                rows = take_per_class(y, self.limit // classes, random, num_classes=self.data.num_classes)
        return rows, wanted - len(rows), classes

    # --- serving -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of images kept."""
        return len(self.images("all"))

    def images(self, part: Part = "all") -> Images:
        """Return all images, or one of the two disjoint halves; each holds the classes in nearly their shares.

        Labels are the source's, -1 where unknown; no proxy trains on them.
        """
        self.prepare()
        if part not in self._parts:
            self._parts[part] = self._parts["all"].take(self._rows[part])
        return self._parts[part]

    def tensors(self, part: Part = "all", device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Return a part on a device: images (N, C, H, W) uint8 and labels (N,) int64; moved there once.

        Args:
            part: all, first or second.
            device: ``None`` is the device of this object.
        """
        place = self.device if device is None else torch.device(device)
        if (part, place) not in self._on_device:
            images = self.images(part)
            # torch shares memory with contiguous, writable arrays only; anything else is copied here.
            x, y = (np.require(array, requirements=["C", "W"]) for array in (images.x, images.y))
            self._on_device[part, place] = (torch.from_numpy(x).to(place), torch.from_numpy(y).to(place))
        return self._on_device[part, place]

    def fingerprint_of(self, part: Part = "all") -> str:
        """Return SHA-256 over the images of a part, in hexadecimal; labels are left out, since only answers train."""
        if part not in self._fingerprints:
            x = self.images(part).x
            digest = hashlib.sha256(str(x.shape).encode())
            digest.update(np.ascontiguousarray(x).data)
            self._fingerprints[part] = digest.hexdigest()
        return self._fingerprints[part]


def _keys(images: Images) -> Iterator[bytes]:
    """Yield a hash of each image's pixels."""
    for x in np.ascontiguousarray(images.x):
        yield hashlib.blake2b(x.data, digest_size=16).digest()


def _fresh(images: Images, own: Set[bytes]) -> tuple[Rows, int]:
    """Return the rows that are neither in ``own`` nor copies of an earlier row, and how many are in ``own``."""
    seen: set[bytes] = set()
    rows, overlapping = [], 0
    for row, key in enumerate(_keys(images)):
        if key in own:
            overlapping += 1
        elif key not in seen:
            seen.add(key)
            rows.append(row)
    return np.array(rows, np.int64), overlapping
