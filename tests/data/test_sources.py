import gzip
import hashlib
import logging
import pickle
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from amc_lightning.data import cifar, sources
from amc_lightning.data import svhn as svhn_module
from amc_lightning.data.sources import cifar10, digits, folder, mnist, svhn, svhn_extra
from amc_lightning.errors import UserError
from tests.data import official_files as official


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def md5(content):
    return hashlib.md5(content).hexdigest()


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits(tmp_path):
    source = digits(tmp_path)
    assert source.train.x.shape == (1797, 1, 16, 16)
    assert source.train.x.dtype == np.uint8
    assert (source.train.x.min(), source.train.x.max()) == (0, 255)
    assert np.bincount(source.train.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert source.test is None
    assert source.verified
    from sklearn.datasets import load_digits

    blocks = source.train.x[:, 0].reshape(-1, 8, 2, 8, 2).mean((2, 4)) / 255
    assert np.corrcoef(blocks.ravel(), load_digits().images.ravel())[0, 1] > 0.98  # the ink stays where it is


# --- MNIST -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "MNIST/raw", "mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_reads_both_forms_and_marks_what_is_not_official(place, zipped, tmp_path, caplog):
    official.write_mnist(tmp_path / place, zipped=zipped)
    source = mnist(tmp_path)
    assert np.array_equal(source.train.x[:, 0], official.numbered_images(120, 28, 28, seed=1))
    assert np.array_equal(source.test.x[:, 0], official.numbered_images(60, 28, 28, seed=2))
    assert source.test.y.tolist() == official.labels_of(60).tolist()
    assert source.train.y.dtype == np.int64
    assert not source.verified
    (warning,) = warnings_of(caplog)
    assert warning.startswith(
        "MNIST: not the official files by checksum, but valid in structure, so used (the results say"
    )
    assert all(name in warning for name in official.MNIST_NAMES)


def test_mnist_checks_the_content_not_the_gzip_wrapping(tmp_path, monkeypatch, caplog):
    official.write_mnist(tmp_path)
    files = []
    for file in sources.MNIST_FILES:
        content = gzip.decompress((tmp_path / file.name).read_bytes())
        (tmp_path / file.name).write_bytes(gzip.compress(content, 1))
        files.append(replace(file, payload_md5=md5(content)))
    monkeypatch.setattr(sources, "MNIST_FILES", tuple(files))
    assert mnist(tmp_path).verified
    assert warnings_of(caplog) == []


def test_mnist_downloads_from_the_second_mirror(server, nowhere, tmp_path, monkeypatch):
    official.write_mnist(server.root)
    files = [
        replace(
            file, urls=(nowhere + file.name, server.url + file.name), md5=md5((server.root / file.name).read_bytes())
        )
        for file in sources.MNIST_FILES
    ]
    monkeypatch.setattr(sources, "MNIST_FILES", tuple(files))
    source = mnist(tmp_path / "cache")
    assert source.verified  # by the sum of the download; the content is not hashed once more
    assert len(source.train) == 120


def test_mnist_offline_lists_the_four_files(tmp_path):
    names = ", ".join(f"{name}.gz" for name in official.MNIST_NAMES)
    with pytest.raises(
        UserError, match=rf"^dataset\.root: '.*' lacks {names}, and downloading failed \(.*Put the files into"
    ):
        mnist(tmp_path)


def break_images(content):
    return b"\x00\x00\x0d\x03" + content[4:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-5], r"images-idx3-ubyte: '94091 bytes' is not the length that its header tells; \(120, 28, 28\) "
         r"takes 94096 bytes\. The file is cut short or damaged: delete it and get it again\.$"),
        (lambda c: c + b"x", r"'94097 bytes' is not the length that its header tells"),
        (break_images, r"images-idx3-ubyte: '00000d03' is not how this file must begin; an idx file of bytes with 3 "
         r"axes begins with 00000803\. Delete it and get the official file\.$"),
        (lambda c: c[:9], r"'00000803' is not how this file must begin"),
        (lambda c: b"", r"'' is not how this file must begin"),
        (lambda c: gzip.compress(c)[:-2000], r"bytes' are not a whole gzip file \(Compressed file ended before the end"
         r"-of-stream marker was reached\); the file is cut short or damaged\. Delete it and get it again\.$"),
        (lambda c: gzip.compress(c)[:500] + b"\xff" * 90_000, r"bytes' are not a whole gzip file \(.*\); the file"),
        (lambda c: gzip.compress(c) + b"tail", r"bytes' are not a whole gzip file \(Not a gzipped file"),
    ],
)  # fmt: skip
def test_mnist_damaged(change, message, tmp_path):
    official.write_mnist(tmp_path, zipped=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        mnist(tmp_path)


def test_mnist_files_of_different_sets(tmp_path):
    official.write_mnist(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + b"\1\2")
    with pytest.raises(
        UserError, match=r"t10k-labels-idx1-ubyte: 2 labels stand beside 60 images; there must be one for each"
    ):
        mnist(tmp_path)


# --- SVHN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "svhn"])
def test_svhn(place, tmp_path, caplog):
    official.write_svhn(tmp_path / place)
    source = svhn(tmp_path)
    assert np.array_equal(source.train.x, official.numbered_images(120, 3, 32, 32, seed=1))
    assert source.train.x.flags.c_contiguous
    assert source.test.y.tolist() == official.labels_of(60).tolist()  # 10 is the digit 0
    assert not source.verified
    assert len(warnings_of(caplog)) == 1


def test_svhn_verified_by_checksum_and_by_download(tmp_path, server, monkeypatch, caplog):
    official.write_svhn(server.root)
    files = tuple(
        replace(file, urls=(server.url + file.name,), md5=md5((server.root / file.name).read_bytes()))
        for file in svhn_module.SVHN_FILES
    )
    monkeypatch.setattr(svhn_module, "SVHN_FILES", files)
    assert svhn(server.root).verified
    assert warnings_of(caplog) == []
    assert svhn(tmp_path / "cache").verified
    licence = "SVHN (Netzer et al. 2011, Stanford) is for non-commercial use only."
    assert warnings_of(caplog) == [f"downloading SVHN into {tmp_path / 'cache'}. {licence}"]


def test_svhn_extra(tmp_path):
    official.write_svhn(tmp_path)
    (tmp_path / "train_32x32.mat").rename(tmp_path / "extra_32x32.mat")
    source = svhn_extra(tmp_path)
    assert len(source.train) == 120
    assert source.test is None


def test_svhn_offline(tmp_path):
    with pytest.raises(UserError, match=r"lacks train_32x32\.mat, test_32x32\.mat, and downloading failed"):
        svhn(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda c: c[: len(c) // 2], lambda c: c[:100], lambda c: b"", lambda c: b"no mat file" * 50,
     lambda c: c[:1000] + bytes(1000) + c[2000:], lambda c: c[:124] + b"\x00\x02IM" + c[128:]],
)  # fmt: skip
def test_svhn_damaged(change, tmp_path):
    official.write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(
        UserError, match=r"test_32x32\.mat: '\d+ bytes' are not a whole MATLAB file \(\w+: .*\); the file is cut"
    ):
        svhn(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"X": np.zeros((32, 32, 3, 4), np.uint8)},
            r"\{'X': \('uint8', \(32, 32, 3, 4\)\)\} is what the file holds; an SVHN",
        ),
        (
            {"X": np.zeros((4, 32, 32, 3), np.uint8), "y": np.ones((4, 1))},
            r".* is what the file holds; an SVHN file holds X, ",
        ),
        (
            {"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))},
            r".*'float64', \(32, 32, 3, 4\).* is what the file holds",
        ),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((3, 1))}, r".*\(3, 1\)\)\} is what the file holds"),
        (
            {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [11]])},
            r"\[0, 11\] are labels out of range; SVHN",
        ),
    ],
)
def test_svhn_not_in_the_official_layout(content, message, tmp_path):
    official.write_svhn(tmp_path)
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(UserError, match=rf"train_32x32\.mat: {message}"):
        svhn(tmp_path)


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def known_batches(tmp_path, monkeypatch):
    """Small batches in ``tmp_path/made``, whose sums count as the official ones."""
    made = official.write_cifar(tmp_path / "made")
    sums = {name: md5((made / name).read_bytes()) for name in official.BATCH_NAMES}
    monkeypatch.setattr(cifar, "CIFAR10_BATCHES", sums)
    return made


