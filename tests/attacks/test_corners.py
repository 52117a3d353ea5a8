"""Corners of the interface that users meet: odd memory, odd models, things left out, files of their own."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import RandomNoise, load, opened, share_clean
from amc_lightning.errors import NotFiniteError, UserError

BRIEF = {
    "apgd_ce": {"nb_iter": 5},
    "apgd_t": {"nb_iter": 5, "n_target_classes": 2},
    "autoattack": {"nb_iter": 5, "n_target_classes": 2, "n_queries": 20},
    "cw": {"max_iterations": 5, "binary_search_steps": 2},
    "deepfool": {"max_iter": 3},
    "eap": {"max_iterations": 5, "binary_search_steps": 2, "initial_const": 1.0, "learning_rate": 0.1},
    "fab": {"nb_iter": 5, "n_target_classes": 2},
    "fgsm": {},
    "noise": {"restarts": 3},
    "pgd_l1": {"nb_iter": 3},
    "pgd_l2": {"nb_iter": 3},
    "pgm": {"nb_iter": 3},
    "square": {"n_queries": 20},
    "vap": {},
}


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


class Classifier(nn.Module):
    """Four classes of 3x8x8 images, with a margin that no small perturbation crosses."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.before = before
        self.body = nn.Conv2d(3, 4, 3)
        self.body.weight.data = torch.randn(4, 3, 3, 3, generator=seeded(0))
        self.body.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.before(x)).tanh().mean(dim=(2, 3)) * 5


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 3, 8, 8, generator=seeded(1))
    return x, Classifier()(x).argmax(dim=1)


