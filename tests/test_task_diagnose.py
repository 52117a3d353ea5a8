"""task=diagnose: is the robustness of one model real, a stage of the store or weights of a user's own?"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import amc_lightning
from amc_lightning.attacks import FGSM
from amc_lightning.data.images import Source
from amc_lightning.diagnosis_check import LEVELS as NAMES_OF_LEVELS
from amc_lightning.diagnosis_check import NORMS as NAMES_OF_NORMS
from amc_lightning.referee import LEVELS, row_hashes
from amc_lightning.referee.threat_model import NORMS
from tests.test_cascade import TOY, composed, toy_images, toy_source
from tests.test_run import SMALL, door, read

HERE = "tests.test_task_diagnose"
HOW = (*TOY, "trainer.threads=1", "task=diagnose", "diagnosis.rows=6")
CHEAP = "diagnosis.only=[E1,E2,E3,E30]"
"""Checks that attack nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy run and its store."""
    folder = tmp_path_factory.mktemp("diagnose")
    done = door(
        *SMALL, "cascade.order=[fgsm,pgm]", "figures=false", f"hydra.run.dir={folder / 'run'}",
        f"store.root={folder / 'store'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    return folder


def key_of(folder, index):
    return read(folder / "run")["stages"][index]["key"]


def weights_of(folder, index):
    return folder / "run" / "stages" / ("0_undefended", "1_fgsm", "2_pgm")[index] / "weights.safetensors"


def examine(folder, name, *overrides):
    return door(*HOW, f"store.root={folder / 'store'}", f"hydra.run.dir={folder / name}", *overrides)


def diagnosis(folder):
    found = json.loads((folder / "diagnosis.json").read_text())
    return found, {finding["check"]: finding for finding in found["findings"]}


# --- what it finds ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_a_stage(folder):
    """What is said of the last stage."""
    only = "diagnosis.only=[E1,E2,E3,E5,E30,E32]"
    done = examine(folder, "stage", f"evaluation.stage='{key_of(folder, 2)[:10]}'", only, "diagnosis.attacks=[fgsm]")
    assert done.status == 0, done.err
    return done, *diagnosis(folder / "stage")


def test_a_stored_stage_is_examined_and_the_report_written(folder, of_a_stage):
    done, found, findings = of_a_stage
    assert list(findings) == ["E1", "E2", "E3", "E5", "E30", "E32"]
    assert found["rows"] == 6
    assert found["model"] == f"ToyNet, stage 2 pgm ({key_of(folder, 2)[:12]})"
    assert found["threat_model"]["eps"] == 0.3  # of PGM in Table 1
    assert (folder / "stage" / "diagnosis.md").is_file()
    assert (folder / "stage" / "config.yaml").is_file()
    assert "E30" in done.out
    assert "Everything is in" in done.out


def test_the_provenance_comes_from_the_store(of_a_stage):
    _, _, findings = of_a_stage
    assert findings["E2"]["status"] == "WARN"  # the store does not know what is deployed
    assert findings["E30"]["status"] == "PASS"
    assert findings["E30"]["details"] == {
        "n": 6, "picked": "last", "rows_chosen_on": 0, "rows_trained_on": 0,
    }  # fmt: skip
    assert findings["E32"]["status"] == "PASS"
    told = findings["E32"]["details"]["told"]
    assert "task=diagnose" in told["command"]
    assert told["seed"] == "training 0, evaluation 0"
    assert "torch" in told["versions"]


def test_the_claims_own_attacks_are_examined(of_a_stage):
    _, found, findings = of_a_stage
    assert found["facts"]["attacks"] == ["fgsm"]
    assert "fgsm (given)" in findings["E5"]["details"]["single"]


def seen(monkeypatch, folder, name, *overrides):
    """Return what the referee was given."""
    given = {}

    def kept(model, x, y, threat_model, **more):
        given.update(more, model=model, x=x, y=y, threat=threat_model)
        raise KeyboardInterrupt

    monkeypatch.setattr("amc_lightning.examine.diagnose", kept)
    assert examine(folder, name, *overrides).status == 130
    return given


def test_what_the_referee_is_told_of_a_stage(folder, monkeypatch):
    given = seen(monkeypatch, folder, "told", f"evaluation.stage='{key_of(folder, 2)}'", "diagnosis.eps=0.2")
    told, source = given["provenance"], toy_source(None)
    assert (told.trained_against, told.picked, told.seeds) == (("fgsm", "pgm"), "last", 1)
    assert told.trained_on == row_hashes(torch.from_numpy(source.train.x))
    assert told.chosen_on == row_hashes(given["train"][0])
    assert told.record["attacks"] == read(folder / "run")["attacks"] | told.record["attacks"]
    assert set(told.record["attacks"]["white_box"]) == {"paper", "check"}
    assert given["threat"].eps == 0.2
    assert len(given["train"][0]) == read(folder / "run")["dataset"]["counts"]["validation"]
    expected = load_file(weights_of(folder, 0))
    assert all(torch.equal(value, expected[name]) for name, value in given["undefended"].state_dict().items())


def test_the_rows_are_those_that_runs_attack(folder, monkeypatch):
    given = seen(monkeypatch, folder, "rows", f"evaluation.stage='{key_of(folder, 2)}'")
    with np.load(folder / "run" / "examples.npz") as examples:
        assert given["y"].tolist() == examples["labels/attack"].tolist()


def test_weights_of_a_users_own_behind_squeezing(folder, monkeypatch):
    given = seen(
        monkeypatch, folder, "squeezed", f"evaluation.weights={weights_of(folder, 1)}",
        "evaluation.squeezing=[bit_depth_1]", "diagnosis.norm=l2", "diagnosis.eps=2",
    )  # fmt: skip
    assert type(given["model"]).__name__ == "Squeezed"
    assert (given["threat"].norm, given["threat"].eps) == ("l2", 2)
    assert given["undefended"] is None
    assert given["provenance"].trained_on is None
    assert given["provenance"].pipeline is None  # what is deployed nobody said


def test_without_m0_in_the_store_one_is_trained(folder, tmp_path, monkeypatch):
    """A store that was pruned, or a stage that was copied alone."""
    key, other = key_of(folder, 2), tmp_path / "store"
    place = f"entries/{key[:2]}/{key}"
    shutil.copytree(folder / "store" / place, other / place)
    given = seen(monkeypatch, folder, "pruned", f"evaluation.stage='{key}'", f"store.root={other}")
    assert given["undefended"] is None


def same_source(root, *, trust_files=False, split_seed=0):
    """Every image is in the training set and in the test set."""
    images = toy_images(20, 1)
    return Source(images, images, ("low", "middle", "high"), verified=True)


def test_images_that_were_trained_on_are_found(tmp_path):
    leaky = f"dataset.source._target_={HERE}.same_source"
    done = door(
        *SMALL, leaky, "figures=false", f"hydra.run.dir={tmp_path / 'run'}", f"store.root={tmp_path / 'store'}"
    )  # fmt: skip
    assert done.status == 0, done.err
    done = examine(tmp_path, "leak", leaky, f"evaluation.stage='{key_of(tmp_path, 1)}'", CHEAP)
    assert done.status == 0, done.err
    found, findings = diagnosis(tmp_path / "leak")
    assert findings["E30"]["status"] == "FAIL"
    assert findings["E30"]["details"]["rows_trained_on"] == 6
    assert found["failed"] == ["E30"]


class Interrupting(FGSM):
    """Ctrl-C while the claim's own attack is made."""

    def forward(self, images, labels):
        raise KeyboardInterrupt


