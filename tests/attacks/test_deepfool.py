"""DeepFool against closed forms on linear models, and against a plain program for one image."""

import math

import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import Start, StartsClean
from amc_lightning.attacks.deepfool import DeepFool


def linear(classes: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(50, classes)
    layer.weight.data = torch.randn(classes, 50, generator=generator, dtype=torch.float64)
    layer.bias.data = 0.2 * torch.randn(classes, generator=generator, dtype=torch.float64)
    layer.bias.data -= 0.5 * layer.weight.data.sum(dim=1)
    return nn.Sequential(nn.Flatten(), layer).to(dtype)


def curved(classes: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    last = nn.Linear(12, classes)
    last.weight.data = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    last.bias.data = torch.zeros(classes, dtype=torch.float64)
    return nn.Sequential(linear(12), nn.Tanh(), last).to(dtype)


def images(count: int, dtype: torch.dtype = torch.float64, spread: float = 0.06) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return (0.5 + spread * noise).clamp(0, 1).to(dtype)


def lengths(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


def plain_deepfool(
    model: nn.Module, x0: Tensor, label: int, *, candidates: int, overshoot: float, steps: int
) -> Tensor:
    """One image, step by step; the clean one if it fails."""
    total, x = torch.zeros_like(x0), x0
    if int(model(x0[None]).argmax()) != label:
        return x0
    for _ in range(steps):
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], x)
        logits = model(x[None])[0].detach()
        others = [int(k) for k in logits.argsort(descending=True) if k != label][: candidates - 1]
        best, step = math.inf, torch.zeros_like(x0)
        for k in others:
            w, f = jacobian[k] - jacobian[label], logits[k] - logits[label]
            if float(f.abs() / w.norm()) < best:
                best, step = float(f.abs() / w.norm()), f.abs() * w / w.norm() ** 2
        total = total + step
        beyond = (x0 + (1 + overshoot) * total).clamp(0, 1)
        if int(model(beyond[None]).argmax()) != label:
            return beyond
        x = (x0 + total).clamp(0, 1)
    return x0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_one_step_to_the_boundary_of_two_linear_classes(overshoot: float, dtype: torch.dtype) -> None:
    model, x = linear(2, dtype), images(6, dtype)
    logits = model(x).detach()
    labels = logits.argmax(dim=1)
    w = (model[1].weight[0] - model[1].weight[1]).detach()
    x_adv = DeepFool(model, overshoot=overshoot, max_iter=1)(x, labels)
    assert x_adv.dtype == dtype
    assert (model(x_adv).argmax(dim=1) != labels).all()
    expected = (logits[:, 0] - logits[:, 1]).abs() / w.norm() * (1 + overshoot)
    torch.testing.assert_close(lengths(x_adv - x), expected, rtol=1e-4, atol=1e-6)
    cosine = torch.cosine_similarity((x_adv - x).flatten(1), w.expand(6, -1)).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-4)


@pytest.mark.parametrize("classes", [3, 4, 100])
def test_one_step_to_the_nearest_of_many_boundaries(classes: int) -> None:
    model, x = linear(classes), images(6)
    logits = model(x).detach()
    labels = logits.argmax(dim=1)
    w = model[1].weight.detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    distances = (gaps / (w[labels][:, None] - w[None]).norm(dim=2)).scatter(1, labels[:, None], math.inf)
    x_adv = DeepFool(model, nb_candidate=classes, max_iter=1)(x, labels)
    torch.testing.assert_close(lengths(x_adv - x), 1.02 * distances.amin(dim=1), rtol=1e-6, atol=1e-9)
    assert torch.equal(model(x_adv).argmax(dim=1), distances.argmin(dim=1))


