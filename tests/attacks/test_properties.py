"""What holds for every attack, whatever the shapes, dtypes, budgets and numbers of classes (hypothesis)."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import Crafted, GuardedAttack, load
from amc_lightning.attacks.ball import L1, L2, LINF, project_l1, unit_l2
from amc_lightning.attacks.base import cross_entropy_direction

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "attack").glob("*.yaml"))
ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
BALLS = {"linf": LINF, "l2": L2, "l1": L1}
# Enough to leave the clean image, and no more.
BRIEF: dict[str, dict[str, object]] = {
    "apgd_ce": {"nb_iter": 3},
    "apgd_t": {"nb_iter": 3, "n_target_classes": 2},
    "autoattack": {"nb_iter": 2, "n_target_classes": 2, "n_queries": 3},
    "cw": {"max_iterations": 12, "binary_search_steps": 2, "initial_const": 10.0, "learning_rate": 0.3},
    "deepfool": {"max_iter": 4, "nb_candidate": 4},
    "eap": {"max_iterations": 5, "binary_search_steps": 2, "initial_const": 10.0, "learning_rate": 0.1},
    "fab": {"nb_iter": 3, "n_target_classes": 2},
    "fgsm": {},
    "msd": {"nb_iter": 3},
    "noise": {"restarts": 2},
    "pgd_l1": {"nb_iter": 3, "eps_iter": None},
    "pgd_l2": {"nb_iter": 3, "eps_iter": None},
    "pgd_linf": {"nb_iter": 3, "eps_iter": None},
    "pgm": {"nb_iter": 3, "eps_iter": None},
    "square": {"n_queries": 4},
    "torchattacks_fgsm": {},
    "torchattacks_pgd": {"nb_iter": 3},
    "vap": {"num_iters": 2},
}
SMALLEST = ("eap", "cw", "deepfool", "fab")
"""Attacks that look for the smallest perturbation: none for a row that is wrong already."""
FOOLS_OR_GIVES_UP = (*SMALLEST, "apgd_ce", "apgd_t", "autoattack", "square")
"""Attacks that return a row unchanged where they do not fool the model."""
BOUNDED = [name for name in NAMES if name not in ("eap", "cw", "deepfool", "msd")]
HAS_NORM = ("apgd_ce", "apgd_t", "autoattack", "fab", "noise", "square")
FIXED_NORM = {"pgd_l1": "l1", "pgd_l2": "l2", "vap": "l2"}


def few(examples: int) -> settings:
    """Return settings under which every run tries the same examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Case:
    """A model and a batch, by what hypothesis may shrink."""

    seed: int
    size: int
    shape: tuple[int, int, int]
    classes: int
    x_dtype: torch.dtype
    model_dtype: torch.dtype
    pixels: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def model(self) -> nn.Module:
        """A linear model that answers differently in different corners of the box."""
        layer = nn.Linear(self.count, self.classes, dtype=torch.float64)
        with torch.no_grad():
            weight = torch.randn(layer.weight.shape, generator=generator(self.seed), dtype=torch.float64)
            layer.weight.copy_(weight * 4 / math.sqrt(self.count))
            layer.bias.copy_(-0.5 * layer.weight.sum(dim=1))
        return nn.Sequential(nn.Flatten(), layer).to(self.model_dtype)

    def batch(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Images, and labels of which about two thirds are the model's own answers."""
        draws = generator(self.seed + 1)
        x = torch.rand(self.size, *self.shape, generator=draws, dtype=torch.float64)
        if self.pixels == "corners":
            x = x.round()
        elif self.pixels == "some corners":
            x = (2 * x - 0.5).clamp(0, 1)
        elif self.pixels == "flat":
            x = x[:, :1, :1, :1].expand_as(x).clone()
        x = x.to(self.x_dtype)
        y = torch.randint(self.classes, (self.size,), generator=draws)
        own = torch.rand(self.size, generator=draws) < 0.67
        return x, torch.where(own, answers(model, x), y)


cases = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    size=st.sampled_from([3, 1, 8, 0]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    classes=st.one_of(st.integers(2, 5), st.integers(2, 100)),
    x_dtype=st.sampled_from([torch.float32, torch.float64]),
    model_dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    pixels=st.sampled_from(["inside", "some corners", "corners", "flat"]),
)
doubles = cases.map(lambda case: replace(case, x_dtype=torch.float64, model_dtype=torch.float64))
shares = st.one_of(st.floats(0.01, 0.3), st.floats(0.0, 1.0))
norms = st.sampled_from(sorted(ORDERS))


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x.to(next(model.parameters()).dtype)).argmax(dim=1)


