import hashlib
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from amc_lightning.data import ImageData, Images, ProxyData, Source
from amc_lightning.data import proxy as module
from amc_lightning.data.proxy import PARTS, deformed_digits, folder, stl10, svhn_extra
from amc_lightning.data.sources import cifar10, digits, svhn
from amc_lightning.errors import UserError
from tests.data import official_files as official


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def pixels(number, shape=(1, 1, 2)):
    return np.array([number // 256, number % 256], np.uint8).reshape(shape)


def images_of(numbers, labels):
    return Images(np.stack([pixels(number) for number in numbers]), np.array(labels, np.int64))


def numbers(images):
    return (images.x.reshape(-1, 2).astype(int) @ [256, 1]).tolist()


def target(**changes):
    """Target data of three classes: training images 0..59, test images 10,000..10,059."""

    def source(*, root, trust_files, split_seed):
        y = np.arange(60) % 3
        return Source(images_of(range(60), y), images_of(range(10_000, 10_060), y), ("a", "b", "c"), verified=True)

    return ImageData(**{"name": "toy", "source": source, "shape": [1, 1, 2]} | changes).prepare()


def given(found, labels=None, *, verified=True):
    """A proxy source that has these images, however many are asked for."""

    def source(**arguments):
        y = [-1] * len(found) if labels is None else labels
        return Source(images_of(found, y), None, arguments["class_names"], verified)

    return source


@pytest.fixture(scope="module")
def digits_data():
    return ImageData(name="digits", source=digits, shape=[1, 16, 16], num_classes=10).prepare()


# --- disjointness ----------------------------------------------------------------------------------------------------


def test_images_of_every_split_of_the_target_are_dropped_counted_and_told(caplog):
    data = target(limit=6)
    cut = sorted(set(numbers(data.pool)) - set(numbers(data.splits["train"])))
    assert len(cut) == 54
    planted = [cut[0], *(numbers(images)[0] for images in data.splits.values())]
    found = [500, *planted, 501, 502, 500, planted[2], 503, 502]
    proxy = ProxyData(source=given(found), data=data).prepare()
    assert numbers(proxy.images()) == [500, 501, 502, 503]
    assert proxy.counts == {"read": 12, "overlapping": 6, "repeated": 2, "kept": 4}
    assert warnings_of(caplog) == ["6 of 12 proxy images are the target's own, and dropped"]


def test_no_overlap_no_warning(caplog):
    proxy = ProxyData(source=given([500, 501]), data=target()).prepare()
    assert proxy.counts == {"read": 2, "overlapping": 0, "repeated": 0, "kept": 2}
    assert warnings_of(caplog) == []


def test_every_pixel_counts():
    base = target()
    proxy = ProxyData(source=given([numbers(base.pool)[5] + 256, 60, 61]), data=base)
    assert len(proxy) == 3


@pytest.mark.parametrize("found", [[0, 1, 2], [0, 500, 500], [3, 501]])
def test_nothing_left(found):
    with pytest.raises(
        UserError,
        match=r"^dataset\.proxy: [01] images are left of \d, after dropping \d of the target's own and copies; a proxy",
    ):
        ProxyData(source=given(found), data=target()).prepare()


def test_planted_copies_in_a_folder_are_dropped(digits_data, tmp_path, caplog):
    (tmp_path / "new").mkdir()
    rng = np.random.default_rng(0)
    own = [images.x[0, 0] for images in digits_data.splits.values()]
    for i, x in enumerate([*own, *rng.integers(0, 256, (10, 16, 16), np.uint8)]):
        Image.fromarray(x).save(tmp_path / "new" / f"{i:02}.png")
    proxy = ProxyData(source=folder, data=digits_data, root=tmp_path / "new").prepare()
    assert proxy.counts == {"read": 14, "overlapping": 4, "repeated": 0, "kept": 10}
    assert proxy.images().x.shape == (10, 1, 16, 16)
    assert proxy.images().y.tolist() == [-1] * 10
    assert len(warnings_of(caplog)) == 1


# --- halves, seeds, limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, [0, 1, 2] * 7])
def test_halves_are_disjoint_and_cover_everything(labels):
    proxy = ProxyData(source=given(range(500, 521), labels), data=target())
    everything, first, second = (numbers(proxy.images(part)) for part in PARTS)
    assert (len(first), len(second)) == (11, 10)
    assert sorted(first + second) == everything == list(range(500, 521))
    assert first == sorted(first)
    if labels:
        assert np.bincount(proxy.images("second").y).min() >= 3  # classes in nearly their shares


def test_halves_depend_on_the_seed():
    def halves(seed):
        proxy = ProxyData(source=given(range(500, 540)), data=target(), seed=seed)
        return numbers(proxy.images("first")), numbers(proxy.images("second"))

    assert halves(0) == halves(0)
    assert halves(0) != halves(1)


def test_limit_balances_known_classes():
    labels = [0] * 20 + [1] * 12 + [2] * 8
    proxy = ProxyData(source=given(range(500, 540), labels), data=target(), limit=19)
    assert np.bincount(proxy.images().y).tolist() == [6, 6, 6]
    assert proxy.counts == {"read": 40, "overlapping": 0, "repeated": 0, "kept": 18}
    some = ProxyData(source=given(range(500, 532), labels[:32]), data=target(), limit=20)  # no class c
    assert np.bincount(some.images().y).tolist() == [10, 10]
    short = ProxyData(source=given(range(500, 540), labels), data=target(), limit=36)
    assert np.bincount(short.images().y).tolist() == [12, 12, 8]
    free = ProxyData(source=given(range(500, 540), labels), data=target(balanced=False), limit=19)
    assert len(free) == 19
    few = ProxyData(source=given(range(500, 540), labels), data=target(), limit=2)
    assert len(few) == 2
    unknown = ProxyData(source=given(range(500, 540)), data=target(), limit=19)
    assert len(unknown) == 19
    assert numbers(unknown.images()) == sorted(numbers(unknown.images()))


def test_fewer_than_the_limit_are_all_kept():
    labels = [0] * 20 + [1] * 12 + [2] * 8
    assert len(ProxyData(source=given(range(500, 540), labels), data=target(), limit=60)) == 40
    assert len(ProxyData(source=given(range(500, 540), labels), data=target())) == 40


def test_the_limit_draws_with_the_seed():
    def kept(seed):
        return numbers(ProxyData(source=given(range(500, 600)), data=target(), limit=30, seed=seed).images())

    assert kept(3) == kept(3)
    assert kept(3) != kept(4)


@pytest.mark.parametrize("limit", [1, 0, -5])
def test_limit_too_small(limit):
    with pytest.raises(
        UserError, match=rf"^dataset\.proxy\.limit: {limit} is too few images to train a proxy on; at least 2, or null"
    ):
        ProxyData(source=given([1]), data=target(), limit=limit)


def test_a_generator_is_asked_for_more_where_some_had_to_go():
    asked = []

    def source(*, count, class_names, **_):
        asked.append(count)
        return Source(images_of(range(50, 50 + count), np.arange(count) % 3), None, class_names, verified=True)

    proxy = ProxyData(source=source, data=target(), limit=30).prepare()
    assert np.bincount(proxy.images().y).tolist() == [10, 10, 10]
    assert asked[0] == 30
    assert len(asked) == 2
    assert proxy.counts == {"read": asked[1], "overlapping": 10, "repeated": 0, "kept": 30}


def test_a_generator_that_repeats_itself_is_not_asked_for_ever():
    asked = []

    def source(*, count, class_names, **_):
        asked.append(count)
        return Source(images_of([500 + i % 5 for i in range(count)], [-1] * count), None, class_names, verified=True)

    proxy = ProxyData(source=source, data=target(), limit=30).prepare()
    assert len(proxy) == 5
    assert len(asked) <= 5


# --- what it serves --------------------------------------------------------------------------------------------------


def test_read_once_and_only_when_asked():
    calls = []

    def source(**arguments):
        calls.append(arguments)
        return given(range(500, 510), verified=False)(**arguments)

    data = ImageData(name="toy", source=target().source)
    proxy = ProxyData(source=source, data=data, root="~/x", trust_files=True, seed=7, device="cpu")
    assert calls == []
    assert data.splits == {}
    assert proxy.prepare() is proxy
    proxy.images()
    proxy.fingerprint_of("first")
    assert len(calls) == 1
    assert set(calls[0]) == {"root", "trust_files", "seed", "count", "target", "class_names", "device"}
    assert "~" not in str(calls[0]["root"])
    assert calls[0]["trust_files"] is True
    assert calls[0]["seed"] == 7
    assert calls[0]["count"] is None
    assert calls[0]["target"] is data.pool
    assert calls[0]["class_names"] == ("a", "b", "c")
    assert calls[0]["device"] == torch.device("cpu")
    assert proxy.verified is False


def test_the_pool_is_the_training_images_before_the_limit():
    whole, cut = target(), target(limit=9)
    assert cut.counts["train"] == 9
    assert numbers(cut.pool) == numbers(whole.pool) == numbers(whole.splits["train"])
    assert numbers(target(balanced=False).pool) == list(range(60))


def test_tensors():
    proxy = ProxyData(source=given(range(500, 509), [0, 1, 2] * 3), data=target())
    for part in PARTS:
        x, y = proxy.tensors(part)
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        assert np.array_equal(x.numpy(), proxy.images(part).x)
        assert np.array_equal(y.numpy(), proxy.images(part).y)
        assert proxy.tensors(part, "cpu")[0] is x
    assert proxy.tensors("all", "meta")[0].device.type == "meta"
    assert ProxyData(source=given([500, 501]), data=target(), device="meta").tensors()[0].device.type == "meta"


def test_fingerprints_are_of_the_images_of_a_part_alone():
    def prints(labels=None, found=range(500, 510), **changes):
        proxy = ProxyData(source=given(found, labels), data=target(), **changes)
        return [proxy.fingerprint_of(part) for part in PARTS]

    base = prints()
    assert len(set(base)) == 3
    assert all(len(text) == 64 for text in base)
    assert prints() == base
    assert prints(labels=[0] * 10) == base
    assert prints(seed=1)[0] == base[0]
    assert prints(seed=1)[1] != base[1]
    assert prints(found=range(501, 511))[0] != base[0]
    x = ProxyData(source=given(range(500, 510)), data=target()).images().x
    assert base[0] == hashlib.sha256(b"(10, 1, 1, 2)" + x.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            Images(np.zeros((4, 3, 1, 2), np.uint8), np.zeros(4, np.int64)),
            r"^dataset\.proxy\.source: \[3, 1, 2\] is the shape of the proxy's images; those of toy are \[1, 1, 2\] \(",
        ),
        (
            images_of(range(500, 504), [0, 1, 2, 3]),
            r"^dataset\.proxy\.source: \[3\] are labels out of range; 3 classes",
        ),
        (images_of(range(500, 504), [0, 1, 2, -2]), r"^dataset\.proxy\.source: \[-2\] are labels out of range"),
        (
            Images(np.full((4, 1, 1, 2), 3.0), np.zeros(4, np.int64)),
            r"^dataset\.proxy\.source: \(3\.0, 3\.0\) is the range of the pixels",
        ),
        (
            Images(np.zeros((0, 1, 1, 2), np.uint8), np.zeros(0, np.int64)),
            r"^dataset\.proxy\.source: \(0, 1, 1, 2\) is",
        ),
    ],
)
def test_images_that_do_not_fit(images, message):
    with pytest.raises(UserError, match=message):
        ProxyData(
            source=lambda **_: Source(images, None, ("a", "b", "c"), verified=True), data=target(), limit=4
        ).prepare()


