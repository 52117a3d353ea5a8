"""What every attack of conf/attack must keep, found by globbing the folder."""

import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, build
from amc_lightning.attacks.base import TakesNoise

CONF = Path(__file__).parents[2] / "conf"
FILES = {path.stem: path for path in sorted((CONF / "attack").glob("*.yaml"))}
PRESETS = sorted((CONF / "attack_params").glob("*/*.yaml"))
# Enough work to move every image, and no more.
FAST = {
    "max_iterations": 5,
    "binary_search_steps": 3,
    "initial_const": 1.0,
    "learning_rate": 0.1,
    "nb_iter": 3,
    "n_target_classes": 2,
    "num_iters": 2,
}
# Attacks that give back the clean image where they fail must be let succeed.
MORE = {
    "apgd_ce": {"nb_iter": 20},
    "apgd_t": {"nb_iter": 20, "eps": 0.6},
    "autoattack": {"nb_iter": 20, "n_queries": 20, "eps": 0.6},
    "fab": {"nb_iter": 20, "eps": 0.9},
    "square": {"n_queries": 20},
    "cw": {"max_iterations": 25, "initial_const": 10.0},
    "deepfool": {"max_iter": 20},
    "noise": {"restarts": 2},  # one draw would never ask the model
}
# Adam divides a gradient by its own size, so where it is nothing but rounding, the step is not.
ROUNDING = {"cw": 1e-3}
GIVES_UP = {"square"}  # its few random queries fool no row of so flat a net
Batch = Callable[[int], tuple[Tensor, Tensor]]


def load(name: str) -> dict[str, object]:
    return yaml.safe_load(FILES[name].read_text())


def make(name: str, label: str = "true", **params: object) -> GuardedAttack:
    spec = load(name)
    fast = {key: value for key, value in FAST.items() if key in spec["params"]}
    return build(name, spec, fast | MORE.get(name, {}) | params, label=label, image_shape=(1, 12, 12))


@pytest.fixture(params=sorted(FILES))
def attack(request: pytest.FixtureRequest) -> GuardedAttack:
    return make(request.param)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def state_of(net: nn.Module) -> dict[str, object]:
    """Everything an attack could leave behind, with values copied and objects by identity."""
    return {
        "modes": [module.training for module in net.modules()],
        "requires_grad": [parameter.requires_grad for parameter in net.parameters()],
        "identities": [id(tensor) for tensor in [*net.parameters(), *net.buffers()]],
        "gradients": [(id(p.grad), p.grad.clone()) for p in net.parameters() if p.grad is not None],
        "values": [tensor.detach().clone() for tensor in [*net.parameters(), *net.buffers()]],
        "hooks": [
            [list(getattr(module, name)) for name in vars(module) if name.endswith("hooks")] for module in net.modules()
        ],
    }


