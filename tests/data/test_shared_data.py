"""The readers on real files; the folder is named by AMC_SHARED_DATA."""

import logging
import runpy
import shutil

import numpy as np
import pytest

from amc_lightning.data import ImageData, ProxyData
from amc_lightning.data.proxy import deformed_digits
from amc_lightning.data.sources import cifar10, mnist, svhn
from amc_lightning.errors import UserError

pytestmark = pytest.mark.shared_data


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ("standard", {"train": 54_210, "validation": 2670, "attack": 1870, "test": 4380}),
        ("official_code", {"train": 54_210, "validation": 3000, "attack": 1770, "test": 4150}),
    ],
)
def test_mnist_is_the_official_one_and_splits_as_settled(shared_data, rule, counts, caplog):
    data = ImageData(
        name="mnist", source=mnist, root=shared_data, split_rule=rule, shape=[1, 28, 28], num_classes=10
    ).prepare()
    assert data.verified
    assert data.counts == counts
    assert data.counts_read == {"train": 60_000, "test": 10_000}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for images in data.splits.values():
        assert len(set(np.bincount(images.y))) == 1


def test_deformed_mnist_digits_are_new_and_balanced(shared_data):
    data = ImageData(name="mnist", source=mnist, root=shared_data, limit=100)
    proxy = ProxyData(source=deformed_digits, data=data, limit=2000).prepare()
    assert proxy.counts == {"read": 2000, "overlapping": 0, "repeated": 0, "kept": 2000}
    assert np.bincount(proxy.images("first").y).tolist() == [100] * 10
    assert len(data.pool) == 54_210


def test_mnist_pixels(shared_data):
    source = mnist(shared_data / "mnist")
    assert round(source.train.x.mean() / 255, 4) == 0.1307
    assert round(source.train.x.std() / 255, 4) == 0.3081
    assert source.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_mnist_cut_short(shared_data, tmp_path):
    for path in (shared_data / "mnist").glob("*.gz"):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:1_000_000] if "train-images" in path.name else content)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: '1000000 bytes' are not a whole gzip file"):
        mnist(tmp_path)


def test_svhn_sample(shared_data, tmp_path, caplog):
    for name in ("train_32x32.mat", "test_32x32.mat"):
        shutil.copy(shared_data / "svhn_sample" / "train_32x32.mat", tmp_path / name)
    source = svhn(tmp_path)
    assert source.train.x.shape == (55, 3, 32, 32)
    assert source.train.y[:9].tolist() == [1, 9, 2, 3, 2, 5, 9, 3, 3]
    assert (source.train.y == 0).any()
    assert not source.verified
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    with pytest.raises(UserError, match=r"^dataset, class '\d': \d test images would be split into"):
        ImageData(name="svhn", source=svhn, root=tmp_path).prepare()


@pytest.mark.slow
def test_cifar10_jpeg_only_when_trusted(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["unpack.py", str(tmp_path)])
    runpy.run_path(str(shared_data / "cifar10_jpeg" / "unpack.py"), run_name="__main__")
    with pytest.raises(
        UserError, match=r"^dataset\.trust_files: False and .*data_batch_1, .* differ from the official CIFAR"
    ):
        cifar10(tmp_path)
    source = cifar10(tmp_path, trust_files=True)
    assert not source.verified
    assert np.bincount(source.train.y).tolist() == [5000] * 10
    assert np.bincount(source.test.y).tolist() == [1000] * 10
    assert source.train.x.shape == (50_000, 3, 32, 32)
    means = source.train.x.mean((0, 2, 3), dtype=np.float64) / 255
    assert np.allclose(means, [0.4913, 0.4821, 0.4465], atol=1e-4)
