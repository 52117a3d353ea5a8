import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from amc_lightning.__main__ import main
from amc_lightning.config import CONF_DIR, read, register
from amc_lightning.errors import UserError
from amc_lightning.ranges import check_budget, check_ranges

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


def composed(*overrides):
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return read(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_passes_the_checks(experiment):
    config = composed(f"+experiment={experiment}")
    assert config.name == experiment
    assert config.cascade.order == ["fgsm", "vap", "eap", "pgm"]


@pytest.mark.parametrize("dataset", ["digits", "mnist", "svhn", "cifar10", "folder"])
@pytest.mark.parametrize("preset", ["paper", "official_code"])
def test_every_preset_has_both_columns_for_every_dataset(preset, dataset):
    config = composed(
        f"preset={preset}",
        f"dataset={dataset}",
        *(["dataset.size=[32,32]", "dataset.num_classes=3"] if dataset == "folder" else []),
    )
    for column in ("white_box", "black_box"):
        assert sorted(config.attack_params[column]) == ["eap", "fgsm", "pgm", "vap"]


def test_the_paper_preset_is_table_1():
    white = composed("+experiment=mnist_amc").attack_params["white_box"]
    assert white["fgsm"]["eps"] == 0.1
    assert (white["pgm"]["eps"], white["pgm"]["nb_iter"]) == (0.3, 15)
    assert (white["vap"]["xi"], white["vap"]["num_iters"], white["vap"]["eps"]) == (1, 6, 5)
    assert [
        white["eap"][name]
        for name in ("beta", "binary_search_steps", "max_iterations", "initial_const", "learning_rate")
    ] == [0.01, 5, 8, 1e-3, 0.1]
    assert composed("preset=official_code", "dataset=mnist").attack_params["white_box"]["fgsm"]["eps"] == 0.3


def test_epochs_follow_the_dataset_and_the_schedule():
    config = composed("+experiment=mnist_amc")
    assert (config.cascade.undefended_epochs, config.cascade.epochs) == (10, 8)
    config = composed("+experiment=mnist_amc", "schedule=official_code")
    assert (config.cascade.undefended_epochs, config.cascade.epochs) == (200, 150)


def test_defences_choose_their_order_and_the_command_line_has_the_last_word():
    assert composed("defence=undefended").cascade.order == []
    assert composed("defence=adversarial_training").cascade.order == ["pgm"]
    assert composed("defence=adversarial_training", "attack_order=only_vap").cascade.order == ["vap"]
    assert composed("attack_order=strong_to_weak").cascade.order == ["pgm", "eap", "vap", "fgsm"]
    assert composed("cascade.order=[pgm,fgsm]").cascade.order == ["pgm", "fgsm"]


def test_an_attack_is_found_by_its_file_alone():
    assert "torchattacks_pgd" in composed("cascade.order=[fgsm,torchattacks_pgd]").attacks


@pytest.mark.parametrize("use", ["cascade.order", "evaluation.attacks"])
def test_an_attack_given_in_part_keeps_the_rest_of_its_file(use):
    spec = composed(f"{use}=[fgsm]", "+attacks.autoattack.params.nb_iter=3", f"{use}=[fgsm,autoattack]").attacks
    whole = yaml.safe_load((CONF_DIR / "attack" / "autoattack.yaml").read_text())
    assert spec["autoattack"] == {**whole, "params": {**whole["params"], "nb_iter": 3}}


def test_a_part_of_an_attack_without_a_file_is_left_to_be_refused_as_it_is():
    config = composed("+attacks.mine.params.eps=0.1", "cascade.order=[fgsm,mine]")
    assert config.attacks["mine"] == {"params": {"eps": 0.1}}


def test_an_attack_given_whole_is_not_mixed_with_a_file_of_its_name():
    given = "{_target_: torchattacks.FGSM, norm: linf, uses_labels: true, params: {eps: 0.2}}"
    spec = composed(f"+attacks.noise={given}", "cascade.order=[noise]").attacks["noise"]
    assert spec == yaml.safe_load(given)


def test_parameters_of_an_attack_whose_norm_is_among_them_are_checked_in_that_norm():
    use, eps = "evaluation.attacks=[fgsm,noise]", "+attack_params.white_box.noise.eps"
    assert composed(use, f"{eps}=0.1").attack_params["white_box"]["noise"] == {"eps": 0.1}
    with pytest.raises(UserError, match=r"attack_params\.white_box\.noise\.eps: 8 is larger .* in linf; .*8/255"):
        composed(use, f"{eps}=8")
    composed(use, f"{eps}=8", "+attack_params.white_box.noise.norm=l2")
    composed(use, "+attacks.noise.params.eps=8", "+attack_params.white_box.noise.norm=l2")
    with pytest.raises(UserError, match=r"evaluation\.check\.noise\.eps: 17 is larger .* in l2; allowed: 0 to 16"):
        composed(use, "+attack_params.white_box.noise.norm=l2", "+evaluation.check.noise.eps=17")


FOREIGN = "{_target_: torchattacks.Square, norm: param, uses_labels: true, params: {norm: Linf, eps: 0.1}}"


def test_an_attack_of_others_has_its_norms_in_their_spelling():
    own = (f"+attacks.theirs={FOREIGN}", "evaluation.attacks=[fgsm,theirs]")
    composed(*own)
    composed(*own, "+attack_params.white_box.theirs={norm: L2, eps: 2}")
    with pytest.raises(UserError, match=r"theirs\.eps: 2 is larger than the whole image in Linf"):
        composed(*own, "+attack_params.white_box.theirs={eps: 2}")
    with pytest.raises(UserError, match=r"noise\.norm: 'L2' is not known; known: linf, l2, l1"):
        composed("evaluation.attacks=[noise]", "+attack_params.white_box.noise.norm=L2")


def test_ranges_know_the_norm_of_their_own_attacks_only():
    check_ranges({"norm": "L2", "eps": 0.1}, key="theirs", foreign=True)
    with pytest.raises(UserError, match=r"ours\.norm: 'L2' is not known"):
        check_ranges({"norm": "L2"}, key="ours")
    with pytest.raises(UserError, match=r"theirs\.eps: -1 is out of range"):
        check_ranges({"norm": "L2", "eps": -1}, key="theirs", foreign=True)


@pytest.mark.parametrize(
    "params",
    [
        {"eps": np.float32(0.1), "nb_iter": np.int64(3), "eps_iter": np.float64(0.1)},
        {"eps": np.float16(0), "restarts": np.uint8(1), "square_seed": np.int32(0), "nb_candidate": np.int8(2)},
        {"eps": 1, "learning_rate": np.int64(1), "eps_iter": None},
    ],
)
def test_numbers_of_numpy_are_numbers(params):
    check_ranges(params, key="attack")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("eps", np.float32(-0.1), "is out of range; allowed: a finite number >= 0"),
        ("eps", np.float64("nan"), "is out of range"),
        ("eps", "8/255", "is no number; allowed: a finite number >= 0. Correct attack.eps."),
        ("eps", None, "is no number"),
        ("eps", True, "is no number"),
        ("eps", np.bool_(True), "is no number"),
        ("eps", Fraction(1, 10), "is no number; "),  # tensors cannot be multiplied by one
        ("eps", 1j, "is no number"),
        ("eps", [0.1], "is no number"),
        ("eps_iter", "0.1", "is no number; allowed: a finite number > 0, or null"),
        ("nb_iter", np.int64(0), "is out of range; allowed: a whole number >= 1"),
        ("nb_iter", np.float32(2), "is no whole number"),
        ("nb_iter", 2.0, "is no whole number"),
        ("nb_iter", True, "is no whole number"),
        ("nb_candidate", "2", "is no whole number"),
        ("nb_candidate", 1, "is out of range; allowed: a whole number >= 2"),
        ("square_seed", -1, "is out of range"),
        ("rand_init", 1, "is no switch; allowed: true, false"),
        ("rand_init", None, "is no switch"),
        ("method", "guess", "is not known; known: exact, logit, finite"),
        ("norm", ["linf"], "is not known; known: linf, l2, l1"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_from_one_out_of_range(name, value, problem):
    with pytest.raises(UserError) as caught:
        check_ranges({name: value}, key="attack")
    assert str(caught.value).startswith(f"attack.{name}: {value!r} {problem}")


def test_a_number_too_large_for_a_float_is_larger_than_the_image():
    check_ranges({"eps": 10**400}, key="attack")
    with pytest.raises(UserError, match=r"attack\.eps: 10* is larger than the whole image in linf"):
        check_budget(10**400, "linf", None, key="attack.eps")


def test_a_default_that_is_always_replaced_need_not_fit():
    own = "+attacks.mine={_target_: torchattacks.PGDL2, norm: l2, uses_labels: true, params: {eps: 50, steps: null}}"
    use = "cascade.order=[mine]"
    both = [f"+attack_params.{column}.mine={{eps: 1, steps: 3}}" for column in ("white_box", "black_box")]
    assert composed(own, use, *both).attacks["mine"]["params"] == {"eps": 50, "steps": None}
    with pytest.raises(UserError, match=r"attacks\.mine\.params\.steps: None is no whole number"):
        composed(own, use)


def test_every_missing_budget_is_asked_for_at_once():
    with pytest.raises(UserError) as caught:
        composed("evaluation.attacks=[fgsm,deepfool,eap,cw]")
    assert str(caught.value) == (
        "dataset.budget: ['deepfool', 'cw'] are not set; needed: for each of these unbounded attacks the l1 radius at "
        "which it counts in the worst case. Add +dataset.budget.deepfool=10 +dataset.budget.cw=10."
    )
    with pytest.raises(UserError, match=r"dataset\.budget: \['cw'\] is not set; .* Add \+dataset\.budget\.cw=10\."):
        composed("evaluation.attacks=[cw]")
    composed("evaluation.attacks=[deepfool,cw]", "+dataset.budget.deepfool=10", "+dataset.budget.cw=10")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["cascade.order=[fgsm,pgmm]"],
            r"cascade\.order: 'pgmm' is not a known attack; known: apgd_ce, .*, eap, fab, fgsm, .*, vap\. "
            r"Did you mean pgm\? Otherwise add conf/attack/pgmm\.yaml to define it\.",
        ),
        (["cascade.order=[fgsm,fgsm]"], "cascade.order: .* names an attack twice"),
        (["cascade.alpha=1.5"], r"cascade\.alpha: 1\.5 is out of range; allowed: \[0, 1\]"),
        (["cascade.current_share=0"], r"cascade\.current_share: 0\.0 is out of range; allowed: \(0, 1\]"),
        (["cascade.shares=[0.5,0.5]"], r"cascade\.shares: .* has 2 entries; one per attack of cascade\.order, 4"),
        (["cascade.shares=[0.5,0.5,0.5,0.5]"], r"cascade\.shares: .* sums to 2; a sum of 1"),
        (["cascade.shares=[0,0.5,0.5,0]"], r"cascade\.shares: .* leaves stage 1 without rows"),
        (
            ["cascade.transfer=parents"],
            r"cascade\.transfer: 'parents' is not known; known: parent, none. "
            r"Did you mean parent\?",
        ),
        (["cascade.epochs=many"], r"cascade\.epochs: 'many' is not a number of epochs"),
        (["cascade.epochs=[1,2]"], r"cascade\.epochs: \[1, 2\] has 2 entries; one per stage, 4"),
        (["cascade.epochs=0"], r"cascade\.epochs: 0 is out of range"),
        (["schedule.batch_size=0"], r"schedule\.batch_size: 0 is out of range; allowed: \[1, infinity\)"),
        (
            ["defence=undefended", "attack_order=weak_to_strong"],
            r"cascade\.order: .* does not fit defence=undefended; needed: no attack",
        ),
        (["defence=adversarial_training", "attack_order=weak_to_strong"], "needed: exactly one attack"),
        (["trainer.accelerator=tpu"], r"trainer\.accelerator: 'tpu' is not known; known: auto, cpu, gpu"),
        (
            ["cascade.augment_adversarial=true", "cascade.augment_clean=false"],
            r"cascade\.augment_adversarial: True does nothing without cascade\.augment_clean=true",
        ),
        (
            ["threat_model.name=black_box"],
            r"threat_model\.name: 'black_box' is not a known threat model; known: black_box_label, .*, white_box\. Did",
        ),
        (
            ["+attack_params.whitebox.pgm.eps=0.1"],
            r"attack_params: 'whitebox' is not known; .*Did you mean white_box\?",
        ),
        (["cascade.start_from=nowhere.safetensors"], r"cascade\.start_from: 'nowhere.safetensors' does not exist"),
        (["seed=-1"], r"seed: -1 is out of range"),
        (["+evaluation.check.pgn={eps: 1}"], r"evaluation\.check: 'pgn' is not known"),
        (["+evaluation.check.fgsm=3"], r"evaluation\.check\.fgsm: 3 is no mapping; needed: parameters, such as"),
        (["+evaluation.check.fgsm.eps=8"], r"evaluation\.check\.fgsm\.eps: 8 is larger .*8/255"),
        (["+evaluation.check.fgsm.eps=8/255"], r"evaluation\.check\.fgsm\.eps: '8/255' is no number"),
        (["attack_params.white_box.fgsm=3"], r"attack_params\.white_box\.fgsm: 3 is no mapping; needed: parameters"),
        (["attack_params.white_box=3"], r"attack_params\.white_box: 3 is no mapping; needed: attacks and their"),
        (["+attacks.cw=3"], r"attacks\.cw: 3 is not an attack; keys and values, as in conf/attack/pgm\.yaml"),
        (["attacks.pgm.params=3"], r"attacks\.pgm\.params: 3 is no mapping"),
        (["attacks.pgm.params.restarts=0"], r"attacks\.pgm\.params\.restarts: 0 is out of range"),
        (["attack_params.white_box=null"], r"attack_params\.white_box: None is no mapping"),
    ],
)
def test_values_out_of_place_are_named_with_what_is_allowed(overrides, message):
    with pytest.raises(UserError, match=message):
        composed(*overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "cascade.alhpa=0.3",
            "cascade.alhpa: '0.3' is set, but there is no such key; known: cascade.alpha, .*"
            "Did you mean cascade.alpha?",
        ),
        ("cascade.alpha=half", "cascade.alpha: 'half' has the wrong type; needed: Float. Change cascade.alpha."),
        (
            "dataset=cifr10",
            "dataset: 'cifr10' is not a known choice; known: cifar10, digits, folder, mnist, svhn. "
            "Did you mean dataset=cifar10?",
        ),
        ("datset=mnist", "datset: 'mnist' is set, but there is no such key; .*Did you mean dataset?"),
        ("+experiment=svhn_acm", "experiment: 'svhn_acm' is not a known choice; .*Did you mean experiment=svhn_amc?"),
        ("seed=abc", "seed: 'abc' has the wrong type; needed: Integer"),
        ("cascade.order=[fgsm", "cascade.order=[fgsm"),
        ("attack_params.white_box.pgm.eps=8", "attack_params.white_box.pgm.eps: 8 .*8/255"),
        ("attack_params.white_box.pgm.epz=0.1", "attack_params.white_box.pgm.epz"),
        ("+dataset.folder=x", "dataset.folder: 'x' is set, but there is no such key; known: dataset.augment, "),
        ("dataset=folder", "dataset.size: None is not set; needed: the height and width"),
        ("attack_params.white_box.pgm.nb_iter=ten", "attack_params.white_box.pgm.nb_iter: 'ten'"),
        ("model._target_=torch.nn.Lenet", "model._target_: 'torch.nn.Lenet' cannot be imported"),
        (
            "model.num_clases=7",
            "model.num_clases: '7' is set, but there is no such key; known there: _target_, in_channels, image_size, "
            "num_classes. Did you mean model.num_classes? Otherwise +model.num_clases=7 adds it.",
        ),
        (
            "attack_params.white_box.autoattack.nb_iter=3",
            "attack_params.white_box.autoattack.nb_iter: '3' is set, but there is no "
            "attack_params.white_box.autoattack; known there: fgsm, vap, eap, pgm. "
            "+attack_params.white_box.autoattack.nb_iter=3 adds it.",
        ),
        (
            "evaluation.check.autoattack.nb_iter=3",
            "evaluation.check.autoattack.nb_iter: '3' is set, but there is no evaluation.check.autoattack; known "
            "there: pgm. +evaluation.check.autoattack.nb_iter=3 adds it.",
        ),
        (
            "attack_params.white_box.pgm.eps_iter=null",
            "attack_params.white_box.pgm.eps_iter: 'null' is set, but there is no such key; known there: eps, nb_iter. "
            ".*+attack_params.white_box.pgm.eps_iter=null adds it.",
        ),
        (
            "attacks.pgm.parms.nb_iter=[1,2]",
            "attacks.pgm.parms.nb_iter: '[1,2]' is set, but there is no attacks.pgm.parms; known there: _target_, "
            "norm, .*. Did you mean attacks.pgm.params? Otherwise '+attacks.pgm.parms.nb_iter=[1,2]' adds it.",
        ),
        (
            "evaluation.chek.pgm.nb_iter=3",
            "evaluation.chek.pgm.nb_iter: '3' is set, but there is no evaluation.chek; known: evaluation.attacks, .*"
            "Did you mean evaluation.check?",
        ),
        ("attack_params.white_box.pgm.eps.x=3", "pgm.eps.x: '3' is set, but there is no such key; known there: none."),
        (
            "+attack_params.white_box.pgm.eps=0.1",
            "attack_params.white_box.pgm.eps: '0.1' is added by +, but this key is there already; needed: no +. Write "
            "attack_params.white_box.pgm.eps=0.1.",
        ),
        ("~evaluation.check.fgsm", "evaluation.check.fgsm: cannot be removed, as there is no such key. See --cfg job"),
        (
            "attack@attacks.mine=fgsm",
            "attack@attacks.mine: 'fgsm' is set, but nothing is composed there; known: attack@attacks.eap, "
            "attack@attacks.fgsm, attack@attacks.pgm, attack@attacks.vap. +attack@attacks.mine=fgsm adds it.",
        ),
    ],
)
def test_the_door_gives_one_line_and_status_2(override, message, capsys, tmp_path):
    import re

    status = main([override, "plan_only=true", f"hydra.run.dir={tmp_path}"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert re.search(_pattern(message), lines[0]), lines[0]


def _pattern(message: str) -> str:
    import re

    return ".*".join(re.escape(part) for part in message.split(".*"))


@pytest.mark.parametrize(
    "override", ["cascade.alhpa=1", "attack_params.white_box.pgm.eps=8", "cascade.order=[pgdd]", "cascade.alpha=2"]
)
def test_a_wrong_setting_is_found_within_the_first_second_without_loading_torch(override, tmp_path):
    code = (
        f"import sys; from amc_lightning.__main__ import main; status = main(['{override}']);"
        "sys.exit(0 if status == 2 and 'torch' not in sys.modules else 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr


def test_help_shows_groups_and_examples_from_any_directory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "amc_lightning", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    for text in (
        "experiment: cifar10_amc, cifar10_baselines, cifar10_local_proxy",
        "attack_order:",
        "+experiment=svhn_amc",
        "plan_only=true",
    ):
        assert text in done.stdout
