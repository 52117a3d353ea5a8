"""A model that answers or differentiates to NaN is noticed, never counted as fooled nor as robust."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks import load
from amc_lightning.attacks.ball import BALLS
from amc_lightning.attacks.base import is_fooled
from amc_lightning.attacks.deepfool import DeepFool
from amc_lightning.attacks.fgsm import FGSM
from amc_lightning.attacks.noise import RandomNoise
from amc_lightning.attacks.pgm import PGDL1, PGDL2, PGM
from amc_lightning.attacks.reference import Square
from amc_lightning.attacks.vap import VAP
from amc_lightning.errors import NotFiniteError

# Every attack that judges images on its way, at a budget under which some are fooled.
JUDGES: dict[str, dict[str, object]] = {
    "eap": {"max_iterations": 8, "binary_search_steps": 2, "initial_const": 10.0, "learning_rate": 0.1},
    "cw": {"max_iterations": 8, "binary_search_steps": 2, "initial_const": 10.0, "learning_rate": 0.1},
    "deepfool": {"max_iter": 4, "nb_candidate": 4},
    "noise": {"restarts": 3},
    "pgm": {"nb_iter": 3, "keep_best": True},
    "pgd_l1": {"nb_iter": 3, "restarts": 2},
    "pgd_l2": {"nb_iter": 3, "compact": True},
    "apgd_ce": {"nb_iter": 4},
    "apgd_t": {"nb_iter": 4, "n_target_classes": 2},
    "fab": {"nb_iter": 4, "n_target_classes": 2},
    "square": {"n_queries": 5},
    "autoattack": {"nb_iter": 2, "n_target_classes": 2, "n_queries": 3},
}
DIFFERENTIATES: dict[str, dict[str, object]] = {
    **{name: arguments for name, arguments in JUDGES.items() if name not in ("noise", "square")},
    "fgsm": {},
    "vap": {},
}


class Net(nn.Module):
    """A small network, its logits times ``scale``."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.Softplus(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 20 * self.body(x)
        return self.scale * logits


class NanOffGrid(Net):
    """Answers NaN to rows with a pixel that is no multiple of 1/16; their gradients are finite."""

    def forward(self, x: Tensor) -> Tensor:
        off = (16 * x != (16 * x).round()).flatten(1).any(dim=1, keepdim=True)
        return super().forward(x) + torch.where(off, torch.nan, 0.0)


class NanHidden(NanOffGrid):
    """The same, with gradients that are zero there."""

    def forward(self, x: Tensor) -> Tensor:
        off = (16 * x != (16 * x).round()).flatten(1).any(dim=1, keepdim=True)
        return Net.forward(self, x).masked_fill(off, torch.nan)


class NanGradient(Net):
    """Finite answers, NaN as the gradient: that of a root at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x - x).flatten(1).norm(dim=1, keepdim=True).sqrt()


class NanGradientOffGrid(Net):
    """The same, but at images off the grid only."""

    def forward(self, x: Tensor) -> Tensor:
        off = (16 * x != (16 * x).round()).flatten(1).any(dim=1, keepdim=True)
        root = (x - x).flatten(1).norm(dim=1, keepdim=True).sqrt()
        return super().forward(x) + torch.where(off, root, 0.0) if off.any() else super().forward(x)


def batch(model: nn.Module, size: int = 20) -> tuple[Tensor, Tensor]:
    """Images on the grid of 1/16, and the model's answers."""
    x = torch.randint(1, 16, (size, 1, 12, 12), generator=torch.Generator().manual_seed(1)) / 16
    with torch.no_grad():
        return x, model(x).argmax(dim=1)


def test_an_answer_that_is_no_number_does_not_fool() -> None:
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [torch.nan, 1.0], [1.0, torch.nan], [torch.nan, torch.nan]])
    assert is_fooled(logits, torch.tensor([0, 0, 1, 0, 1])).tolist() == [False, True, False, False, False]
    assert is_fooled(logits, torch.tensor([0, 0, 1, 0, 1]), 1.5).tolist() == [False] * 5


@pytest.mark.parametrize("model_class", [NanOffGrid, NanHidden])
@pytest.mark.parametrize("name", JUDGES)
def test_nan_answers_are_noticed(name: str, model_class: Callable[[], Net]) -> None:
    model = model_class().eval()
    x, y = batch(model)
    attack = load(name, **JUDGES[name])
    with pytest.raises(NotFiniteError):
        attack(model, x, y)


@pytest.mark.parametrize("name", ["eap", "cw"])
def test_nan_answers_are_noticed_with_early_aborts(name: str) -> None:
    model = NanHidden().eval()
    x, y = batch(model)
    with pytest.raises(NotFiniteError):
        load(name, **JUDGES[name] | {"abort_early": True, "max_iterations": 20})(model, x, y)


