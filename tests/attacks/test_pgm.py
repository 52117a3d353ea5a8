"""PGM's restarts, rows that leave early, and the l2 and l1 balls, where the answer is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import PGM, GuardedAttack, load
from tests.attacks.conftest import SmallNet, seeded

Batch = Callable[[int], tuple[Tensor, Tensor]]
ORDERS = {"pgm": torch.inf, "pgd_l2": 2.0, "pgd_l1": 1.0}
BALLS = pytest.mark.parametrize("name", ORDERS)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def two_class_linear(pixels: int) -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2)).double()


def away_from(model: nn.Module, y: Tensor) -> Tensor:
    """Return the direction in which a linear model of two classes leaves each label, (B, n)."""
    weight = model[1].weight.detach()
    return weight[1 - y] - weight[y]


@pytest.fixture
def sharp(net: SmallNet) -> SmallNet:
    """The net in float64, with answers that differ over the ball: some rows are fooled early, some late, some never."""
    return net.double().eval()


def wide_batch(net: nn.Module, size: int) -> tuple[Tensor, Tensor]:
    """Return images and the net's own answers to them."""
    with seeded(1), torch.no_grad():
        device = next(net.parameters()).device
        x = torch.rand(size, 1, 12, 12).double().to(device)
        return x, net(x).argmax(dim=1)


