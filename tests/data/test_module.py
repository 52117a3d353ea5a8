from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amc_lightning.data import SPLITS, ImageData, Images, Source
from amc_lightning.data.sources import digits, folder, mnist
from amc_lightning.errors import UserError
from tests.data import official_files as official


def toy(train=(30, 20, 40), test=(20, 15, 25), seed=0):
    """A source whose images are all different, with so many of each class."""

    def images(sizes, start):
        y = np.repeat(np.arange(len(sizes)), sizes)
        number = start + np.arange(len(y))
        x = np.stack([number // 256, number % 256], 1).astype(np.uint8).reshape(-1, 1, 1, 2)
        order = np.random.default_rng(seed).permutation(len(y))
        return Images(x[order], y[order])

    def source(*, root, trust_files, split_seed):
        return Source(images(train, 0), images(test, 10_000) if test else None, ("a", "b", "c"), verified=False)

    return source


def data_of(**changes):
    settings = {"name": "toy", "source": toy(), "shape": [1, 1, 2], "num_classes": 3, "batch_size": 8} | changes
    return ImageData(**settings).prepare()


def numbers(images):
    return images.x.reshape(-1, 2).astype(int) @ [256, 1]


def test_digits_counts_as_settled():
    data = ImageData(name="digits", source=digits, shape=[1, 16, 16], num_classes=10).prepare()
    assert data.counts == {"train": 1040, "validation": 210, "attack": 140, "test": 350}
    assert data.counts_read == {"train": 1797, "test": 0}
    for split, n in (("train", 104), ("validation", 21), ("attack", 14), ("test", 35)):
        assert np.bincount(data.splits[split].y).tolist() == [n] * 10
    assert data.shape == (1, 16, 16)
    assert data.verified


def test_balanced_and_disjoint():
    data = data_of()
    assert data.counts == {"train": 60, "validation": 12, "attack": 9, "test": 24}  # 15 a class: 4, 3, 8
    assert data.counts_read == {"train": 90, "test": 60}
    assert tuple(data.splits) == SPLITS
    for images in data.splits.values():
        assert len(set(np.bincount(images.y))) == 1
    assert len(np.unique(np.concatenate([numbers(images) for images in data.splits.values()]))) == 60 + 45
    assert (numbers(data.splits["train"]) < 10_000).all()  # test images never train
    assert not data.verified
    assert data.class_names == ("a", "b", "c")


def test_labels_stay_with_their_images():
    wanted = {number: y for part in (toy()(root=0, trust_files=0, split_seed=0),) for images in (part.train, part.test)
              for number, y in zip(numbers(images), images.y, strict=True)}  # fmt: skip
    for images in data_of().splits.values():
        assert [wanted[number] for number in numbers(images)] == images.y.tolist()


def test_unbalanced_keeps_all():
    data = data_of(balanced=False)
    assert np.bincount(data.splits["train"].y).tolist() == [30, 20, 40]
    assert np.bincount(data.splits["validation"].y).tolist() == [6, 4, 7]
    assert sum(data.counts.values()) == 90 + 60


def test_official_code_rule_counts_the_test_set_before_balancing():
    data = data_of(split_rule="official_code")  # floor(0.3 * 60 / 3) = 6 of 15, then floor(0.3 * 9) = 2
    assert [data.counts[split] for split in SPLITS] == [60, 18, 6, 21]


def test_split_depends_on_split_seed_and_not_on_seed_or_limit():
    base = data_of()
    for same in (data_of(seed=7), data_of(limit=9), data_of(batch_size=1)):
        for split in ("validation", "attack", "test"):
            assert np.array_equal(numbers(same.splits[split]), numbers(base.splits[split]))
    assert data_of(seed=7).fingerprint == base.fingerprint
    other = data_of(split_seed=1)
    assert not np.array_equal(numbers(other.splits["attack"]), numbers(base.splits["attack"]))
    assert (
        len({base.fingerprint, other.fingerprint, data_of(limit=9).fingerprint, data_of(balanced=False).fingerprint})
        == 4
    )


def test_fingerprint_sees_one_pixel():
    data, changed = data_of(), data_of()
    changed.splits["test"].x[3, 0, 0, 1] ^= 1
    assert data.fingerprint != changed.fingerprint
    assert len(data.fingerprint) == 64


def test_limit_is_class_balanced_where_balanced():
    assert np.bincount(data_of(limit=31).splits["train"].y).tolist() == [10, 10, 10]
    assert data_of(limit=31, balanced=False).counts["train"] == 31
    assert data_of(limit=10_000).counts["train"] == 60
    assert set(numbers(data_of(limit=30).splits["train"])) <= set(numbers(data_of().splits["train"]))


@pytest.mark.parametrize("known", [3, None])
def test_limit_below_the_number_of_classes(known):
    with pytest.raises(
        UserError,
        match=r"^dataset\.limit: 2 is fewer training images than the 3 classes; at least 3, or null for all\. Raise",
    ):
        data_of(limit=2, num_classes=known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shape": [1, 28, 28]},
            r"^dataset\.shape: \[1, 28, 28\] is not the shape of the images; those of toy are \[1, 1, 2\]",
        ),
        (
            {"num_classes": 4},
            r"^dataset\.num_classes: 4 is not the number of classes; toy has 3\. Correct dataset\.num_cl",
        ),
        (
            {"split_rule": "half"},
            r"^dataset\.split_rule: 'half' is not a rule; known: standard, official_code\. Choose one",
        ),
        (
            {"source": toy(test=(20, 4, 20))},
            r"^dataset, class 'a': 4 test images would be split into 1 validation, 0 attack",
        ),
        (
            {"source": toy(train=(20, 4, 20), test=None)},
            r"^dataset, class 'a': 2 test images would be split into 0 valid",
        ),
        ({"source": toy(train=(20, 0, 20))}, r"^dataset, class 'b': 0 images were found; every class needs some"),
        (
            {"source": toy(train=(20, 20, 20, 1))},
            r"^toy, training images: \[3\] are labels out of range; 3 classes are num",
        ),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        data_of(**changes)


def test_a_source_of_ones_own_with_floats_is_checked():
    def floats(top):
        def source(*, root, trust_files, split_seed):
            x = np.linspace(0, top, 120, dtype=np.float32).reshape(30, 1, 2, 2)
            images = Images(x, np.arange(30) % 2)
            return Source(images, images, ("a", "b"), verified=False)

        return ImageData(name="own", source=source)

    data = floats(1.0).prepare()
    assert data.shape == (1, 2, 2)
    assert data.splits["train"].x.dtype == np.uint8
    with pytest.raises(
        UserError, match=r"^own, training images: \(0\.0, 255\.0\) is the range of the pixels; images are"
    ):
        floats(255.0).prepare()


def test_read_once_and_only_when_asked():
    calls = []

    def source(**arguments):
        calls.append(arguments)
        return toy()(**arguments)

    data = ImageData(name="toy", source=source, root="~/x", trust_files=True, split_seed=5)
    assert calls == []
    data.setup("fit")
    data.setup("validate")
    data.prepare()
    ((arguments,)) = (calls[0],) if len(calls) == 1 else ()
    assert arguments["trust_files"] is True
    assert arguments["split_seed"] == 5
    assert "~" not in str(arguments["root"])


def test_root_defaults_to_the_cache_folder():
    assert ImageData(name="toy", source=toy()).root.parts[-2:] == ("amc_lightning", "toy")


def test_batches_of_a_split():
    data = data_of()
    assert [len(batch.y) for batch in data.val_dataloader()] == [8, 4]
    (whole,) = data.batches("attack", batch_size=100)
    assert torch.equal(whole.y, torch.from_numpy(data.splits["attack"].y))
    assert torch.equal((whole.x * 255).round().to(torch.uint8), torch.from_numpy(data.splits["attack"].x))
    assert whole.rows.tolist() == list(range(9))
    order = data.train_batches(3).order()
    assert torch.equal(order, data.train_batches(3).order())
    assert not torch.equal(order, data.train_batches(4).order())
    assert torch.equal(data.train_dataloader().order(), data.train_batches(data.seed).order())


def test_tensors_are_moved_once_to_the_device_of_the_trainer():
    data = data_of()
    x, y = data.tensors("train")
    assert x.dtype == torch.uint8
    assert x.device.type == "cpu"
    assert data.tensors("train", "cpu")[0] is x
    assert x.data_ptr() == data.splits["train"].x.ctypes.data  # on the CPU nothing is copied
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    assert data.tensors("train")[1].device.type == "meta"
    assert data.tensors("train")[1] is data.tensors("train", "meta")[1]
    assert torch.equal(data.tensors("train", "cpu")[1], y)


def test_all_keys_of_the_yaml_are_taken_and_a_misspelt_one_is_not():
    data_of(size=None, augment={"rotation": 1.0}, epochs={"undefended": 1}, budget={"eap": 10.0}, root=None)
    with pytest.raises(TypeError, match="trust_file"):
        data_of(trust_file=True)


def test_from_files_to_splits(tmp_path):
    official.write_mnist(tmp_path / "mnist")
    data = ImageData(name="mnist", source=mnist, root=tmp_path, shape=[1, 28, 28], num_classes=10).prepare()
    assert data.counts == {"train": 120, "validation": 10, "attack": 10, "test": 40}
    whole = ImageData(name="mnist", source=mnist, root=tmp_path, balanced=False)
    assert len(whole.tensors("train")[0]) == 120  # also where the arrays read are used as they are, and read-only
    official.write_folder(tmp_path / "own", ("a", "b"), 30)
    data = ImageData(
        name="folder", balanced=False, root=tmp_path / "own", source=lambda **kwargs: folder(size=[8, 8], **kwargs)
    ).prepare()
    assert data.counts == {"train": 48, "validation": 2, "attack": 2, "test": 8}
    assert (data.shape, data.num_classes) == ((3, 8, 8), 2)
