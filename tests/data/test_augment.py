import pytest
import torch

from amc_lightning.data import Augment
from amc_lightning.data.augment import moved
from amc_lightning.errors import UserError

ALL = {"rotation": 15.0, "shift": 0.15, "horizontal_flip": True, "vertical_flip": True}


def images(n=16, channels=3, height=8, width=8):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_nothing_to_do_is_nothing_done():
    x = images()
    assert Augment()(x, 0) is x
    assert Augment().is_identity
    assert not Augment(rotation=1.0).is_identity


def test_same_seed_same_images_and_global_state_untouched():
    x, augment = images(), Augment(**ALL)
    before, state = x.clone(), torch.get_rng_state()
    first = augment(x, seed=1)
    torch.manual_seed(99)
    assert torch.equal(augment(x, seed=1), first)
    assert not torch.equal(augment(x, seed=2), first)
    assert torch.equal(x, before)
    torch.set_rng_state(state)
    augment(x, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [0, 1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (2, 5, 9)])
def test_shape_type_range_and_no_gradient(n, shape):
    x = images(n, *shape).requires_grad_()
    y = Augment(**ALL)(x, 0)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert n == 0 or not y.requires_grad
    assert ((y >= 0) & (y <= 1)).all()


def test_each_row_moves_on_its_own():
    x = images(1).expand(64, -1, -1, -1)
    for options in ({"rotation": 10.0}, {"shift": 0.1}):
        y = Augment(**options)(x, 0)
        assert len(torch.unique(y.flatten(1), dim=0)) == 64


@pytest.mark.parametrize(("option", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_flips_mirror_about_half_of_the_rows(option, axis):
    x = images(400)
    y = Augment(**{option: True})(x, 0)
    flipped = (y == x.flip(axis)).flatten(1).all(1)
    assert (flipped | (y == x).flatten(1).all(1)).all()
    assert 150 < flipped.sum() < 250  # five standard deviations of 400 fair coins


def test_moved_by_whole_pixels_and_right_angles_is_exact():
    x = images(2)
    still = torch.zeros(2)
    right = moved(x, still, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert torch.allclose(right[0, :, :, 2:], x[0, :, :, :-2], atol=1e-6)
    assert torch.allclose(right[0, :, :, :2], x[0, :, :, :1].expand(-1, -1, 2), atol=1e-6)  # the border is repeated
    assert torch.allclose(right[1], x[1], atol=1e-6)
    down = moved(x, still, torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    assert torch.allclose(down[0, :, 1:], x[0, :, :-1], atol=1e-6)
    assert torch.allclose(down[1, :, :-1], x[1, :, 1:], atol=1e-6)
    turned = moved(x, torch.tensor([90.0, 180.0]), torch.zeros(2, 2))
    assert torch.allclose(turned[0], torch.rot90(x[0], 3, (1, 2)), atol=1e-5)  # clockwise
    assert torch.allclose(turned[1], x[1].flip(1, 2), atol=1e-5)


def test_shift_and_rotation_reach_their_limits_and_no_further():
    n, size = 2000, 33
    ramp = torch.linspace(0, 1, size).expand(n, 1, size, size).contiguous()
    shift = (ramp - Augment(shift=0.1)(ramp, 0))[:, 0, size // 2, size // 2] * (size - 1)  # pixels to the right
    assert 3.2 < shift.max() <= 3.3 + 1e-3
    assert -3.3 - 1e-3 <= shift.min() < -3.2
    turned = Augment(rotation=10.0)(ramp, 0)[:, 0]
    middle = size // 2
    slope = (turned[:, middle + 4, middle] - turned[:, middle - 4, middle]) / 8 * (size - 1)
    angle = torch.rad2deg(torch.asin(slope.clamp(-1, 1)))
    assert 9.8 < angle.max() <= 10.01
    assert -10.01 <= angle.min() < -9.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rotation": -1.0},
            r"^dataset\.augment\.rotation: -1\.0 is out of range; degrees in \[0, 180\]\. 0 turns it off",
        ),
        ({"rotation": 181.0}, r"^dataset\.augment\.rotation: 181\.0 is out of range"),
        (
            {"shift": 1.0},
            r"^dataset\.augment\.shift: 1\.0 is out of range; a share of the image in \[0, 1\)\. 0 turns it off",
        ),
        ({"shift": float("nan")}, r"^dataset\.augment\.shift: nan is out of range"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Augment(**options)


@pytest.mark.gpu
def test_same_on_the_gpu():
    x, augment = images(), Augment(**ALL)
    state = torch.cuda.get_rng_state()
    y = augment(x.cuda(), seed=1)
    assert y.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.allclose(y.cpu(), augment(x, seed=1), atol=1e-4)
