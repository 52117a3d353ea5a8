import hashlib
import logging
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from amc_lightning.data import stl10 as module
from amc_lightning.data.cifar import CIFAR10_NAMES
from amc_lightning.data.stl10 import stl10
from amc_lightning.errors import UserError
from tests.data import official_files as official

LABELS = [0, 2, 1, 3, 4, 5, 7, 8, 9]  # CIFAR-10's numbers in STL-10's order, without the monkey
STL10_LABELS = [1, 2, 3, 4, 5, 6, 7, 9, 10]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("place", ["", "stl10", "STL10"])
@pytest.mark.parametrize("packed", [False, True])
def test_classes_order_and_orientation(place, packed, tmp_path, caplog):
    root = tmp_path / place
    folder = official.write_stl10(root, train=2, test=1)
    if packed:
        official.pack_stl10(root, folder)
        for path in folder.iterdir():
            path.unlink()
    source = stl10(tmp_path)
    assert source.train.x.shape == (27, 3, 32, 32)
    assert source.train.x.dtype == np.uint8
    assert source.train.y.dtype == np.int64
    assert source.train.y.tolist() == LABELS * 3  # training images, then test images; no monkeys
    assert source.test is None
    assert source.class_names == CIFAR10_NAMES
    rows = 2 * (3 * np.arange(32) + 1)[:, None]  # the middle of three rows, as the filter keeps a straight slope
    columns = (3 * np.arange(32) + 1)[None]
    inner = slice(2, -2)
    for x, label, number in zip(source.train.x, STL10_LABELS * 3, np.repeat([0, 1, 2], 9), strict=True):
        assert np.abs(x[0].astype(int) - rows)[inner].max() <= 1  # red grows downwards
        assert np.abs(x[1].astype(int) - columns)[:, inner].max() <= 1  # green grows to the right
        assert (x[2] == 20 * label + number).all()
    unverified, frogs = warnings_of(caplog)
    assert not source.verified
    assert unverified.startswith("STL-10: not the official files by checksum, but valid in structure, so used")
    assert frogs.startswith("no frogs: the proxy data have STL-10's nine classes only")


def test_the_official_files_are_verified(tmp_path, monkeypatch, caplog):
    folder = official.write_stl10(tmp_path)
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in module.STL10_FILES}
    monkeypatch.setattr(module, "STL10_FILES", sums)
    assert stl10(tmp_path).verified
    assert len(warnings_of(caplog)) == 1  # no frogs


def test_download(tmp_path, server, monkeypatch, caplog):
    path = official.pack_stl10(server.root, official.write_stl10(tmp_path / "made"))
    archive = replace(
        module.STL10_ARCHIVE, urls=(server.url + path.name,), md5=hashlib.md5(path.read_bytes()).hexdigest()
    )
    monkeypatch.setattr(module, "STL10_ARCHIVE", archive)
    assert len(stl10(tmp_path / "cache").train) == 27
    assert warnings_of(caplog)[0].endswith("its images are from ImageNet, for non-commercial research only.")


def test_offline(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^dataset\.proxy\.root: '.*' lacks stl10_binary\.tar\.gz, and downloading failed .*or set dataset\.prox",
    ):
        stl10(tmp_path)


def test_frogs_from_a_folder_and_folders_below(tmp_path, caplog):
    official.write_stl10(tmp_path, train=1, test=1)
    frogs = tmp_path / "frogs"
    (frogs / "n01641577").mkdir(parents=True)
    for path, size in ((frogs / "a.png", (40, 50)), (frogs / "n01641577" / "b.JPEG", (500, 375))):
        Image.new("RGB", size, (10, 200, 30)).save(path)
    (frogs / "notes.txt").write_text("x")
    source = stl10(tmp_path, frogs=frogs)
    assert source.train.y.tolist() == [*LABELS, *LABELS, 6, 6]
    assert np.abs(source.train.x[-2:].astype(int) - np.array([10, 200, 30])[:, None, None]).max() <= 3  # JPEG
    assert not any("no frogs" in warning for warning in warnings_of(caplog))
    assert f"{frogs}: 1 files are ignored, because their names do not end as images' do" in warnings_of(caplog)


def test_frogs_that_are_not_there(tmp_path):
    official.write_stl10(tmp_path)
    with pytest.raises(
        UserError, match=r"^dataset\.proxy\.source\.frogs: '.*nowhere' is not a folder; a folder of images of frogs, or"
    ):
        stl10(tmp_path, frogs=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: 0 images were found in this folder; files ending in \.bmp"):
        stl10(tmp_path, frogs=tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "train_X.bin",
            lambda c: c[:-1],
            r"train_X\.bin: '552959 bytes' are not the images of the 20 labels in train_y\.bin; an image of 3x96x96 "
            r"takes 27648 bytes, a label 1\. One of the two files is cut short or damaged: delete it and get it again",
        ),
        ("test_X.bin", lambda c: c + c, r"test_X\.bin: '552960 bytes' are not the images of the 10 labels"),
        ("test_X.bin", lambda c: b"", r"test_X\.bin: '0 bytes' are not the images of the 10 labels"),
        ("train_y.bin", lambda c: c[:-1], r"train_X\.bin: '552960 bytes' are not the images of the 19 labels"),
        ("test_y.bin", lambda c: b"", r"test_X\.bin: '276480 bytes' are not the images of the 0 labels"),
        (
            "test_y.bin",
            lambda c: b"\0\x0b" + c[2:],
            r"test_y\.bin: \[0, 11\] are labels out of range; STL-10 labels are 1\.\.10\. Get the official file",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged(name, change, message, packed, tmp_path):
    folder = official.write_stl10(tmp_path)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    if packed:
        official.pack_stl10(tmp_path, folder)
        path.unlink()
    with pytest.raises(UserError, match=message):
        stl10(tmp_path)


@pytest.mark.parametrize("change", [lambda c: c[: len(c) // 2], lambda c: c[:20], lambda c: b"", lambda c: b"x" * 999])
def test_damaged_archive(change, tmp_path):
    path = official.pack_stl10(tmp_path, official.write_stl10(tmp_path / "made"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(
        UserError, match=r"stl10_binary\.tar\.gz: '\d+ bytes' are not a whole \.tar\.gz file \(.*\); the file is cut"
    ):
        stl10(tmp_path)


def test_archive_without_a_file(tmp_path):
    folder = official.write_stl10(tmp_path / "made")
    (folder / "test_y.bin").unlink()
    official.pack_stl10(tmp_path, folder)
    with pytest.raises(
        UserError, match=r"tar\.gz: \['test_y\.bin'\] are not in the archive's folder stl10_binary/; the official arch"
    ):
        stl10(tmp_path)


def test_unlabelled_images_behind_the_others_are_not_unpacked(tmp_path, monkeypatch):
    folder = official.write_stl10(tmp_path / "made")
    with tarfile.open(tmp_path / "stl10_binary.tar.gz", "w:gz") as archive:
        for name in module.STL10_FILES:
            archive.add(folder / name, arcname=f"stl10_binary/{name}")
        (tmp_path / "unlabeled_X.bin").write_bytes(np.random.default_rng(0).bytes(3_000_000))
        archive.add(tmp_path / "unlabeled_X.bin", arcname="stl10_binary/unlabeled_X.bin")
    path = tmp_path / "stl10_binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-1_000_000])  # nobody gets there
    assert len(stl10(tmp_path).train) == 27
