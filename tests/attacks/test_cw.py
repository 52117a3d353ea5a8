"""CW against closed forms on linear models, and what a batch, a shift or a confidence must not change."""

import math

import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import Start, StartsClean
from amc_lightning.attacks.cw import CW

LONG = {"learning_rate": 0.01, "binary_search_steps": 7, "max_iterations": 200, "initial_const": 1e-2}
SHORT = {"learning_rate": 0.05, "binary_search_steps": 4, "max_iterations": 25, "initial_const": 0.1}


def linear(classes: int, *, shift: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(50, classes)
    layer.weight.data = torch.randn(classes, 50, generator=generator, dtype=torch.float64)
    # Nobody's logit leads by much in the middle of the box.
    layer.bias.data = 0.2 * torch.randn(classes, generator=generator, dtype=torch.float64) + shift
    layer.bias.data -= 0.5 * layer.weight.data.sum(dim=1)
    return nn.Sequential(nn.Flatten(), layer).to(dtype)


def images(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (0.5 + 0.06 * torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)).to(dtype)


def nearest(model: nn.Module, x: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """Distance of each row to the nearest point where another class leads by ``margin``; the box is far."""
    w, logits = model[1].weight.detach(), model(x).detach()
    gaps = logits.gather(1, labels[:, None]) - logits + margin
    distances = gaps / (w[labels][:, None] - w[None]).norm(dim=2)
    return distances.scatter(1, labels[:, None], math.inf).amin(dim=1)


def lengths(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


@pytest.mark.parametrize("shift", [0.0, -60.0])
@pytest.mark.parametrize("classes", [2, 3, 4, 100])
def test_comes_close_to_the_nearest_boundary(classes: int, shift: float) -> None:
    model, x = linear(classes, shift=shift), images(6)
    labels = model(x).argmax(dim=1)
    x_adv = CW(model, **LONG)(x, labels)
    assert (model(x_adv).argmax(dim=1) != labels).all()
    expected = nearest(model, x, labels)
    assert (lengths(x_adv - x) >= expected * (1 - 1e-6)).all()
    assert (lengths(x_adv - x) <= 1.05 * expected + 3e-3).all()  # Adam's first step is 0.035 long


def test_logits_shifted_by_a_constant_change_nothing() -> None:
    x = images(6)
    model, shifted = linear(4), linear(4, shift=-60.0)
    labels = model(x).argmax(dim=1)
    torch.testing.assert_close(CW(shifted, **SHORT)(x, labels), CW(model, **SHORT)(x, labels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("abort_early", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_its_own(dtype: torch.dtype, abort_early: bool) -> None:
    model, x = linear(4, dtype=dtype), images(8, dtype)
    labels = model(x).argmax(dim=1)
    labels[5] = (labels[5] + 1) % 4
    attack = CW(model, **SHORT, abort_early=abort_early)
    whole = attack(x, labels)
    assert whole.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for rows in ([3], [0], [7, 5, 2]):
        torch.testing.assert_close(attack(x[rows], labels[rows]), whole[rows], rtol=0, atol=tolerance)


def test_early_abort_saves_passes_and_little_else() -> None:
    model, x = linear(4), images(8)
    labels = model(x).argmax(dim=1)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    full = CW(model, **LONG, abort_early=False)(x, labels)
    work = sum(rows)
    assert work == 8 * (1 + 7 * 200)
    rows.clear()
    short = CW(model, **LONG, abort_early=True)(x, labels)
    assert sum(rows) < 0.8 * work
    assert set(rows) - {8}, "rows leave one by one"
    assert (lengths(short - x) <= 1.1 * lengths(full - x)).all()


@pytest.mark.parametrize("shift", [0.0, -60.0])
def test_every_row_of_a_batch_reaches_the_confidence(shift: float) -> None:
    """`torchattacks.CW` adds kappa to the columns of all labels: 0 of 24 rows of a batch get there."""
    model, x = linear(4, shift=shift), images(24)
    labels = model(x).argmax(dim=1)
    x_adv = CW(model, confidence=5.0, **{**LONG, "max_iterations": 80})(x, labels)
    logits = model(x_adv).detach()
    column = labels[:, None]
    margin = logits.scatter(1, column, -math.inf).amax(dim=1) - logits.gather(1, column).squeeze(1)
    assert (margin >= 5.0).all()
    assert (lengths(x_adv - x) <= 1.25 * nearest(model, x, labels, margin=5.0)).all()


def test_a_row_wrong_by_less_than_the_confidence_is_attacked() -> None:
    model, x = linear(3), images(4)
    logits = model(x).detach()
    labels = logits.argsort(dim=1)[:, -2]
    lead = logits.amax(dim=1) - logits.gather(1, labels[:, None]).squeeze(1)
    confidence = 0.2
    assert len(set((lead < confidence).tolist())) == 2
    x_adv = CW(model, confidence=confidence, **SHORT)(x, labels)
    assert torch.equal((x_adv != x).flatten(1).any(dim=1), lead < confidence)


def test_rows_wrong_from_the_start_cost_one_pass() -> None:
    model, x = linear(3), images(5)
    labels = model(x).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 3
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    x_adv = CW(model, **SHORT)(x, labels)
    assert torch.equal(x_adv[:3], x[:3])
    assert rows[0] == 5
    assert max(rows[1:]) == 2


def test_one_pass_for_each_iterate() -> None:
    model, x = linear(3), images(2)
    labels = model(x).argmax(dim=1)
    needs_gradient: list[bool] = []
    model.register_forward_pre_hook(lambda _, inputs: needs_gradient.append(inputs[0].requires_grad))
    settings = {"binary_search_steps": 3, "max_iterations": 6}
    CW(model, **settings, abort_early=False)(x, labels)
    assert sum(needs_gradient) == CW.gradient_passes(**settings) == 1 + 3 * 5
    assert len(needs_gradient) == 1 + 3 * 6


def test_a_clean_pass_can_be_given() -> None:
    model, x = linear(3), images(4)
    labels = model(x).argmax(dim=1)
    assert issubclass(CW, StartsClean)
    assert CW.clean_need() == "gradient"
    point = x.clone().requires_grad_()
    logits = model(point)
    (gradient,) = torch.autograd.grad(logits, point, CW.clean_direction(logits.detach(), labels))
    expected = CW(model, **SHORT)(x, labels)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    assert torch.equal(CW(model, **SHORT)(x, labels, start=Start(logits.detach(), gradient)), expected)
    with_start = len(rows)
    rows.clear()
    CW(model, **SHORT)(x, labels)
    assert len(rows) == with_start + 1


def test_keeps_the_clean_image_where_it_fails() -> None:
    model, x = linear(2), images(3)
    model[1].weight.data *= 1e-3
    model[1].bias.data = torch.tensor([50.0, -50.0], dtype=torch.float64)
    assert torch.equal(CW(model, **SHORT)(x, torch.zeros(3, dtype=torch.int64)), x)


def test_says_where_the_gradient_was_zero() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Above a threshold the answer no longer depends on the image.
            score = (x.mean(dim=(1, 2, 3)) - 0.5).clamp(max=0.1)
            return torch.stack([score + 0.01, -score], dim=1)

    x = torch.stack([torch.full((1, 4, 4), value) for value in (0.55, 0.9, 0.2)])
    attack = CW(Flat(), **{**SHORT, "initial_const": 10.0})
    x_adv = attack(x, torch.zeros(3, dtype=torch.int64))
    assert attack.zero_gradient is not None
    assert attack.zero_gradient.tolist() == [False, True, False]
    assert torch.equal(x_adv[1:], x[1:])
    assert Flat()(x_adv[:1]).argmax(dim=1) == 1


def test_an_answer_that_is_no_number_is_noticed() -> None:
    model, x = linear(3), images(3)
    labels = model(x).argmax(dim=1)
    x[1, 0, 0, 0] = math.nan
    x_adv = CW(model, **SHORT)(x, labels)
    assert x_adv[1].isnan().any()
    assert x_adv[[0, 2]].isfinite().all()


def test_leaves_gradients_images_and_random_state_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    x = images(3).clamp(0, 1)
    x[:, :, 0] = x[:, :, 0].round()  # pixels on the faces of the box
    x_before, state = x.clone(), torch.get_rng_state()
    x_adv = CW(model, **SHORT)(x, model(x).argmax(dim=1))
    assert torch.equal(x, x_before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x_adv.requires_grad
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert all((parameter.grad == 2.0).all() for parameter in model.parameters())


@pytest.mark.parametrize("steps", [1, 10, 11])
@pytest.mark.parametrize("iterations", [1, 2, 9])
def test_any_number_of_steps(steps: int, iterations: int) -> None:
    model, x = linear(3), images(3)
    labels = model(x).argmax(dim=1)
    attack = CW(model, binary_search_steps=steps, max_iterations=iterations, initial_const=100.0, learning_rate=0.5)
    x_adv = attack(x, labels)
    assert (model(x_adv).argmax(dim=1) != labels).any()


@pytest.mark.slow
def test_black_and_white_images_are_attacked_with_the_defaults() -> None:
    """Their pixels lie where tanh is flat: by the loss of the first hundred iterations nothing will ever come of it."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model[1].weight.data = torch.randn(3, 36, generator=generator)
    x = torch.rand(4, 1, 6, 6, generator=generator).round()
    y = model(x).argmax(dim=1)
    x_adv = CW(model)(x, y)
    assert (model(x_adv).argmax(dim=1) != y).all()
