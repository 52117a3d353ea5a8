import inspect

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from amc_lightning.data import ImageData, Images
from amc_lightning.data import deform as module
from amc_lightning.data.deform import BLOCK, deform, deformed
from amc_lightning.data.proxy import deformed_digits
from amc_lightning.data.sources import digits
from amc_lightning.errors import UserError


@pytest.fixture(scope="module")
def base():
    return ImageData(name="digits", source=digits).prepare().pool


@pytest.fixture(scope="module")
def made(base):
    return deformed(base, 1000, seed=1)


def flat(images):
    return images.x.reshape(len(images), -1).astype(np.float32) / 255


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 20, 12), (1, 1, 1)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_shape_type_and_input(shape, n):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8))
    before = x.clone()
    y = deform(x, seed=0)
    assert y.shape == x.shape
    assert y.dtype == torch.uint8
    assert torch.equal(x, before)


def test_pixels_use_the_range_and_keep_the_ink(base, made):
    assert made.x.dtype == np.uint8
    assert made.x.min() == 0
    assert made.x.max() == 255
    assert made.x.mean() == pytest.approx(base.x.mean(), rel=0.1)
    assert (made.x.reshape(1000, -1).max(1) > 100).all()  # none is blank


def test_classes_take_turns_and_each_goes_through_its_images(base):
    made = deformed(base, 2000, seed=0, displacement=0, rotation=0, scale=0, thickness=0)
    assert np.bincount(made.y).tolist() == [200] * 10
    assert sorted(made.y[:10].tolist()) == list(range(10))
    for k in range(10):
        own, got = base.x[base.y == k], made.x[made.y == k]
        assert np.array_equal(np.unique(own, axis=0), np.unique(got[: len(own)], axis=0))
        assert np.array_equal(got[len(own) :], got[: 200 - len(own)])  # once more


def test_no_copies(base, made):
    distances = np.array([np.abs(flat(base) - x).mean(1).min() for x in flat(made)[::5]])
    assert distances.min() > 0.02  # of [0, 1]; measured 0.045, and 0.107 on average
    assert distances.mean() > 0.08
    twins = np.array([np.abs(flat(made)[i + 1 :] - x).mean(1).min() for i, x in list(enumerate(flat(made)))[:-1:5]])
    assert twins.min() > 0.02


def test_legible(base, made):
    for model in (KNeighborsClassifier(3), LogisticRegression(C=0.1, max_iter=500)):
        score = model.fit(flat(base), base.y).score(flat(made), made.y)
        assert score > 0.75, (model, score)


def test_same_seed_same_images_and_other_seed_others(base, made):
    again, other = deformed(base, 1000, seed=1), deformed(base, 1000, seed=2)
    assert np.array_equal(again.x, made.x)
    assert np.array_equal(again.y, made.y)
    assert (other.x != made.x).any((1, 2, 3)).all()


def test_global_randomness_is_neither_read_nor_changed(base, made):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert np.array_equal(deformed(base, 20, seed=1).x, made.x[:20])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 9, BLOCK - 1, BLOCK, BLOCK + 1])
def test_images_do_not_depend_on_their_number(count, base, made):
    few = deformed(base, count, seed=1)
    assert np.array_equal(few.x, made.x[:count])
    assert np.array_equal(few.y, made.y[:count])


def test_images_do_not_depend_on_the_batch(base):
    x = torch.from_numpy(base.x[:1040])
    whole = deform(x, seed=3)
    for cuts in ((1, 1039), (511, 529), (512, 528), (300, 300, 440)):
        parts, first = [], 0
        for rows in x.split(cuts):
            parts.append(deform(rows, seed=3, first=first))
            first += len(rows)
        assert torch.equal(torch.cat(parts), whole)


def test_no_two_images_are_distorted_alike(base):
    x = torch.from_numpy(base.x[:1]).expand(2 * BLOCK + 100, -1, -1, -1)
    assert len(torch.unique(deform(x, seed=0).flatten(1), dim=0)) == len(x)  # within blocks and across them


@pytest.mark.gpu
def test_the_device_does_not_matter(base, made):
    assert np.array_equal(deformed(base, 1000, seed=1, device="cuda").x, made.x)


def test_nothing_changes_without_strength(base):
    x = torch.from_numpy(base.x[:30])
    assert torch.equal(deform(x, seed=0, displacement=0, rotation=0, scale=0, thickness=0), x)


OFF = {"displacement": 0.0, "rotation": 0.0, "scale": 0.0, "thickness": 0.0}


