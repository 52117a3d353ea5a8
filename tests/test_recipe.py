"""Keys: what changes one, what does not, and what shares one."""

import importlib
import itertools
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from fractions import Fraction
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from amc_lightning import recipe
from amc_lightning.build import build_attacks, execution, load_data
from amc_lightning.config import CONF_DIR, read, register
from amc_lightning.entry import canonical, key_of
from amc_lightning.errors import UserError
from amc_lightning.models import LeNet
from amc_lightning.recipe import component, outcome_recipe, source_of
from amc_lightning.stage_recipe import stage_recipes
from tests.disks import ROOT
from tests.test_cascade import TOY, toy_cascade

ORDER = ("cascade.order=[fgsm,vap,pgm]",)
LENET = ("model._target_=amc_lightning.models.LeNet",)
BEST = ("cascade.pick=best", "cascade.epochs=4", "cascade.validate_every=2")


@cache
def toy(*choices):
    """The composed toy, which takes a third of a second; settings are then changed in copies of it."""
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=[*TOY, *ORDER, "dataset.limit=30", *choices])


def configured(*overrides):
    choices = [
        name for name in overrides if name.partition("=")[0] in {"attack_order", "defence", "logger", "optimizer"}
    ]
    cfg = toy(*choices).copy()
    OmegaConf.set_struct(cfg, False)
    cfg.merge_with_dotlist([override for override in overrides if override not in choices])
    OmegaConf.set_struct(cfg, True)
    return read(cfg)


def keys(*overrides):
    return keys_of(configured(*overrides))


@pytest.fixture(scope="module")
def plain():
    """The keys without any override."""
    return keys()


def keys_of(config):
    return [key_of(recipe) for recipe in recipes_of(config)]


def recipes_of(config):
    data = load_data(config).prepare()
    attacks = build_attacks(config, config.cascade.order, config.cascade.craft_params, execution=execution(config))
    prints = {name: data.fingerprint_of(name) for name in ("train", "validation")}
    return [planned.recipe for planned in stage_recipes(config, attacks, **prints)]


def changed(one, other):
    assert len(one) == len(other)
    return {index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]}


class MyLeNet(LeNet):
    """A user's net that is ours in part."""


def made(size):
    class Net(torch.nn.Linear):
        def __init__(self):
            super().__init__(1, size)

    return Net


Small, Large = made(2), made(3)
"""Two classes that have one name between them, which is not where either is found."""


# --- what changes keys, and what does not ----------------------------------------------------------------------------

NOTHING = [
    "name=mine",
    "dataset.name=mine",
    "dataset.root=/data",
    "dataset.trust_files=true",
    "preset.name=mine",
    "plan_only=true",
    "figures=false",
    "logger=wandb",
    "trainer.threads=3",
    "trainer.progress=bar",
    "trainer.crafting=plain",
    "store.root=/elsewhere",
    "store.checkpoint_minutes=9",
    "store.action=prune",
    "evaluation.attacks=[fgsm]",
    "evaluation.params=black_box",
    "evaluation.batch_size=7",
    "evaluation.limit=5",
    "evaluation.gallery=0",
    "evaluation.seed=3",
    "evaluation.check.pgm.nb_iter=5",
    "cascade.validate_every=1",
    "cascade.validate_rows=3",
    "cascade.transfer=parent",
    "cascade.current_share=0.80",
    "cascade.epochs=[1,1,1]",
    "schedule.name=mine",
    "schedule.milestones=[1]",
    "schedule.gamma=0.5",
    "dataset.epochs.stage=9",
    "dataset.budget.eap=3",
    "attack_params.white_box.eap.beta=0.1",
    "attack_params.black_box.pgm.nb_iter=3",
    "attack_params.black_box.fgsm.eps=0.2",
]


@pytest.mark.parametrize("override", NOTHING)
def test_what_determines_no_weights_changes_no_key(override, plain):
    assert keys(override) == plain


