"""Random noise: its distributions, and which of several draws a row keeps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.base import TakesNoise
from amc_lightning.attacks.noise import RandomNoise


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def draw(count: int, norm: str, restarts: int = 1, number: int = 0, side: int = 5) -> Tensor:
    noise = RandomNoise.draw_noise((count, 2, side, side), seed(number), norm=norm, restarts=restarts)
    assert noise is not None
    return noise


def network(dtype: torch.dtype = torch.float32, classes: int = 4) -> nn.Module:
    layer = nn.Linear(50, classes)
    layer.weight.data = torch.randn(classes, 50, generator=seed(1))
    layer.bias.data = -0.5 * layer.weight.data.sum(dim=1)
    return nn.Sequential(nn.Flatten(), layer).to(dtype)


def images(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (0.5 + 0.1 * torch.randn(count, 2, 5, 5, generator=seed(2))).clamp(0.2, 0.8).to(dtype)


def test_linf_noise_is_uniform_in_the_ball() -> None:
    values = draw(2000, "linf").flatten().sort().values
    expected = torch.linspace(-1, 1, len(values))
    assert (values - expected).abs().max() < 0.01


def test_l2_noise_is_uniform_in_the_ball() -> None:
    noise = draw(4000, "l2").flatten(1)
    radius = noise.norm(dim=1)
    assert (radius <= 1 + 1e-6).all()
    for part in (0.95, 0.98, 0.99):
        assert (radius < part).float().mean() == pytest.approx(part**50, abs=0.02)
    covariance = noise.T @ noise / 4000
    torch.testing.assert_close(covariance, torch.eye(50) / 52, rtol=0, atol=0.003)


def test_l1_noise_is_uniform_in_the_ball() -> None:
    noise = draw(20000, "l1", side=1).flatten(1)  # in the plane, where areas are easy
    radius = noise.abs().sum(dim=1)
    assert (radius <= 1 + 1e-6).all()
    for part in (0.25, 0.5, 0.75):
        assert (radius < part).float().mean() == pytest.approx(part**2, abs=0.01)
        # Along an edge of the square, too.
        assert (noise[:, 0].abs() / radius < part).float().mean() == pytest.approx(part, abs=0.015)
    for quadrant in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert (noise.sign() == torch.tensor(quadrant)).all(dim=1).float().mean() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_is_scaled_added_and_clipped(norm: str) -> None:
    model, x, noise = network(), images(5), draw(5, norm)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    attack = RandomNoise(model, eps=0.7, norm=norm)
    assert torch.equal(attack(x, noise=noise), (x + 0.7 * noise).clamp(0, 1))
    assert calls == [], "one draw needs no judgement"
    assert torch.equal(attack(x, torch.zeros(5, dtype=torch.int64), noise=noise), attack(x, noise=noise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 4, 100])
def test_each_row_keeps_the_first_draw_that_fools_else_the_worst(classes: int, dtype: torch.dtype) -> None:
    model, x = network(dtype, classes), images(40, dtype)
    labels = model(x).argmax(dim=1)
    noise, eps = draw(40, "l2", restarts=6), 0.6
    x_adv = RandomNoise(model, eps=eps, norm="l2", restarts=6)(x, labels, noise=noise)
    assert x_adv.dtype == dtype
    kept = []
    for row in range(40):
        candidates = (x[row] + eps * noise[row].to(dtype)).clamp(0, 1)
        logits = model(candidates).detach()
        fooled = (logits.argmax(dim=1) != labels[row]).nonzero().flatten().tolist()
        losses = functional.cross_entropy(logits, labels[row].expand(6), reduction="none")
        kept.append(fooled[0] if fooled else int(losses.argmax()))
        assert torch.equal(x_adv[row], candidates[kept[-1]])
    assert len(set(kept)) > 2


def test_a_row_is_its_own_and_more_draws_keep_the_first() -> None:
    model, x = network(), images(8)
    labels = model(x).argmax(dim=1)
    noise = draw(8, "linf", restarts=3)
    assert torch.equal(noise[:, 0], draw(8, "linf"))
    whole = RandomNoise(model, restarts=3)(x, labels, noise=noise)
    rows = torch.tensor([5, 0, 6])
    assert torch.equal(RandomNoise(model, restarts=3)(x[rows], labels[rows], noise=noise[rows]), whole[rows])
    assert torch.equal(RandomNoise(model, restarts=3)(x[2:3], labels[2:3], noise=noise[2:3]), whole[2:3])


def test_fooled_rows_are_judged_no_more() -> None:
    model, x = network(), images(8)
    labels = model(x).argmax(dim=1)
    labels[:5] = (labels[:5] + 1) % 4
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    RandomNoise(model, eps=1e-3, restarts=4)(x, labels, noise=draw(8, "linf", restarts=4))
    assert rows == [8, 3, 3, 3]


def test_leaves_gradients_images_and_random_state_alone() -> None:
    model, x = network(), images(3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    x_before, state = x.clone(), torch.get_rng_state()
    labels = torch.zeros(3, dtype=torch.int64)
    x_adv = RandomNoise(model, restarts=2)(x, labels, noise=draw(3, "linf", restarts=2))
    assert torch.equal(x, x_before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x_adv.requires_grad
    assert all((parameter.grad == 2.0).all() for parameter in model.parameters())
    assert issubclass(RandomNoise, TakesNoise)


def test_without_noise_it_follows_the_global_state() -> None:
    model, x = network(), images(3)
    with torch.random.fork_rng(devices=[]):
        results = []
        for number in (1, 1, 2):
            torch.manual_seed(number)
            results.append(RandomNoise(model)(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert [RandomNoise.gradient_passes(restarts=n) for n in (1, 2, 5)] == [0, 1, 3]
