"""Whole toy runs with one store: nothing is computed twice, and what is not sound is computed again."""

import hashlib
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from amc_lightning import evaluate
from amc_lightning.checkpoint import MetricRows
from amc_lightning.entry import key_of
from amc_lightning.errors import UserError
from amc_lightning.outcome import OUTCOME
from amc_lightning.store import Store
from amc_lightning.train import StageTrainer
from amc_lightning.transfer import WEIGHTS
from tests.disks import small_disk
from tests.test_cascade import ToyNet, same, toy_cascade, weights
from tests.test_run import SMALL, contents, door, files, read

RUN = (*SMALL, "figures=false")


@pytest.fixture(autouse=True)
def _one_thread():
    """On nets this small a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two stages, "0 undefended" and "1 fgsm", and its store; both are copied before they change."""
    folder = tmp_path_factory.mktemp("finished")
    done = door(*RUN, f"hydra.run.dir={folder / 'run'}", f"store.root={folder / 'store'}")
    assert (done.status, done.err) == (0, "")
    return folder


@pytest.fixture
def store(finished, tmp_path, monkeypatch):
    """The store after that run, for every command of the test."""
    shutil.copytree(finished / "store", tmp_path / "amc_store")
    return Store(Path(os.environ["AMC_STORE"]))


@pytest.fixture
def trained(monkeypatch):
    """Titles of the stages that are trained from now on."""
    titles = []
    train = StageTrainer.train

    def recorded(self, stage, *args, **kwargs):
        titles.append(stage.title)
        return train(self, stage, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "train", recorded)
    return titles


@pytest.fixture
def attacked(monkeypatch):
    """Names of the attacks that are measured with from now on."""
    names = []
    attack_rows = evaluate.attack_rows

    def recorded(net, attack, *args, **kwargs):
        names.append(attack.name)
        return attack_rows(net, attack, *args, **kwargs)

    monkeypatch.setattr(evaluate, "attack_rows", recorded)
    return names


def stages_of(folder):
    return [{**stage, "from_store": None} for stage in read(folder)["stages"]]


def from_store(folder):
    return [stage["name"] for stage in read(folder)["stages"] if stage["from_store"]]


def key_in(folder, index):
    return read(folder)["stages"][index]["key"]


def everything_below(*folders):
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


# --- the same again --------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_results_in_the_store_and_nothing_else(finished, store):
    assert sorted(os.listdir(store.root)) == ["entries", "locks", "tmp", "work"]
    assert [os.listdir(store.root / name) for name in ("locks", "tmp", "work")] == [[], [], []]
    entries = [store.load(key) for key in store.keys()]  # noqa: SIM118 - no mapping
    kinds = sorted(entry.recipe["kind"] for entry in entries)
    # of each of two stages: clean on two splits, and FGSM, whose check strength is the same attack
    assert kinds == ["outcome"] * 6 + ["stage"] * 2
    for index, name in enumerate(["0_undefended", "1_fgsm"]):
        entry = store.load(key_in(finished / "run", index))
        assert entry.files[WEIGHTS] == (finished / "run" / "stages" / name / WEIGHTS).read_bytes()
        assert entry.facts["config"]["dataset"]["name"] == "toy"
        assert entry.facts["machine"]["device"] == "cpu"


