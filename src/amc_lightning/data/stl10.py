"""Read STL-10's labelled images from its official binary files, as images of CIFAR-10's classes."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amc_lightning.data.archive import Member, read_archive, read_folder
from amc_lightning.data.cifar import CIFAR10_NAMES
from amc_lightning.data.files import RemoteFile, fetch, md5, warn_unverified
from amc_lightning.data.folder import read_unlabelled
from amc_lightning.data.images import Images, Source
from amc_lightning.errors import UserError

logger = logging.getLogger(__name__)

STL10_ARCHIVE = RemoteFile(
    "stl10_binary.tar.gz",
    ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
    "91f7769df0f17e558f3565bffb0c7dfb",
)
# The sums that torchvision lists.
STL10_FILES = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_FROG = CIFAR10_NAMES.index("frog")
_MONKEY = -1
# CIFAR-10's number of each of STL-10's classes.
_CIFAR10_CLASS = np.array(
    [
        _MONKEY if name == "monkey" else CIFAR10_NAMES.index("automobile" if name == "car" else name)
        for name in STL10_NAMES
    ]
)
_FOLDER = "stl10_binary"
_PLACES = ("stl10", "STL10", "stl-10")
_SIDE = 96
_SIZE = (32, 32)
_IMAGE_BYTES = 3 * _SIDE * _SIDE
_LARGEST_FILE = 256 * 2**20  # test_X.bin has 221 MB; the 2.8 GB of unlabelled images are not read
_LICENCE = "STL-10 (Coates, Ng and Lee 2011; 2.6 GB): its images are from ImageNet, for non-commercial research only."


def stl10(root: Path, *, frogs: str | Path | None = None) -> Source:
    """Read the 11,700 images, training and test, of the nine classes that STL-10 shares with CIFAR-10, and frogs.

    Files are looked for in ``stl10_binary/``, then in the archive, which is read in place. Monkeys are left out.
    Everything is down-sampled to 32x32 with an antialiasing filter, the frogs without regard to their proportions.

    Args:
        root: the folder that holds or will hold ``stl10_binary/`` or ``stl10_binary.tar.gz``.
        frogs: a folder of the user's images of frogs, in it or in folders below; ``None`` does without that class.

    Returns:
        Images of 3x32x32 as the training images of a source without a test set, numbered as CIFAR-10's classes.

    Raises:
        UserError: if files are missing and cannot be downloaded, are damaged, or are not laid out as the official ones.
    """
    folder = None if frogs is None else Path(frogs).expanduser()
    if folder is not None and not folder.is_dir():
        raise UserError(
            "dataset.proxy.source.frogs",
            str(frogs),
            "is not a folder",
            "a folder of images of frogs, or null to do without them",
            "Correct the path.",
        )
    files = read_folder(root, _FOLDER, STL10_FILES, places=_PLACES)
    if files is None:
        (found,) = fetch(
            root, [STL10_ARCHIVE], dataset="STL-10", folders=_PLACES, licence=_LICENCE, key="dataset.proxy.root"
        )
        files = read_archive(found.path, _FOLDER, STL10_FILES, largest=_LARGEST_FILE)
    differing = [files[name].path for name, known in STL10_FILES.items() if md5(files[name].content) != known]
    parts = [_shared(files[f"{part}_X.bin"], files[f"{part}_y.bin"]) for part in ("train", "test")]
    if differing:
        warn_unverified("STL-10", differing)
    if folder is None:
        logger.warning("no frogs: the proxy data have STL-10's nine classes only (dataset.proxy.source.frogs is null)")
    else:
        x = read_unlabelled(folder, _SIZE, 3)
        parts.append(Images(x, np.full(len(x), _FROG)))
    images = Images(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))
    return Source(images, None, CIFAR10_NAMES, verified=not differing)


def _shared(images: Member, labels: Member) -> Images:
    """Return the images of the shared classes, 32x32, with CIFAR-10's labels."""
    y = np.frombuffer(labels.content, np.uint8)
    if not len(y) or len(images.content) != len(y) * _IMAGE_BYTES:
        raise UserError(
            str(images.path),
            f"{len(images.content)} bytes",
            f"are not the images of the {len(y)} labels in {labels.path.name}",
            f"an image of 3x96x96 takes {_IMAGE_BYTES} bytes, a label 1",
            "One of the two files is cut short or damaged: delete it and get it again.",
        )
    outside = np.unique(y[(y < 1) | (y > len(STL10_NAMES))])
    if outside.size:
        raise UserError(
            str(labels.path),
            outside[:5].tolist(),
            "are labels out of range",
            "STL-10 labels are 1..10",
            "Get the official file.",
        )
    classes = _CIFAR10_CLASS[y.astype(np.int64) - 1]
    shared = classes != _MONKEY
    # A channel is written column by column: (channel, column, row) becomes (row, column, channel).
    pixels = np.frombuffer(images.content, np.uint8).reshape(-1, 3, _SIDE, _SIDE).transpose(0, 3, 2, 1)
    x = np.empty((int(shared.sum()), 3, *_SIZE), np.uint8)
    for place, row in enumerate(np.flatnonzero(shared)):
        x[place] = _shrunk(pixels[row])
    return Images(x, classes[shared].astype(np.int64))


def _shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) as (3, 32, 32); the filter is that of ``folder``, so frogs look no different."""
    small = Image.fromarray(np.ascontiguousarray(pixels)).resize(_SIZE, Image.Resampling.LANCZOS)
    return np.asarray(small).transpose(2, 0, 1)