# --- the sources -----------------------------------------------------------------------------------------------------


def test_deformed_digits(digits_data):
    proxy = ProxyData(source=deformed_digits, data=digits_data, limit=300).prepare()
    assert proxy.verified
    assert proxy.counts == {"read": 300, "overlapping": 0, "repeated": 0, "kept": 300}
    for part, n in zip(PARTS, (30, 15, 15), strict=True):
        assert np.bincount(proxy.images(part).y).tolist() == [n] * 10
    again = ProxyData(source=deformed_digits, data=digits_data, limit=300)
    other = ProxyData(source=deformed_digits, data=digits_data, limit=300, seed=1)
    assert again.fingerprint_of("all") == proxy.fingerprint_of("all") != other.fingerprint_of("all")


def test_deformed_digits_by_default_as_many_as_training_images(digits_data):
    assert len(ProxyData(source=deformed_digits, data=digits_data)) == 1040


def test_digits_that_are_not_deformed_are_the_targets_own(digits_data):
    def undeformed(root, **given):
        return deformed_digits(root, **given, displacement=0, rotation=0, scale=0, thickness=0)

    with pytest.raises(UserError, match=r"^dataset\.proxy: 0 images are left of \d+, after dropping \d+ of the target"):
        ProxyData(source=undeformed, data=digits_data, limit=50).prepare()


