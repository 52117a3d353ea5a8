"""Feature squeezing: what squeezers answer, that gradients pass, and that attacks go through them, fast or not."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning import models
from amc_lightning.attacks import load
from amc_lightning.attacks.fold import CraftingCopy
from amc_lightning.data import sources
from amc_lightning.models import BitDepth, LeNet, MedianSmoothing, ResNet32, Squeezed
from amc_lightning.places import CONF_DIR
from amc_lightning.transfer import fill, weights_of
from tests.attacks.conftest import SmallNet, seeded

FILES = sorted((CONF_DIR / "squeezing").glob("*.yaml"))
SHAPES = ((1, 28, 28), (1, 16, 16), (3, 32, 32), (2, 5, 9))
ATTACKS = {
    "fgsm": {"eps": 0.1},
    "vap": {"eps": 3.0, "num_iters": 2},
    "eap": {"binary_search_steps": 3, "max_iterations": 12, "initial_const": 0.01, "learning_rate": 0.05},
    "pgm": {"eps": 0.1, "eps_iter": 0.02, "nb_iter": 10},
}
BUDGETS = {"fgsm": "linf", "vap": "l2", "pgm": "linf"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_attack = pytest.mark.parametrize("name", ATTACKS)


def made(file: Path) -> nn.Module:
    spec = yaml.safe_load(file.read_text())
    package, _, name = spec.pop("_target_").rpartition(".")
    assert package == models.__name__
    return getattr(models, name)(**spec)


def images(shape: tuple[int, ...], n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def gradient(function: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    return torch.autograd.grad(function(point), point, direction)[0]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """1,797 images, (B, 1, 16, 16), in an order of their own, and their labels."""
    source = sources.digits(Path())
    order = torch.randperm(len(source.train.y), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(source.train.x)[order].float() / 255, torch.from_numpy(source.train.y)[order]


@pytest.fixture(scope="module")
def net(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A LeNet of all but the first 100 digits, in eval mode."""
    x, y = (part[100:] for part in digits)
    with seeded(0):
        net = LeNet(1, (16, 16), 10)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(6):
        for rows in torch.arange(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


# --- every file of conf/squeezing ------------------------------------------------------------------------------------


def test_there_is_a_file_for_each_choice() -> None:
    names = ["bit_depth_1", "bit_depth_4", "bit_depth_5", "bit_depth_8", "median_2", "median_3"]
    assert [file.stem for file in FILES] == names


@each_file
def test_it_starts_with_a_comment_and_its_name_says_its_argument(file: Path) -> None:
    assert file.read_text().startswith("# ")
    squeezer = made(file)
    (argument,) = {key: value for key, value in vars(squeezer).items() if key in ("bits", "size")}.values()
    assert file.stem.rpartition("_")[2] == str(argument)
    assert str(argument) in repr(squeezer)


@each_file
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_stay_images(file: Path, shape: tuple[int, int, int]) -> None:
    squeezer, x = made(file), images(shape)
    before = x.clone()
    squeezed = squeezer(x)
    assert squeezed.shape == x.shape
    assert squeezed.dtype == torch.float32
    assert squeezer(x.double()).dtype == torch.float64
    assert squeezed.min() >= 0
    assert squeezed.max() <= 1
    assert torch.equal(x, before)
    assert not torch.equal(squeezed, x)
    for value in (0.0, 1.0):
        assert torch.equal(squeezer(torch.full_like(x, value)), torch.full_like(x, value))
    assert squeezer(x[:0]).shape == (0, *shape)


@each_file
def test_the_answer_is_the_same_again_for_each_row_alone_in_any_mode_and_memory(file: Path) -> None:
    squeezer, x = made(file), images((3, 12, 10), 5)
    squeezed = squeezer(x)
    assert torch.equal(squeezer(x), squeezed)
    assert torch.equal(torch.cat([squeezer(row) for row in x.split(1)]), squeezed)
    assert torch.equal(squeezer(x.flip(0)).flip(0), squeezed)
    assert torch.equal(squeezer.eval()(x), squeezed)
    assert torch.equal(squeezer(x.contiguous(memory_format=torch.channels_last)), squeezed)
    assert torch.equal(squeezer(x.clone().requires_grad_()).detach(), squeezed)
    with torch.no_grad():
        assert torch.equal(squeezer(x), squeezed)


@each_file
def test_a_channel_does_not_depend_on_the_others(file: Path) -> None:
    squeezer, x = made(file), images((3, 12, 10))
    assert torch.equal(torch.cat([squeezer(channel) for channel in x.split(1, dim=1)], dim=1), squeezer(x))


@each_file
def test_a_gradient_passes_to_each_row_and_pixel(file: Path) -> None:
    squeezer, x = made(file), images((2, 9, 8))
    direction = images((2, 9, 8), seed=1) + 0.5
    passed = gradient(squeezer, x, direction)
    assert passed.isfinite().all()
    assert (passed > 0).all(), "weights of a mean are positive, and so is every direction here"
    alone = gradient(squeezer, x[1:2], direction[1:2])
    torch.testing.assert_close(passed[1:2], alone, rtol=0, atol=1e-6)
    assert torch.equal(gradient(squeezer, x, direction), passed)
    # What a mean passes back sums to what it was given.
    torch.testing.assert_close(passed.sum(), direction.sum(), rtol=1e-5, atol=0)


@each_file
def test_double_backward_is_that_of_a_linear_map(file: Path) -> None:
    """J d by VAP's double backward is J d row by row, and the Hessian of |s(x)|^2 / 2 is J^T J."""
    squeezer, x = made(file), images((1, 5, 4), 2).double()
    d = images((1, 5, 4), 2, seed=1).double()
    jacobian = torch.func.jacrev(squeezer)(x).reshape(40, 40)
    point = x.clone().requires_grad_()
    w = torch.zeros_like(point, requires_grad=True)
    (pulled,) = torch.autograd.grad(squeezer(point), point, w, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, w, d)
    torch.testing.assert_close(pushed.flatten(), jacobian @ d.flatten())
    (once,) = torch.autograd.grad(squeezer(point).square().sum() / 2, point, create_graph=True)
    (twice,) = torch.autograd.grad((once * d).sum(), point)
    torch.testing.assert_close(twice.flatten(), jacobian.T @ jacobian @ d.flatten())


@each_file
def test_a_squeezed_net_is_the_net_of_squeezed_images_with_its_weights(file: Path, net: nn.Module) -> None:
    squeezer, x = made(file), images((1, 16, 16))
    model = Squeezed(net, squeezer)
    assert torch.equal(model(x), net(squeezer(x)))
    assert not list(squeezer.state_dict())
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == {
        f"net.{name}": value.data_ptr() for name, value in net.state_dict().items()
    }


@each_file
def test_weights_go_through_a_file(file: Path, net: nn.Module) -> None:
    x = images((1, 16, 16))
    model, other = (Squeezed(inner, made(file)) for inner in (net, LeNet(1, (16, 16), 10)))
    fill(other, weights_of(model), key="weights", source="a file")
    assert torch.equal(other(x), model(x))
    bare = LeNet(1, (16, 16), 10)
    fill(bare, weights_of(model.net), key="weights", source="a file")
    assert torch.equal(bare(x), net(x))


def test_modes_pass_through() -> None:
    inner = ResNet32(3, (32, 32), 10).eval()
    model = Squeezed(inner, BitDepth(4))
    assert not model.training
    assert all(not part.training for part in model.eval().modules())
    assert all(part.training for part in model.train().modules())
    assert inner.bn.training


# --- exact values ----------------------------------------------------------------------------------------------------


def test_one_bit_is_black_and_white_and_a_half_goes_to_the_even_level() -> None:
    x = torch.tensor([0.0, 0.25, 0.49, 0.5, 0.51, 1.0])
    assert BitDepth(1)(x).tolist() == [0, 0, 0, 0, 1, 1]
    thirds = BitDepth(2)(torch.tensor([1 / 6 - 1e-3, 1 / 6 + 1e-3, 0.5, 0.9])) * 3
    assert thirds.round().tolist() == [0, 1, 2, 3]  # 0.5 stands between 1/3 and 2/3, and 2 is even


def test_eight_bits_leave_images_of_bytes_as_they_are_and_move_none_by_more_than_half_a_level() -> None:
    bytes_ = torch.arange(256) / 255
    torch.testing.assert_close(BitDepth(8)(bytes_), bytes_, rtol=0, atol=1e-7)
    x = images((1, 40, 40))
    assert (BitDepth(8)(x) - x).abs().max() <= 1 / 510 + 1e-7


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 8, 16])
def test_bit_depth_has_its_levels_and_is_idempotent(bits: int) -> None:
    x = images((1, 300, 300), 1)
    squeezed = BitDepth(bits)(x)
    assert torch.equal(BitDepth(bits)(squeezed), squeezed)
    if bits <= 8:
        assert len(squeezed.unique()) == 2**bits
    torch.testing.assert_close(squeezed * (2**bits - 1), (x * (2**bits - 1)).round(), rtol=1e-6, atol=1e-6)


