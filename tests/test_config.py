import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from amc_lightning.__main__ import main
from amc_lightning.config import CONF_DIR, read, register
from amc_lightning.errors import UserError

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
        (["threat_model.name=black_box"], r"threat_model\.name: 'black_box' is not known; known: white_box"),
        (
            ["+attack_params.whitebox.pgm.eps=0.1"],
            r"attack_params: 'whitebox' is not known; .*Did you mean white_box\?",
        ),
        (["cascade.start_from=nowhere.safetensors"], r"cascade\.start_from: 'nowhere.safetensors' does not exist"),
        (["seed=-1"], r"seed: -1 is out of range"),
        (["+evaluation.check.pgn={eps: 1}"], r"evaluation\.check: 'pgn' is not known"),
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
        ("model.num_clases=7", "model.num_clases: '7' is set, but there is no such key"),
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
    for text in ("experiment: cifar10_amc, digits_amc", "attack_order:", "+experiment=svhn_amc", "plan_only=true"):
        assert text in done.stdout
