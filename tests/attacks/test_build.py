"""Every wrong name and value of an attack is found when it is built, with one message that says what to do."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
import yaml

from amc_lightning.attacks import PGM, GuardedAttack, build
from amc_lightning.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "attack"


def make(name: str, **params: object) -> GuardedAttack:
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return build(name, spec, params, image_shape=(1, 28, 28), key=f"attack_params.white_box.{name}")


def test_overrides_win_and_names_are_translated() -> None:
    attack = make("torchattacks_pgd", eps=0.1, nb_iter=5)
    assert attack.attack_class is torchattacks.PGD
    assert attack.params == {"eps": 0.1, "eps_iter": 0.01, "nb_iter": 5, "rand_init": True}
    assert attack.arguments == {"eps": 0.1, "alpha": 0.01, "steps": 5, "random_start": True}
    assert (attack.name, attack.norm, attack.eps, attack.uses_labels) == ("torchattacks_pgd", "linf", 0.1, True)
    assert make("pgm").attack_class is PGM
    assert make("eap").eps is None


def test_an_attack_can_be_pickled() -> None:
    attack = pickle.loads(pickle.dumps(make("pgm", eps_iter=None)))
    assert attack == make("pgm", eps_iter=None)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "pgm",
            {"epsilon": 0.1},
            "attack_params.white_box.pgm.epsilon: 0.1 is set, but PGM has no epsilon; "
            "known: compact, eps, eps_iter, keep_best, nb_iter, rand_init, restarts. Remove it.",
        ),
        ("torchattacks_pgd", {"alpha": 0.1}, "torchattacks_pgd.alpha: 0.1 is set, but PGD has no alpha; known: eps,"),
        (
            "fgsm",
            {"eps": 8},
            "attack_params.white_box.fgsm.eps: 8 is larger than the whole image in linf; "
            "allowed: 0 to 1, as pixels lie in [0, 1]. Give eps in units of [0, 1]: 8/255 = 0.031, not 8.",
        ),
        ("pgm", {"eps": 1.01}, "pgm.eps: 1.01 is larger than the whole image in linf"),
        (
            "vap",
            {"eps": 28.5},
            "vap.eps: 28.5 is larger than the whole image in l2; allowed: 0 to 28, "
            "as the images have 784 pixels in [0, 1]. Lower attack_params.white_box.vap.eps.",
        ),
        ("fgsm", {"eps": -0.1}, "fgsm.eps: -0.1 is out of range; allowed: a finite number >= 0. Correct attack_params"),
        ("fgsm", {"eps": float("nan")}, "fgsm.eps: nan is out of range"),
        ("fgsm", {"eps": True}, "fgsm.eps: True is no number"),
        ("fgsm", {"eps": "8/255"}, "fgsm.eps: '8/255' is no number"),
        ("fgsm", {"eps": None}, "fgsm.eps: None is no number"),
        ("pgm", {"nb_iter": 0}, "pgm.nb_iter: 0 is out of range; allowed: a whole number >= 1"),
        ("pgm", {"nb_iter": 2.0}, "pgm.nb_iter: 2.0 is no whole number"),
        ("pgm", {"nb_iter": True}, "pgm.nb_iter: True is no whole number"),
        ("pgm", {"eps_iter": 0}, "pgm.eps_iter: 0 is out of range; allowed: a finite number > 0, or null"),
        ("pgm", {"rand_init": 1}, "pgm.rand_init: 1 is no switch; allowed: true, false"),
        ("pgm", {"keep_best": "yes"}, "pgm.keep_best: 'yes' is no switch; allowed: true, false"),
        ("vap", {"xi": 0.0}, "vap.xi: 0.0 is out of range; allowed: a finite number > 0"),
        ("vap", {"num_iters": 0}, "vap.num_iters: 0 is out of range"),
        ("vap", {"method": "guess"}, "vap.method: 'guess' is not known; known: exact, logit, finite"),
        ("eap", {"beta": -1e-3}, "eap.beta: -0.001 is out of range"),
        ("eap", {"learning_rate": 0}, "eap.learning_rate: 0 is out of range"),
        ("eap", {"initial_const": 0}, "eap.initial_const: 0 is out of range"),
        ("eap", {"binary_search_steps": 0}, "eap.binary_search_steps: 0 is out of range"),
        ("eap", {"max_iterations": 1.5}, "eap.max_iterations: 1.5 is no whole number"),
        ("eap", {"confidence": -1}, "eap.confidence: -1 is out of range"),
        ("eap", {"decision_rule": "L2"}, "eap.decision_rule: 'L2' is not known; known: EN, L1"),
        ("torchattacks_pgd", {"nb_iter": 0}, "torchattacks_pgd.nb_iter: 0 is out of range"),
    ],
)  # fmt: skip
def test_wrong_parameters(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make(name, **params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": "torchattacks.PGDD"}, "attacks.pgm._target_: 'torchattacks.PGDD' cannot be imported"),
        ({"_target_": "no_such_package.PGD"}, "attacks.pgm._target_: 'no_such_package.PGD' cannot be imported"),
        ({"_target_": "PGD"}, "attacks.pgm._target_: 'PGD' cannot be imported"),
        ({"_target_": None}, "attacks.pgm._target_: None cannot be imported"),
        ({"_target_": "torch.nn.Linear"}, "attacks.pgm._target_: 'torch.nn.Linear' is not an attack class; allowed:"),
        ({"norm": "l3"}, "attacks.pgm.norm: 'l3' is not a norm; known: linf, l2, l1, param (the one in params), null"),
        ({"uses_labels": "no"}, "attacks.pgm.uses_labels: 'no' is not a switch; allowed: true, false"),
        ({"parms": {}}, "attacks.pgm: 'parms' is not a setting of an attack; known: _target_, norm,"),
    ],
)
def test_wrong_files(change: dict[str, object], message: str) -> None:
    spec = yaml.safe_load((CONF / "pgm.yaml").read_text())
    with pytest.raises(UserError, match=re.escape(message)):
        build("pgm", spec | change, {})


def test_a_missing_setting_and_a_wrong_label() -> None:
    spec = yaml.safe_load((CONF / "pgm.yaml").read_text())
    with pytest.raises(UserError, match=r"attacks\.pgm: 'norm' is missing"):
        build("pgm", {name: value for name, value in spec.items() if name != "norm"}, {})
    with pytest.raises(
        UserError, match=r"attacks\.pgm\.label: 'guess' is not a choice of labels; allowed: true, predicted"
    ):
        build("pgm", spec, {}, label="guess")


def test_without_a_key_the_message_points_into_the_attack() -> None:
    spec = yaml.safe_load((CONF / "pgm.yaml").read_text())
    with pytest.raises(UserError, match=r"attacks\.pgm\.params\.eps: 8 is larger"):
        build("pgm", spec, {"eps": 8})


def test_edges_that_are_allowed() -> None:
    assert make("fgsm", eps=0).eps == 0
    assert make("pgm", eps=1, eps_iter=None).eps == 1
    assert make("vap", eps=28).eps == 28
    assert build("vap", yaml.safe_load((CONF / "vap.yaml").read_text()), {"eps": 50.0}).eps == 50.0


def test_any_class_of_torchattacks_can_be_named() -> None:
    spec = {"_target_": "torchattacks.DIFGSM", "norm": "linf", "uses_labels": True, "params": {"eps": 0.1, "steps": 2}}
    attack = build("difgsm", spec, {})
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    x = torch.rand(2, 1, 8, 8)
    state = torch.get_rng_state()
    x_adv = attack(model, x, torch.tensor([0, 1]), generator=torch.Generator().manual_seed(1))
    assert ((x_adv - x).abs() <= 0.1 + 1e-6).all()
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match=r"difgsm\.params\.steps: 0 is out of range"):
        build("difgsm", spec, {"steps": 0})


def test_a_class_of_torchattacks_may_spell_its_norm_as_it_does() -> None:
    spec = {
        "_target_": "torchattacks.Square",
        "norm": "param",
        "uses_labels": True,
        "params": {"norm": "L2", "eps": 1.0, "n_queries": 5},
    }
    attack = build("theirs", spec, {})
    assert (attack.norm, attack.arguments["norm"]) == ("l2", "L2")
    with pytest.raises(UserError, match=r"norm: 'L2' is not known; known: linf, l2, l1"):
        make("square", norm="L2")


def test_numbers_of_numpy_are_numbers() -> None:
    attack = make("pgm", eps=np.float32(0.25), nb_iter=np.int64(3))
    assert attack.params["eps"] == 0.25
    assert [type(attack.params[name]) for name in ("eps", "nb_iter")] == [float, int]
