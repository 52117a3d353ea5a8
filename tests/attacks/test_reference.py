"""AutoAttack and its members against pyautoattack's own results, and what they keep that pyautoattack does not."""

import warnings
from collections.abc import Callable

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from amc_lightning.attacks.autoattack import AutoAttack
from amc_lightning.attacks.base import Attack, Start, StartsClean, TakesNoise
from amc_lightning.attacks.reference import APGDCE, APGDT, FAB, Square
from amc_lightning.errors import UserError

# Radii that fool some rows and not others.
EPS = {"linf": 0.015, "l2": 0.12, "l1": 0.5}
THEIRS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NORMS = list(EPS)
FEW = {
    APGDCE: {"nb_iter": 8},
    APGDT: {"nb_iter": 5, "n_target_classes": 3},
    FAB: {"nb_iter": 5, "n_target_classes": 3},
    Square: {"n_queries": 30},
    AutoAttack: {"nb_iter": 4, "n_target_classes": 2, "n_queries": 10},
}
CLASSES = list(FEW)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def network(classes: int = 6, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small smooth network whose answers differ from image to image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(400, classes))
        logits = net(torch.rand(50, 1, 10, 10))
    scale = logits.std(dim=0).detach()
    net[-1].weight.data /= scale.unsqueeze(1)
    net[-1].bias.data = (net[-1].bias.data - logits.mean(dim=0).detach()) / scale
    return net.to(dtype).eval()


def images(net: nn.Module, count: int, *, wrong: bool = True) -> tuple[Tensor, Tensor]:
    dtype = next(net.parameters()).dtype
    x = torch.rand(count, 1, 10, 10, generator=seed(1)).to(dtype)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
        if wrong and count > 1:
            y[-1] = (y[-1] + 1) % net(x).shape[1]
    return x, y