def losses(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = net(x)
    return functional.cross_entropy(logits, y, reduction="none"), logits.argmax(dim=1) != y


class Sure(nn.Module):
    """Leads by a wide margin for the labels of one batch."""

    def __init__(self, inner: nn.Module, y: Tensor, lead: float) -> None:
        super().__init__()
        self.inner = inner
        self.lead = lead * functional.one_hot(y, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.lead


class Counting(nn.Module):
    """Counts rows, and keeps how many came at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


STEPS = {
    "pgm": {"eps": 0.1, "eps_iter": 0.02},
    "pgd_l2": {"eps": 0.8},
    "pgd_l1": {"eps": 16.0, "eps_iter": 1.0, "nb_iter": 20},
}
"""Budgets at which some rows of ``wide_batch`` fall and some stand."""


def attack_on(name: str, **settings: object) -> GuardedAttack:
    return load(name, **({"nb_iter": 6} | STEPS[name] | settings))


@BALLS
def test_noise_has_one_axis_more_for_restarts(name: str) -> None:
    shape = (5, 1, 4, 4)
    one, many = load(name).draw_noise(shape, seed(3)), load(name, restarts=3).draw_noise(shape, seed(3))
    assert one.shape == shape
    assert many.shape == (5, 3, 1, 4, 4)
    assert torch.equal(many[:, 0], one)
    assert not torch.equal(many[:, 1], one)
    assert load(name, restarts=3, rand_init=False).draw_noise(shape, seed(3)) is None


@BALLS
@pytest.mark.parametrize("keep_best", [False, True])
def test_restarts_keep_the_worst_of_their_runs(name: str, keep_best: bool, sharp: nn.Module) -> None:
    """The worst is a fooled row before one that stands, and then the larger loss."""
    x, y = wide_batch(sharp, 24)
    many = attack_on(name, restarts=4, keep_best=keep_best)
    noise = many.draw_noise(x.shape, seed(2))
    single = attack_on(name, keep_best=keep_best)
    runs = [single(sharp, x, y, noise=noise[:, run].contiguous()) for run in range(4)]
    best = many(sharp, x, y, noise=noise)
    scored = [losses(sharp, run, y) for run in runs]
    scores = torch.stack([loss + 1000.0 * fooled for loss, fooled in scored])
    expected = torch.stack(runs)[scores.argmax(dim=0), torch.arange(len(x))]
    torch.testing.assert_close(best, expected, rtol=0, atol=1e-9)
    picked = scores.argmax(dim=0).unique()
    assert len(picked) > 1, "a single run is the worst for every row: the choice is not tested"
    fooled = torch.stack([fooled for _, fooled in scored])
    assert torch.equal(losses(sharp, best, y)[1], fooled.any(dim=0))


def test_a_fooled_row_is_kept_though_another_run_has_the_larger_loss() -> None:
    """Run 1 ends fooled with loss 0.80, run 2 stands with loss 1.02."""

    class Scripted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = x.flatten(1).mean(dim=1, keepdim=True) > 0.5
            fooled, standing = torch.tensor([0.45, 0.5, 0.05]).log(), torch.tensor([0.36, 0.32, 0.32]).log()
            return torch.where(bright, fooled, standing) + 1e-6 * x.flatten(1)[:, :3]

    x = torch.full((2, 1, 2, 2), 0.5)
    noise = torch.stack([torch.full_like(x, 0.5), torch.full_like(x, -0.5)], dim=1)
    attack = load("pgm", eps=0.2, eps_iter=0.001, nb_iter=1, restarts=2)
    for order in ([0, 1], [1, 0]):
        x_adv = attack(Scripted(), x, torch.tensor([0, 0]), noise=noise[:, order])
        assert (x_adv > 0.59).all()


def test_one_restart_is_the_plain_attack_and_more_cost_as_many_runs(sharp: nn.Module) -> None:
    x, y = wide_batch(sharp, 6)
    assert torch.equal(
        attack_on("pgm", restarts=1)(sharp, x, y, generator=seed(4)), attack_on("pgm")(sharp, x, y, generator=seed(4))
    )
    crafted = attack_on("pgm", restarts=3).craft(sharp, x, y)
    assert crafted.gradient_passes == 18
    assert crafted.forward_passes == 3  # to judge each run's end
    crafted = attack_on("pgm", restarts=3, keep_best=True).craft(sharp, x, y)
    assert (crafted.gradient_passes, crafted.forward_passes) == (18, 3)
    assert attack_on("pgm", restarts=3).max_passes == 18


@BALLS
@pytest.mark.parametrize("settings", [{"restarts": 3}, {"restarts": 2, "compact": True}, {"compact": True}])
def test_rows_do_not_know_of_each_other(name: str, settings: dict[str, object], sharp: nn.Module) -> None:
    x, y = wide_batch(sharp, 12)
    attack = attack_on(name, **settings)
    noise = attack.draw_noise(x.shape, seed(5))
    whole = attack(sharp, x, y, noise=noise)
    for rows in (torch.tensor([7, 2, 9]), torch.tensor([4]), torch.arange(11, -1, -1)):
        part = attack(sharp, x[rows], y[rows], noise=noise[rows])
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-9)


@BALLS
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("rand_init", [True, False])
def test_compact_fools_the_rows_that_keep_best_does_in_fewer_passes(
    name: str, restarts: int, rand_init: bool, sharp: nn.Module
) -> None:
    x, y = wide_batch(sharp, 32)
    y[:4] = (y[:4] + 1) % 5  # wrong from the start
    settings = {"restarts": restarts, "rand_init": rand_init}
    best = attack_on(name, keep_best=True, **settings).craft(sharp, x, y)
    compact = attack_on(name, compact=True, **settings).craft(sharp, x, y)
    assert 4 < best.fooled.sum() < 32, "all rows or none: nothing is compared"
    assert torch.equal(compact.fooled, best.fooled)
    torch.testing.assert_close(compact.x_adv[~best.fooled], best.x_adv[~best.fooled], rtol=0, atol=1e-9)
    assert compact.gradient_passes < best.gradient_passes
    assert compact.forward_passes < best.forward_passes
    if not rand_init:
        assert torch.equal(compact.x_adv[:4], x[:4])


def test_a_compact_row_comes_back_at_the_first_point_that_fools(sharp: nn.Module) -> None:
    x, y = wide_batch(sharp, 16)
    noise = attack_on("pgm").draw_noise(x.shape, seed(6)).to(x)
    first = torch.full_like(x, torch.nan)
    for steps in range(7):
        point = (
            (x + 0.1 * noise).clamp(0, 1) if steps == 0 else attack_on("pgm", nb_iter=steps)(sharp, x, y, noise=noise)
        )
        new = losses(sharp, point, y)[1] & first.flatten(1).isnan().any(dim=1)
        first[new] = point[new]
    fooled = ~first.flatten(1).isnan().any(dim=1)
    assert 0 < fooled.sum() < 16
    x_adv = attack_on("pgm", compact=True)(sharp, x, y, noise=noise)
    torch.testing.assert_close(x_adv[fooled], first[fooled], rtol=0, atol=1e-9)


@pytest.mark.parametrize("restarts", [1, 3])
def test_compact_where_all_rows_are_fooled_at_once(restarts: int, sharp: nn.Module) -> None:
    x, y = wide_batch(sharp, 5)
    model = Counting(sharp)
    wrong = (y + 1) % 5
    attack = load("pgm", eps=1e-6, nb_iter=6, compact=True, restarts=restarts)
    torch.testing.assert_close(attack(model, x, wrong), x, rtol=0, atol=2e-6)
    assert model.sizes == [5], "one pass says that nothing is left to do"


def test_compact_where_no_row_is_fooled() -> None:
    model = two_class_linear(16)
    x, y = 0.4 + 0.2 * torch.rand(5, 1, 4, 4, generator=seed(0)).double(), torch.tensor([0, 1, 0, 1, 1])
    counting = Counting(Sure(model, y, 20.0))
    settings = {"eps": 0.05, "eps_iter": 0.02, "nb_iter": 6, "rand_init": False}
    crafted = load("pgm", compact=True, **settings).craft(counting, x, y)
    assert not crafted.fooled.any()
    assert counting.sizes == [5] * 8  # six steps, the last point, and craft's own look
    assert torch.equal(crafted.x_adv, load("pgm", keep_best=True, **settings)(counting, x, y))
    sign = away_from(model, y).sign().view_as(x)
    torch.testing.assert_close(crafted.x_adv, x + 0.05 * sign, rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [{"keep_best": True}, {"compact": True}, {"restarts": 2}], ids=str)
def test_the_best_point_of_a_sure_model_is_not_the_first_one(settings: dict[str, object]) -> None:
    """In float32 the cross-entropy of an answer ahead by 17 is 0: told by it, no point is better than the start."""
    model, y = two_class_linear(16).float(), torch.tensor([0, 1, 0, 1, 1])
    x = 0.4 + 0.2 * torch.rand(5, 1, 4, 4, generator=seed(0))
    sure = Sure(model, y, 50.0)
    assert (functional.cross_entropy(sure(x), y, reduction="none") == 0).all(), "the trap is not sprung"
    sign = away_from(model, y).sign().view_as(x)
    # One run goes from half-way back to 0.04 ahead. Of two, the first starts at the far corner and comes less far.
    noise, reach, steps = -0.5 * sign, 0.04, 3
    if "restarts" in settings:
        noise, reach = torch.stack([-sign, 0.0 * sign], dim=1), 0.09
    attack = load("pgm", eps=0.1, eps_iter=0.03, nb_iter=steps, **settings)
    torch.testing.assert_close(attack(sure, x, y, noise=noise), x + reach * sign, rtol=0, atol=1e-6)


def test_compact_takes_only_the_rows_that_stand_on(sharp: nn.Module) -> None:
    """With restarts, rows that fell in one run are not in the next."""
    x, y = wide_batch(sharp, 24)
    model = Counting(sharp)
    attack = attack_on("pgm", compact=True, restarts=3)
    crafted = attack.craft(model, x, y)
    runs = [model.sizes[start : start + 7] for start in range(0, 21, 7)]
    assert model.sizes[-1] == 24
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        assert run == sorted(run, reverse=True)
        assert following is None or following[0] <= run[-1]
    assert runs[0][0] == 24
    assert runs[-1][-1] >= int((~crafted.fooled).sum()) > 0
    assert sum(model.sizes[:-1]) == pytest.approx(24 * (crafted.gradient_passes + crafted.forward_passes))


def test_l2_on_a_linear_model_goes_straight_along_the_weights() -> None:
    model = two_class_linear(27)
    x, y = 0.4 + 0.2 * torch.rand(6, 3, 3, 3, generator=seed(0)).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    w = away_from(model, y)
    optimum = x + (0.3 * w / w.norm(dim=1, keepdim=True)).view_as(x)
    assert ((optimum > 0) & (optimum < 1)).all(), "the box is in the way"
    straight = load("pgd_l2", eps=0.3, nb_iter=10, rand_init=False)
    torch.testing.assert_close(straight(model, x, y), optimum, rtol=0, atol=1e-9)
    # From anywhere in the ball the projected path bends towards the optimum.
    bent = load("pgd_l2", eps=0.3, nb_iter=200, eps_iter=0.1)(model, x, y)
    torch.testing.assert_close(bent, optimum, rtol=0, atol=1e-3)
    short = load("pgd_l2", eps=0.3, nb_iter=2, eps_iter=0.05, rand_init=False).craft(model, x, y)
    torch.testing.assert_close(short.distances["l2"], torch.full((6,), 0.1).double())


def test_l1_on_a_linear_model_moves_the_largest_coordinate_alone() -> None:
    model = two_class_linear(27)
    x, y = 0.4 + 0.2 * torch.rand(6, 3, 3, 3, generator=seed(0)).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    w = away_from(model, y)
    largest = w.abs().argmax(dim=1, keepdim=True)
    optimum = x + torch.zeros_like(w).scatter(1, largest, 0.3 * w.gather(1, largest).sign()).view_as(x)
    straight = load("pgd_l1", eps=0.3, nb_iter=10, rand_init=False)
    torch.testing.assert_close(straight(model, x, y), optimum, rtol=0, atol=1e-9)
    assert ((straight(model, x, y) != x).flatten(1).sum(dim=1) == 1).all()
    from_noise = load("pgd_l1", eps=0.3, nb_iter=100)(model, x, y)
    torch.testing.assert_close(from_noise, optimum, rtol=0, atol=1e-9)


def test_l1_takes_the_next_pixel_where_the_largest_stand_on_a_face_of_the_box() -> None:
    """Without the box the two largest would take every step, and the images would stay as they are."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1] = torch.tensor([9.0, -8.0, 1.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.5])
    x = torch.full((1, 1, 3, 3), 0.5).double()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1.0, 0.0
    x_adv = load("pgd_l1", eps=0.7, nb_iter=20, eps_iter=0.05, rand_init=False)(model, x, torch.tensor([0]))
    expected = torch.zeros(9).double()
    expected[5], expected[2] = -0.5, 0.2  # the third largest goes to its face, the rest of the budget to the next
    torch.testing.assert_close((x_adv - x).flatten(), expected, rtol=0, atol=0.051)
    assert (x_adv - x).abs().sum() <= 0.7 + 1e-9
    assert x_adv.flatten()[5] == pytest.approx(0.0, abs=0.051)
    assert x_adv.flatten()[2] > 0.6


@BALLS
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4])
@pytest.mark.parametrize(
    "settings",
    [{}, {"rand_init": False}, {"restarts": 2}, {"keep_best": True}, {"compact": True}, {"eps_iter": 10.0}],
    ids=str,
)
def test_budget_and_box_hold_from_every_point(
    name: str, eps: float, settings: dict[str, object], net: nn.Module
) -> None:
    with seeded(3):
        x = torch.rand(8, 1, 12, 12).to(next(net.parameters()))
    x[:2], x[2:4], x[4, :, ::2] = 0.0, 1.0, 0.0
    attack = load(name, eps=eps, nb_iter=3, **({"eps_iter": eps / 2 or 0.1} | settings))
    crafted = attack.craft(net, x, torch.arange(8, device=x.device) % 5)
    norm = {"pgm": "linf", "pgd_l2": "l2", "pgd_l1": "l1"}[name]
    assert (crafted.distances[norm] <= eps + 1e-5).all()
    assert ((crafted.x_adv >= 0) & (crafted.x_adv <= 1)).all()
    if eps == 0.0:
        assert torch.equal(crafted.x_adv, x)
    else:
        assert (crafted.distances[norm][4:] > 0.1 * eps).all()