def test_the_gradient_of_bit_depth_is_the_identity() -> None:
    x, direction = images((1, 4, 4)), images((1, 4, 4), seed=1)
    assert torch.equal(gradient(BitDepth(1), x, direction), direction)


def test_a_grain_of_salt_is_gone_and_an_edge_stays() -> None:
    image = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    smooth = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    assert torch.equal(MedianSmoothing(3)(image.view(1, 1, 3, 4)), smooth.view(1, 1, 3, 4))


def test_a_window_of_two_reaches_up_and_left_and_takes_the_larger_middle() -> None:
    image = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    # Right below in {0.1, 0.2, 0.4, 0.5} the larger middle is 0.4; in the first row {0.1, 0.1, 0.2, 0.2} it is 0.2.
    by_hand = [[0.1, 0.2, 0.3], [0.4, 0.4, 0.5], [0.7, 0.7, 0.8]]
    assert torch.equal(MedianSmoothing(2)(image.view(1, 1, 3, 3))[0, 0], torch.tensor(by_hand))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_median_is_scipys(size: int) -> None:
    x = images((2, 7, 6))
    x[0] = (x[0] * 3).round() / 3  # with ties
    assert np.array_equal(MedianSmoothing(size)(x).numpy(), median_filter(x.numpy(), size=(1, 1, size, size)))