def lengths(delta: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(delta.double().flatten(1), ORDERS[norm], dim=1)


def largest(norm: str, count: int) -> float:
    """Return the size of the box in a norm."""
    return {"linf": 1.0, "l2": math.sqrt(count), "l1": float(count)}[norm]


def fitted(case: Case, name: str, norm: str) -> Case:
    """Return the case, changed to one that the attack says it takes."""
    if name == "apgd_t":
        case = replace(case, classes=max(case.classes, 4))
    if name in ("square", "autoattack") and norm != "linf":
        side = 5 + case.shape[1] % 7
        case = replace(case, shape=(case.shape[0], side, side))
    return case


def make(name: str, case: Case, norm: str, share: float, label: str = "true", **more: object) -> GuardedAttack:
    arguments = {**BRIEF[name], **more}
    if name in HAS_NORM:
        arguments["norm"] = norm
    if name in BOUNDED:
        norm = norm if name in HAS_NORM else FIXED_NORM.get(name, "linf")
        arguments["eps"] = share * largest(norm, case.count)
    # With a step of nothing there is nothing to check.
    if arguments.get("eps") == 0.0 and "eps_iter" in arguments:
        arguments["eps_iter"] = 0.1
    return load(name, label=label, image_shape=case.shape, **arguments)


def rounding(norm: str, case: Case, eps: float) -> float:
    """Return what a length in float32 may be off: half a unit in the last place of each pixel, and its own rounding."""
    return 1.2e-7 * largest(norm, case.count) + 2e-6 * eps


def check(attack: GuardedAttack, case: Case) -> tuple[Crafted, Tensor, Tensor, nn.Module]:
    """Craft, and assert what every attack owes every caller."""
    model = case.model()
    x, y = case.batch(model)
    before = x.clone(), y.clone(), [tensor.clone() for tensor in model.parameters()]
    x.requires_grad_()
    crafted = attack.craft(model, x, y)
    x_adv = crafted.x_adv
    x = x.detach()
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert all(map(torch.equal, model.parameters(), before[2]))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    assert case.size == 0 or x_adv.data_ptr() != x.data_ptr()
    assert x_adv.isfinite().all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert torch.equal(crafted.predicted, answers(model, x_adv))
    assert torch.equal(crafted.fooled, crafted.predicted != y)
    for norm, found in crafted.distances.items():
        torch.testing.assert_close(found, lengths(x_adv.double() - x.double(), norm), rtol=1e-12, atol=0)
    if attack.norm is not None:
        assert (crafted.distances[attack.norm] <= attack.eps + rounding(attack.norm, case, attack.eps)).all()
    return crafted, x, y, model


def test_every_attack_is_here() -> None:
    assert sorted(BRIEF) == NAMES


@pytest.mark.parametrize("name", NAMES)
@few(40)
@given(case=cases, share=shares, norm=norms, label=st.sampled_from(["true", "predicted"]))
def test_every_attack_keeps_its_promises(name: str, case: Case, share: float, norm: str, label: str) -> None:
    case = fitted(case, name, norm)
    crafted, x, y, model = check(make(name, case, norm, share, label), case)
    clean = (crafted.x_adv == x).flatten(1).all(dim=1)
    wrong = answers(model, x) != y
    if name in SMALLEST and label == "true":
        assert clean[wrong].all()
    if name in FOOLS_OR_GIVES_UP:
        # What is fooled are the labels the attack was given.
        given_labels = y if label == "true" else answers(model, x)
        assert (clean | (crafted.predicted != given_labels)).all()


@pytest.mark.parametrize("name", BOUNDED)
@few(12)
@given(case=cases, norm=norms)
def test_a_budget_of_nothing_changes_nothing(name: str, case: Case, norm: str) -> None:
    case = fitted(case, name, norm)
    crafted, x, _, _ = check(make(name, case, norm, 0.0), case)
    assert torch.equal(crafted.x_adv, x)


@pytest.mark.parametrize("name", BOUNDED)
@few(12)
@given(case=cases, norm=norms)
def test_the_whole_box_may_be_the_budget(name: str, case: Case, norm: str) -> None:
    case = fitted(case, name, norm)
    check(make(name, case, norm, 1.0), case)


@pytest.mark.parametrize("name", ["pgm", "pgd_l2", "pgd_l1", "noise", "apgd_ce"])
@few(25)
@given(case=cases, share=shares, norm=norms)
def test_a_restart_more_fools_no_row_less(name: str, case: Case, share: float, norm: str) -> None:
    case = fitted(case, name, norm)
    model = case.model()
    x, y = case.batch(model)
    one, two, three = (
        make(name, case, norm, share, restarts=restarts).craft(model, x, y, generator=generator(5)).fooled
        for restarts in (1, 2, 3)
    )
    if name == "noise":  # one draw is not judged, and may be the only one that fools
        one = two
    assert (one <= two).all()
    assert (two <= three).all()


@pytest.mark.parametrize("name", ["pgm", "pgd_l2", "pgd_l1"])
@few(12)
@given(
    case=doubles, share=shares, restarts=st.integers(1, 3), rand_init=st.booleans(), steps=st.sampled_from([1, 2, 5])
)
def test_compact_fools_the_rows_that_keep_best_fools(
    name: str, case: Case, share: float, restarts: int, rand_init: bool, steps: int
) -> None:
    model = case.model()
    x, y = case.batch(model)
    more = {"restarts": restarts, "rand_init": rand_init, "nb_iter": steps}
    last, best, compact = (
        make(name, case, "linf", share, **more, **kept).craft(model, x, y, generator=generator(5))
        for kept in ({}, {"keep_best": True}, {"compact": True})
    )
    assert (last.fooled <= best.fooled).all()
    assert torch.equal(compact.fooled, best.fooled)
    assert compact.gradient_passes <= best.gradient_passes
    # Rows that never fooled have gone the whole way in both.
    torch.testing.assert_close(compact.x_adv[~best.fooled], best.x_adv[~best.fooled], rtol=0, atol=1e-9)


@few(25)
@given(case=doubles, share=st.floats(0.01, 0.9))
def test_fgsm_reaches_the_best_corner_of_a_linear_model_of_two_classes(case: Case, share: float) -> None:
    """Nothing in the ball and the box has a larger margin: neither iterated gradients nor noise."""
    case = replace(case, classes=2)
    model = case.model()
    x, y = case.batch(model)

    def margins(x_adv: Tensor) -> Tensor:
        return (model(x_adv).gather(1, 1 - y[:, None]) - model(x_adv).gather(1, y[:, None])).squeeze(1).detach()

    best = margins(make("fgsm", case, "linf", share)(model, x, y))
    for name in ("pgm", "noise", "torchattacks_pgd", "torchattacks_fgsm", "apgd_ce"):
        assert (margins(make(name, case, "linf", share)(model, x, y)) <= best + 1e-5).all()


# The balls.

rows = st.builds(
    lambda seed, size, count, scale, dtype: (
        scale * torch.randn(size, 1, 1, count, generator=generator(seed), dtype=torch.float64).to(dtype)
    ),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([3, 1, 8, 0]),
    count=st.integers(1, 60),
    scale=st.sampled_from([1.0, 0.0, 1e-3, 1e3, 1e-20]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
radii = st.one_of(st.floats(0.0, 3.0), st.sampled_from([0.0, 1e-8, 1e4]))


@pytest.mark.parametrize("norm", BALLS)
@few(60)
@given(v=rows, eps=radii)
def test_projection_is_inside_idempotent_and_nearest(norm: str, v: Tensor, eps: float) -> None:
    """A point p of a convex set is the nearest to v if and only if no other is further along v - p."""
    before = v.clone()
    p = BALLS[norm].project(v, eps)
    assert torch.equal(v, before)
    assert (p.shape, p.dtype) == (v.shape, v.dtype)
    tiny = torch.finfo(v.dtype).eps * 8 * math.sqrt(v.shape[-1])
    size = lengths(v, norm)
    assert (lengths(p, norm) <= eps + tiny * size).all()
    scale = float(v.abs().max()) if v.numel() else 0.0
    torch.testing.assert_close(BALLS[norm].project(p, eps), p, rtol=tiny, atol=tiny * scale)
    inner = size <= eps
    torch.testing.assert_close(p[inner], v[inner], rtol=tiny, atol=0)
    # The furthest point of the ball along v - p, by the dual norm.
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    normal = v.double() - p.double()
    furthest = eps * lengths(normal, dual)
    along = (normal * p.double()).flatten(1).sum(dim=1)
    work = lengths(v, "l2") * (lengths(v, "l2") + eps)
    assert (furthest - along <= 10 * tiny * work).all()


@few(40)
@given(v=rows, eps=st.floats(0.01, 3.0))
def test_l1_projection_is_that_of_bisection(v: Tensor, eps: float) -> None:
    flat = v.double().flatten(1)
    low, high = torch.zeros(len(v), 1, dtype=torch.float64), flat.abs().amax(dim=1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        outside = (flat.abs() - middle).clamp(min=0).sum(dim=1, keepdim=True) > eps
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    threshold = torch.where(flat.abs().sum(dim=1, keepdim=True) > eps, high, 0.0)
    expected = (flat.sign() * (flat.abs() - threshold).clamp(min=0)).view_as(v)
    tolerance = 20 * torch.finfo(v.dtype).eps * max(1.0, float(v.abs().sum(dim=-1).max()) if v.numel() else 0.0)
    torch.testing.assert_close(project_l1(v, eps).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", BALLS)
@few(40)
@given(v=rows, pixels=st.sampled_from(["inside", "corners"]), seed=st.integers(0, 10**6))
def test_a_step_has_length_1_and_goes_uphill(norm: str, v: Tensor, pixels: str, seed: int) -> None:
    x = torch.rand(v.shape, generator=generator(seed)).to(v)
    x = x.round() if pixels == "corners" else 0.1 + 0.8 * x
    step = BALLS[norm].step(v.clone(), x)
    assert (step.shape, step.dtype) == (v.shape, v.dtype)
    size = lengths(step, norm)
    assert ((size - 1).abs() < 1e-5).logical_or(size == 0).all()
    uphill = (step.double() * v.double()).flatten(1).sum(dim=1)
    if norm == "l1":
        assert (uphill >= 0).all()
        # No pixel on a face of the box takes part if it could only leave the box; of the others the largest does.
        assert not (((x <= 0) & (step < 0)) | ((x >= 1) & (step > 0))).any()
        free = v.masked_fill(((x <= 0) & (v < 0)) | ((x >= 1) & (v > 0)), 0.0)
        assert torch.equal(size > 0, lengths(free, "linf") > 0)
        # Of so few pixels the hundredth is one.
        torch.testing.assert_close(uphill, lengths(free, "linf"), rtol=1e-6, atol=0)
    else:
        torch.testing.assert_close(uphill, lengths(v, {"linf": "l1", "l2": "l2"}[norm]), rtol=1e-5, atol=0)
        assert torch.equal(size > 0, lengths(v, "linf") > 0)


@pytest.mark.parametrize(("norm", "count"), [(norm, count) for norm in BALLS for count in (1, 2, 3, 12)])
def test_draws_are_uniform_in_the_ball(norm: str, count: int) -> None:
    """Moments of the uniform distribution, within five standard errors."""
    draws, ball = 20000, BALLS[norm]
    flat = ball.draw((draws, 1, 1, count), generator(7)).double().flatten(1)
    assert flat.shape == (draws, count)
    radius = torch.linalg.vector_norm(flat, ORDERS[norm], dim=1)
    assert (radius <= 1 + 1e-6).all()
    # The ball of radius r holds r^n of the volume, in any norm.
    for part in (0.5, 0.8, 0.95):
        inside = part**count
        error = 5 * math.sqrt(inside * (1 - inside) / draws)
        assert float((radius < part).double().mean()) == pytest.approx(inside, abs=error + 1e-9)
    square = {"linf": 1 / 3, "l2": 1 / (count + 2), "l1": 2 / ((count + 1) * (count + 2))}[norm]
    assert (flat.mean(dim=0).abs() < 5 * math.sqrt(square / draws)).all()
    moments = flat.T @ flat / draws
    expected = square * torch.eye(count, dtype=torch.float64)
    # A product of two coordinates has no larger a variance than three times the square of a coordinate's.
    spread = (flat**4).mean() / draws
    torch.testing.assert_close(moments, expected, rtol=0, atol=6 * math.sqrt(float(spread)))


@few(40)
@given(v=rows)
def test_unit_length(v: Tensor) -> None:
    unit = unit_l2(v)
    zero = (v == 0).flatten(1).all(dim=1)
    assert torch.equal(unit[zero], v[zero])
    torch.testing.assert_close(lengths(unit[~zero], "l2"), torch.ones(int((~zero).sum())).double(), rtol=0, atol=1e-5)
    if v.dtype == torch.float64 and not zero.any() and len(v):
        torch.testing.assert_close(unit, functional.normalize(v.flatten(1), eps=0.0).view_as(v))


# The direction of the cross-entropy.


@few(100)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([3, 1, 8, 0]),
    classes=st.integers(2, 100),
    scale=st.sampled_from([1.0, 0.0, 5.0]),
    shift=st.sampled_from([0.0, -60.0, 1e3]),
)
def test_cross_entropy_direction_is_the_gradient_up_to_a_positive_factor(
    seed: int, size: int, classes: int, scale: float, shift: float
) -> None:
    draws = generator(seed)
    logits = scale * torch.randn(size, classes, generator=draws, dtype=torch.float64) + shift
    labels = torch.randint(classes, (size,), generator=draws)
    direction = cross_entropy_direction(logits, labels)
    point = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(point, labels, reduction="sum"), point)
    factor = -gradient.gather(1, labels[:, None])
    assert (factor > 0).all()
    torch.testing.assert_close(direction * factor, gradient, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(direction.sum(dim=1), torch.zeros(size).double(), rtol=0, atol=1e-12)


@few(40)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 100),
    lead=st.sampled_from([0.0, 20.0, 1e3, 1e30, -1e3, -1e30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_cross_entropy_direction_is_finite_at_any_confidence(
    seed: int, classes: int, lead: float, dtype: torch.dtype
) -> None:
    logits = torch.randn(4, classes, generator=generator(seed)).to(dtype)
    labels = torch.arange(4) % classes
    direction = cross_entropy_direction(
        logits.scatter_add(1, labels[:, None], torch.full((4, 1), lead, dtype=dtype)), labels
    )
    assert direction.isfinite().all()
    assert (direction.gather(1, labels[:, None]) == -1).all()
    assert (direction.scatter(1, labels[:, None], 0.0) >= 0).all()
    others = functional.softmax(logits.scatter(1, labels[:, None], -math.inf), dim=1)
    torch.testing.assert_close(direction.scatter(1, labels[:, None], 0.0), others)