@BALLS
def test_an_open_step_size_is_two_and_a_half_times_eps_over_the_steps(name: str) -> None:
    attack = load(name, eps=0.4, nb_iter=20, eps_iter=None)
    assert attack.params["eps_iter"] == attack.arguments["eps_iter"] == pytest.approx(0.05)
    model = two_class_linear(16)
    x, y = torch.full((1, 1, 4, 4), 0.5).double(), torch.tensor([0])
    # one step of those twenty from the image itself
    one = load(name, eps=0.4, nb_iter=1, eps_iter=0.05, rand_init=False)(model, x, y) - x
    assert torch.linalg.vector_norm(one.flatten(), ORDERS[name]).item() == pytest.approx(0.05)
    whole = load(name, eps=0.4, nb_iter=20, eps_iter=None, rand_init=False).craft(model, x, y)
    norm = {"pgm": "linf", "pgd_l2": "l2", "pgd_l1": "l1"}[name]
    assert whole.distances[norm].item() == pytest.approx(0.4)


@BALLS
@pytest.mark.parametrize("settings", [{}, {"restarts": 2}, {"compact": True}, {"rand_init": False}], ids=str)
def test_rows_without_a_gradient_are_counted(name: str, settings: dict[str, object]) -> None:
    inner = two_class_linear(16)

    class HalfFlat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x) * (x.flatten(1).mean(dim=1, keepdim=True) > 0.5) + torch.tensor([1e3, 0.0]).double()

    x = torch.full((4, 1, 4, 4), 0.25).double()
    x[1::2] = 0.75
    crafted = load(name, eps=0.1, nb_iter=3, eps_iter=0.05, **settings).craft(HalfFlat(), x, torch.zeros(4).long())
    assert crafted.zero_gradient.tolist() == [True, False, True, False]
    if not settings.get("rand_init", True):
        assert torch.equal(crafted.x_adv[::2], x[::2])


@BALLS
def test_a_direct_call_draws_its_own_starts(name: str, sharp: nn.Module) -> None:
    """Without the guard, as any class of torchattacks is used."""
    x, y = wide_batch(sharp, 3)
    attack_class = load(name).attack_class
    assert issubclass(attack_class, PGM)
    attack = attack_class(sharp, eps=0.2, eps_iter=0.02, nb_iter=2, restarts=2)
    with seeded(5):
        first, second = attack(x, y), attack(x, y)
    with seeded(5):
        again = attack(x, y)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
