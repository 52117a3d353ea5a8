"""Read CIFAR-10 from its official Python batches, without ever running an unverified pickle."""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amc_lightning.data.files import RemoteFile, fetch, locate, md5, warn_unverified
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
_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_LICENCE = "CIFAR-10 (Krizhevsky 2009) comes without a stated licence; its images were gathered for research."
_LARGEST_BATCH = 64 * 2**20  # a batch has 31 MB; more is no CIFAR-10


@dataclass(frozen=True)
class _Batch:
    path: Path
    content: bytes


def cifar10(root: Path, *, trust_files: bool = False, split_seed: int = 0) -> Source:
    """Read CIFAR-10, 50,000 training and 10,000 test images, from ``cifar-10-batches-py/`` or the archive it comes in.

    The archive is read in place; nothing is extracted. Every batch has the official MD5 sum before it is unpickled;
    others are read only with ``trust_files``, and then as now only as arrays and plain containers.

    Raises:
        UserError: if files are missing and cannot be downloaded, are damaged, are not official while ``trust_files`` is
            false, or name anything but arrays and plain containers.
    """
    batches = _from_folder(root) or _from_archive(root)
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
    return Source(train, images[-1], _CLASS_NAMES, verified=not differing)


def _from_folder(root: Path) -> dict[str, _Batch] | None:
    """Return the batches of the first folder that holds all of them."""
    for place in (".", *_PLACES):
        for folder in (root / place, root / place / _FOLDER):
            if all((folder / name).is_file() for name in CIFAR10_BATCHES):
                return {name: _Batch(folder / name, (folder / name).read_bytes()) for name in CIFAR10_BATCHES}
    return None


def _from_archive(root: Path) -> dict[str, _Batch]:
    found = (
        locate(root, CIFAR10_ARCHIVE, _PLACES)
        or fetch(root, [CIFAR10_ARCHIVE], dataset="CIFAR-10", folders=_PLACES, licence=_LICENCE)[0]
    )
    batches = {}
    try:
        with tarfile.open(found.path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder == _FOLDER and name in CIFAR10_BATCHES and member.isreg() and member.size < _LARGEST_BATCH:
                    stream = archive.extractfile(member)
                    assert stream is not None  # it is a regular file
                    batches[name] = _Batch(found.path / member.name, stream.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            str(found.path),
            f"{found.path.stat().st_size} bytes",
            f"are not a whole .tar.gz file ({error})",
            "the file is cut short or damaged",
            "Delete it and get it again.",
        ) from error
    missing = [name for name in CIFAR10_BATCHES if name not in batches]
    if missing:
        raise UserError(
            str(found.path),
            missing,
            f"are not in the archive's folder {_FOLDER}/",
            "the official archive holds five data_batch_* and test_batch",
            "Delete it and get it again.",
        )
    return batches


def _parse(batch: _Batch) -> Images:
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
        and all(isinstance(label, int | np.integer) and 0 <= label < len(_CLASS_NAMES) for label in labels)
    ):
        raise UserError(
            path,
            sorted(str(key) for key in fields),
            "is what the batch holds, or its arrays have another shape",
            "a CIFAR-10 batch has 'data', uint8 (N, 3072), and 'labels', N numbers in 0..9",
            "Get the official file.",
        )
    return Images(data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64))
