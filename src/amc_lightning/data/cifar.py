"""Read CIFAR-10 from its official Python batches, without ever running an unverified pickle."""

from pathlib import Path

import numpy as np

from amc_lightning.data.archive import Member, read_archive, read_folder
from amc_lightning.data.files import RemoteFile, fetch, md5, warn_unverified
from amc_lightning.data.images import Images, Source
from amc_lightning.data.unpickle import load_arrays
from amc_lightning.errors import UserError

CIFAR10_ARCHIVE = RemoteFile(
    "cifar-10-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    "c58f30108f718f92721af3b95e74349a",
)
# The sums that torchvision lists.
CIFAR10_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_FOLDER = "cifar-10-batches-py"
_PLACES = ("cifar10", "CIFAR10", "cifar-10")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_LICENCE = "CIFAR-10 (Krizhevsky 2009) comes without a stated licence; its images were gathered for research."
_LARGEST_BATCH = 64 * 2**20  # a batch has 31 MB; more is no CIFAR-10


def cifar10(root: Path, *, trust_files: bool = False, split_seed: int = 0) -> Source:
    """Read CIFAR-10, 50,000 training and 10,000 test images, from ``cifar-10-batches-py/`` or the archive it comes in.

    The archive is read in place; nothing is extracted. Every batch has the official MD5 sum before it is unpickled;
    others are read only with ``trust_files``, and then as now only as arrays and plain containers.

    Raises:
        UserError: if files are missing and cannot be downloaded, are damaged, are not official while ``trust_files`` is
            false, or name anything but arrays and plain containers.
    """
    batches = read_folder(root, _FOLDER, CIFAR10_BATCHES, places=_PLACES)
    if batches is None:
        (found,) = fetch(root, [CIFAR10_ARCHIVE], dataset="CIFAR-10", folders=_PLACES, licence=_LICENCE)
        batches = read_archive(found.path, _FOLDER, CIFAR10_BATCHES, largest=_LARGEST_BATCH)
    differing = [batches[name].path for name, known in CIFAR10_BATCHES.items() if md5(batches[name].content) != known]
    if differing and not trust_files:
        raise UserError(
            "dataset.trust_files",
            False,
            f"and {', '.join(str(path) for path in differing)} differ from the official CIFAR-10 by checksum",
            "pickles that are not the official ones are not opened unless you say that you trust them",
            "Get the official files, or set dataset.trust_files=true.",
        )
    images = [_parse(batches[name]) for name in CIFAR10_BATCHES]
    if differing:
        warn_unverified("CIFAR-10", differing)
    train = Images(np.concatenate([part.x for part in images[:-1]]), np.concatenate([part.y for part in images[:-1]]))
    return Source(train, images[-1], CIFAR10_NAMES, verified=not differing)


def _parse(batch: Member) -> Images:
    path = str(batch.path)
    content = load_arrays(batch.content, path)
    fields = content if isinstance(content, dict) else {}
    # Bytes in the official pickles of Python 2, texts where someone wrote them anew.
    data, labels = (fields.get(key.encode(), fields.get(key)) for key in ("data", "labels"))
    if not (
        isinstance(data, np.ndarray)
        and isinstance(labels, list | np.ndarray)
        and data.dtype == np.uint8
        and data.shape == (len(labels), 3072)
        and all(isinstance(label, int | np.integer) and 0 <= label < len(CIFAR10_NAMES) for label in labels)
    ):
        raise UserError(
            path,
            sorted(str(key) for key in fields),
            "is what the batch holds, or its arrays have another shape",
            "a CIFAR-10 batch has 'data', uint8 (N, 3072), and 'labels', N numbers in 0..9",
            "Get the official file.",
        )
    return Images(data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64))
