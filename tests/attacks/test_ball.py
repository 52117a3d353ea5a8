"""Steps, ways back and random points of the three balls, against plain references."""

import math

import pytest
import torch
from torch import Tensor

from amc_lightning.attacks.ball import L1, L2, LINF, Ball, project_l1, unit_l2

ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
BALLS = pytest.mark.parametrize("ball", [LINF, L2, L1], ids=lambda ball: ball.norm)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def rows(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(shape, generator=seed(number), dtype=torch.float64)


def lengths(values: Tensor, ball: Ball) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1).double(), ORDERS[ball.norm], dim=1)


def by_bisection(delta: Tensor, eps: float) -> Tensor:
    """Project by the definition: soften by the threshold, found by halving, that brings the l1 norm down to eps."""
    flat = delta.flatten(1)
    low, high = torch.zeros(len(flat), 1, dtype=flat.dtype), flat.abs().amax(dim=1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        too_long = (flat.abs() - middle).clamp(min=0).sum(dim=1, keepdim=True) > eps
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    softened = flat.sign() * (flat.abs() - high).clamp(min=0)
    inside = flat.abs().sum(dim=1, keepdim=True) <= eps
    return torch.where(inside, flat, softened).view_as(delta)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1.0, 1e20, 1e37])
def test_unit_l2_is_right_at_any_size(scale: float) -> None:
    """Squares of 1e-30 underflow, those of 1e37 overflow: a plain norm gives 0 or infinity."""
    values = torch.tensor([[3.0, -4.0]]).double() * scale
    unit = unit_l2(values.float())
    # below 1e-38 float32 itself keeps three digits and less
    torch.testing.assert_close(unit, torch.tensor([[0.6, -0.8]]), rtol=0, atol=1e-6 if scale > 1e-38 else 1e-3)


def test_unit_l2_keeps_zero_rows_and_shows_nan_ones() -> None:
    values = torch.zeros(4, 1, 2, 2)
    values[1, 0, 0, 0] = 2.0
    values[2, 0, 1, 1] = torch.nan
    values[3] = 1.0
    unit = unit_l2(values)
    assert (unit[0] == 0).all()
    assert torch.equal(unit[1], values[1] / 2)
    assert unit[2].isnan().any()
    assert torch.equal(unit[3], values[3] / 2)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5, 3.0, 20.0, 1e6])
@pytest.mark.parametrize("size", [1, 2, 7, 48])
def test_project_l1_is_the_nearest_point(eps: float, size: int) -> None:
    delta = rows(20, size) * torch.logspace(-3, 2, 20, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(project_l1(delta, eps), by_bisection(delta, eps), rtol=1e-9, atol=1e-9)


def test_project_l1_with_ties_zeros_and_images() -> None:
    delta = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0], [0.2, -0.3, 0.0, 0.1]])
    expected = torch.tensor([[0.5, -0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.2, -0.3, 0.0, 0.1]])
    torch.testing.assert_close(project_l1(delta, 2.0), expected)
    torch.testing.assert_close(project_l1(delta.view(4, 1, 2, 2), 2.0), expected.view(4, 1, 2, 2))


def test_project_l1_on_an_image_in_float32() -> None:
    """Sums over 3,072 pixels in float32 must not let the result out of the ball."""
    delta = torch.rand(4, 3, 32, 32, generator=seed(0)) - 0.5
    projected = project_l1(delta, 12.0)
    torch.testing.assert_close(lengths(projected, L1), torch.full((4,), 12.0).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(projected.double(), by_bisection(delta.double(), 12.0), rtol=0, atol=1e-4)


@BALLS
@pytest.mark.parametrize("eps", [0.0, 0.1, 5.0])
def test_the_way_back_is_the_nearest_point_of_the_ball(ball: Ball, eps: float) -> None:
    delta = rows(12, 1, 2, 3) * torch.linspace(0.0, 3.0, 12, dtype=torch.float64).view(-1, 1, 1, 1)
    projected = ball.project(delta, eps)
    assert projected.shape == delta.shape
    assert (lengths(projected, ball) <= eps + 1e-9).all()
    inside = lengths(delta, ball) <= eps
    torch.testing.assert_close(projected[inside], delta[inside])
    # nearest: the way from it to delta makes no acute angle with the way to any other point of the ball
    others = ball.draw((200, 1, 2, 3), seed(1)).double().flatten(1) * eps
    way = (delta - projected).flatten(1)
    toward = others.unsqueeze(0) - projected.flatten(1).unsqueeze(1)
    assert ((toward * way.unsqueeze(1)).sum(dim=2) <= 1e-9).all()


def test_l2_scales_only_what_is_outside() -> None:
    delta = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [1e-25, 0.0]]).view(4, 1, 1, 2)
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [1e-25, 0.0]]).view(4, 1, 1, 2)
    torch.testing.assert_close(L2.project(delta, 1.0), expected)
    assert (L2.project(delta, 0.0) == 0).all()