def test_the_same_command_computes_nothing_and_gives_the_same(finished, store, trained, attacked, tmp_path):
    done = door(*RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.status, done.err) == (0, "")
    assert trained == attacked == []
    assert stages_of(tmp_path / "run") == stages_of(finished / "run")
    assert from_store(finished / "run") == []
    assert from_store(tmp_path / "run") == ["undefended", "fgsm"]
    assert files(tmp_path / "run") == files(finished / "run")
    for name in ("examples.npz", "gallery.npz", "metrics.csv", f"stages/1_fgsm/{WEIGHTS}", "stages/1_fgsm/metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / "run" / name).read_bytes(), name
    key = key_in(finished / "run", 1)[:12]
    assert f"stage 1/1 fgsm  from the store ({key}, trained 20" in done.out
    assert done.out.count("from the store") == 2
    listed = door("task=store")
    assert listed.status == 0
    assert f"2 stages in {store.root}" in listed.out
    assert "6 measurements" in listed.out
    assert key in listed.out


def test_the_plan_counts_what_is_there(store, trained, tmp_path):
    done = door(*RUN, "cascade.order=[fgsm,vap]", "plan_only=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    rows = {tuple(line.split()[:2]): line for line in done.out.splitlines()}
    assert re.fullmatch(r"2 vap +1 +3 .*", rows["2", "vap"])  # one epoch, three steps
    assert "1 fgsm" in done.out.partition("store")[2], "what is there already is named"
    assert re.match(r"all +3 ", rows["all", "3"]), "three steps in all"
    assert trained == []
    assert len(store.keys()) == 8


def test_a_tracker_is_shown_the_curves_of_a_stage_that_was_not_trained_now(store, tmp_path):
    shown = []
    for folder in ("again", "anew"):
        cascade = toy_cascade(tmp_path / folder, *RUN, store=store if folder == "again" else None)
        cascade.open_logger = lambda stage: MetricRows(tmp_path / stage.title)
        cascade.replay = lambda logger, metrics: shown.append((logger.path.name, metrics))
        for record in cascade.run():
            assert cascade.logger.path.name == record.stage.title
            if record.trained:
                shown.append((record.stage.title, cascade.logger.rows))
    timeless = [(title, [{**row, "step": int(row["step"])} for row in rows]) for title, rows in shown]
    assert timeless[:2] == timeless[2:]
    assert [title for title, _ in shown] == ["0 undefended", "1 fgsm"] * 2


# --- what is shared --------------------------------------------------------------------------------------------------


def test_an_order_with_the_same_beginning_trains_the_rest(finished, store, trained, attacked, tmp_path):
    done = door(*RUN, "cascade.order=[fgsm,vap]", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert trained == ["2 vap"]
    assert attacked == ["fgsm"]
    assert from_store(tmp_path / "run") == ["undefended", "fgsm"]
    assert stages_of(tmp_path / "run")[:2] == stages_of(finished / "run")
    store_less = toy_cascade(tmp_path / "alone", *RUN, "cascade.order=[fgsm,vap]")
    list(store_less.run())
    assert same(weights(tmp_path / "run", "2_vap"), weights(tmp_path / "alone", "2_vap")), "as without the store"


def test_single_attack_training_is_the_beginning_of_a_cascade(store, trained, tmp_path):
    only = ("defence=adversarial_training", "attack_order=only_fgsm", "cascade.order=[fgsm]")
    done = door(*RUN, *only, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert trained == []


def test_stages_without_transfer_share_the_first_one(store, trained, tmp_path):
    order = ("cascade.order=[fgsm,vap]", "cascade.transfer=none", "evaluation.attacks=[]")
    assert door(*RUN, *order, f"hydra.run.dir={tmp_path / 'a'}").status == 0
    assert trained == ["2 vap"]
    assert door(*RUN, *order, f"hydra.run.dir={tmp_path / 'b'}").status == 0
    assert trained == ["2 vap"]
    assert from_store(tmp_path / "b") == ["undefended", "fgsm", "vap"]
    # a stage that starts from M0 has taken M0's steps and its own
    assert int(weights(tmp_path / "b", "2_vap")["bn.num_batches_tracked"]) == 9


def test_the_best_weights_are_another_result_which_is_found_again(store, trained, tmp_path):
    best = ("cascade.pick=best", "cascade.undefended_epochs=4", "cascade.validate_every=1", "evaluation.attacks=[]")
    assert door(*RUN, *best, f"hydra.run.dir={tmp_path / 'a'}").status == 0
    assert trained == ["0 undefended", "1 fgsm"]
    assert door(*RUN, *best, f"hydra.run.dir={tmp_path / 'b'}").status == 0
    assert trained == ["0 undefended", "1 fgsm"]
    assert stages_of(tmp_path / "a") == stages_of(tmp_path / "b")


def test_given_weights_are_found_again_by_their_content(store, trained, tmp_path):
    torch.manual_seed(3)
    save_file(ToyNet().state_dict(), tmp_path / "mine.safetensors")
    shutil.copy(tmp_path / "mine.safetensors", tmp_path / "copy.safetensors")
    for name, folder in (("mine", "a"), ("copy", "b")):
        start = f"cascade.start_from={tmp_path / name}.safetensors"
        done = door(*RUN, start, f"hydra.run.dir={tmp_path / folder}")
        assert done.status == 0, done.err
        assert trained == ["1 fgsm"]
    assert "stage 0/1 undefended  given weights, from the store (" in done.out
    assert from_store(tmp_path / "b") == ["undefended", "fgsm"]
    assert stages_of(tmp_path / "a") == stages_of(tmp_path / "b")
    assert same(weights(tmp_path / "b", "0_undefended"), weights(tmp_path / "a", "0_undefended"))


def test_given_weights_that_change_after_they_were_looked_at_are_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(ToyNet().state_dict(), path)
    cascade = toy_cascade(tmp_path / "run", "cascade.order=[fgsm]", f"cascade.start_from={path}")
    save_file(ToyNet().state_dict(), path)
    with pytest.raises(UserError, match=r"cascade.start_from: .* has changed since the run began"):
        next(cascade.run())
    assert cascade.store.keys() == []


# --- measurements ----------------------------------------------------------------------------------------------------


def test_a_further_attack_is_all_that_is_measured(finished, store, trained, attacked, tmp_path):
    done = door(*RUN, "evaluation.attacks=[fgsm,pgm]", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert trained == []
    assert attacked == ["pgm"] * 4  # two stages, two strengths
    for new, old in zip(stages_of(tmp_path / "run"), stages_of(finished / "run"), strict=True):
        assert new["evaluations"]["white_box"]["paper"]["fgsm"] == old["evaluations"]["white_box"]["paper"]["fgsm"]


@pytest.mark.parametrize("setting", ["evaluation.limit=5", "evaluation.seed=1"])
def test_other_rows_or_noise_are_measured_anew_on_the_same_stages(setting, store, trained, attacked, tmp_path):
    done = door(*RUN, setting, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert trained == []
    assert attacked == ["fgsm", "fgsm"]
    assert read(tmp_path / "run")["stages"][0]["evaluations"]["white_box"]["paper"]["fgsm"]["n"] == (
        5 if "limit" in setting else 12
    )


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_stage_is_trained_again_and_the_next_one_is_not(finished, store, trained, attacked, tmp_path):
    order = "cascade.order=[fgsm,vap]"
    assert door(*RUN, order, f"hydra.run.dir={tmp_path / 'whole'}").status == 0
    trained.clear(), attacked.clear()
    key = key_in(finished / "run", 1)
    path = store.load(key).folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = door(*RUN, order, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0
    assert trained == ["1 fgsm"]
    assert attacked == []
    (line,) = done.err.splitlines()
    assert line.startswith(f"WARNING: store: entry {key[:12]} is damaged ({WEIGHTS} has another checksum). It is set ")
    assert from_store(tmp_path / "run") == ["undefended", "vap"]
    timeless = [[{**stage, "minutes": None} for stage in stages_of(tmp_path / name)] for name in ("whole", "run")]
    assert timeless[0] == timeless[1]
    assert (tmp_path / "run" / "stages" / "1_fgsm" / WEIGHTS).read_bytes() == store.load(key).files[WEIGHTS]


def test_a_damaged_measurement_is_measured_again(finished, store, trained, attacked, tmp_path):
    for key in store.keys():  # noqa: SIM118 - no mapping
        entry = store.load(key)
        if entry.recipe["kind"] == "outcome" and entry.recipe["attack"]:
            os.truncate(entry.folder / OUTCOME, 20)
    done = door(*RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0
    assert done.err.count("WARNING: store: entry") == 2
    assert (trained, attacked) == ([], ["fgsm", "fgsm"])
    assert stages_of(tmp_path / "run") == stages_of(finished / "run")


class Bomb:
    """What a pickle does when somebody loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def replaced(store, key, name, content):
    """Publish something else under a key, with checksums that fit, as somebody else could."""
    entry = store.load(key)
    assert store.remove(key)
    return store.publish(entry.recipe, entry.facts, {} if content is None else {name: content})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda marker: pickle.dumps(Bomb(marker)), f"{WEIGHTS}' cannot be read ("),
        (lambda marker: None, f"has no {WEIGHTS}; a result of this program. Remove that folder"),
    ],
    ids=["pickle", "none"],
)
def test_what_is_no_safetensors_file_is_told_and_runs_nothing(make, message, finished, store, trained, tmp_path):
    marker = tmp_path / "marker"
    key = key_in(finished / "run", 1)
    entry = replaced(store, key, WEIGHTS, make(marker))
    done = door(*RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert message in done.message
    assert "store.root: " in done.message
    assert str(entry.folder) in done.message
    assert trained == []
    assert not marker.exists()
    assert [stage["name"] for stage in read(tmp_path / "run")["stages"]] == ["undefended"]
    assert not list((tmp_path / "run").rglob(f"1_fgsm/{WEIGHTS}"))


def test_an_entry_of_somebody_elses_is_told(finished, store, tmp_path):
    key = key_in(finished / "run", 0)
    entry = store.load(key)

    def run(facts, content):
        assert store.remove(key)
        store.publish(entry.recipe, facts, {WEIGHTS: content})
        return next(toy_cascade(tmp_path, *RUN, store=store).run())

    save_file(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other")
    with pytest.raises(UserError, match=rf"store.root: '.*{key}/{WEIGHTS}' does not fit ToyNet"):
        run(entry.facts, (tmp_path / "other").read_bytes())
    for facts in ({}, {**entry.facts, "metrics": 3}, {**entry.facts, "minutes": "long"}, {**entry.facts, "rows": None}):
        with pytest.raises(UserError, match=rf"store.root: '.*{key}' is not a stage of this program"):
            run(facts, entry.files[WEIGHTS])
    assert not run(entry.facts, entry.files[WEIGHTS]).trained


@pytest.mark.parametrize(
    "make", [lambda marker: pickle.dumps(Bomb(marker)), lambda marker: None], ids=["pickle", "none"]
)
def test_a_measurement_that_is_none_is_told_and_runs_nothing(make, store, tmp_path):
    marker = tmp_path / "marker"
    outcomes = [key for key in store.keys() if store.load(key).recipe["kind"] == "outcome"]  # noqa: SIM118
    for key in outcomes:
        replaced(store, key, OUTCOME, pickle.dumps(Bomb(marker)))
    done = door(*RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert "Remove that folder" in done.message
    assert any(key in done.message for key in outcomes)
    assert not marker.exists()


# --- run folders -----------------------------------------------------------------------------------------------------


def test_the_folder_of_the_same_run_may_be_written_again_and_that_of_another_is_left(
    finished, store, trained, tmp_path
):
    shutil.copytree(finished / "run", tmp_path / "run")
    done = door(*RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.status, done.err) == (0, "")
    assert trained == []
    assert stages_of(tmp_path / "run") == stages_of(finished / "run")
    assert files(tmp_path / "run") == files(finished / "run")
    before = contents(tmp_path / "run")
    for other in ("seed=5", "name=mine"):
        done = door(*RUN, other, f"hydra.run.dir={tmp_path / 'run'}")
        assert done.status == 2
        assert "already holds another run; an empty or new folder, or that of the same run" in done.message
        assert contents(tmp_path / "run") == before


def test_a_run_that_failed_goes_on_in_its_folder(trained, tmp_path, monkeypatch):
    train = StageTrainer.train

    def broken(self, stage, *args, **kwargs):
        if stage.index == 1:
            raise OSError(28, "No space left on device", "somewhere")
        return train(self, stage, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "train", broken)
        done = door(*RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 1
    assert "No space left on device" in done.message
    assert read(tmp_path / "run")["status"].startswith("stopped: ")
    assert door(*RUN, f"hydra.run.dir={tmp_path / 'run'}").status == 0
    assert trained == ["0 undefended", "1 fgsm"]
    assert read(tmp_path / "run")["status"] == "finished"
    assert from_store(tmp_path / "run") == ["undefended"]


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_a_run_says_for_whom_it_waits(tmp_path, trained):
    cascade = toy_cascade(tmp_path, "defence=undefended")
    key = cascade.keys[0]
    held, told = threading.Event(), threading.Event()

    def hold():
        with Store(cascade.store.root).lock(key):
            held.set()
            told.wait(30)

    class Listening(Console):
        def print(self, *objects, **options):
            super().print(*objects, **options)
            if "waiting" in str(objects[0]):
                told.set()

    cascade.trainer.console = Listening(file=(tmp_path / "console").open("w"), width=200)
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    (record,) = cascade.run()
    thread.join()
    cascade.trainer.console.file.close()
    assert record.trained
    lines = (tmp_path / "console").read_text().splitlines()
    who = f"process {os.getpid()} on {os.uname().nodename}"
    assert lines[0] == f"stage 0/0 undefended  waiting: {who} is training it"


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_is_refused_before_training(trained, tmp_path):
    (tmp_path / "taken").write_text("mine")
    done = door(*RUN, f"store.root={tmp_path / 'taken'}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert f"store.root: '{tmp_path / 'taken'}' cannot be written" in done.message
    assert trained == []
    assert files(tmp_path / "run") == []


def test_a_store_whose_disk_fills_up_keeps_what_is_finished_and_the_same_command_does_the_rest(
    trained, tmp_path, monkeypatch
):
    train = StageTrainer.train
    with small_disk(tmp_path / "disk", size="60m") as disk:
        command = (*RUN, f"store.root={disk.place / 'store'}", f"hydra.run.dir={tmp_path / 'run'}")

        def filling(self, stage, *args, **kwargs):
            result = train(self, stage, *args, **kwargs)
            if stage.index == 1:
                disk.fill()
            return result

        with monkeypatch.context() as patch:
            patch.setattr(StageTrainer, "train", filling)
            done = door(*command)
        assert done.status == 1
        assert disk.full in done.message
        assert "needed: room, and the right to write. Finished stages stay on disk." in done.message
        store = Store(disk.place / "store")
        assert [path for name in ("tmp", "locks") for path in (store.root / name).iterdir()] == []
        assert sorted(store.load(key).recipe["kind"] for key in store.keys()) == ["outcome"] * 3 + ["stage"]  # noqa: SIM118
        disk.free()
        assert door(*command).status == 0
        assert trained == ["0 undefended", "1 fgsm", "1 fgsm"]
        assert from_store(tmp_path / "run") == ["undefended"]


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_no_key_and_no_tracking_setting_reaches_the_store_and_no_key_the_run(tmp_path, monkeypatch):
    marker = "5ec7e7" + hashlib.sha256(b"marker").hexdigest()[:34]
    monkeypatch.setenv("WANDB_API_KEY", marker)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    settings = (
        "logger=wandb",
        "logger.mode=offline",
        "logger.project=my_secret_project",
        "logger.tags=[my_secret_tag]",
    )
    only = (*RUN, "defence=undefended", "cascade.order=[]", "evaluation.attacks=[]")
    store = Store(Path(os.environ["AMC_STORE"]))
    done = door(*only, *settings, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert marker not in done.out + done.err
    assert list((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))
    kept = everything_below(store.root)
    assert len(kept) == 9  # one stage, two clean measurements, three files each
    for path in kept:
        content = path.read_bytes()
        assert marker.encode() not in content, path
        assert b"secret" not in content, path
        assert b"wandb" not in content, path
    for path in everything_below(tmp_path / "run"):
        assert marker.encode() not in path.read_bytes(), path
    (stage,) = (entry for entry in map(store.load, store.keys()) if entry.recipe["kind"] == "stage")
    assert "logger" not in json.dumps(stage.facts)
    assert key_of(stage.recipe) == stage.key