def test_cifar10_order_of_batches_and_pixels(known_batches, caplog):
    source = cifar10(known_batches.parent)
    assert source.verified
    assert len(source.train) == 300
    expected = np.concatenate([official.numbered_images(60, 3072, seed=seed) for seed in range(5)])
    assert np.array_equal(source.train.x.reshape(300, 3072), expected)  # channel, row, column
    assert source.train.x.shape[1:] == (3, 32, 32)
    assert np.array_equal(source.test.x.reshape(60, 3072), official.numbered_images(60, 3072, seed=5))
    assert source.class_names[6] == "frog"
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("place", ["cifar-10-batches-py", ".", "cifar10/cifar-10-batches-py"])
def test_cifar10_is_found_in_usual_places(place, known_batches, tmp_path):
    (tmp_path / "root" / place).mkdir(parents=True, exist_ok=True)
    for name in official.BATCH_NAMES:
        (tmp_path / "root" / place / name).write_bytes((known_batches / name).read_bytes())
    assert cifar10(tmp_path / "root").verified


def test_cifar10_from_the_archive_in_place(known_batches, tmp_path):
    (tmp_path / "root").mkdir()
    official.pack_cifar(tmp_path / "root", known_batches)
    assert cifar10(tmp_path / "root").verified
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["cifar-10-python.tar.gz"]  # nothing is extracted


