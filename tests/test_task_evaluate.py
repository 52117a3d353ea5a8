"""task=evaluate: one model as it is, a stage of the store or weights of a user's own."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from amc_lightning.data.images import Source
from tests.test_cascade import TOY, ToyNet, toy_images
from tests.test_run import SMALL, door, read


def other_source(root, *, trust_files=False, split_seed=0):
    return Source(toy_images(12, 3), toy_images(20, 2), ("low", "middle", "high"), verified=True)


class Wrapped(nn.Module):
    """A network whose own weights are called net."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3):
        super().__init__()
        self.net = ToyNet(in_channels, image_size, num_classes)

    def forward(self, x):
        return self.net(x)


HOW = (*TOY, "trainer.threads=1", "evaluation.attacks=[fgsm]", "evaluation.gallery=2", "figures=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy run and its store."""
    folder = tmp_path_factory.mktemp("evaluate")
    done = door(*SMALL, "figures=false", f"hydra.run.dir={folder / 'run'}", f"store.root={folder / 'store'}")
    assert done.status == 0, done.err
    return folder


def measure(folder, name, *overrides):
    return door(
        *HOW, "task=evaluate", f"store.root={folder / 'store'}", f"hydra.run.dir={folder / name}", *overrides
    )  # fmt: skip


def test_a_stored_stage_gets_the_numbers_of_its_run_and_nothing_is_computed(folder, monkeypatch):
    key = read(folder / "run")["stages"][1]["key"]
    monkeypatch.setattr("amc_lightning.evaluate.attack_rows", None)
    monkeypatch.setattr("amc_lightning.train.StageTrainer.train", None)
    done = measure(folder, "stage", f"evaluation.stage='{key[:10]}'")
    assert done.status == 0, done.err
    (stage,) = read(folder / "stage")["stages"]
    assert (stage["index"], stage["name"], stage["key"]) == (1, "fgsm", key)
    assert stage["evaluations"] == read(folder / "run")["stages"][1]["evaluations"]
    assert "1 fgsm" in done.out


def test_what_a_stage_was_trained_with_comes_from_the_store(folder):
    key = read(folder / "run")["stages"][1]["key"]
    done = measure(folder, "other", f"evaluation.stage='{key}'", "model._target_=tests.test_cascade.Absent", "seed=5")
    assert done.status == 0, done.err
    results = read(folder / "other")
    assert (results["seed"], results["order"], results["defence"]) == (0, ["fgsm"], "amc")
    assert results["crafting"] is None


def test_a_joint_stage_and_its_m0_are_measured_as_they_were(tmp_path):
    joint = ("defence=msd", "cascade.order=[fgsm,pgm]", "cascade.epochs=[1]", "cascade.undefended_epochs=1")
    done = door(*HOW, *joint, f"hydra.run.dir={tmp_path / 'run'}", f"store.root={tmp_path / 'store'}")
    assert done.status == 0, done.err
    stages = read(tmp_path / "run")["stages"]
    for index, order in ((0, []), (1, ["fgsm", "pgm"])):
        done = measure(tmp_path, str(index), f"evaluation.stage='{stages[index]['key']}'")
        assert done.status == 0, done.err
        results = read(tmp_path / str(index))
        assert (results["order"], results["defence"]) == (order, "msd")
        (stage,) = results["stages"]
        assert (stage["name"], stage["evaluations"]) == (stages[index]["name"], stages[index]["evaluations"])
    assert stages[1]["name"] == "msd"


def test_a_stage_can_be_measured_through_an_interface(folder):
    key = read(folder / "run")["stages"][1]["key"]
    proxy = (
        "dataset.proxy.source={_target_: tests.test_local_proxy.toy_queries}", "proxy.architecture=toy",
        "+models.toy={_target_: tests.test_cascade.ToyNet, dropout: 0.0}", "dataset.proxy.limit=24", "proxy.epochs=1",
        "proxy.batch_size=8", "proxy.fine_tune_epochs=1",
    )  # fmt: skip
    done = measure(
        folder, "black", f"evaluation.stage='{key}'", "evaluation.threat_models=[black_box_label]", *proxy
    )  # fmt: skip
    assert done.status == 0, done.err
    (stage,) = read(folder / "black")["stages"]
    evaluation = stage["evaluations"]["black_box_label"]
    assert evaluation["proxies"]["toy"]["queries"] > 0
    assert evaluation["transfer"] is None  # M0 is not among what is measured


@pytest.mark.parametrize("kind", ["safetensors", "pt", "lightning"])
def test_weights_of_a_users_own(folder, tmp_path, kind):
    source = folder / "run" / "stages" / "1_fgsm" / "weights.safetensors"
    path = tmp_path / f"mine.{kind}"
    if kind == "safetensors":
        path.write_bytes(source.read_bytes())
    elif kind == "pt":
        torch.save(load_file(source), path)
    else:
        torch.save(
            {"state_dict": {f"net.{name}": value for name, value in load_file(source).items()}, "epoch": 3}, path
        )
    done = measure(folder, f"weights_{kind}", f"evaluation.weights={path}")
    assert done.status == 0, done.err
    (stage,) = read(folder / f"weights_{kind}")["stages"]
    trained = read(folder / "run")["stages"][1]["evaluations"]["white_box"]
    assert stage["steps"] == 0
    assert stage["evaluations"]["white_box"]["check"]["worst"] == trained["check"]["worst"]
    with np.load(folder / f"weights_{kind}" / "examples.npz") as mine, np.load(folder / "run" / "examples.npz") as runs:
        np.testing.assert_array_equal(mine["0/paper/fgsm/wrong"], runs["1/paper/fgsm/wrong"])


def test_a_name_that_is_the_networks_own_is_kept(folder, tmp_path):
    torch.save(Wrapped().state_dict(), tmp_path / "own.pt")
    model = "model._target_=tests.test_task_evaluate.Wrapped"
    done = measure(folder, "own", f"evaluation.weights={tmp_path / 'own.pt'}", model)
    assert done.status == 0, done.err


@pytest.mark.parametrize("content", [{0: torch.zeros(2)}, [torch.zeros(2)], {"state_dict": {"a": 3}}])
def test_what_is_no_state_dict_is_refused(folder, tmp_path, content):
    torch.save(content, tmp_path / "none.pt")
    done = measure(folder, tmp_path.name, f"evaluation.weights={tmp_path / 'none.pt'}")
    assert done.status == 2
    assert "it holds no state_dict" in done.message


def test_weights_of_another_network_name_their_setting(folder, tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    done = measure(folder, "net", f"evaluation.weights={tmp_path / 'other.pt'}")
    assert done.status == 2
    assert "evaluation.weights" in done.message
    assert "does not fit ToyNet" in done.message


def test_nothing_is_trained(folder):
    source = folder / "run" / "stages" / "1_fgsm" / "weights.safetensors"
    done = measure(folder, "trained", f"evaluation.weights={source}", "cascade.order=[fgsm]", "defence=amc")
    assert done.status == 2
    assert "task=evaluate trains nothing" in done.message


def test_a_pickle_with_code_in_it_is_not_run(folder, tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": print}, path)
    done = measure(folder, "evil", f"evaluation.weights={path}")
    assert done.status == 2
    assert "cannot be read" in done.message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "task: 'evaluate' needs to know one model"),
        (["evaluation.stage='0000'", "evaluation.weights=nowhere.pt"], "does not exist"),
        (["evaluation.stage='0000'"], "evaluation.stage: '0000' is the beginning of no key"),
        (["evaluation.stage=nonsense"], "evaluation.stage: 'nonsense' is not the beginning of a key"),
        (["evaluation.weights=nowhere.pt"], "evaluation.weights: 'nowhere.pt' does not exist"),
    ],
)
def test_what_cannot_be_found_is_said(folder, tmp_path, overrides, message):
    done = measure(folder, tmp_path.name, *overrides)
    assert done.status == 2
    assert message in done.message