def test_on_ctrl_c_the_checks_that_were_made_stay(folder):
    done = examine(
        folder, "stopped", f"evaluation.stage='{key_of(folder, 1)}'", "diagnosis.only=[E1,E3,E5]",
        f"+attacks.stop={{_target_: {HERE}.Interrupting, norm: linf, uses_labels: true, params: {{eps: 0.1}}}}",
        "diagnosis.attacks=[stop]",
    )  # fmt: skip
    assert done.status == 130
    assert "the 2 checks that were made are in" in done.message
    _, findings = diagnosis(folder / "stopped")
    assert list(findings) == ["E1", "E3"]


def test_the_package_offers_it():
    x = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    report = amc_lightning.diagnose(
        model, x, torch.tensor([0, 1, 0, 1]), amc_lightning.ThreatModel("linf", 0.1), only=["E1"]
    )  # fmt: skip
    assert [finding.check for finding in report.findings] == ["E1"]


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_the_choices_are_the_referees():
    assert tuple(LEVELS) == NAMES_OF_LEVELS
    assert NORMS == NAMES_OF_NORMS


STAGE = "evaluation.stage='0000'"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "task: 'diagnose' needs to know one model"),
        (["evaluation.weights=nowhere.pt"], "evaluation.weights: 'nowhere.pt' does not exist"),
        ([STAGE, "diagnosis.level=quik"], "diagnosis.level: 'quik' is not known; known: quick, full"),
        ([STAGE, "diagnosis.norm=l3"], "diagnosis.norm: 'l3' is not known"),
        ([STAGE, "diagnosis.norm=l2"], "diagnosis.eps: None is not set, and there is no default for l2"),
        ([STAGE, "diagnosis.eps=8"], "diagnosis.eps: 8.0 is larger than the whole image in linf"),
        ([STAGE, "diagnosis.eps=0"], "diagnosis.eps: 0.0 is out of range"),
        ([STAGE, "diagnosis.rows=1"], "diagnosis.rows: 1 is out of range"),
        ([STAGE, "diagnosis.attacks=[pmg]"], "diagnosis.attacks: 'pmg' is not a known attack"),
        ([STAGE, "evaluation.squeezing=[bit_depth_1,median_2]"], "one pipeline is examined at a time"),
        ([STAGE, "evaluation.threat_models=[black_box_label]"], "is not what task=diagnose examines"),
        ([STAGE, "cascade.order=[fgsm]", "defence=amc"], "task=diagnose trains nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(amc_lightning.UserError, match=re.escape(message)):
        composed(*HOW, *overrides)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (STAGE, "evaluation.stage: '0000' is the beginning of no key"),
        ("diagnosis.only=[E99]", "diagnosis.only: 'E99' is not a check; known: E1"),
    ],
)
def test_what_cannot_be_found_is_said(folder, tmp_path, setting, message):
    done = examine(folder, tmp_path.name, STAGE, setting)
    assert done.status == 2
    assert message in done.message


def test_stage_and_weights_are_two_models(folder):
    both = [f"evaluation.stage='{key_of(folder, 1)}'", f"evaluation.weights={weights_of(folder, 1)}"]
    done = examine(folder, "both", *both)
    assert done.status == 2
    assert "task: 'diagnose' needs to know one model" in done.message


def test_a_diagnosis_is_only_set_for_this_task():
    done = door(*TOY, "diagnosis.level=full")
    assert done.status == 2
    assert "diagnosis.level: 'full' is for task=diagnose" in done.message


def test_a_stage_of_other_images_is_refused(folder):
    other = "dataset.source._target_=tests.test_task_evaluate.other_source"
    done = examine(folder, "images", f"evaluation.stage='{key_of(folder, 1)}'", other, CHEAP)
    assert done.status == 2
    assert "is not what the stage was trained on" in done.message