def test_cifar10_downloads_the_archive(known_batches, server, tmp_path, monkeypatch):
    archive = official.pack_cifar(server.root, known_batches)
    file = replace(cifar.CIFAR10_ARCHIVE, urls=(server.url + archive.name,), md5=md5(archive.read_bytes()))
    monkeypatch.setattr(cifar, "CIFAR10_ARCHIVE", file)
    assert cifar10(tmp_path / "cache").verified


def test_cifar10_unofficial_needs_trust(tmp_path, caplog):
    made = official.write_cifar(tmp_path)
    with pytest.raises(
        UserError,
        match=rf"^dataset\.trust_files: False and {made}/data_batch_1, .*test_batch differ from the official CIFAR-10 "
        r"by checksum; pickles that are not the official ones are not opened unless you say that you trust them\. Get "
        r"the official files, or set dataset\.trust_files=true\.$",
    ):
        cifar10(tmp_path)
    source = cifar10(tmp_path, trust_files=True)
    assert not source.verified
    assert len(warnings_of(caplog)) == 1


def test_cifar10_nothing_is_unpickled_before_every_sum_is_known(known_batches, monkeypatch):
    def never(content, name):
        raise AssertionError(f"{name} was opened")

    monkeypatch.setattr(cifar, "load_arrays", never)
    path = known_batches / "test_batch"  # the last one
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"^dataset\.trust_files: False and \S+/test_batch differ from the official"):
        cifar10(known_batches.parent)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_cifar10_hostile_pickle_is_refused_although_trusted(tmp_path):
    made = official.write_cifar(tmp_path)
    hostile = {**official.cifar_batch(60, 0), b"more": Touch(tmp_path / "ran")}
    (made / "data_batch_3").write_bytes(pickle.dumps(hostile, protocol=2))
    with pytest.raises(
        UserError, match=r"data_batch_3: '(_?io|__builtin__)\.open' is named in this pickle and was not loaded"
    ):
        cifar10(tmp_path, trust_files=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_written_anew_with_text_keys(protocol, tmp_path):
    made = official.write_cifar(tmp_path)
    batch = {"data": official.numbered_images(8, 3072), "labels": np.arange(8)}
    (made / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
    assert len(cifar10(tmp_path, trust_files=True).train) == 4 * 60 + 8


@pytest.mark.parametrize(
    "content",
    [
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((2, 3072)), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]},
        [1, 2],
    ],
)
def test_cifar10_other_content(content, tmp_path):
    made = official.write_cifar(tmp_path)
    (made / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(
        UserError, match=r"data_batch_2: \[.*\] is what the batch holds, or its arrays have another shape; a CI"
    ):
        cifar10(tmp_path, trust_files=True)


def test_cifar10_truncated_batch_and_archive(tmp_path, known_batches):
    archive = official.pack_cifar(tmp_path, known_batches)
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(
        UserError, match=r"cifar-10-python\.tar\.gz: '\d+ bytes' are not a whole \.tar\.gz file \(.*\); the file"
    ):
        cifar10(tmp_path)
    path = known_batches / "data_batch_4"
    path.write_bytes(path.read_bytes()[:999])
    with pytest.raises(UserError, match=r"data_batch_4: '999 bytes' are not a whole pickle of arrays"):
        cifar10(known_batches.parent, trust_files=True)


def test_cifar10_archive_without_batches(tmp_path):
    (tmp_path / "evil").write_bytes(b"x")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "evil", arcname="../../data_batch_1")
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(
        UserError, match=r"\['data_batch_1', .*'test_batch'\] are not in the archive's folder cifar-10-batches-py"
    ):
        cifar10(tmp_path)


def test_cifar10_offline(tmp_path):
    with pytest.raises(UserError, match=r"lacks cifar-10-python\.tar\.gz, and downloading failed .*; get http"):
        cifar10(tmp_path)


# --- folder ----------------------------------------------------------------------------------------------------------