@pytest.mark.parametrize("name", DIFFERENTIATES)
def test_nan_gradients_are_noticed(name: str) -> None:
    model = NanGradient().eval()
    x, y = batch(model)
    budget = {} if name in ("eap", "cw", "deepfool") else {"eps": 1e-4}  # nothing is fooled by chance
    with pytest.raises(NotFiniteError):
        load(name, **DIFFERENTIATES[name] | budget)(model, x, y)


@pytest.mark.parametrize("name", [name for name in DIFFERENTIATES if name not in ("fgsm", "deepfool")])
def test_nan_gradients_on_the_way_are_noticed(name: str) -> None:
    model = NanGradientOffGrid().eval()
    x, y = batch(model)
    budget: dict[str, object] = {"eps": 1e-4}
    if name in ("eap", "cw"):
        budget = {"learning_rate": 1e-5, "initial_const": 0.01} | ({"beta": 1e-9} if name == "eap" else {})
    with pytest.raises(NotFiniteError):
        load(name, **DIFFERENTIATES[name] | budget)(model, x, y)


def test_deepfool_notices_nan_gradients_on_the_way() -> None:
    model = NanGradientOffGrid().eval()
    # Lengthened by -0.9 times itself, the first step does not fool.
    assert DeepFool(model, overshoot=-0.9, max_iter=3)(*batch(model)).isnan().any()


@pytest.mark.parametrize("name", ["eap", "cw", "deepfool", "apgd_ce", "fab"])
def test_rows_that_are_numbers_keep_their_results(name: str) -> None:
    class HalfNan(Net):
        def forward(self, x: Tensor) -> Tensor:
            bad = x[:, 0, 0, 0:1] > 0.5  # for any noise
            return super().forward(x) + torch.where(bad, (x - x).flatten(1).sum(dim=1, keepdim=True), 1.0).sqrt()

    model = HalfNan().eval()
    x, _ = batch(model, 6)
    x[:, 0, 0, 0] = 0.0
    y = model(x).argmax(dim=1)
    expected = load(name, **JUDGES[name])(model, x, y)
    assert not torch.equal(expected, x)
    both = torch.cat([x, x])
    both[6:, :, 0, 0] = 1.0
    attack = load(name, **JUDGES[name])
    noise = attack.draw_noise(both.shape, torch.Generator().manual_seed(0))
    arguments = {} if noise is None else {"noise": noise}
    if noise is not None:
        expected = attack(model, x, y, noise=noise[:6])
    with torch.no_grad():
        labels = Net.forward(model, both).argmax(dim=1)
    x_adv = attack.attack_class(model, **attack.arguments)(both, labels, **arguments)
    torch.testing.assert_close(x_adv[:6], expected, rtol=0, atol=1e-5)
    noticed = x_adv[6:].flatten(1).isnan().any(dim=1)
    with torch.no_grad():
        by_chance = Net.forward(model, x_adv[6:]).argmax(dim=1) != labels[6:]
    # A random start may fool without any gradient.
    assert (noticed | by_chance).all() if name == "apgd_ce" else noticed.all()
    assert noticed.any()