@pytest.mark.parametrize("layout", ["channels last", "transposed", "expanded"])
@pytest.mark.parametrize("name", BRIEF)
def test_how_images_lie_in_memory_changes_nothing(name: str, layout: str) -> None:
    x, y = batch()
    x = x[:, :1].expand(-1, 3, -1, -1) if layout == "expanded" else x
    dense = x.contiguous()
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    attack, model = load(name, **BRIEF[name]), Classifier()
    y = model(dense).argmax(dim=1)
    torch.testing.assert_close(attack(model, x, y), attack(model, dense, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", BRIEF)
def test_a_model_that_writes_to_its_images_is_refused_and_the_batch_stays(name: str, fast: bool) -> None:
    x, y = batch()
    before = x.clone()
    message = (
        "model: 'Classifier' writes to its images in place; needed: a forward that leaves them as they are. "
        "Write x = x - mean, not x.sub_(mean)."
    )
    with pytest.raises(UserError, match=re.escape(message)):
        load(name, fast=fast, **BRIEF[name])(Classifier(lambda x: x.sub_(0.1)), x, y)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", BRIEF)
def test_a_model_that_draws_in_eval_mode_draws_the_same_again_and_moves_nothing(name: str) -> None:
    x, y = batch()
    model = Classifier(lambda x: functional.dropout(x, 0.1, training=True))
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    attack = load(name, **BRIEF[name])
    first = attack.craft(model, x, y).x_adv
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state
    assert torch.equal(attack(model, x, y), first)


def test_answers_that_are_no_numbers_fool_nobody() -> None:
    x, y = batch()
    model = Classifier()

    class OffGrid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            off = (x * 16 != (x * 16).round()).flatten(1).any(dim=1, keepdim=True)
            return torch.where(off, torch.nan, model(x))

    for name in ("fgsm", "pgm", "noise"):
        with pytest.raises(NotFiniteError, match=f"attack {name}"):
            load(name, **BRIEF[name]).craft(OffGrid(), (x * 16).round() / 16, y)


def test_a_view_checks_shapes_again() -> None:
    x, y = batch()
    with opened(Classifier(), x, y) as view:
        with pytest.raises(UserError, match=re.escape("y: '(3,) torch.int64' are no labels of 6 images")):
            load("fgsm")(view, x, y[:3])
        with pytest.raises(UserError, match=re.escape("x: '(3, 8, 8) torch.float32' are no images")):
            load("fgsm")(view, x[0], y)
        ((labels, start),) = share_clean(view, x, y, [(load("fgsm"), None)], label="true")
        assert torch.equal(load("fgsm")(view, x, labels, start=start), load("fgsm")(Classifier(), x, y))


@pytest.mark.parametrize("model", [Classifier().forward, None, batch()[0]], ids=["method", "none", "swapped"])
def test_what_is_not_a_module_is_refused(model: object) -> None:
    x, y = batch()
    with pytest.raises(
        UserError, match=r"^model: '.*' is not a torch.nn.Module; needed: a module from images to logits"
    ):
        load("fgsm")(model, x, y)


def test_craft_without_labels_counts_changed_answers() -> None:
    x, y = batch()
    model = Classifier()
    for attack in (load("vap", eps=4.0), load("pgm", label="predicted")):
        crafted = attack.craft(model, x)
        assert torch.equal(crafted.fooled, model(crafted.x_adv).argmax(dim=1) != y)
    with pytest.raises(ValueError, match="attack pgm needs labels: give y, or load it with label='predicted'"):
        load("pgm").craft(model, x)


def test_attacks_can_be_keys() -> None:
    assert {load("pgm"): 1}[load("pgm")] == 1
    assert load("pgm", seed=1) != load("pgm")


def test_a_single_draw_of_noise_asks_for_nothing() -> None:
    x, y = batch()
    model = Classifier()
    crafted = load("noise", label="predicted").craft(model, x)
    assert crafted.forward_passes == 0
    assert torch.equal(load("noise")(model, x), load("noise")(model, x, y))
    with pytest.raises(ValueError, match="attack noise needs labels"):
        load("noise", restarts=2)(model, x)
    assert not RandomNoise.needs_labels(restarts=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: [", "is not YAML (while parsing"),
        ("just words", "'just words' is not an attack; keys and values, as in conf/attack/pgm.yaml. Correct the file."),
        ("params: 3", "attacks.own.params: 3 is no mapping; needed: names and values, or {} for none. Correct "),
        ("params:", "attacks.own.params: None is no mapping"),
        ("names: [a]", "attacks.own.names: ['a'] is no mapping"),
        ("names: {eps: epsilon}", "own.names.eps: 'epsilon' is no parameter of FGSM; known: eps. Correct names."),
        ("norm: l3", "attacks.own.norm: 'l3' is not a norm;"),
    ],
)
def test_a_file_of_ones_own_is_read_with_care(tmp_path: Path, text: str, message: str) -> None:
    whole = {"_target_": "torchattacks.FGSM", "norm": "linf", "uses_labels": "true", "params": "{eps: 0.1}"}
    own = tmp_path / "own.yaml"
    key = text.partition(":")[0]
    lines = [f"{name}: {value}" for name, value in whole.items() if name != key]
    own.write_text(text if key in ("_target_", "just words") else "\n".join([*lines, text]))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(own)
    assert str(own) in str(caught.value) or "names.eps" in message
    own.write_text("\n".join([*lines, f"params: {whole['params']}"] if key != "params" else [*lines, "params: {}"]))


def test_a_path_object_is_as_good_as_its_text(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("_target_: torchattacks.FGSM\nnorm: linf\nuses_labels: true\nparams: {eps: 0.1}\n")
    assert load(own) == load(str(own))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": "a"}, "seed: 'a' is no seed; allowed: a whole number >= 0."),
        ({"seed": -1}, "seed: -1 is no seed"),
        ({"generator": 3}, "generator: 3 is no generator to draw from; needed: a torch.Generator of the CPU."),
        ({"preset": 3}, "preset: '3' has no parameters for pgm; known: official_code/cifar10"),
    ],
)
def test_what_load_is_told_is_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load("pgm", **settings)
