"""One function per dataset: from its official files to arrays.

Each takes ``root`` (the folder that holds or will hold the files), ``trust_files`` (``dataset.trust_files``) and
``split_seed`` (``dataset.split_seed``), and returns a ``Source``; a YAML in ``conf/dataset`` names it. To add a
dataset, write such a function anywhere and name it in a YAML of your own.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from amc_lightning.data import idx
from amc_lightning.data.cifar import cifar10
from amc_lightning.data.files import RemoteFile, fetch, is_official, warn_unverified
from amc_lightning.data.folder import folder
from amc_lightning.data.images import Images, Source
from amc_lightning.data.svhn import svhn, svhn_extra
from amc_lightning.errors import UserError

__all__ = ["cifar10", "digits", "folder", "mnist", "svhn", "svhn_extra"]

DIGIT_NAMES = tuple("0123456789")

_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_FOLDERS = ("MNIST/raw", "MNIST", "mnist", "raw")
_MNIST_LICENCE = "MNIST: Y. LeCun, C. Cortes and C. Burges; CC BY-SA 3.0."


def _mnist_file(stem: str, md5: str, payload_md5: str) -> RemoteFile:
    name = f"{stem}-ubyte.gz"
    aliases = (f"{stem}-ubyte", f"{stem.replace('-idx', '.idx')}-ubyte")
    return RemoteFile(name, tuple(mirror + name for mirror in _MNIST_MIRRORS), md5, payload_md5, aliases)


# The sums of the .gz files are those that torchvision lists, the sums of the content those of the unpacked files.
MNIST_FILES = (
    _mnist_file("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    _mnist_file("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    _mnist_file("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    _mnist_file("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
)


def digits(root: Path, *, trust_files: bool = False, split_seed: int = 0) -> Source:
    """Read scikit-learn's bundled digits, 1,797 images of 8x8, enlarged to 16x16 (bicubic).

    They have no official test split. Nothing is downloaded, and no argument changes what is read.
    """
    bunch = load_digits()
    small = (np.asarray(bunch.images) / 16).astype(np.float32)
    large = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)) for image in small]
    x = np.round(np.clip(np.stack(large), 0, 1) * 255).astype(np.uint8)
    return Source(Images(x[:, None], np.asarray(bunch.target, np.int64)), None, DIGIT_NAMES, verified=True)


def mnist(root: Path, *, trust_files: bool = False, split_seed: int = 0) -> Source:
    """Read MNIST's four idx files, gzipped or not; checksums are those of the unpacked content.

    Raises:
        UserError: if files are missing and cannot be downloaded, damaged, or disagree with one another.
    """
    found = fetch(root, MNIST_FILES, dataset="MNIST", folders=_MNIST_FOLDERS, licence=_MNIST_LICENCE)
    arrays, differing = [], []
    for file, place in zip(MNIST_FILES, found, strict=True):
        payload = idx.unpack(place.path)
        if not is_official(place, payload, file):
            differing.append(place.path)
        arrays.append(idx.parse(payload, place.path, dimensions=3 if "idx3" in file.name else 1))
    for images, labels, place in zip(arrays[::2], arrays[1::2], found[1::2], strict=True):
        if len(images) != len(labels):
            raise UserError(
                str(place.path),
                len(labels),
                f"labels stand beside {len(images)} images",
                "there must be one for each image",
                "The two files are not of one set: get both again.",
            )
    if differing:
        warn_unverified("MNIST", differing)
    train, test = (
        Images(images[:, None], labels.astype(np.int64))
        for images, labels in zip(arrays[::2], arrays[1::2], strict=True)
    )
    return Source(train, test, DIGIT_NAMES, verified=not differing)