def test_svhn_extra(tmp_path):
    official.write_svhn(tmp_path)
    data = ImageData(name="svhn", source=svhn, root=tmp_path).prepare()
    official.write_svhn(tmp_path / "more", train=200)
    (tmp_path / "more" / "train_32x32.mat").rename(tmp_path / "extra_32x32.mat")
    proxy = ProxyData(source=svhn_extra, data=data, root=tmp_path, limit=50).prepare()
    assert np.bincount(proxy.images().y).tolist() == [5] * 10
    assert not proxy.verified
    (tmp_path / "extra_32x32.mat").write_bytes((tmp_path / "train_32x32.mat").read_bytes())
    with pytest.raises(
        UserError, match=r"^dataset\.proxy: 0 images are left of 120, after dropping 120 of the target's"
    ):
        ProxyData(source=svhn_extra, data=data, root=tmp_path).prepare()


@pytest.mark.parametrize(("source", "name"), [(svhn_extra, "svhn"), (stl10, "stl10")])
def test_files_are_by_default_in_the_cache_folder(source, name, monkeypatch, tmp_path):
    monkeypatch.setattr(module.pooch, "os_cache", lambda project: tmp_path / project)
    given = {"trust_files": False, "seed": 0, "count": None, "target": None, "class_names": (), "device": "cpu"}
    with pytest.raises(UserError, match=rf"^dataset\.proxy\.root: '{tmp_path}/amc_lightning/{name}' lacks"):
        source(None, **given)