@pytest.mark.parametrize(("classes", "candidates"), [(2, 10), (3, 2), (4, 10), (100, 5), (100, 10)])
def test_is_the_plain_program_for_every_row_of_a_batch(classes: int, candidates: int) -> None:
    model, x = curved(classes), images(9, spread=0.4)
    labels = model(x).argmax(dim=1)
    labels[4] = (labels[4] + 1) % classes
    x_adv = DeepFool(model, nb_candidate=candidates, max_iter=8)(x, labels)
    for row in range(len(x)):
        expected = plain_deepfool(model, x[row], int(labels[row]), candidates=candidates, overshoot=0.02, steps=8)
        torch.testing.assert_close(x_adv[row], expected, rtol=0, atol=1e-8)
    assert torch.equal(x_adv[4], x[4])
    assert (model(x_adv).argmax(dim=1) != labels).sum() >= 7


@pytest.mark.parametrize("size", [1, 3])
def test_a_row_is_its_own(size: int) -> None:
    model, x = curved(5, torch.float32), images(8, torch.float32)
    labels = model(x).argmax(dim=1)
    whole = DeepFool(model)(x, labels)
    assert (model(whole).argmax(dim=1) != labels).all()
    rows = [6, 1, 3][:size]
    torch.testing.assert_close(DeepFool(model)(x[rows], labels[rows]), whole[rows], rtol=0, atol=1e-5)


def test_fooled_rows_leave_and_rows_wrong_from_the_start_cost_nothing() -> None:
    model, x = curved(5), images(8, spread=0.4)
    labels = model(x).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 5
    start = Start(model(x).detach())
    expected = DeepFool(model)(x, labels)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    assert issubclass(DeepFool, StartsClean)
    assert DeepFool.clean_need() == "logits"
    assert torch.equal(DeepFool(model)(x, labels, start=start), expected)
    assert rows[0] == 5
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 5
    rows.clear()
    DeepFool(model)(x, labels)
    assert rows[0] == 8
    rows.clear()
    assert torch.equal(DeepFool(model)(x, (start.logits.argmax(dim=1) + 1) % 5, start=start), x)
    assert rows == []


def test_keeps_the_clean_image_where_it_fails() -> None:
    model, x = linear(2), images(3)
    model[1].weight.data *= 1e-3
    model[1].bias.data = torch.tensor([50.0, -50.0], dtype=torch.float64)
    attack = DeepFool(model)
    assert torch.equal(attack(x, torch.zeros(3, dtype=torch.int64)), x)
    assert attack.zero_gradient is not None
    assert not attack.zero_gradient.any()


def test_says_where_the_gradient_was_zero_and_walks_where_it_is_tiny() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x.mean(dim=(1, 2, 3)) - 0.5).clamp(max=0.1)
            return 1e-25 * torch.stack([score, -score], dim=1)

    x = torch.stack([torch.full((1, 4, 4), value) for value in (0.55, 0.9, 0.2)])
    attack = DeepFool(Flat(), max_iter=3)
    x_adv = attack(x, torch.zeros(3, dtype=torch.int64))
    assert attack.zero_gradient is not None
    assert attack.zero_gradient.tolist() == [False, True, False]
    assert torch.equal(x_adv[1:], x[1:])
    torch.testing.assert_close(x_adv[0], torch.full((1, 4, 4), 0.55 - 1.02 * 0.05), rtol=0, atol=1e-5)


def test_an_answer_that_is_no_number_is_noticed() -> None:
    model, x = linear(3), images(3)
    labels = model(x).argmax(dim=1)
    x[1, 0, 0, 0] = math.nan
    x_adv = DeepFool(model)(x, labels)
    assert x_adv[1].isnan().any()
    assert x_adv[[0, 2]].isfinite().all()


def test_leaves_gradients_images_and_random_state_alone() -> None:
    model = curved(3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    x = images(3, spread=0.4)
    x_before, state = x.clone(), torch.get_rng_state()
    x_adv = DeepFool(model)(x, model(x).argmax(dim=1))
    assert torch.equal(x, x_before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x_adv.requires_grad
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert all((parameter.grad == 2.0).all() for parameter in model.parameters())
    assert DeepFool.gradient_passes() == 9 * 50