def assert_same_state(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_folder_holds_the_papers_four() -> None:
    assert {"fgsm", "vap", "eap", "pgm"} <= set(FILES)


@pytest.mark.parametrize("size", [0, 1, 3, 8])
def test_keeps_shape_type_box_budget_and_input(attack: GuardedAttack, net: nn.Module, batch: Batch, size: int) -> None:
    x, y = batch(size)
    x.requires_grad_()
    x_before, y_before = x.detach().clone(), y.clone()
    x_adv = attack(net, x, y, generator=seed(3))
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert x_adv.device == x.device
    assert not x_adv.requires_grad
    assert x_adv.data_ptr() != x.data_ptr() or size == 0
    assert torch.equal(x.detach(), x_before)
    assert torch.equal(y, y_before)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    if attack.norm is not None:
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[attack.norm]
        norms = torch.linalg.vector_norm((x_adv - x.detach()).flatten(1), ord=order, dim=1)
        assert (norms <= attack.eps + 1e-5).all()
    if size > 1 and attack.name not in GIVES_UP:
        assert not torch.equal(x_adv, x_before)


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
def test_leaves_the_model_as_it_was(
    attack: GuardedAttack, net: nn.Module, batch: Batch, context: Callable[[], object]
) -> None:
    x, y = batch(3)
    before = state_of(net)
    expected = attack(net, x, y, generator=seed(3))
    with context():
        x_adv = attack(net, x.clone(), y.clone(), generator=seed(3))
    assert torch.equal(x_adv, expected)
    assert not x_adv.is_inference()
    assert_same_state(before, state_of(net))


def test_leaves_the_model_as_it_was_when_it_raises(attack: GuardedAttack, net: nn.Module, batch: Batch) -> None:
    class Broken(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.inner.body[5].running_mean += 1
            raise RuntimeError("out of memory, say")

    x, y = batch(3)
    broken = Broken(net)
    before = state_of(broken)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        attack(broken, x, y, generator=seed(3))
    assert_same_state(before, state_of(broken))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("label", ["true", "predicted"])
def test_a_row_does_not_depend_on_its_neighbours(name_of: str, net: nn.Module, batch: Batch, label: str) -> None:
    drawn_inside = not issubclass(make(name_of).attack_class, TakesNoise) and "rand_init" in load(name_of)["params"]
    attack = make(name_of, label, **({"rand_init": False} if drawn_inside else {}))
    x, y = batch(8)
    noise = attack.draw_noise(x.shape, seed(4))
    whole = attack(net, x, y, noise=noise)
    rows = torch.tensor([6, 1, 3])
    part = attack(net, x[rows], y[rows], noise=None if noise is None else noise[rows])
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=ROUNDING.get(name_of, 1e-5))


@pytest.fixture(params=sorted(FILES))
def name_of(request: pytest.FixtureRequest) -> str:
    return request.param


def test_same_seed_same_output_and_global_random_states_untouched(
    attack: GuardedAttack, net: nn.Module, batch: Batch
) -> None:
    x, y = batch(8)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second = (attack(net, x, y, generator=seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(attack(net, x, y), attack(net, x, y))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


@pytest.mark.parametrize("name", ["pgm", "vap", "torchattacks_pgd"])
def test_another_seed_gives_another_start(name: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(3)
    attack = make(name)
    assert not torch.equal(attack(net, x, y, generator=seed(5)), attack(net, x, y, generator=seed(6)))


def test_given_noise_is_what_the_generator_would_have_drawn(
    attack: GuardedAttack, net: nn.Module, batch: Batch
) -> None:
    x, y = batch(3)
    noise = attack.draw_noise(x.shape, seed(7))
    if noise is None:
        with pytest.raises(ValueError, match=rf"attack {attack.name}: noise of shape \(3, 1, 12, 12\)"):
            attack(net, x, y, noise=torch.zeros_like(x))
    else:
        assert torch.equal(attack(net, x, y, noise=noise), attack(net, x, y, generator=seed(7)))
        with pytest.raises(ValueError, match=r"noise of shape \(2, .*1, 12, 12\) for images \(3, 1, 12, 12\)"):
            attack(net, x, y, noise=noise[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_takes_logits_of_any_float_type(
    attack: GuardedAttack, net: nn.Module, batch: Batch, dtype: torch.dtype
) -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).to(dtype)

    x, y = batch(3)
    net.eval()
    x_adv = attack(Cast(), x, y, generator=seed(3))
    assert x_adv.dtype == torch.float32
    assert attack.name in GIVES_UP or not torch.equal(x_adv, x)


def test_is_deaf_to_the_callers_autocast(attack: GuardedAttack, net: nn.Module, batch: Batch) -> None:
    x, y = batch(3)
    expected = attack(net, x, y, generator=seed(3))
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        x_adv = attack(net, x, y, generator=seed(3))
    assert torch.equal(x_adv, expected)


def test_predicted_labels_are_the_models_own(attack: GuardedAttack, net: nn.Module, batch: Batch) -> None:
    x, y = batch(8)
    own = make(attack.name, "predicted")(net, x, (y + 1) % 5, generator=seed(3))
    modes = [module.training for module in net.modules()]
    net.eval()
    answers = net(x).argmax(dim=1)
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    assert torch.equal(own, attack(net, x, answers, generator=seed(3)))


def test_gradient_passes_are_counted_for_the_plan() -> None:
    assert make("pgm", nb_iter=15).max_passes == 15
    assert make("vap", num_iters=6).max_passes == 6
    assert make("eap", binary_search_steps=5, max_iterations=8).max_passes == 1 + 5 * 7
    assert make("fgsm").max_passes == 1
    assert make("torchattacks_fgsm").max_passes is None


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_preset_builds(path: Path) -> None:
    preset = yaml.safe_load(path.read_text())
    shape = {"mnist": (1, 28, 28), "digits": (1, 16, 16)}.get(path.stem, (3, 32, 32))
    assert list(preset)[:2] == ["white_box", "black_box"]
    assert set(preset) <= {"white_box", "black_box", "black_box_training", "stronger"}
    for column, attacks in preset.items():
        names = ["fgsm", "vap", "eap", "pgm"]
        assert list(attacks) == names if column in ("white_box", "black_box") else set(attacks) < set(names)
        for name, params in attacks.items():
            built = build(name, load(name), params, image_shape=shape, key=f"attack_params.{column}.{name}")
            assert built.params == load(name)["params"] | params
    own, doubled = preset["white_box"], preset["stronger"]  # the paper's section 5.4
    assert doubled["pgm"] == {name: 2 * own["pgm"][name] for name in ("eps", "nb_iter")}
    assert doubled["eap"] == {name: 2 * own["eap"][name] for name in ("binary_search_steps", "max_iterations")}


def test_presets_are_complete() -> None:
    datasets = {"digits", "mnist", "svhn", "cifar10", "folder"}
    found = {(path.parent.name, path.stem) for path in PRESETS}
    assert found == {(preset, name) for preset in ("paper", "official_code") for name in datasets}
    for preset in ("paper", "official_code"):
        read = {
            name: yaml.safe_load((CONF / "attack_params" / preset / f"{name}.yaml").read_text()) for name in datasets
        }
        assert read["digits"] == read["mnist"]
        assert read["folder"] == read["cifar10"]