def test_stl10_beside_cifar10(tmp_path):
    official.write_cifar(tmp_path)
    official.write_stl10(tmp_path)
    data = ImageData(name="cifar10", source=cifar10, root=tmp_path, trust_files=True).prepare()
    proxy = ProxyData(source=stl10, data=data, root=tmp_path).prepare()
    assert proxy.counts == {"read": 27, "overlapping": 0, "repeated": 0, "kept": 27}
    assert np.bincount(proxy.images().y, minlength=10).tolist() == [3, 3, 3, 3, 3, 3, 0, 3, 3, 3]
    assert [len(proxy.images(part)) for part in PARTS] == [27, 14, 13]


def test_folder_with_classes_maps_them_by_name(tmp_path, caplog):
    official.write_folder(tmp_path / "own", ("cat", "dog", "emu"), 25)
    for name, red in (("emu", 220), ("dog", 210)):
        (tmp_path / "new" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 30), (red, i, 0)).save(tmp_path / "new" / name / f"{i}.png")
    data = ImageData(name="own", source=from_folder, root=tmp_path / "own", balanced=False).prepare()
    proxy = ProxyData(source=folder, data=data, root=tmp_path / "new").prepare()
    assert proxy.images().y.tolist() == [1] * 4 + [2] * 4
    assert proxy.images().x.shape == (8, 3, 12, 12)
    assert proxy.images().x[:, 0, 0, 0].tolist() == [210] * 4 + [220] * 4
    assert warnings_of(caplog) == []


def from_folder(root, **arguments):
    from amc_lightning.data.sources import folder

    return folder(root, size=[12, 12], **arguments)


def test_folder_with_a_strange_class(tmp_path):
    official.write_folder(tmp_path, ("a", "d", "b", "e"), 2)
    with pytest.raises(
        UserError,
        match=r"\['d', 'e'\] are sub-folders that are no classes of the target; known: a, b, c\. Rename or re",
    ):
        ProxyData(source=folder, data=target(), root=tmp_path).prepare()


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_folder_needs_a_root(root, tmp_path):
    with pytest.raises(
        UserError,
        match=r"^dataset\.proxy\.root: .* is not a folder; the folder of the images that the proxy is trained",
    ):
        ProxyData(source=folder, data=target(), root=root and tmp_path / root).prepare()


def test_folder_says_what_it_does_not_read(tmp_path, caplog):
    data = ImageData(name="toy", source=target().source, shape=[1, 1, 2])
    (tmp_path / ".hidden").mkdir()
    for name in ("a.png", "b.png", ".hidden/c.png"):
        Image.fromarray(np.array([[200, ord(name[0])]], np.uint8)).save(tmp_path / name)
    assert len(ProxyData(source=folder, data=data, root=tmp_path)) == 2
    assert warnings_of(caplog) == []
    (tmp_path / "c").mkdir()
    for number in range(3):
        Image.fromarray(np.array([[210, number]], np.uint8)).save(tmp_path / "c" / f"{number}.png")
    assert ProxyData(source=folder, data=data, root=tmp_path).images().y.tolist() == [2, 2, 2]
    assert warnings_of(caplog) == [
        f"{tmp_path}: 2 images are ignored, because they lie beside the folders of the classes"
    ]


def test_folder_without_images(tmp_path):
    with pytest.raises(UserError, match=r": 0 images were found in this folder; .* Add images, or name another folder"):
        ProxyData(source=folder, data=target(), root=tmp_path).prepare()


def test_folder_for_images_with_two_channels(tmp_path):
    wide = Images(np.zeros((3, 2, 4, 4), np.uint8), np.arange(3))
    given = {"trust_files": False, "seed": 0, "count": None, "class_names": ("a",), "device": "cpu"}
    with pytest.raises(
        UserError, match=r"^dataset\.shape: \[2, 4, 4\] has a number of channels that no image file has"
    ):
        folder(tmp_path, target=wide, **given)