def test_thickness_changes_the_ink_and_not_the_place():
    x = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    x[:, :, 8:20, 12:16] = 255
    changed = deform(x, seed=0, **{**OFF, "thickness": 1.0})
    ink = changed.sum((1, 2, 3)) / 255
    full = 12 * 4
    assert 10 * 2 <= ink.min() < 0.7 * full  # between one pixel less and one more at each edge
    assert 1.3 * full < ink.max() <= 14 * 6
    assert torch.equal(changed.flip(2, 3), changed)


def test_thickness_beyond_a_pixel():
    x = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    x[:, :, 14, 14] = 255
    ink = deform(x, seed=0, **{**OFF, "thickness": 2.0}).sum((1, 2, 3)) / 255
    assert 20 < ink.max() <= 25
    assert ink.min() == 0


def test_rotation_and_scale_about_the_centre():
    x = torch.zeros(300, 1, 29, 29, dtype=torch.uint8)
    x[:, :, 4:25, 14] = 255
    rows, columns = torch.meshgrid(torch.arange(29.0) - 14, torch.arange(29.0) - 14, indexing="ij")
    turned = deform(x, seed=0, **{**OFF, "rotation": 20.0})[:, 0] / 255
    slope = (turned * rows * columns).sum((1, 2)) / (turned * rows.square()).sum((1, 2))
    angle = torch.rad2deg(torch.atan(slope))
    assert angle.min() == pytest.approx(-20, abs=1.5)
    assert angle.max() == pytest.approx(20, abs=1.5)
    assert angle.mean().abs() < 2
    scaled = deform(x, seed=0, **{**OFF, "scale": 0.2})[:, 0, :, 14]
    lengths = (scaled > 127).sum(1)
    assert lengths.min() in (16, 17)
    assert lengths.max() in (25, 26)


@pytest.mark.parametrize("side", [16, 28, 56])
def test_displacement_is_smooth_and_grows_with_the_image(side):
    noise, _ = module._draw(0, 0, side, side, 4 * side / 28)
    field = module._smoothed(noise.double(), side, side, 4 * side / 28)
    assert field.shape == (BLOCK, 2, side, side)
    assert field.std().item() == pytest.approx(1, abs=0.05)
    assert field.std((0, 1)).sub(1).abs().max() < 0.15  # as strong at the border as in the middle
    step = field.diff(dim=3).std().item()
    # Noise smoothed by a Gaussian of width s has correlation exp(-d^2 / 4 s^2) at distance d.
    assert step == pytest.approx((2 - 2 * np.exp(-1 / (4 * (4 * side / 28) ** 2))) ** 0.5, rel=0.05)


def test_a_class_alone_and_labels_with_gaps():
    base = Images(np.full((3, 1, 8, 8), 200, np.uint8), np.array([7, 2, 7]))
    assert deformed(base, 5, seed=0).y.tolist() == [2, 7, 2, 7, 2]


@pytest.mark.parametrize(
    ("strength", "value", "allowed"),
    [
        ("displacement", -1.0, "pixels of a 28x28 image, >= 0"),
        ("displacement", float("nan"), "pixels of a 28x28 image, >= 0"),
        ("smoothness", 0.0, "pixels of a 28x28 image, > 0"),
        ("rotation", 181.0, r"degrees in \[0, 180\]"),
        ("scale", 1.0, r"a share of the size in \[0, 1\)"),
        ("thickness", float("inf"), "pixels of a 28x28 image, >= 0"),
    ],
)
def test_strengths_out_of_range(strength, value, allowed, base):
    with pytest.raises(
        UserError, match=rf"^dataset\.proxy\.source\.{strength}: {value} is out of range; {allowed}\. Leave it out"
    ):
        deformed(base, 3, seed=0, **{strength: value})


def test_the_source_hands_every_strength_on(base):
    strengths = set(inspect.signature(deform).parameters) - {"images", "seed", "first"}
    assert strengths < set(inspect.signature(deformed_digits).parameters)
    given = {"root": None, "trust_files": False, "seed": 0, "class_names": tuple("0123456789"), "device": "cpu"}
    plain = deformed_digits(count=20, target=base, **given).train.x
    assert np.array_equal(plain, deformed(base, 20, seed=0).x)
    for strength in strengths:
        changed = deformed_digits(count=20, target=base, **given, **{strength: 0.7}).train.x
        assert np.array_equal(changed, deformed(base, 20, seed=0, **{strength: 0.7}).x)
        assert not np.array_equal(changed, plain)