ALL, AFTER_0, AFTER_1, LAST = {0, 1, 2, 3}, {1, 2, 3}, {2, 3}, {3}
CHANGES = {
    "seed=1": ALL,
    "cascade.undefended_epochs=3": ALL,
    "schedule.peak_lr=0.1": ALL,
    "schedule.batch_size=8": ALL,
    "schedule.shape=constant": ALL,
    "optimizer.weight_decay=0": ALL,
    "optimizer=adam": ALL,
    "model.dropout=0.1": ALL,
    "model._target_=tests.test_resume.Drawing": ALL,
    "trainer.precision=bf16-mixed": ALL,
    "dataset.limit=27": ALL,
    "dataset.limit=null": ALL,
    "dataset.split_seed=1": ALL,
    "dataset.augment.rotation=10": ALL,
    "dataset.augment.horizontal_flip=true": ALL,
    "cascade.augment_clean=false": ALL,
    "cascade.pick=best": ALL,
    "cascade.augment_adversarial=true": AFTER_0,
    "cascade.alpha=0.4": AFTER_0,
    "cascade.label='true'": AFTER_0,
    "cascade.epochs=2": AFTER_0,
    "cascade.epochs=[2,1,1]": AFTER_0,
    "trainer.crafting=fast": AFTER_0,
    "attack_params.white_box.fgsm.eps=0.2": AFTER_0,
    "cascade.current_share=0.7": AFTER_1,
    "cascade.shares=[0.5,0.3,0.2]": AFTER_1,
    "cascade.epochs=[1,2,1]": AFTER_1,
    "cascade.transfer=none": AFTER_1,
    "cascade.craft_params=black_box": AFTER_1,  # FGSM's eps is the same in both columns
    "attack_params.white_box.vap.eps=4": AFTER_1,
    "attacks.vap.params.method=logit": AFTER_1,
    "cascade.epochs=[1,1,2]": LAST,
    "attack_params.white_box.pgm.nb_iter=3": LAST,
    "attacks.pgm.params.rand_init=false": LAST,
    "attacks.pgm.uses_labels=false": LAST,
}


@pytest.mark.parametrize("override", CHANGES)
def test_what_determines_weights_changes_the_keys_of_the_stages_it_determines(override, plain):
    assert changed(keys(override), plain) == CHANGES[override]


@pytest.mark.parametrize(
    ("before", "override", "stages"),
    [
        (("cascade.augment_clean=false",), "dataset.augment.rotation=10", set()),
        (("cascade.transfer=none",), "cascade.epochs=[1,2,1]", {2}),
        (("cascade.transfer=none",), "attack_params.white_box.vap.eps=4", AFTER_1),
        (("schedule.shape=steps", "schedule.milestones=[1]"), "schedule.gamma=0.5", ALL),
        (("schedule.shape=steps", "schedule.milestones=[1]"), "schedule.milestones=[2]", ALL),
        (("cascade.shares=[0.5,0.3,0.2]",), "cascade.current_share=0.7", set()),
        (("cascade.shares=[0.5,0.3,0.2]",), "cascade.shares=[0.5,0.2,0.3]", AFTER_1),
        (LENET, "trainer.crafting=fast", set()),
        (LENET, "trainer.crafting=plain", AFTER_0),
        (BEST, "cascade.validate_rows=5", AFTER_0),  # stage 0 has no attack to be validated with
        (BEST, "cascade.validate_every=1", ALL),
        (BEST, "cascade.validate_every=3", set()),  # of two or four epochs every second is validated, too
        (BEST, "cascade.validate_every=4", AFTER_0),
        (BEST, "evaluation.seed=3", AFTER_0),
        (BEST, "evaluation.batch_size=7", AFTER_0),
        (BEST, "evaluation.limit=5", set()),
        (BEST, "evaluation.gallery=0", set()),
        (BEST, "evaluation.attacks=[fgsm]", set()),
    ],
)
def test_what_a_setting_determines_may_depend_on_another(before, override, stages):
    assert changed(keys(*before), keys(*before, override)) == stages


def test_what_changes_no_key_changes_no_weights(tmp_path):
    order = "cascade.order=[fgsm,pgm]"
    not_here = {"cascade.epochs=[1,1,1]", "logger=wandb"}
    others = [override for override in NOTHING if override not in not_here]
    one, other = toy_cascade(tmp_path / "one", order), toy_cascade(tmp_path / "other", order, *others)
    assert one.keys == other.keys
    for first, second in zip(one.run(), other.run(), strict=True):
        assert first.weights.read_bytes() == second.weights.read_bytes(), first.stage.title


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_a_cascade_begins_as_training_against_its_first_attack_alone():
    alone = keys("defence=adversarial_training", "attack_order=only_pgm", "cascade.order=[pgm]")
    assert keys("cascade.order=[pgm,fgsm]")[:2] == alone
    assert keys("cascade.order=[fgsm,pgm]")[2] != alone[1]


def test_every_order_and_defence_shares_m0():
    (m0,) = keys("defence=undefended", "cascade.order=[]")
    assert keys()[0] == keys("cascade.order=[pgm,fgsm]")[0] == m0


def test_one_number_of_epochs_for_all_is_the_same_as_one_each():
    assert keys("cascade.epochs=3") == keys("cascade.epochs=[3,3,3]")


def test_shares_that_come_to_the_same_are_the_same():
    order = "cascade.order=[fgsm,pgm]"
    assert keys(order) == keys(order, "cascade.shares=[0.2,0.8]") == keys(order, "cascade.shares=[2e-1,8e-1]")


