"""The run folder: whole at any moment, never overwritten, readable without trust."""

import csv
import json
import os
import resource
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from amc_lightning.errors import UserError
from amc_lightning.results import RunFolder, commit, versions, write_whole

HEADER = {"identity": "this", "experiment": "toy", "seed": 0}


@contextmanager
def disk_full_after(size):
    """Let no file of this process grow beyond ``size`` bytes: what a full disk looks like to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def record(index, **more):
    return {"index": index, "name": "fgsm", "evaluation": {}, **more}


def add(folder, index):
    folder.add_stage(
        record(index),
        {"clean/test/wrong": np.array([True, False]), "paper/fgsm/l2": np.array([0.5, 1.0], np.float32)},
        {"clean_predicted": np.array([3]), "x_adv/fgsm": np.full((1, 1, 2, 2), 0.5, np.float32)},
    )


def read(folder):
    return json.loads((folder / "results.json").read_text())


# --- one file --------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_its_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with disk_full_after(1 << 20), pytest.raises(OSError, match="File too large"):
        write_whole(path, b"x" * (2 << 20))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_cannot_begin_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "file", b"old")
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file" / "below", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_two_may_write_a_file_at_the_same_time(tmp_path):
    def write(content):
        for _ in range(50):
            write_whole(tmp_path / "file", content)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [b"a" * 9999, b"b" * 9999]))
    assert (tmp_path / "file").read_bytes() in (b"a" * 9999, b"b" * 9999)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_run_is_on_record_from_its_start(tmp_path):
    RunFolder(tmp_path / "run", HEADER)
    results = read(tmp_path / "run")
    assert results["format"] == 2
    assert results["experiment"] == "toy"
    assert results["status"] == "running"
    assert results["stages"] == []
    assert results["versions"]["torch"] not in ("", "not installed")
    assert results["created"].endswith("+00:00")


@pytest.mark.parametrize("status", ["finished", "stopped: interrupted"])
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(status, tmp_path):
    folder = RunFolder(tmp_path, HEADER)
    add(folder, 0)
    folder.finish(status)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"hydra\.run\.dir: '.*' already holds another run; an empty or new folder, or"):
        RunFolder(tmp_path, {"identity": "another", "experiment": "toy"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_stage_is_published_with_its_rows_and_pictures(tmp_path):
    folder = RunFolder(tmp_path, HEADER)
    folder.add_images(np.zeros((1, 1, 2, 2), np.float32), np.array([7]), {"test": np.array([1, 2])})
    add(folder, 0)
    add(folder, 1)
    assert read(tmp_path)["stages"] == [record(0), record(1)]
    assert read(tmp_path)["status"] == "running"
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as examples:
        assert set(examples.files) == {
            "labels/test",
            "0/clean/test/wrong",
            "0/paper/fgsm/l2",
            "1/clean/test/wrong",
            "1/paper/fgsm/l2",
        }
        assert examples["0/clean/test/wrong"].dtype == bool
        assert examples["1/paper/fgsm/l2"].tolist() == [0.5, 1.0]
    with np.load(tmp_path / "gallery.npz", allow_pickle=False) as gallery:
        assert set(gallery.files) == {
            "x", "y", "clean_predicted/0", "clean_predicted/1", "x_adv/0/fgsm", "x_adv/1/fgsm",
        }  # fmt: skip
        assert gallery["x_adv/1/fgsm"].shape == (1, 1, 2, 2)
    folder.finish("finished")
    assert read(tmp_path)["status"] == "finished"
    assert not list(tmp_path.glob("*.partial"))


def test_a_disk_that_fills_up_keeps_the_stages_before(tmp_path):
    folder = RunFolder(tmp_path, HEADER)
    add(folder, 0)
    noise = np.random.default_rng(0).integers(0, 256, 3 << 20).astype(np.uint8)
    with disk_full_after(1 << 20), pytest.raises(OSError, match="File too large"):
        folder.add_stage(record(1), {"paper/fgsm/noise": noise}, {})
    assert read(tmp_path)["stages"] == [record(0)]
    with np.load(tmp_path / "examples.npz") as examples:
        assert "0/clean/test/wrong" in examples.files
        assert not any(name.startswith("1/") for name in examples.files)


def test_numbers_that_json_has_not_are_not_written(tmp_path):
    folder = RunFolder(tmp_path, HEADER)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.add_stage(record(0, minutes=float("nan")), {}, {})
    assert read(tmp_path)["stages"] == []


# --- metrics.csv -----------------------------------------------------------------------------------------------------


def stage_csv(folder, name, text):
    path = folder / "stages" / name / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_metrics_of_the_stages_are_joined_in_their_order(tmp_path):
    folder = RunFolder(tmp_path, HEADER)
    stage_csv(tmp_path, "10_pgm", "epoch,step,train/loss\n0,4,0.5\n")
    stage_csv(tmp_path, "2_virtual_adversarial", "epoch,step,val/err/clean,train/loss\n0,1,,0.7\n0,1,20.0,\n1,3,,0.6\n")
    stage_csv(tmp_path, "0_undefended", "epoch,step,train/err/clean\n0,1,90.0\n")
    folder.merge_metrics()
    assert rows_of(tmp_path) == [
        ["stage", "name", "epoch", "step", "train/err/clean", "train/loss", "val/err/clean"],
        ["0", "undefended", "0", "1", "90.0", "", ""],
        ["2", "virtual_adversarial", "0", "1", "", "0.7", ""],
        ["2", "virtual_adversarial", "0", "1", "", "", "20.0"],
        ["2", "virtual_adversarial", "1", "3", "", "0.6", ""],
        ["10", "pgm", "0", "4", "", "0.5", ""],
    ]
    folder.merge_metrics()
    assert len(rows_of(tmp_path)) == 6, "merging again changes nothing"


def test_no_metrics_no_file(tmp_path):
    RunFolder(tmp_path, HEADER).finish("finished")
    assert os.listdir(tmp_path) == ["results.json"]


# --- where it came from ----------------------------------------------------------------------------------------------


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert {"amc_lightning", "python", "torch", "pytorch-lightning", "torchattacks", "torchmetrics"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_the_commit_is_that_of_the_checkout_or_nothing():
    found = commit()
    expected = None
    if shutil.which("git"):
        described = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        expected = described.stdout.strip() if described.returncode == 0 else None
    assert found is None if expected is None else (found or "").rstrip("+") == expected
