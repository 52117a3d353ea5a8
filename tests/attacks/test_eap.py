"""EAP against a plain, per-sample float64 reading of the authors' algorithm, and its exact savings."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks import EAP

Settings = dict[str, object]


def reference_ead(
    model: Callable[[Tensor], Tensor],
    x0: Tensor,
    label: int,
    *,
    beta: float,
    binary_search_steps: int,
    max_iterations: int,
    initial_const: float,
    learning_rate: float,
    confidence: float = 0.0,
    decision_rule: str = "EN",
    abort_early: bool = False,
) -> tuple[Tensor, float]:
    """Attack one image, step by step as published: nothing saved, nothing shared; its distance too (inf if none)."""
    best, best_distance = x0.clone(), math.inf
    lower, upper, c = 0.0, 1e10, initial_const
    for search_step in range(binary_search_steps):
        if binary_search_steps >= 10 and search_step == binary_search_steps - 1:
            c = upper
        x, y = x0.clone(), x0.clone()
        found = False
        plateau = math.inf
        for k in range(max_iterations):
            y = y.detach().requires_grad_()
            logits = model(y[None])[0]
            others = torch.cat([logits[:label], logits[label + 1 :]])
            hinge = torch.relu(logits[label] - others.max() + confidence)
            loss = c * hinge + ((y - x0) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, y)
            z = y.detach() - learning_rate * math.sqrt(1 - k / max_iterations) * gradient
            x_new = x0.clone()
            above, below = z - x0 > beta, z - x0 < -beta
            x_new[above] = (z - beta)[above].clamp(max=1.0)
            x_new[below] = (z + beta)[below].clamp(min=0.0)
            y = x_new + k / (k + 3) * (x_new - x)
            x = x_new
            scores = model(x[None])[0].detach().clone()
            scores[label] += confidence
            if scores.argmax() != label:
                found = True
                l1, l2 = (x - x0).abs().sum().item(), ((x - x0) ** 2).sum().item()
                distance = l1 if decision_rule == "L1" else l2 + beta * l1
                if distance < best_distance:
                    best, best_distance = x.clone(), distance
            if abort_early and k % max(1, max_iterations // 10) == 0:
                margin = scores[label] - torch.cat([scores[:label], scores[label + 1 :]]).max()
                delta = x - x0
                loss = (c * margin.clamp(min=0) + delta.square().sum() + beta * delta.abs().sum()).item()
                if loss > 0.9999 * plateau:
                    break
                plateau = loss
        if found:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        if upper < 1e9:
            c = (lower + upper) / 2
        elif not found:
            c *= 10
    return best, best_distance


def linear(classes: int, offset: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(18, classes)
    layer.weight.data = torch.randn(classes, 18, generator=generator, dtype=torch.float64)
    layer.bias.data = torch.randn(classes, generator=generator, dtype=torch.float64) + offset
    return nn.Sequential(nn.Flatten(), layer)


def curved() -> nn.Module:
    return nn.Sequential(linear(8, 0.0), nn.Tanh(), _last(), nn.LogSoftmax(dim=1))


def _last() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(8, 4).double()
    layer.weight.data = 2 * torch.randn(4, 8, generator=generator, dtype=torch.float64)
    return layer


MODELS = {
    "two classes": lambda: linear(2, 0.0),
    "two classes, negative logits": lambda: linear(2, -60.0),
    "log-softmax of four": curved,
}


def settings_of(beta: float, steps: int, iterations: int, c: float, learning_rate: float, **more: object) -> Settings:
    return {
        "beta": beta,
        "binary_search_steps": steps,
        "max_iterations": iterations,
        "initial_const": c,
        "learning_rate": learning_rate,
        **more,
    }


SETTINGS: dict[str, Settings] = {
    "paper's MNIST": settings_of(0.01, 5, 8, 1e-3, 0.1),
    "paper's SVHN": settings_of(0.01, 1, 5, 0.3, 0.2),
    "one iteration": settings_of(0.01, 3, 1, 1.0, 0.3),
    "two iterations": settings_of(0.05, 4, 2, 0.1, 0.2),
    "long": settings_of(0.01, 6, 25, 1e-2, 0.02),
    "no l1": settings_of(0.0, 4, 6, 0.1, 0.1),
    "large beta": settings_of(0.2, 4, 10, 1.0, 0.2),
    "last step repeats the upper bound": settings_of(0.01, 10, 4, 1e-2, 0.05),
    "l1 rule": settings_of(0.03, 5, 12, 0.1, 0.1, decision_rule="L1"),
    "confidence": settings_of(0.01, 5, 12, 0.1, 0.1, confidence=0.7),
    "abort": settings_of(0.01, 5, 30, 0.1, 0.1, abort_early=True),
    "abort, fewer than ten iterations": settings_of(0.01, 4, 7, 1.0, 0.3, abort_early=True),
    "abort, confidence": settings_of(0.02, 4, 25, 1.0, 0.2, abort_early=True, confidence=0.5),
}


def images(count: int) -> Tensor:
    x = torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[:, :, 0] = x[:, :, 0].round()  # pixels on the faces of the box
    return x


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
def test_equals_the_plain_reference(make_model: Callable[[], nn.Module], settings: Settings) -> None:
    model, x = make_model(), images(12)
    labels = model(x).argmax(dim=1)
    labels[-2:] = (labels[-2:] + 1) % 2  # wrong from the start
    x_adv = EAP(model, **settings)(x, labels)
    for row in range(len(x)):
        expected, _ = reference_ead(model, x[row], int(labels[row]), **settings)
        torch.testing.assert_close(x_adv[row], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
def test_float32_finds_the_same_distances(make_model: Callable[[], nn.Module]) -> None:
    model, x = make_model(), images(12)
    labels = model(x).argmax(dim=1)
    settings = SETTINGS["long"]
    distances = torch.tensor([reference_ead(model, x[i], int(labels[i]), **settings)[1] for i in range(12)])
    delta = (EAP(model.float(), **settings)(x.float(), labels) - x.float()).flatten(1)
    found = delta.square().sum(dim=1) + 0.01 * delta.abs().sum(dim=1)
    reached = distances.isfinite()
    assert reached.any()
    torch.testing.assert_close(found[reached], distances[reached].float(), rtol=1e-2, atol=1e-4)


def test_two_class_linear_model_is_crossed_not_far_from_its_boundary() -> None:
    """The nearest point in l2 has a closed form; with a small beta and a long search EAP comes close to it."""
    model = linear(2, -60.0)
    x = torch.full((4, 2, 3, 3), 0.5, dtype=torch.float64)
    x += 0.02 * torch.arange(4).view(4, 1, 1, 1)
    difference = model[1].weight[0] - model[1].weight[1]
    model[1].bias.data[0] = model[1].bias[1] - 0.5 * difference.sum() + 0.3  # the boundary lies 0.3 / |w| away, or so
    logits = model(x)
    labels = logits.argmax(dim=1)
    nearest = (logits[:, 0] - logits[:, 1]).abs() / difference.norm()
    attack = EAP(model, beta=1e-4, binary_search_steps=9, max_iterations=300, initial_const=1e-2, learning_rate=0.02)
    x_adv = attack(x, labels)
    lengths = (x_adv - x).flatten(1).norm(dim=1)
    assert (model(x_adv).argmax(dim=1) != labels).all()
    assert (lengths >= nearest * (1 - 1e-9)).all()
    assert (lengths <= nearest * 1.05 + 1e-3).all()


class Counting(nn.Module):
    """Counts the rows of every pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rows: list[int] = []
        self.gradient_rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.gradient_rows if x.requires_grad else self.rows).append(len(x))
        return self.inner(x)


