"""Write small files in the official layouts: what the readers must read."""

import gzip
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

MNIST_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BATCH_NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def numbered_images(n: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels_of(n: int, *, classes: int = 10) -> NDArray[np.uint8]:
    return (np.arange(n) % classes).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, train: int = 120, test: int = 60, *, zipped: bool = True) -> None:
    root.mkdir(parents=True, exist_ok=True)
    arrays = (
        numbered_images(train, 28, 28, seed=1),
        labels_of(train),
        numbered_images(test, 28, 28, seed=2),
        labels_of(test),
    )
    for name, array in zip(MNIST_NAMES, arrays, strict=True):
        if zipped:
            (root / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (root / name).write_bytes(idx(array))


def write_svhn(root: Path, train: int = 120, test: int = 60) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, n, seed in (("train", train, 1), ("test", test, 2)):
        x = numbered_images(n, 3, 32, 32, seed=seed).transpose(2, 3, 1, 0)
        y = labels_of(n).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": x, "y": np.where(y == 0, 10, y)}, do_compression=True)


def cifar_batch(n: int, seed: int) -> dict[bytes, object]:
    return {b"data": numbered_images(n, 3072, seed=seed), b"labels": labels_of(n).tolist(), b"batch_label": b"x"}


def write_cifar(root: Path, n: int = 60, *, protocol: int = 2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(BATCH_NAMES):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(n, seed), protocol=protocol))
    return folder


def pack_cifar(root: Path, folder: Path) -> Path:
    path = root / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="cifar-10-batches-py")
    return path


def stl10_image(label: int, number: int) -> NDArray[np.uint8]:
    """An image (row, column, channel) whose red grows with the row, green with the column; blue tells which it is."""
    rows, columns = np.indices((96, 96))
    return np.stack([2 * rows, columns, np.full((96, 96), 20 * label + number)], axis=2).astype(np.uint8)


def write_stl10(root: Path, train: int = 2, test: int = 1) -> Path:
    """Write so many images of each class; the official files hold a channel column by column, and labels from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    for part, n, first in (("train", train, 0), ("test", test, train)):
        y = np.tile(np.arange(1, 11), n)
        images = [stl10_image(label, first + i // 10) for i, label in enumerate(y)]
        content = b"".join(image[:, :, c].T.tobytes() for image in images for c in range(3))
        (folder / f"{part}_X.bin").write_bytes(content)
        (folder / f"{part}_y.bin").write_bytes(y.astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(STL10_NAMES))
    return folder


def pack_stl10(root: Path, folder: Path) -> Path:
    path = root / "stl10_binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="stl10_binary")
    return path


def write_folder(root: Path, names: tuple[str, ...], n: int, *, suffix: str = ".png", size: int = 12) -> None:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = np.full((size, size, 3), (40 * k, i, 255 - i), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03}{suffix}")