def test_a_row_that_nan_has_crossed_is_still_fooled_by_a_later_run() -> None:
    class NanAtTheTop(nn.Module):
        """Fooled below, not a number above."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(dim=(1, 2, 3))
            logits = torch.stack([mean - 0.5, torch.zeros_like(mean)], dim=1)
            return torch.where(mean.unsqueeze(1) > 0.6, torch.nan, logits)

    model, x, y = NanAtTheTop(), torch.full((3, 1, 2, 2), 0.55), torch.zeros(3).long()
    above, below = torch.ones(3, 1, 2, 2), -torch.ones(3, 1, 2, 2)
    for draws in ((above, below, above), (below, above, above)):
        noisy = RandomNoise(model, eps=0.1, restarts=3)(x, y, noise=torch.stack(draws, dim=1))
        torch.testing.assert_close(noisy, x - 0.1)
    inside = torch.zeros_like(above)
    noisy = RandomNoise(model, eps=0.1, restarts=3)(x, y, noise=torch.stack((inside, above, inside), dim=1))
    assert noisy.isnan().all(), "the row has answered NaN, whatever came after"


@pytest.mark.parametrize("norm", BALLS)
def test_a_step_keeps_nan(norm: str) -> None:
    gradient = torch.rand(2, 1, 4, 4) - 0.5
    gradient[0, 0, 1, 1] = torch.nan
    step = BALLS[norm].step(gradient, torch.full_like(gradient, 0.5))
    assert step[0].isnan().any()
    assert not step[1].isnan().any()


# What the reference's searches cannot see.


def confident() -> tuple[nn.Module, Tensor, Tensor]:
    """A model of logits so large that its softmax is 0 or 1 nearly everywhere."""
    model = Net(scale=1000.0).eval()
    return model, *batch(model, 40)


def test_apgd_ce_says_which_rows_its_saturated_softmax_left_alone() -> None:
    model, x, y = confident()
    crafted = load("apgd_ce", eps=0.1, nb_iter=10).craft(model, x, y)
    assert crafted.zero_gradient is not None
    assert crafted.zero_gradient.sum() > 20
    assert not (crafted.zero_gradient & crafted.fooled).any()
    assert torch.equal(crafted.zero_gradient | crafted.fooled, torch.ones(40).bool())
    assert load("pgm", eps=0.1, nb_iter=10).craft(model, x, y).fooled.sum() > crafted.fooled.sum()


@pytest.mark.parametrize("norm", BALLS)
def test_apgd_ce_says_so_in_every_norm(norm: str) -> None:
    model, x, y = confident()
    eps = {"linf": 0.01, "l2": 0.1, "l1": 0.3}[norm]
    masked = load("apgd_ce", eps=eps, norm=norm, nb_iter=10, restarts=2).craft(model, x, y).zero_gradient
    assert masked is not None
    assert masked.sum() > 20
    sane = Net().eval()
    plain = load("apgd_ce", eps=eps, norm=norm, nb_iter=10).craft(sane, *batch(sane)).zero_gradient
    assert plain is not None
    assert not plain.any()


@pytest.mark.parametrize("name", ["apgd_t", "fab", "autoattack"])
def test_losses_of_differences_are_not_masked(name: str) -> None:
    model, x, y = confident()
    for eps in (0.01, 0.1):
        zero_gradient = load(name, **JUDGES[name] | {"eps": eps}).craft(model, x, y).zero_gradient
        assert zero_gradient is not None
        assert not zero_gradient.any()


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_t", "fab", "autoattack"])
def test_a_model_of_steps_has_no_gradient_anywhere(name: str) -> None:
    class Steps(Net):
        def forward(self, x: Tensor) -> Tensor:
            stepped = x[:, :, :1, :1] > 0.5
            return super().forward(torch.where(stepped, (16 * x.detach()).round() / 16, x))

    model = Steps().eval()
    x, y = batch(model, 10)
    x[:, 0, 0, 0] = torch.tensor([1.0] * 5 + [0.0] * 5)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 5  # wrong from the start: not attacked, and no matter of gradients
    crafted = load(name, **JUDGES[name] | {"eps": 1e-4}).craft(model, x, y)
    assert crafted.zero_gradient is not None
    assert crafted.zero_gradient.tolist() == [False] + [True] * 4 + [False] * 5


def test_square_uses_no_gradient() -> None:
    model = Net().eval()
    attack = Square(model, eps=0.01, n_queries=3)
    attack(*batch(model))
    assert attack.zero_gradient is None


# A budget of nothing, a step of any length.


class Counted(Net):
    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


@pytest.mark.parametrize("attack_class", [FGSM, PGM, PGDL1, PGDL2, VAP])
def test_a_budget_of_nothing_costs_nothing(attack_class: type[FGSM]) -> None:
    model = Counted().eval()
    x, y = batch(model)
    model.passes = 0
    attack = attack_class(model, eps=0.0)
    x_adv = attack(x, y)
    assert torch.equal(x_adv, x)
    assert x_adv.data_ptr() != x.data_ptr()
    assert model.passes == 0
    assert attack.zero_gradient is None


@pytest.mark.parametrize("name", ["fgsm", "pgm", "pgd_l1", "pgd_l2", "vap"])
def test_a_budget_of_nothing_shares_no_pass(name: str) -> None:
    model = Net().eval()
    x, y = batch(model)
    crafted = load(name, eps=0.0, **({} if name in ("fgsm", "vap") else {"rand_init": False})).craft(model, x, y)
    assert torch.equal(crafted.x_adv, x)
    assert (crafted.gradient_passes, crafted.forward_passes) == (0, 0)


@pytest.mark.parametrize("eps_iter", [1e3, 1e9, 1e38, 1e300])
@pytest.mark.parametrize("attack_class", [PGM, PGDL1, PGDL2])
def test_a_step_of_any_length_ends_on_the_ball(attack_class: type[PGM], eps_iter: float) -> None:
    model = Net().eval()
    x, y = batch(model)
    noise = attack_class.draw_noise(x.shape, torch.Generator().manual_seed(3))
    for eps in (0.05, 1e-3):
        delta = attack_class(model, eps=eps, eps_iter=eps_iter, nb_iter=3)(x, y, noise=noise) - x
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[attack_class.ball.norm]
        sizes = torch.linalg.vector_norm(delta.double().flatten(1), order, dim=1)
        torch.testing.assert_close(sizes, torch.full_like(sizes, eps), rtol=1e-3, atol=0)


def test_one_draw_of_noise_needs_no_labels() -> None:
    x, _ = batch(Net().eval())
    assert not torch.equal(RandomNoise(Net(), eps=0.1)(x, None), x)
    assert not RandomNoise.needs_labels()
    assert not RandomNoise.needs_labels(eps=0.1, restarts=1)
    assert RandomNoise.needs_labels(restarts=2)