def test_makes_only_the_passes_it_must() -> None:
    model, x = Counting(linear(2, 0.0)), images(8)
    labels = model.inner(x).argmax(dim=1)
    common = {"beta": 0.01, "max_iterations": 8, "learning_rate": 0.1}

    def passes(**settings: object) -> tuple[list[int], list[int]]:
        model.rows, model.gradient_rows = [], []
        EAP(model, **common, **settings)(x, aim)
        return model.gradient_rows, model.rows

    aim = labels
    kept_back = passes(binary_search_steps=3, initial_const=1e-9)
    assert kept_back == ([8], []), "rows that shrinkage holds at the clean image need no pass"
    aim = 1 - labels
    assert passes(binary_search_steps=3, initial_const=1.0) == ([8], []), "rows wrong from the start need no search"
    aim = torch.where(torch.arange(8) < 3, labels, 1 - labels)
    unreachable = {"binary_search_steps": 1, "initial_const": 1.0, "confidence": 100.0}
    assert passes(**unreachable) == (8 * [8], 7 * [8]), "seven gradients and judgements after the first"
    gradients, judgements = passes(binary_search_steps=4, initial_const=1.0)
    assert gradients == [8] + 28 * [3]
    assert sum(judgements) < 28 * 3, "an iterate further away than the best need not be judged"


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_judgements_left_out_change_nothing(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    model, x = curved(), images(12)
    labels = model(x).argmax(dim=1)
    sparing = EAP(model, **settings)(x, labels)

    def judge_all(self: EAP, best: object, x: Tensor, x0: Tensor, labels: Tensor, known: Tensor) -> None:
        self._judge(best, x, x0, self._logits(x), labels)

    monkeypatch.setattr(EAP, "_judge_promising", judge_all)
    torch.testing.assert_close(EAP(model, **settings)(x, labels), sparing, rtol=0, atol=1e-12)


def test_keeps_the_clean_image_where_it_fails() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 2).double())
    model[1].weight.data *= 1e-3
    model[1].bias.data = torch.tensor([50.0, -50.0], dtype=torch.float64)
    x = images(3)
    attack = EAP(model, binary_search_steps=4, max_iterations=5, initial_const=100.0, learning_rate=0.1)
    assert torch.equal(attack(x, torch.zeros(3, dtype=torch.int64)), x)


def test_changes_few_pixels() -> None:
    """Shrinkage towards the clean image leaves most pixels exactly as they were; an aliased origin would not."""
    model, x = linear(4, 0.0), images(12)
    model[1].weight.data[:, 4:] *= 0.01
    labels = model(x).argmax(dim=1)
    x_adv = EAP(model, beta=0.02, binary_search_steps=5, max_iterations=10, initial_const=0.1, learning_rate=0.1)(
        x, labels
    )
    assert (model(x_adv).argmax(dim=1) != labels).any()
    assert ((x_adv != x).flatten(1).sum(dim=1) <= 4).all()