def test_folder_without_split_is_divided_80_20_by_class(tmp_path):
    official.write_folder(tmp_path, ("dog", "cat", "emu"), 10)
    source = folder(tmp_path, size=[12, 12])
    assert source.class_names == ("cat", "dog", "emu")
    assert np.bincount(source.train.y).tolist() == [8, 8, 8]
    assert np.bincount(source.test.y).tolist() == [2, 2, 2]
    colour = {0: 40, 1: 0, 2: 80}  # cat was written second
    for images in (source.train, source.test):
        assert [colour[y] for y in images.y] == images.x[:, 0, 0, 0].tolist()
    everything = np.concatenate([source.train.x, source.test.x]).reshape(30, -1)
    assert len(np.unique(everything, axis=0)) == 30
    again, other = folder(tmp_path, size=[12, 12]), folder(tmp_path, size=[12, 12], split_seed=1)
    assert np.array_equal(again.test.x, source.test.x)
    assert not np.array_equal(other.test.x, source.test.x)


def test_folder_with_train_and_test(tmp_path):
    official.write_folder(tmp_path / "train", ("a", "b"), 7, suffix=".BMP")
    official.write_folder(tmp_path / "test", ("a", "b"), 3)
    (tmp_path / "train" / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    source = folder(tmp_path, size=(6, 4), channels=1)
    assert source.train.x.shape == (14, 1, 6, 4)
    assert source.test.x.shape == (6, 1, 6, 4)


def test_folder_resize_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(stripes).save(tmp_path / name / f"{i}.png")
    x = folder(tmp_path, size=[16, 16]).train.x
    assert np.abs(x[..., 2:-2, 2:-2].astype(int) - 127).max() <= 3  # not 0 or 255, as picking pixels would give


def test_folder_says_what_it_ignores(tmp_path, caplog):
    official.write_folder(tmp_path, ("a", "b"), 5)
    (tmp_path / "a" / "notes.txt").write_text("x")
    folder(tmp_path, size=[8, 8])
    assert warnings_of(caplog) == [f"{tmp_path}: 1 files are ignored, because their names do not end as images' do"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:60]), r"a/000\.png: '60 bytes' are not a whole image \(.*\); the file "
         r"is cut short, damaged or no image\. Remove or replace it\.$"),
        (lambda p: p.write_bytes(b"text"), r"a/000\.png: '4 bytes' are not a whole image \(cannot identify image file"),
        (lambda p: p.write_bytes(b""), r"a/000\.png: '0 bytes' are not a whole image"),
        (lambda p: Image.fromarray(np.zeros((4, 4), np.uint16)).save(p), r"a/000\.png: 'I;16' is a kind of pixel"),
    ],
)  # fmt: skip
def test_folder_damaged_image(make, message, tmp_path):
    official.write_folder(tmp_path, ("a", "b"), 5, size=32)
    make(tmp_path / "a" / "000.png")
    with pytest.raises(UserError, match=message):
        folder(tmp_path, size=[8, 8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"size": None},
            r"^dataset\.size: None is not a height and a width; two numbers of pixels are needed, such as \[32, ",
        ),
        ({"size": [8]}, r"^dataset\.size: \[8\] is not a height and a width"),
        ({"size": [8, 0]}, r"^dataset\.size: \[8, 0\] is not a height and a width"),
        ({"size": [8, 8], "channels": 4}, r"^dataset\.source\.channels: 4 is not a kind of image; 1 is grey, 3 is RGB"),
        (
            {"size": [8, 8], "root": "nowhere"},
            r"^dataset\.root: '.*nowhere' is not a folder; it must hold one folder per cl",
        ),
        (
            {"size": [8, 8], "root": "a"},
            r"a: \(\) are the folders in it; at least two classes are needed, one folder each",
        ),
    ],
)
def test_folder_bad_settings(arguments, message, tmp_path):
    official.write_folder(tmp_path, ("a", "b"), 5)
    root = tmp_path / arguments.pop("root", ".")
    with pytest.raises(UserError, match=message):
        folder(root, **arguments)


def test_folder_bad_folders(tmp_path):
    official.write_folder(tmp_path / "train", ("a", "b"), 5)
    official.write_folder(tmp_path / "test", ("a", "c"), 5)
    with pytest.raises(
        UserError, match=r"test: \('a', 'c'\) are its classes; they must be those of train: a, b\. Give both"
    ):
        folder(tmp_path, size=[8, 8])
    (tmp_path / "other" / "x").mkdir(parents=True)
    official.write_folder(tmp_path / "other", ("y",), 5)
    with pytest.raises(
        UserError, match=r"other/x: 0 images were found in this folder; files ending in \.bmp, .* are read\."
    ):
        folder(tmp_path / "other", size=[8, 8])