def test_neighbours_count_by_their_distance_from_the_median() -> None:
    x = torch.full((1, 1, 5, 5), 0.5)
    x[0, 0, 1, 1] = 0.6  # a reach away: a part of 1/e
    x[0, 0, 3, 3] = 1.0
    direction = torch.zeros_like(x)
    direction[0, 0, 2, 2] = 1.0
    weights = torch.zeros(5, 5)
    weights[1:4, 1:4] = 1.0
    weights[1, 1], weights[3, 3] = torch.tensor(-1.0).exp(), torch.tensor(-5.0).exp()
    passed = gradient(MedianSmoothing(3), x, direction)[0, 0]
    torch.testing.assert_close(passed, weights / weights.sum())


@pytest.mark.parametrize("bits", [0, 17, -1, 1.0, True, "8", None])
def test_bits_out_of_range(bits: object) -> None:
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 16, not"):
        BitDepth(bits)


@pytest.mark.parametrize("size", [1, 0, -3, 2.0, True, "3", None])
def test_sizes_out_of_range(size: object) -> None:
    with pytest.raises(ValueError, match="size must be a whole number >= 2, not"):
        MedianSmoothing(size)


# --- attacks through them --------------------------------------------------------------------------------------------


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(dim=1) != y


@each_attack
@each_file
def test_attacks_go_through(
    file: Path, name: str, net: nn.Module, digits: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """In the budget, judged behind the squeezer, and with a crafting copy the same rows are fooled."""
    x, y = (part[:40] for part in digits)
    model = Squeezed(net, made(file))
    crafted = load(name, **ATTACKS[name]).craft(model, x, y)
    with caplog.at_level(logging.WARNING):
        fast = load(name, fast=True, **ATTACKS[name]).craft(model, x, y)
    assert not caplog.records, "a copy was refused"
    for each in (crafted, fast):
        assert each.x_adv.min() >= 0
        assert each.x_adv.max() <= 1
        if name in BUDGETS:
            assert (each.distances[BUDGETS[name]] <= ATTACKS[name]["eps"] * (1 + 1e-5)).all()
        assert torch.equal(each.fooled, fooled(model, each.x_adv, y))
        assert each.fooled.sum() >= 5 + fooled(model, x, y).sum()
    # A gradient that is nothing but rounding has any sign.
    differing = ((fast.x_adv - crafted.x_adv).abs() > 1e-3).flatten(1).double().mean(dim=1)
    assert (differing < 0.02).all()
    assert torch.equal(fast.fooled, crafted.fooled)


@each_attack
@each_file
def test_in_float64_the_fast_path_is_the_plain_one(file: Path, name: str) -> None:
    """With batch norm to fold."""
    with seeded(0):
        model = Squeezed(SmallNet().double().eval(), made(file))
    x = images((1, 12, 12), 6).double()
    y = model(x).argmax(dim=1)
    parameters = ATTACKS[name] | ({"initial_const": 10.0} if name == "eap" else {})  # so that some rows are fooled
    plain, fast = (load(name, fast=fast, **parameters)(model, x, y) for fast in (False, True))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-6)
    assert not torch.equal(plain, x)