@BALLS
def test_nan_is_not_projected_away(ball: Ball) -> None:
    delta = torch.full((2, 1, 1, 3), 2.0)
    delta[0, 0, 0, 1] = torch.nan
    projected = ball.project(delta, 1.0)
    assert projected[0].isnan().any()
    assert projected[1].isfinite().all()


@BALLS
def test_a_step_is_the_steepest_of_length_1(ball: Ball) -> None:
    """By duality no step gains more than the dual norm; l1 shares its step, so it gains the mean of the largest."""
    gradient = rows(5, 1, 20, 20)
    x = torch.full_like(gradient, 0.5)
    kept = gradient.clone()
    step = ball.step(gradient.clone(), x)
    torch.testing.assert_close(lengths(step, ball), torch.ones(5).double())
    gain = (step * kept).flatten(1).sum(dim=1)
    flat = kept.flatten(1)
    best = {
        "linf": flat.abs().sum(dim=1),
        "l2": flat.norm(dim=1),
        "l1": flat.abs().topk(4, dim=1).values.mean(dim=1),  # a hundredth of 400
    }[ball.norm]
    torch.testing.assert_close(gain, best)


@BALLS
def test_a_zero_gradient_gives_no_step(ball: Ball) -> None:
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[1] = 3.0
    step = ball.step(gradient, torch.full((2, 1, 2, 2), 0.5))
    assert (step[0] == 0).all()
    assert (step[1] >= 0).all()
    assert step[1].sum() > 0


def test_an_l1_step_spares_pixels_that_cannot_move() -> None:
    gradient = torch.tensor([9.0, -8.0, 7.0, -6.0, 0.5]).view(1, 1, 1, 5)
    x = torch.tensor([1.0, 0.0, 1.0, 0.4, 0.5]).view(1, 1, 1, 5)
    assert L1.step(gradient.clone(), x).flatten().tolist() == [0, 0, 0, -1, 0]
    # on a face, but the gradient points inwards
    assert L1.step(-gradient, x).flatten().tolist() == [-1, 0, 0, 0, 0]
    assert L1.step(torch.ones(1, 1, 1, 5), torch.ones(1, 1, 1, 5)).count_nonzero() == 0


def test_an_l1_step_with_fewer_movable_pixels_than_it_wants_still_has_length_1() -> None:
    gradient = torch.zeros(1, 1, 20, 20)
    gradient[0, 0, 3, 4], gradient[0, 0, 5, 6] = 2.0, -1.0
    step = L1.step(gradient, torch.full((1, 1, 20, 20), 0.5))
    assert step[0, 0, 3, 4] == 0.5
    assert step[0, 0, 5, 6] == -0.5
    assert step.count_nonzero() == 2


@BALLS
@pytest.mark.parametrize("shape", [(500, 1, 2, 2), (20, 3, 8, 8), (3, 1, 1, 1)])
def test_draws_lie_in_the_unit_ball(ball: Ball, shape: tuple[int, ...]) -> None:
    points = ball.draw(shape, seed(0))
    assert points.shape == shape
    assert points.dtype == torch.float32
    assert points.isfinite().all()
    assert (lengths(points, ball) <= 1 + 1e-6).all()


@BALLS
def test_draws_are_uniform(ball: Ball) -> None:
    """In a uniform draw from a ball in n dimensions radius**n is uniform in [0, 1], and no direction is preferred."""
    points = ball.draw((20_000, 1, 2, 2), seed(0))
    volume, _ = lengths(points, ball).pow(4).sort()
    steps = torch.linspace(0, 1, 20_000).double()
    assert (volume - steps).abs().max() < 0.02  # Kolmogorov and Smirnov: 0.0115 at 1 %
    flat = points.flatten(1)
    assert (flat.mean(dim=0).abs() < 0.02).all()
    spread = flat.square().mean(dim=0)
    assert (spread / spread.mean() - 1).abs().max() < 0.05
    correlation = torch.corrcoef(flat.T) - torch.eye(4)
    assert correlation.abs().max() < 0.03
    assert (flat > 0).double().mean(dim=0).sub(0.5).abs().max() < 0.02


def test_a_point_of_the_l1_ball_has_the_coordinates_of_one() -> None:
    """One coordinate's size in n dimensions has mean 1 / (n + 1), which a rescaled cube or sphere misses."""
    points = L1.draw((20_000, 1, 2, 2), seed(0))
    assert points.abs().mean().item() == pytest.approx(1 / 5, abs=0.005)
    # second moment: 2 / ((n + 1)(n + 2))
    assert points.square().mean().item() == pytest.approx(2 / 30, abs=0.003)


@BALLS
def test_draws_follow_the_generator_alone(ball: Ball) -> None:
    shape = (3, 1, 4, 4)
    state = torch.get_rng_state()
    first = ball.draw(shape, seed(5))
    assert torch.equal(ball.draw(shape, seed(5)), first)
    assert not torch.equal(ball.draw(shape, seed(6)), first)
    generator = seed(5)
    assert torch.equal(ball.draw(shape, generator), first)
    assert not torch.equal(ball.draw(shape, generator), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[1])
