"""An attack by its name: defaults, presets, files of one's own, a clear line for each mistake, and its randomness."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import torchattacks
import yaml
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, load
from amc_lightning.errors import UserError
from amc_lightning.places import CONF_DIR
from tests.attacks.conftest import seeded

NAMES = sorted(path.stem for path in (CONF_DIR / "attack").glob("*.yaml"))
KNOWN = (
    "apgd_ce, apgd_t, autoattack, cw, deepfool, eap, fab, fgsm, msd, noise, pgd_l1, pgd_l2, pgd_linf, pgm, square, "
    "torchattacks_fgsm, torchattacks_pgd, vap"
)


def exactly(message: str) -> str:
    return rf"\A{re.escape(message)}\Z"


def linear(classes: int = 3) -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def images(count: int = 4) -> Tensor:
    with seeded(1):
        return torch.rand(count, 1, 8, 8)


LABELS = torch.tensor([0, 1, 2, 0])


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_loads_by_name_with_its_defaults(name: str) -> None:
    spec = yaml.safe_load((CONF_DIR / "attack" / f"{name}.yaml").read_text())
    # what null stands for: 2.5 * 12 / 40, 2.5 * 0.5 / 40 and 2.5 * 8 / 255 / 40
    steps = {"pgd_l1": 0.75, "pgd_l2": 0.03125, "pgd_linf": 0.0019607843125}
    completed = {"eps_iter": steps[name]} if name in steps else {}
    attack = load(name)
    assert isinstance(attack, GuardedAttack)
    assert attack.name == name
    assert attack.params == spec["params"] | completed
    assert f"{attack.attack_class.__module__}.{attack.attack_class.__name__}".startswith(spec["_target_"].split(".")[0])
    assert attack.attack_class.__name__ == spec["_target_"].split(".")[-1]
    assert (attack.label, attack.seed, attack.generator) == ("true", 0, None)
    assert not attack.execution.fast
    assert not attack.execution.bf16


CLEVERHANS: dict[str, dict[str, object]] = {
    "fgsm": {"eps": 0.25},
    "pgm": {"eps": 0.25, "eps_iter": 0.02, "nb_iter": 7, "rand_init": False, "restarts": 3},
    "eap": {
        "beta": 0.02,
        "binary_search_steps": 4,
        "max_iterations": 6,
        "initial_const": 0.5,
        "learning_rate": 0.2,
        "confidence": 1.5,
        "decision_rule": "L1",
        "abort_early": True,
    },
    "vap": {"xi": 1e-3, "num_iters": 4, "eps": 1.5},
}


@pytest.mark.parametrize("name", CLEVERHANS)
def test_parameters_have_cleverhans_names_and_reach_the_attack(name: str) -> None:
    wanted = CLEVERHANS[name]
    attack = load(name, **wanted)
    assert {key: attack.params[key] for key in wanted} == wanted
    made = attack.attack_class(linear(), **attack.arguments)
    assert {key: getattr(made, key) for key in wanted} == wanted
    assert attack.eps == wanted.get("eps")


# Table 1 of the paper, and the authors' program; what they leave unsaid is the file's default.
TABLES: dict[str, dict[str, dict[str, object]]] = {
    "paper/mnist": {
        "fgsm": {"eps": 0.1},
        "vap": {"xi": 1.0, "num_iters": 6, "eps": 5.0},
        "eap": {
            "beta": 0.01,
            "binary_search_steps": 5,
            "max_iterations": 8,
            "initial_const": 1e-3,
            "learning_rate": 0.1,
            "confidence": 0.0,
            "decision_rule": "EN",
            "abort_early": False,
        },
        "pgm": {"eps": 0.3, "nb_iter": 15, "eps_iter": 0.01, "rand_init": True, "restarts": 1},
    },
    "paper/mnist/black_box": {
        "fgsm": {"eps": 0.1},
        "vap": {"xi": 1.0, "num_iters": 10, "eps": 8.0},
        "eap": {
            "beta": 0.01,
            "binary_search_steps": 7,
            "max_iterations": 15,
            "initial_const": 1e-3,
            "learning_rate": 0.1,
        },
        "pgm": {"eps": 0.3, "nb_iter": 20, "eps_iter": 0.01},
    },
    "paper/cifar10/black_box": {
        "fgsm": {"eps": 0.06},
        "vap": {"xi": 1e-6, "num_iters": 1, "eps": 2.0},
        "eap": {
            "beta": 0.01,
            "binary_search_steps": 9,
            "max_iterations": 1000,
            "initial_const": 1e-3,
            "learning_rate": 0.01,
        },
        "pgm": {"eps": 0.03, "nb_iter": 40, "eps_iter": 0.01},
    },
    "official_code/cifar10": {
        "fgsm": {"eps": 0.1},
        "vap": {"xi": 1e-6, "num_iters": 1, "eps": 2.0},
        "eap": {
            "beta": 0.01,
            "binary_search_steps": 1,
            "max_iterations": 5,
            "initial_const": 0.1,
            "learning_rate": 0.1,
        },
        "pgm": {"eps": 0.1, "nb_iter": 5, "eps_iter": 0.01},
    },
}
TABLES["paper/mnist/white_box"] = TABLES["paper/mnist"]


@pytest.mark.parametrize(("preset", "name"), [(preset, name) for preset in TABLES for name in TABLES[preset]])
def test_presets_are_the_papers_table(preset: str, name: str) -> None:
    wanted = TABLES[preset][name]
    attack = load(name, preset=preset)
    assert {key: attack.params[key] for key in wanted} == wanted
    assert attack.params.keys() == load(name).params.keys()


def test_a_hyperparameter_wins_over_the_preset() -> None:
    attack = load("pgm", preset="paper/mnist", nb_iter=3)
    assert (attack.params["nb_iter"], attack.params["eps"]) == (3, 0.3)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "_target_: torchattacks.PGD\nnorm: linf\nuses_labels: true\nnames: {nb_iter: steps}\n"
        "params: {eps: 0.2, nb_iter: 4, alpha: 0.05}\n"
    )
    attack = load(str(path), eps=0.1)
    assert (attack.name, attack.attack_class, attack.norm, attack.eps) == ("mine", torchattacks.PGD, "linf", 0.1)
    assert attack.arguments == {"eps": 0.1, "steps": 4, "alpha": 0.05}
    x = images()
    reach = (attack(linear(), x, LABELS) - x).abs().amax()
    assert reach == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(UserError, match=r"\Amine\.steps: 3 is set, but PGD has no steps; known: alpha, eps, nb_iter,"):
        load(str(path), steps=3)


def test_a_file_that_is_no_attack(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("[1, 2]\n")
    message = f"{path}: [1, 2] is not an attack; keys and values, as in conf/attack/pgm.yaml. Correct the file."
    with pytest.raises(UserError, match=exactly(message)):
        load(str(path))
    missing = str(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=re.escape(f"name: {missing!r} is not a known attack; known: {KNOWN}.")):
        load(missing)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fgsmm", {}, f"name: 'fgsmm' is not a known attack; known: {KNOWN}. Did you mean fgsm?"),
        (
            "zzzzzz",
            {},
            f"name: 'zzzzzz' is not a known attack; known: {KNOWN}. "
            "Take one of these, or give the path of a YAML file.",
        ),
        (
            "fgsm",
            {"preset": "paper/minst"},
            "preset: 'paper/minst' has no parameters for fgsm; known: official_code/cifar10, official_code/digits, "
            "official_code/folder, official_code/mnist, official_code/svhn, paper/cifar10, paper/digits, paper/folder, "
            "paper/mnist, paper/svhn, for fgsm, vap, eap and pgm. Correct it, or leave it out.",
        ),
        ("fgsm", {"nb_iter": 3}, "fgsm.nb_iter: 3 is set, but FGSM has no nb_iter; known: eps. Remove it."),
        (
            "fgsm",
            {"eps": -0.1},
            "fgsm.eps: -0.1 is out of range; allowed: a finite number >= 0. Correct fgsm.eps.",
        ),
        (
            "pgm",
            {"eps": float("nan")},
            "pgm.eps: nan is out of range; allowed: a finite number >= 0. Correct pgm.eps.",
        ),
        (
            "eap",
            {"learning_rate": float("inf")},
            "eap.learning_rate: inf is out of range; allowed: a finite number > 0. Correct eap.learning_rate.",
        ),
        (
            "eap",
            {"abort_early": 1},
            "eap.abort_early: 1 is no switch; allowed: true, false. Correct eap.abort_early.",
        ),
        (
            "pgm",
            {"restarts": 0},
            "pgm.restarts: 0 is out of range; allowed: a whole number >= 1. Correct pgm.restarts.",
        ),
        (
            "pgm",
            {"eps": 8},
            "pgm.eps: 8 is larger than the whole image in linf; allowed: 0 to 1, as pixels lie in [0, 1]. "
            "Give eps in units of [0, 1]: 8/255 = 0.031, not 8.",
        ),
        (
            "vap",
            {"eps": 9, "image_shape": (1, 8, 8)},
            "vap.eps: 9 is larger than the whole image in l2; allowed: 0 to 8, as the images have 64 pixels in [0, 1]. "
            "Lower vap.eps.",
        ),
        (
            "pgd_l1",
            {"eps": 64.5, "image_shape": [1, 8, 8]},
            "pgd_l1.eps: 64.5 is larger than the whole image in l1; allowed: 0 to 64, "
            "as the images have 64 pixels in [0, 1]. Lower pgd_l1.eps.",
        ),
        (
            "fgsm",
            {"label": "prediction"},
            "attacks.fgsm.label: 'prediction' is not a choice of labels; allowed: true, predicted. Pick one.",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=exactly(message)) as raised:
        load(name, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("preset", ["paper", "paper/", "paper/mnist/gray_box", "nobody/mnist", "/mnist", "", "mnist"])
def test_an_unknown_preset(preset: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"preset: {preset!r} has no parameters for pgm; known: ")):
        load("pgm", preset=preset)


def test_presets_are_for_the_papers_four() -> None:
    with pytest.raises(UserError, match=r"\Apreset: 'paper/mnist' has no parameters for torchattacks_pgd; known:"):
        load("torchattacks_pgd", preset="paper/mnist")


def test_radii_up_to_the_whole_box_are_allowed() -> None:
    assert load("vap", eps=8, image_shape=(1, 8, 8)).eps == 8
    assert load("vap", eps=9).eps == 9
    assert load("pgm", preset="paper/mnist/black_box", image_shape=(1, 28, 28)).eps == 0.3
    with pytest.raises(UserError, match=r"\Avap\.eps: 8\.0 is larger than the whole image in l2; allowed: 0 to 5,"):
        load("vap", preset="paper/mnist/black_box", image_shape=(1, 5, 5))


QUICK = {"eps": 0.2, "eps_iter": 0.01, "nb_iter": 2}
"""Steps too short to lose the start."""


@pytest.mark.parametrize("name", ["pgm", "vap", "torchattacks_pgd", "noise"])
def test_a_call_again_is_the_same_and_another_seed_is_not(name: str) -> None:
    model, x = linear(), images()
    settings = QUICK if "nb_iter" in load(name).params else {"eps": 0.2}
    attack, other = load(name, **settings), load(name, seed=1, **settings)
    first = attack(model, x, LABELS)
    torch.manual_seed(99)  # nothing to the attack
    assert torch.equal(attack(model, x, LABELS), first)
    assert torch.equal(load(name, **settings)(model, x, LABELS), first)
    assert torch.equal(load(name, seed=1, **settings)(model, x, LABELS), other(model, x, LABELS))
    assert not torch.equal(other(model, x, LABELS), first)


@pytest.mark.parametrize("name", ["pgm", "torchattacks_pgd"])
def test_a_generator_goes_on_from_call_to_call(name: str) -> None:
    model, x = linear(), images()
    attack, twin = (load(name, generator=seed(7), **QUICK) for _ in range(2))
    first, second = (attack(model, x, LABELS) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(twin(model, x, LABELS), first)
    assert torch.equal(twin(model, x, LABELS), second)


def test_a_generator_given_to_the_call_comes_before_the_attacks_own() -> None:
    model, x = linear(), images()
    own = seed(7)
    attack = load("pgm", generator=own, **QUICK)
    state = own.get_state()
    given = attack(model, x, LABELS, generator=seed(8))
    assert torch.equal(own.get_state(), state)
    assert torch.equal(given, load("pgm", generator=seed(8), **QUICK)(model, x, LABELS))


@pytest.mark.parametrize("name", ["fgsm", "pgm", "eap", "torchattacks_fgsm", "torchattacks_pgd"])
def test_labels_may_be_the_models_own_or_must_be_given(name: str) -> None:
    model, x = linear(), images()
    few = {"eap": {"max_iterations": 5, "binary_search_steps": 2, "initial_const": 1.0, "learning_rate": 0.1}}
    settings = few.get(name, QUICK if "nb_iter" in load(name).params else {})
    answers = model(x).argmax(dim=1)
    own = load(name, label="predicted", **settings)(model, x)
    assert torch.equal(own, load(name, **settings)(model, x, answers))
    assert not torch.equal(own, x)
    message = f"attack {name} needs labels: give y, or load it with label='predicted'"
    with pytest.raises(ValueError, match=exactly(message)):
        load(name, **settings)(model, x)


def test_an_attack_that_looks_at_no_labels_needs_none() -> None:
    model, x = linear(), images()
    without = load("vap")(model, x)
    assert torch.equal(without, load("vap")(model, x, LABELS))
    assert torch.equal(without, load("vap", label="predicted")(model, x))


def test_an_attack_can_be_pickled() -> None:
    attack = load("pgm", preset="paper/mnist", label="predicted", seed=3, fast=True)
    copy = pickle.loads(pickle.dumps(attack))
    assert copy == attack
    assert copy != load("pgm", preset="paper/mnist", label="predicted", seed=4, fast=True)
    model, x = linear(), images()
    assert torch.equal(copy(model, x), attack(model, x))


def test_a_pickled_generator_goes_on_where_it_was() -> None:
    model, x = linear(), images()
    attack = load("pgm", generator=seed(7), **QUICK)
    attack(model, x, LABELS)
    copy = pickle.loads(pickle.dumps(attack))
    assert torch.equal(copy(model, x, LABELS), attack(model, x, LABELS))


@pytest.mark.parametrize(("name", "kind"), [("torchattacks_fgsm", "FGSM"), ("torchattacks_pgd", "PGD")])
def test_torchattacks_own_by_name(name: str, kind: str) -> None:
    model, x = linear(), images()
    attack = load(name, **({"rand_init": False, "nb_iter": 5} if kind == "PGD" else {}))
    assert attack.attack_class is getattr(torchattacks, kind)
    theirs = (
        torchattacks.PGD(model, 0.3, 0.01, 5, random_start=False) if kind == "PGD" else torchattacks.FGSM(model, 0.3)
    )
    assert torch.equal(attack(model, x, LABELS), theirs(x, LABELS))


def test_fgsm_by_name_on_a_linear_model_is_the_sign_of_the_weights() -> None:
    model, x = linear(2), images()
    y = torch.tensor([0, 1, 1, 0])
    away = (model[1].weight[1 - y] - model[1].weight[y]).detach().sign().view_as(x)
    torch.testing.assert_close(load("fgsm", eps=0.1)(model, x, y), (x + 0.1 * away).clamp(0, 1), rtol=0, atol=1e-6)