def test_all_orders_of_four_attacks_have_64_stages_beside_m0():
    config = configured()
    found = [
        keys_of(replace(config, cascade=replace(config.cascade, order=list(order), epochs=1)))
        for order in itertools.permutations(["fgsm", "vap", "eap", "pgm"])
    ]
    assert len(found) == 24
    assert len({keys[0] for keys in found}) == 1
    assert len({key for keys in found for key in keys[1:]}) == 4 + 12 + 24 + 24


def test_a_stage_is_known_by_its_parent_too():
    config = configured()
    recipes = recipes_of(config)
    assert [recipe.get("parent") for recipe in recipes] == [None, *(key_of(recipe) for recipe in recipes[:-1])]


# --- weights from elsewhere ------------------------------------------------------------------------------------------


def test_weights_to_start_from_count_by_their_content(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"other")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (keys(f"cascade.start_from={tmp_path / name}") for name in "abc")
    assert a == b
    assert changed(a, c) == ALL
    assert changed(a, keys()) == ALL
    assert changed(a, keys(f"cascade.start_from={tmp_path / 'a'}", "seed=1")) == AFTER_0
    assert changed(a, keys(f"cascade.start_from={tmp_path / 'a'}", "cascade.undefended_epochs=7")) == set()
    assert changed(a, keys(f"cascade.start_from={tmp_path / 'a'}", "model.dropout=0.1")) == ALL


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "stages"),
    [
        ("training", (), ALL),
        ("attacks", (), AFTER_0),
        ("attacks", BEST, ALL),
        ("models", (), set()),
        ("models", LENET, ALL),
        ("models", ("model._target_=tests.test_recipe.LeNet",), ALL),  # ours by another path
        ("models", ("model._target_=tests.test_recipe.MyLeNet",), ALL),
        ("models", ("model._target_=tests.test_recipe.Small",), set()),
        ("evaluation", (), set()),
        ("evaluation", BEST, ALL),
    ],
)
def test_a_component_that_computes_something_else_changes_the_keys_of_what_it_computes(
    name, overrides, stages, monkeypatch
):
    before = keys(*overrides)
    monkeypatch.setattr(recipe, "VERSIONS", recipe.VERSIONS | {name: 99})
    assert changed(before, keys(*overrides)) == stages


def test_the_models_version_counts_for_given_weights(tmp_path, monkeypatch):
    (tmp_path / "given").write_bytes(b"weights")
    given = (*LENET, f"cascade.start_from={tmp_path / 'given'}")
    before = keys(*given)
    monkeypatch.setattr(recipe, "VERSIONS", recipe.VERSIONS | {"models": 99})
    assert changed(before, keys(*given)) == ALL


# --- measurements ----------------------------------------------------------------------------------------------------


def test_a_measurement_is_known_by_model_rows_and_attack(monkeypatch):
    config = configured()
    attacks = build_attacks(config, ["fgsm", "pgm"], "white_box")
    fgsm = attacks["fgsm"]
    settings = {"rows": "rows", "seed": 0, "batch_size": 8, "keep": 2}

    def key(model="model", attack=fgsm, **changes):
        return key_of(outcome_recipe(model, attack, **{**settings, **changes}))

    others = [
        key(model="other"), key(rows="other"), key(seed=1), key(batch_size=9), key(keep=3), key(attack=attacks["pgm"]),
        key(attack=replace(fgsm, label="predicted")), key(attack=replace(fgsm, arguments={"eps": 1})),
        key(attack=replace(fgsm, execution=replace(fgsm.execution, fast=True))), key(attack=None),
    ]  # fmt: skip
    assert len({key(), *others}) == 11
    assert key() == key(attack=build_attacks(config, ["fgsm"], "black_box")["fgsm"]), "the same eps in both columns"
    assert key(attack=None) == key(attack=None, seed=1, batch_size=9, keep=3), "clean images need none of them"
    before = {key(), key(attack=None)}
    monkeypatch.setattr(recipe, "VERSIONS", recipe.VERSIONS | {"evaluation": 99})
    assert not before & {key(), key(attack=None)}


# --- classes ---------------------------------------------------------------------------------------------------------


def test_ours_and_installed_ones_have_no_source_and_one_name_by_every_path():
    lenet = component({"_target_": "amc_lightning.models.LeNet", "num_classes": 3}, key="model")
    assert lenet == {"class": "amc_lightning.models.lenet.LeNet", "source": None, "arguments": {"num_classes": 3}}
    assert LeNet.__name__ == "LeNet"
    assert component({"_target_": "tests.test_recipe.LeNet", "num_classes": 3}, key="model") == lenet
    sgd = component({"_target_": "torch.optim.SGD", "lr": 1}, key="optimizer")
    assert sgd == component({"_target_": "torch.optim.sgd.SGD", "lr": 1.0}, key="optimizer")
    assert (sgd["class"], sgd["source"]) == ("torch.optim.sgd.SGD", None)