def answers(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(dim=1)


def length(delta: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


def drawn(attack: type[Attack], x: Tensor, **arguments: object) -> dict[str, Tensor]:
    if not issubclass(attack, TakesNoise):
        return {}
    noise = attack.draw_noise(x.shape, seed(5), **arguments)
    assert noise is not None
    return {"noise": noise}


def assert_tells_apart(net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor) -> None:
    """The comparison says something only if some rows are fooled and some are not."""
    changed = (x_adv != x).flatten(1).any(dim=1)
    assert changed.any()
    assert not changed.all()
    assert torch.equal(answers(net, x_adv)[changed] != y[changed], torch.ones_like(y[changed]).bool())


@pytest.mark.parametrize("norm", NORMS)
def test_apgd_ce_is_the_reference(norm: str) -> None:
    net = network()
    x, y = images(net, 12)
    theirs = APGDAttack(
        net, n_iter=10, norm=THEIRS[norm], eps=EPS[norm], seed=7, device="cpu", use_largereps=norm == "l1"
    ).perturb(x, y)
    right = answers(net, x) == y
    # They start from the first numbers after their seeding, for the rows that are right.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        shape = x[right].shape
        first = 2 * torch.rand(shape) - 1 if norm == "linf" else torch.randn(shape)
    noise = torch.zeros_like(x)
    noise[right] = first
    ours = APGDCE(net, eps=EPS[norm], norm=norm, nb_iter=10)(x, y, noise=noise)
    assert torch.equal(ours, theirs)
    assert_tells_apart(net, ours, x, y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_t_is_the_reference(norm: str) -> None:
    net = network()
    x, y = images(net, 12)
    settings = {"n_iter": 6, "norm": THEIRS[norm], "eps": EPS[norm] * 0.8, "seed": 7, "device": "cpu"}
    targets = 3
    ours, theirs = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a zero gradient
        for row in range(len(x)):  # alone, since their starts depend on the rows that are left
            one, label = x[row : row + 1], y[row : row + 1]
            theirs.append(APGDAttack_targeted(net, n_target_classes=targets, **settings).perturb(one, label))
            noise = torch.empty(1, targets, *x.shape[1:])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                for target in range(targets):
                    noise[:, target] = 2 * torch.rand(one.shape) - 1 if norm == "linf" else torch.randn(one.shape)
            attack = APGDT(net, eps=EPS[norm] * 0.8, norm=norm, nb_iter=6, n_target_classes=targets)
            ours.append(attack(one, label, noise=noise))
    assert torch.equal(torch.cat(ours), torch.cat(theirs))
    assert_tells_apart(net, torch.cat(ours), x, y)


@pytest.mark.parametrize("norm", NORMS)
def test_fab_is_the_reference(norm: str) -> None:
    net = network().requires_grad_(False)
    x, y = images(net, 12)
    theirs = FABAttack_PT(
        net, norm=THEIRS[norm], n_iter=10, eps=EPS[norm], targeted=True, device="cpu", n_target_classes=4
    ).perturb(x, y)
    ours = FAB(net, eps=EPS[norm], norm=norm, nb_iter=10, n_target_classes=4)(x, y)
    assert torch.equal(ours, theirs)
    assert_tells_apart(net, ours, x, y)


@pytest.mark.parametrize("norm", NORMS)
def test_square_does_to_every_row_what_the_reference_does_to_it_alone(norm: str) -> None:
    net = network()
    x, y = images(net, 8)
    eps, state = 2 * EPS[norm], torch.get_rng_state()
    ours = Square(net, eps=eps, norm=norm, n_queries=40, square_seed=3)(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = []
    with torch.random.fork_rng(devices=[]):
        for row in range(len(x)):
            attack = SquareAttack(
                net, norm=THEIRS[norm], n_queries=40, eps=eps, seed=3, resc_schedule=False, device="cpu"
            )
            with torch.no_grad():
                theirs.append(attack.perturb(x[row : row + 1], y[row : row + 1]))
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=0, atol=1e-6)
    assert_tells_apart(net, ours, x, y)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", CLASSES)
def test_a_row_is_its_own_and_within_its_budget(attack: type[Attack], norm: str) -> None:
    net = network()
    x, y = images(net, 8)
    arguments = {"eps": EPS[norm], "norm": norm, **FEW[attack]}
    noise = drawn(attack, x, **arguments)
    x_before = x.clone()
    whole = attack(net, **arguments)(x, y, **noise)
    assert torch.equal(x, x_before)
    assert not whole.requires_grad
    assert ((whole >= 0) & (whole <= 1)).all()
    assert (length(whole - x, norm) <= EPS[norm] + 1e-5).all()
    assert torch.equal(whole[-1], x[-1]), "wrong from the start"
    unfooled = answers(net, whole) == y
    assert torch.equal(whole[unfooled], x[unfooled])
    rows = torch.tensor([6, 1, 3])
    part = attack(net, **arguments)(x[rows], y[rows], **{key: value[rows] for key, value in noise.items()})
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-5)
    alone = attack(net, **arguments)(x[3:4], y[3:4], **{key: value[3:4] for key, value in noise.items()})
    torch.testing.assert_close(alone, whole[3:4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attack", CLASSES)
def test_leaves_gradients_alone_and_the_global_random_state(
    attack: type[Attack], capsys: pytest.CaptureFixture[str]
) -> None:
    net = network()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    x, y = images(net, 4)
    noise, state = drawn(attack, x, **FEW[attack]), torch.get_rng_state()
    attack(net, eps=0.01, **FEW[attack])(x, y, **noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert all((parameter.grad == 2.0).all() for parameter in net.parameters())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("attack", CLASSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 100])
def test_any_number_of_classes(attack: type[Attack], classes: int) -> None:
    net = network(classes)
    x, y = images(net, 3)
    attacked = attack(net, eps=0.3, **FEW[attack])
    if attack is APGDT and classes < 4:
        with pytest.raises(UserError, match=f"apgd_t: {classes} classes are too few for the targeted DLR loss"):
            attacked(x, y)
        return
    x_adv = attacked(x, y)
    assert (answers(net, x_adv) != y).sum() > 1


@pytest.mark.parametrize("attack", CLASSES)
def test_float64(attack: type[Attack]) -> None:
    net = network(dtype=torch.float64)
    x, y = images(net, 4)
    x_adv = attack(net, eps=0.05, **FEW[attack])(x, y)
    assert x_adv.dtype == torch.float64
    assert (answers(net, x_adv) != y).sum() > 1
    assert (length(x_adv - x, "linf") <= 0.05 + 1e-6).all()


@pytest.mark.parametrize("attack", CLASSES)
def test_uses_the_clean_logits_it_is_given(attack: type[Attack]) -> None:
    net = network()
    passes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    x, y = images(net, 4, wrong=False)
    assert issubclass(attack, StartsClean)
    assert attack.clean_need() == "logits"
    noise = drawn(attack, x, **FEW[attack])
    with torch.no_grad():
        start = Start(net(x))
    passes.clear()
    expected = attack(net, eps=0.02, **FEW[attack])(x, y, **noise)
    without = len(passes)
    passes.clear()
    assert torch.equal(attack(net, eps=0.02, **FEW[attack])(x, y, **noise, start=start), expected)
    assert len(passes) == without - 1
    passes.clear()
    other = (y + 1) % 6
    assert torch.equal(attack(net, eps=0.02, **FEW[attack])(x, other, **noise, start=start), x)
    assert passes == [], "rows wrong from the start cost nothing"


@pytest.mark.parametrize("attack", CLASSES)
def test_an_answer_that_is_no_number_is_noticed(attack: type[Attack]) -> None:
    net = network()
    x, y = images(net, 3)
    x[1, 0, 0, 0] = torch.nan
    x_adv = attack(net, eps=0.1, **FEW[attack])(x, y)
    assert x_adv[1].isnan().all()
    assert x_adv[[0, 2]].isfinite().all()


@pytest.mark.parametrize("attack", CLASSES)
def test_a_budget_of_nothing_changes_nothing(attack: type[Attack]) -> None:
    net = network()
    x, y = images(net, 3)
    assert torch.equal(attack(net, eps=0.0, **FEW[attack])(x, y), x)


@pytest.mark.parametrize("attack", [APGDCE, APGDT, FAB, AutoAttack])
@pytest.mark.parametrize("norm", NORMS)
def test_makes_no_more_gradient_passes_than_it_says(attack: type[Attack], norm: str) -> None:
    net = network()
    x, y = images(net, 1)
    passes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: passes.append(int(inputs[0].requires_grad)))
    arguments = {"eps": 1e-4, "norm": norm, **FEW[attack]}
    attack(net, **arguments)(x, y)
    assert 0 < sum(passes) <= attack.gradient_passes(**arguments)  # type: ignore[attr-defined]


def test_defaults_are_the_references() -> None:
    assert APGDCE.gradient_passes() - 3 == 100
    assert FAB.gradient_passes() == 9 * 100
    attack = AutoAttack(network())
    assert (attack.nb_iter, attack.n_target_classes, attack.n_queries) == (100, 9, 5000)
    assert AutoAttack.draw_noise((2, 1, 4, 4), seed(0)).shape == (2, 1 + 9, 1, 4, 4)
    assert AutoAttack.draw_noise((2, 1, 4, 4), seed(0), norm="l1").shape == (2, 5 + 5, 1, 4, 4)
    assert AutoAttack.members(4) == AutoAttack.members(1000) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert AutoAttack.members(2) == AutoAttack.members(3) == ("apgd-ce", "fab-t", "square")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_its_members_one_after_the_other(norm: str) -> None:
    net = network()
    x, y = images(net, 12)
    few = {"nb_iter": 4, "n_target_classes": 2, "n_queries": 10}
    budget = {"eps": EPS[norm], "norm": norm}
    noise = AutoAttack.draw_noise(x.shape, seed(5), norm=norm, **few)
    assert noise is not None
    members: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
        lambda x, y, noise: APGDCE(net, nb_iter=4, **budget)(x, y, noise=noise[:, 0].contiguous()),
        lambda x, y, noise: APGDT(net, nb_iter=4, n_target_classes=2, **budget)(x, y, noise=noise[:, 1:].contiguous()),
        lambda x, y, noise: FAB(net, nb_iter=4, n_target_classes=2, **budget)(x, y),
        lambda x, y, noise: Square(net, n_queries=10, **budget)(x, y),
    ]
    expected = x.clone()
    for member in members:
        left = answers(net, expected) == y
        expected[left] = member(x[left], y[left], noise[left])
    torch.testing.assert_close(AutoAttack(net, **budget, **few)(x, y, noise=noise), expected, rtol=0, atol=1e-5)


def test_apgd_reaches_the_corner_of_the_ball_on_a_linear_model() -> None:
    w = torch.randn(1, 100, generator=seed(2))
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
    net[1].weight.data = torch.cat([w, -w])
    x = torch.full((1, 1, 10, 10), 0.5)
    reach = 0.1 * w.abs().sum()
    net[1].bias.data = torch.tensor([0.0, 2 * (x.flatten() @ w[0])]) + torch.tensor([1.98 * reach, 0.0])
    y = torch.tensor([0])
    assert answers(net, x) == y
    x_adv = APGDCE(net, eps=0.1, nb_iter=30)(x, y, noise=torch.zeros_like(x))
    assert (answers(net, x_adv) != y).all(), "only nearly the whole ball is enough"
    torch.testing.assert_close(((x_adv - x).flatten() @ -w[0]) / reach, torch.tensor(1.0), rtol=0, atol=0.011)
    assert torch.equal(APGDCE(net, eps=0.098, nb_iter=30)(x, y, noise=torch.zeros_like(x)), x)


def test_more_restarts_fool_no_fewer_rows_and_keep_the_first() -> None:
    net = network()
    x, y = images(net, 12)
    for attack, few in ((APGDCE, {"nb_iter": 2}), (Square, {"n_queries": 5})):
        eps = 0.012 if attack is APGDCE else 0.03
        one = attack(net, eps=eps, restarts=1, **few)(x, y, **drawn(attack, x, restarts=1))
        four = attack(net, eps=eps, restarts=4, **few)(x, y, **drawn(attack, x, restarts=4))
        fooled = (one != x).flatten(1).any(dim=1)
        assert torch.equal(one[fooled], four[fooled])
        assert (answers(net, four) != y).sum() >= (answers(net, one) != y).sum()


def test_square_says_which_images_it_cannot_tile() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    x, y = torch.rand(2, 1, 12, 12, generator=seed(0)), torch.tensor([0, 1])
    for attack in (Square, AutoAttack):
        with pytest.raises(UserError, match=r"square: \(12, 12\) pixels cannot be tiled by pyautoattack for l2"):
            attack(net, norm="l2", eps=1.0)(x, y)
    Square(net, norm="linf", eps=0.1, n_queries=2)(x, y)


def test_without_noise_it_follows_the_global_state() -> None:
    net = network()
    x, y = images(net, 4)
    for attack in (APGDCE, APGDT, AutoAttack):
        with torch.random.fork_rng(devices=[]):
            results = []
            for number in (1, 1, 2):
                torch.manual_seed(number)
                results.append(attack(net, eps=0.5, norm="l2", **FEW[attack])(x, y))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
