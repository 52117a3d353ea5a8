"""Read SVHN's cropped digits from its MATLAB files."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from amc_lightning.data.files import FoundFile, RemoteFile, fetch, warn_unverified
from amc_lightning.data.images import Images, Source
from amc_lightning.errors import UserError

_HOME = "http://ufldl.stanford.edu/housenumbers/"
_FOLDERS = ("svhn", "SVHN")
_LICENCE = "SVHN (Netzer et al. 2011, Stanford) is for non-commercial use only."
_CLASS_NAMES = tuple("0123456789")


def _file(name: str, md5: str) -> RemoteFile:
    return RemoteFile(name, (_HOME + name,), md5)


SVHN_FILES = (
    _file("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    _file("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
)
SVHN_EXTRA_FILE = _file("extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7")


def svhn(root: Path, *, trust_files: bool = False, split_seed: int = 0) -> Source:
    """Read SVHN, 73,257 training and 26,032 test digits of 32x32.

    Raises:
        UserError: if a file is missing and cannot be downloaded, is damaged, or is not laid out as the official one.
    """
    (train, test), verified = _read(root, SVHN_FILES, "dataset.root")
    return Source(train, test, _CLASS_NAMES, verified)


def svhn_extra(root: Path, *, trust_files: bool = False, split_seed: int = 0, key: str = "dataset.root") -> Source:
    """Read SVHN's ``extra`` set, 531,131 digits (1.3 GB), as the training images of a source without a test set.

    ``key`` is the setting that names ``root``, for messages.

    Raises:
        UserError: as ``svhn``.
    """
    (extra,), verified = _read(root, (SVHN_EXTRA_FILE,), key)
    return Source(extra, None, _CLASS_NAMES, verified)


def _read(root: Path, files: tuple[RemoteFile, ...], key: str) -> tuple[list[Images], bool]:
    found = fetch(root, files, dataset="SVHN", folders=_FOLDERS, licence=_LICENCE, key=key)
    differing, images = [], []
    for file, place in zip(files, found, strict=True):
        official, read = read_mat(place, file.md5)
        images.append(read)
        if not official:
            differing.append(place.path)
    if differing:
        warn_unverified("SVHN", differing)
    return images, not differing


def read_mat(found: FoundFile, md5: str) -> tuple[bool, Images]:
    """Return whether a file has this MD5 sum, and its images; label 10, the digit 0, becomes class 0.

    Raises:
        UserError: if the file cannot be read, or does not hold ``X`` (32, 32, 3, N) uint8 and ``y`` (N, 1) in 1..10.
    """
    path = str(found.path)
    with found.path.open("rb") as stream:  # not read into memory: extra has 1.3 GB
        official = found.just_verified or hashlib.file_digest(stream, _md5).hexdigest() == md5
        stream.seek(0)
        try:
            content = loadmat(stream, variable_names=["X", "y"])
        except (
            MatReadError,
            NotImplementedError,
            ValueError,
            TypeError,
            LookupError,
            OSError,
            EOFError,
            zlib.error,
        ) as e:
            raise UserError(
                path,
                f"{found.path.stat().st_size} bytes",
                f"are not a whole MATLAB file ({type(e).__name__}: {e})",
                "the file is cut short or damaged",
                "Delete it and get it again.",
            ) from e
    x, y = content.get("X"), content.get("y")
    if x is None or y is None or x.dtype != np.uint8 or x.shape != (32, 32, 3, np.size(y)):
        raise UserError(
            path,
            {name: (str(a.dtype), a.shape) for name, a in (("X", x), ("y", y)) if a is not None},
            "is what the file holds",
            "an SVHN file holds X, uint8 (32, 32, 3, N), and y, (N, 1)",
            "Get the official file, in the cropped-digits format (format 2).",
        )
    labels = np.asarray(y).ravel().astype(np.int64)
    outside = np.unique(labels[(labels < 1) | (labels > 10)])
    if outside.size:
        raise UserError(
            path,
            outside[:5].tolist(),
            "are labels out of range",
            "SVHN labels are 1..10, 10 for the digit 0",
            "Get the official file.",
        )
    return official, Images(np.ascontiguousarray(x.transpose(3, 2, 0, 1)), labels % 10)


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)