def test_classes_that_one_function_made_are_told_apart():
    small, large = (component({"_target_": f"tests.test_recipe.{name}"}, key="model") for name in ("Small", "Large"))
    assert small["source"] == large["source"] is not None
    assert [small["class"], large["class"]] == ["tests.test_recipe.Small", "tests.test_recipe.Large"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own: a function that writes it anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # by the clock a change within a second would go unseen

    def write(size):
        (tmp_path / "my_nets.py").write_text(
            f"import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(1, {size})\n"
        )

    write(2)
    yield write
    sys.modules.pop("my_nets", None)


def test_a_users_class_is_known_by_its_source(module):
    node = {"_target_": "my_nets.Net"}
    first = component(node, key="model")
    assert first["class"] == "my_nets.Net"
    assert re.fullmatch("[0-9a-f]{64}", first["source"])
    module(3)
    assert component(node, key="model") == first, "what runs is what was imported"
    importlib.reload(sys.modules["my_nets"])
    second = component(node, key="model")
    assert second["source"] != first["source"]
    module(2)
    importlib.reload(sys.modules["my_nets"])
    assert component(node, key="model") == first


def test_a_users_attack_is_known_by_its_source_too():
    cfg = toy().copy()
    OmegaConf.set_struct(cfg, False)
    target = "tests.test_cascade.Interrupting"
    cfg.attacks.mine = {"_target_": target, "norm": "linf", "uses_labels": True, "names": {}, "params": {"eps": 0.1}}
    config = read(cfg)
    found = recipe.attack_recipe(build_attacks(config, ["mine"], "white_box")["mine"])
    assert found["class"] == target
    assert found["source"] == source_of("tests.test_cascade") is not None
    assert recipe.attack_recipe(build_attacks(config, ["pgm"], "white_box")["pgm"])["source"] is None


def test_what_has_no_source_has_none():
    for name in ("builtins", "torch", "torchattacks.attacks.fgsm", "json", "amc_lightning.recipe", "no_such_module"):
        assert source_of(name) is None


def test_an_argument_that_is_not_finite_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"optimizer.weight_decay: inf cannot be kept on record .*; finite numbers"):
        keys("optimizer.weight_decay=.inf")
    with pytest.raises(UserError, match=r"model.dropout: nan cannot be kept on record"):
        keys("model.dropout=.nan")


# --- the form of a key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 0.0}, {"a": -0.0}),
        ({"a": 0.1}, {"a": 1e-1}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": Fraction(1, 5)}, {"a": Fraction(2, 10)}),
        ({1: "a"}, {"1": "a"}),
        ({"a": {"b": (1.0,)}}, {"a": {"b": [1]}}),
        ({"a": torch.nn.Linear(1, 1).in_features}, {"a": 1}),
    ],
)
def test_equal_settings_have_one_key(one, other):
    assert key_of(one) == key_of(other)


def test_settings_that_differ_have_different_keys():
    values = [
        1, True, "1", None, "None", 0, False, "", [], {}, [1], [[1]], ["1"], 1.5, "1.5", Fraction(1, 5), 0.2, [1, 2],
        [2, 1], 10**30, 1e-30, "\u00e9", "e\u0301", float(2**53), 2**53 + 1,
    ]  # fmt: skip
    assert len({key_of({"a": value}) for value in values}) == len(values)
    assert key_of({"a": 1}) != key_of({"b": 1})
    assert key_of({"a": None}) != key_of({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_have_no_key(value):
    for settings in (value, [value], {"a": {"b": (value,)}}):
        with pytest.raises(ValueError, match="in a recipe"):
            canonical(settings)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", bytearray(b"b"), torch.zeros(2), 1j, torch.float32, len])
def test_what_is_no_plain_container_has_no_key(value):
    for settings in (value, [value], {"a": value}):
        with pytest.raises(TypeError, match=f"{type(value).__name__} in a recipe"):
            canonical(settings)


def test_a_key_stays_what_it_is():
    # What stands in a store must be found by later versions, on every machine and in every process.
    assert key_of({"kind": "stage", "alpha": 0.5, "shares": (Fraction(4, 5), 1.0), "none": None, "on": True}) == (
        "9774e6e57d246487e9d81597825e933e2801238ea6705e5ed46253711f5a241a"
    )
    program = textwrap.dedent("""
        from amc_lightning.entry import key_of
        print(key_of({"b": 1, "a": {"d": [1.5, True], "c": "x"}}))
    """)
    here = key_of({"a": {"c": "x", "d": (1.5, True)}, "b": 1.0})
    environment = {"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here