def test_a_stage_of_another_dataset_is_refused(folder):
    key = read(folder / "run")["stages"][1]["key"]
    done = door("task=evaluate", f"evaluation.stage='{key}'", f"store.root={folder / 'store'}")
    assert done.status == 2
    assert "it was toy. Add dataset=toy." in done.message


def test_a_stage_is_measured_on_the_split_that_it_was_trained_with(folder):
    """On another one it would meet images that it was trained on."""
    key = read(folder / "run")["stages"][1]["key"]
    done = measure(folder, "split", f"evaluation.stage='{key}'", "dataset.split_seed=1", "dataset.limit=9")
    assert done.status == 0, done.err
    assert read(folder / "split")["dataset"]["fingerprint"] == read(folder / "run")["dataset"]["fingerprint"]


def test_a_stage_of_other_images_is_refused(folder):
    key = read(folder / "run")["stages"][1]["key"]
    other = "dataset.source._target_=tests.test_task_evaluate.other_source"
    done = measure(folder, "images", f"evaluation.stage='{key}'", other)
    assert done.status == 2
    assert "is not what the stage was trained on" in done.message


def test_an_outcome_is_no_stage(folder):
    names = {path.name for path in (folder / "store" / "entries").glob("*/*")}
    stages = {stage["key"] for stage in read(folder / "run")["stages"]}
    done = measure(folder, "outcome", f"evaluation.stage='{min(names - stages)}'")
    assert done.status == 2
    assert re.search("is a stored (outcome|proxy|answers), not a stage", done.message)


def test_truncated_weights_are_named(folder, tmp_path):
    path = tmp_path / "cut.pt"
    torch.save(load_file(folder / "run" / "stages" / "1_fgsm" / "weights.safetensors"), path)
    path.write_bytes(path.read_bytes()[:-400])
    done = measure(folder, "cut", f"evaluation.weights={path}")
    assert done.status == 2
    assert str(path) in done.message
    assert "cannot be read" in done.message


def test_a_model_is_only_named_for_this_task():
    done = door(*HOW, "evaluation.stage=abc")
    assert done.status == 2
    assert "evaluation.stage: 'abc' is for task=evaluate" in done.message