@pytest.mark.parametrize("kind", [LeNet, ResNet32])
@pytest.mark.parametrize("squeezer", [BitDepth(4), MedianSmoothing(3)], ids=repr)
def test_a_crafting_copy_has_the_same_function_and_gradient(squeezer: nn.Module, kind: type[nn.Module]) -> None:
    with seeded(0):
        model = Squeezed(kind(1, (16, 16), 10), copy.deepcopy(squeezer)).double().eval()
    x, direction = images((1, 16, 16)).double(), images((10,), seed=1).double()
    crafting = CraftingCopy(model)
    assert crafting.agrees(x, model(x), tolerance=1e-12)
    torch.testing.assert_close(gradient(crafting, x, direction), gradient(model, x, direction), rtol=1e-9, atol=1e-12)
    # A setting of the squeezer is one of the model: the copy follows.
    before = model(x)
    setattr(model.squeezer, "bits" if isinstance(squeezer, BitDepth) else "size", 2)
    crafting.refresh()
    assert crafting.agrees(x, model(x), tolerance=1e-12)
    assert not crafting.agrees(x, before)


@each_file
def test_attacks_that_look_at_the_squeezer_are_the_stronger_ones(
    file: Path, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Beside examples made on the bare net and squeezed afterwards, as the paper does."""
    x, y = (part[:100] for part in digits)
    model = Squeezed(net, made(file))
    adaptive, unaware = {}, {}
    for name, parameters in ATTACKS.items():
        attack = load(name, fast=True, **parameters)
        adaptive[name] = int(fooled(model, attack(model, x, y), y).sum())
        unaware[name] = int(fooled(model, attack(net, x, y), y).sum())
    # With 1 bit few pixels can change their level within eps, and the gradient at an image in black and white is no
    # better a guess at what they do than the one at the image itself; on a single attack either may be ahead by chance.
    assert all(adaptive[name] >= unaware[name] - 4 for name in ATTACKS)
    if file.stem == "bit_depth_8":  # which changes next to nothing
        assert all(abs(adaptive[name] - unaware[name]) <= 2 for name in ATTACKS)
    else:
        assert sum(adaptive.values()) > sum(unaware.values())
    if file.stem in ("bit_depth_1", "median_2", "median_3"):
        assert adaptive["eap"] > 1.5 * unaware["eap"], "smallest perturbations do not survive unforeseen squeezing"


def test_differences_of_logits_do_not_see_through_rounding(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """VAP's cheaper method finds no direction in images of bytes behind 8 bits; ``exact``, the default, does."""
    x, y = (part[:20] for part in digits)
    model = Squeezed(net, BitDepth(8))
    assert torch.equal(load("vap", method="logit")(model, x, y), x)
    assert not torch.equal(load("vap")(model, x, y), x)
