"""The whole program through its door: what a user types, what stands on disk afterwards, and the exit status."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from amc_lightning import UserError, load
from amc_lightning.__main__ import main
from amc_lightning.build import load_data
from amc_lightning.config import CONF_DIR
from amc_lightning.metrics import wilson
from amc_lightning.rows import predict
from tests.test_cascade import STOP, TOY, ToyNet, composed
from tests.test_results import disk_full_after

ROOT = Path(__file__).parents[1]
SMOKE = (
    "+experiment=smoke", "dataset.limit=100", "evaluation.limit=30", "trainer.threads=1", "trainer.accelerator=cpu",
)  # fmt: skip
SMALL = (*TOY, "trainer.threads=1", "cascade.order=[fgsm]", "evaluation.attacks=[fgsm]", "evaluation.gallery=2")
"""A toy run of two stages, about a second."""


class Done(NamedTuple):
    """What a run through the door left."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line that a user is told; beside it only lines of the log may stand on standard error."""
        lines = [line for line in self.err.splitlines() if not re.match("(INFO|WARNING|ERROR): ", line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("amc_lightning: ")
        return lines[0]


def door(*arguments):
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(arguments))
    finally:
        sys.argv = argv
    return Done(status, out.getvalue(), err.getvalue())


STARTED: list[subprocess.Popen] = []


def shell(*arguments, cwd, **options):
    """Start the program in a process of its own, as from a shell in ``cwd``."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "amc_lightning", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _no_process_is_left():
    """End what a failed test leaves running."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def read(folder):
    return json.loads((folder / "results.json").read_text())


def files(folder):
    """Every file below a folder, Hydra's own aside."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith(".hydra/") and name != "amc_lightning.log")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """On nets this small a second thread costs more than it gives; ``trainer.threads`` sets it for the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run of the whole cascade on digits, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "smoke"
    # a store of its own: a worker that comes back to this file makes the fixture again, and it shall train again
    done = door(*SMOKE, f"hydra.run.dir={folder}", f"store.root={folder.parent / 'store'}")
    assert done.status == 0, done.err
    return folder, done


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("run") / "toy"
    done = door(*SMALL, f"hydra.run.dir={folder}")
    assert done.status == 0, done.err
    return folder


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_a_run_leaves_every_file_that_is_promised(smoke):
    folder, _ = smoke
    stages = ["0_undefended", "1_fgsm", "2_vap", "3_eap", "4_pgm"]
    assert files(folder) == sorted(
        [
            "config.yaml",
            "examples.npz",
            "gallery.npz",
            "metrics.csv",
            "report.md",
            "results.json",
            "figures/error_rates.png",
            "figures/examples.png",
            "figures/training_curves.png",
            *(f"stages/{stage}/{name}" for stage in stages for name in ("metrics.csv", "weights.safetensors")),
        ]
    )
    assert (folder / ".hydra" / "config.yaml").is_file()


def test_the_pictures_are_pictures(smoke):
    for path in (smoke[0] / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        assert path.stat().st_size > 5000


def test_results_say_what_was_run_on_what_with_what(smoke):
    folder, _ = smoke
    results = read(folder)
    assert (results["status"], results["format"], results["experiment"]) == ("finished", 2, "smoke")
    assert results["order"] == results["evaluated"] == ["fgsm", "vap", "eap", "pgm"]
    assert (results["preset"], results["threat_model"], results["defence"]) == ("paper", "white_box", "amc")
    assert (results["seed"], results["device"], results["threads"]) == (0, "cpu", 1)
    assert results["dataset"]["counts"] == {"train": 100, "validation": 210, "attack": 140, "test": 350}
    assert results["dataset"]["counts_read"] == {"train": 1797, "test": 0}
    assert results["dataset"]["verified"] is True
    assert re.fullmatch("[0-9a-f]{64}", results["dataset"]["fingerprint"])
    assert results["budget"] == {"eap": {"norm": "l1", "radius": 10.0}}
    assert results["attacks"]["white_box"]["paper"]["pgm"]["nb_iter"] == 15
    assert results["attacks"]["white_box"]["check"]["pgm"]["nb_iter"] == 40
    assert results["attacks"]["white_box"]["check"]["pgm"]["eps_iter"] == pytest.approx(2.5 * 0.3 / 40)
    assert results["attacks"]["white_box"]["check"]["pgm"]["compact"] is True
    assert results["versions"]["torch"] == torch.__version__.split("+")[0] or results["versions"]["torch"]


def test_results_tell_each_stages_training(smoke):
    stages = read(smoke[0])["stages"]
    assert [(stage["index"], stage["name"], stage["attack"]) for stage in stages] == [
        (0, "undefended", None),
        (1, "fgsm", "fgsm"),
        (2, "vap", "vap"),
        (3, "eap", "eap"),
        (4, "pgm", "pgm"),
    ]
    assert [(stage["epochs"], stage["steps"]) for stage in stages] == [(2, 2)] + [(1, 1)] * 4
    assert stages[0]["rows"] == {}
    assert stages[4]["rows"] == {"fgsm": 7, "vap": 7, "eap": 6, "pgm": 80} or sum(stages[4]["rows"].values()) == 100
    assert all(stage["minutes"] > 0 for stage in stages)


def test_every_number_of_results_json_can_be_computed_from_the_rows(smoke):
    folder, _ = smoke
    results = read(folder)
    with np.load(folder / "examples.npz", allow_pickle=False) as file:
        rows = {name: file[name] for name in file.files}
    assert len(rows["labels/attack"]) == 30
    for stage in results["stages"]:
        own = {name.partition("/")[2]: values for name, values in rows.items() if name.startswith(f"{stage['index']}/")}
        evaluation = stage["evaluations"]["white_box"]

        def agrees(rate, wrong):
            assert (rate["n"], rate["wrong"]) == (len(wrong), int(wrong.sum()))
            assert rate["error"] == 100 * wrong.mean()
            assert (rate["low"], rate["high"]) == wilson(int(wrong.sum()), len(wrong))

        agrees(evaluation["clean"], own["clean/test/wrong"])
        for strength in ("paper", "check"):
            rates = evaluation[strength]
            agrees(rates["clean"], own["clean/attack/wrong"])
            flags = {name: own[f"{strength}/{name}/wrong"] for name in results["evaluated"]}
            for name, wrong in flags.items():
                agrees(rates[name], wrong)
                for norm in ("linf", "l2", "l1"):
                    assert rates[name]["norms"][norm]["max"] == pytest.approx(own[f"{strength}/{name}/{norm}"].max())
            inside = flags["eap"] & (own[f"{strength}/eap/l1"] <= results["budget"]["eap"]["radius"])
            agrees(rates["eap@budget"], inside)
            bounded = [flags[name] for name in ("fgsm", "vap", "pgm")]
            agrees(rates["worst"], np.any([own["clean/attack/wrong"], *bounded, inside], axis=0))
            assert rates["mean"]["error"] == pytest.approx(100 * np.mean(list(flags.values())))
            assert set(rates) == {"clean", *flags, "eap@budget", "mean", "worst"}


def test_perturbations_keep_their_budgets_in_every_row(smoke):
    with np.load(smoke[0] / "examples.npz", allow_pickle=False) as rows:
        for index in range(5):
            assert rows[f"{index}/paper/fgsm/linf"].max() <= 0.1 + 1e-6
            assert rows[f"{index}/paper/vap/l2"].max() <= 5 + 1e-5
            assert rows[f"{index}/check/pgm/linf"].max() <= 0.3 + 1e-6


def test_the_gallery_holds_images_and_what_each_stage_says(smoke):
    with np.load(smoke[0] / "gallery.npz", allow_pickle=False) as gallery:
        assert gallery["x"].shape == (4, 1, 16, 16)
        for index in range(5):
            assert gallery[f"clean_predicted/{index}"].shape == (4,)
            for name in ("fgsm", "vap", "eap", "pgm"):
                x_adv = gallery[f"x_adv/{index}/{name}"]
                assert x_adv.shape == gallery["x"].shape
                assert x_adv.min() >= 0
                assert x_adv.max() <= 1
                assert gallery[f"predicted/{index}/{name}"].shape == (4,)


def test_metrics_follow_every_stage(smoke):
    with (smoke[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["stage", "name", "epoch", "step"]
    assert [int(row["stage"]) for row in rows] == sorted(int(row["stage"]) for row in rows)
    for index, names in enumerate([["clean"], ["clean", "fgsm"], ["clean", "fgsm", "vap"]]):
        own = [row for row in rows if row["stage"] == str(index)]
        for name in names:
            assert any(row[f"train/err/{name}"] for row in own)
            assert any(row[f"val/err/{name}"] for row in own)
        assert any(row["train/loss"] for row in own)
        assert any(row["val/err/mean"] for row in own)


def test_the_resolved_config_is_the_whole_truth(smoke):
    config = yaml.safe_load((smoke[0] / "config.yaml").read_text())
    assert config["dataset"]["limit"] == 100
    assert config["cascade"]["epochs"] == 1
    assert config["attack_params"]["white_box"]["eap"]["binary_search_steps"] == 5
    assert config["model"] == {
        "_target_": "amc_lightning.models.LeNet",
        "in_channels": 1,
        "image_size": [16, 16],
        "num_classes": 10,
    }
    assert "${" not in (smoke[0] / "config.yaml").read_text()


def test_the_table_is_printed_with_both_strengths_n_and_what_it_does_not_show(smoke):
    _, done = smoke
    text = " ".join(done.out.split())
    for part in ("Plan", "M0", "1 fgsm", "4 pgm", "worst", "n = 350", "n = 30", "95 % interval", "Not shown:"):
        assert part in text, part
    assert re.search("worst worst .*paper check", text)
    assert done.err == ""
    assert re.search(r"\d+\.\d-\d+", text), "intervals"


def test_the_report_shows_its_figures_and_numbers(smoke):
    folder, _ = smoke
    report = (folder / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", report):
        assert (folder / name).is_file()
    assert "figures/examples.png" in report
    last = read(folder)["stages"][-1]["evaluations"]["white_box"]
    assert f"{last['check']['worst']['error']:.1f}" in report


# --- the network that comes out --------------------------------------------------------------------------------------


def test_the_loaded_network_makes_exactly_the_errors_on_record(smoke):
    folder, _ = smoke
    data = load_data(composed("+experiment=smoke", "dataset.limit=100")).prepare()
    assert data.fingerprint == read(folder)["dataset"]["fingerprint"]
    images, labels = data.tensors("test")
    with np.load(folder / "examples.npz", allow_pickle=False) as rows:
        for index in (0, 4):
            net = load(folder, stage=index)
            wrong = (predict(net, images, batch_size=512) != labels).numpy()
            assert np.array_equal(wrong, rows[f"{index}/clean/test/wrong"])
            assert 100 * wrong.mean() == read(folder)["stages"][index]["evaluations"]["white_box"]["clean"]["error"]


def test_the_last_stage_is_the_one_to_deploy(smoke):
    folder, _ = smoke
    net = load(str(folder))
    assert not net.training
    expected = load_file(folder / "stages" / "4_pgm" / "weights.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    first = load(folder, stage=0).state_dict()
    assert not torch.equal(first["features.0.weight"], expected["features.0.weight"])


def copied(folder, to, *, without=(), **changed):
    """Copy a run, leaving out files and replacing the text of others (``results_json="..."``)."""
    for name, content in contents(folder).items():
        if name not in without:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(content)
    for name, text in changed.items():
        (to / name.replace("_", ".")).write_text(text)
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": ("results.json",)}, "run_folder: .* is not a readable run .*FileNotFoundError"),
        ({"without": ("config.yaml",)}, "run_folder: .* is not a readable run .*FileNotFoundError"),
        ({"results_json": "{"}, "run_folder: .* is not a readable run .*JSONDecodeError"),
        ({"results_json": "[]"}, "run_folder: .* is not a readable run"),
        ({"results_json": '{"format": 1}'}, "run_folder: .* is not a readable run"),
        ({"results_json": '{"stages": [{"index": 0}]}'}, "run_folder: "),
        ({"results_json": '{"stages": []}'}, r"stage: None is not a finished stage of this run; finished: \[\]"),
        ({"config_yaml": "model: ["}, "run_folder: .* is not a readable run"),
        ({"config_yaml": "nothing"}, "run_folder: .* is not a readable run"),
        ({"config_yaml": "model: {_target_: torch.nn.Nothing}"}, "model._target_: .* cannot be imported"),
        ({"config_yaml": "model: {_target_: os.getcwd}"}, "model._target_: 'os.getcwd' is not an? Module"),
        ({"config_yaml": "model: 3"}, "model|run_folder"),
        ({"without": ("stages/1_fgsm/weights.safetensors",)}, "run_folder: .*weights.safetensors' does not exist"),
    ],
)
def test_what_is_no_run_is_not_loaded(change, message, toy, tmp_path):
    with pytest.raises(UserError, match=message):
        load(copied(toy, tmp_path, **change))


def test_a_folder_that_is_not_there_and_a_stage_that_is_not_there_are_named(toy, tmp_path):
    with pytest.raises(UserError, match=r"run_folder: .*nowhere.* is not a readable run"):
        load(tmp_path / "nowhere")
    for stage in (2, -1):
        with pytest.raises(UserError, match=rf"stage: {stage} is not a finished stage of this run; finished: \[0, 1\]"):
            load(toy, stage=stage)


# --- running again, planning, sweeping -------------------------------------------------------------------------------


def test_another_run_into_the_same_folder_is_refused_and_changes_nothing(toy):
    before = contents(toy)
    done = door(*SMALL, "seed=5", f"hydra.run.dir={toy}")
    assert done.status == 2
    assert re.search("hydra.run.dir: '.*toy' already holds another run; an empty or new folder, or", done.message)
    assert contents(toy) == before


def test_the_same_seed_gives_the_same_results(toy, tmp_path):
    assert door(*SMALL, f"hydra.run.dir={tmp_path}").status == 0

    def timeless(folder):
        results = read(folder)
        del results["created"]
        for stage in results["stages"]:
            del stage["minutes"]
            assert stage["from_store"] is False
        return results

    assert timeless(tmp_path) == timeless(toy)
    for name in ("examples.npz", "stages/1_fgsm/weights.safetensors"):
        assert (tmp_path / name).read_bytes() == (toy / name).read_bytes(), name


def test_plan_only_plans_and_writes_nothing(tmp_path):
    done = door(*SMALL, "plan_only=true", f"hydra.run.dir={tmp_path}")
    assert (done.status, done.err) == (0, "")
    plan = [line.split() for line in done.out.splitlines()]
    assert [row[:4] for row in plan if row[:2] == ["0", "undefended"]] == [["0", "undefended", "2", "6"]]
    assert [row[:5] for row in plan if row[:2] == ["1", "fgsm"]] == [["1", "fgsm", "1", "3", "3.0"]]
    assert any(row[:2] == ["all", "9"] for row in plan)
    assert {path.name for path in tmp_path.iterdir()} <= {".hydra", "amc_lightning.log"}


def test_a_sweep_over_orders_goes_on_after_a_job_that_fails_and_says_so(tmp_path):
    orders = "cascade.order=[fgsm,fgsm],[fgsm,vap],[vap,fgsm]"
    done = door("-m", *SMALL, orders, "cascade.undefended_epochs=1", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 2
    assert "cascade.order: ['fgsm', 'fgsm'] names an attack twice" in done.message
    assert not (tmp_path / "0" / "results.json").exists()
    for job, order in (("1", ["fgsm", "vap"]), ("2", ["vap", "fgsm"])):
        assert read(tmp_path / job)["status"] == "finished"
        assert read(tmp_path / job)["order"] == order


def test_a_sweep_that_cannot_be_composed_does_not_begin(tmp_path):
    done = door("-m", *SMALL, "cascade.alpha=0.5,half", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 2
    assert "cascade.alpha: " in done.message
    assert "half" in done.message
    assert not list(tmp_path.rglob("results.json"))


def test_looking_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        sys.exit(door("--cfg", "job", *SMALL).status)
    assert caught.value.code == 0
    assert os.listdir(tmp_path) == []


# --- a user's own parts ----------------------------------------------------------------------------------------------


def test_a_users_attack_is_one_file_in_a_folder_of_his_own_used_from_anywhere(tmp_path, monkeypatch):
    own, cwd = tmp_path / "own", tmp_path / "elsewhere"
    (own / "attack").mkdir(parents=True)
    cwd.mkdir()
    (own / "attack" / "mine.yaml").write_text(
        "_target_: torchattacks.FGSM\nnorm: linf\nuses_labels: true\nnames: {}\nparams: {eps: 0.05}\n"
    )
    monkeypatch.chdir(cwd)
    done = door(
        "--config-dir", str(own), *SMALL, "cascade.order=[mine]", "evaluation.attacks=[mine,fgsm]", "name=my_run"
    )  # fmt: skip
    assert (done.status, done.err) == (0, "")
    (folder,) = (cwd / "outputs" / "my_run").iterdir()
    results = read(folder)
    assert results["status"] == "finished"
    assert results["stages"][1]["name"] == "mine"
    assert results["stages"][1]["rows"] == {"mine": 36}
    assert results["attacks"]["white_box"]["paper"]["mine"] == {"eps": 0.05}
    assert str(folder.relative_to(cwd)) in done.out
    assert os.listdir(cwd) == ["outputs"]


def test_start_from_hardens_a_trained_model(tmp_path):
    torch.manual_seed(3)
    save_file(ToyNet().state_dict(), tmp_path / "mine.safetensors")
    done = door(*SMALL, f"cascade.start_from={tmp_path / 'mine.safetensors'}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    stages = read(tmp_path / "run")["stages"]
    assert [(stage["epochs"], stage["steps"]) for stage in stages] == [(0, 0), (1, 3)]
    assert "0 undefended" not in done.out.split("Error rates")[0], "the plan has no M0 to train"


def test_an_attack_outside_the_order_can_be_evaluated(tmp_path):
    done = door(*SMALL, "evaluation.attacks=[torchattacks_pgd,vap]", f"hydra.run.dir={tmp_path}")
    assert done.status == 0, done.err
    rates = read(tmp_path)["stages"][1]["evaluations"]["white_box"]["paper"]
    assert list(rates) == ["clean", "torchattacks_pgd", "vap", "mean", "worst"]


@pytest.mark.parametrize(("limit", "gallery", "kept"), [(5, 12, 5), (99, 0, 0)], ids=["larger", "empty"])
def test_the_gallery_may_be_larger_than_what_is_attacked_or_empty(limit, gallery, kept, tmp_path):
    done = door(*SMALL, f"evaluation.limit={limit}", f"evaluation.gallery={gallery}", f"hydra.run.dir={tmp_path}")
    assert done.status == 0, done.err
    assert read(tmp_path)["stages"][0]["evaluations"]["white_box"]["paper"]["fgsm"]["n"] == min(limit, 12)
    with np.load(tmp_path / "gallery.npz", allow_pickle=False) as arrays:
        assert {name: len(arrays[name]) for name in arrays.files} == dict.fromkeys(arrays.files, kept)


def test_a_run_may_be_measured_on_clean_images_alone(tmp_path):
    done = door(*SMALL, "defence=undefended", "cascade.order=[]", "evaluation.attacks=[]", f"hydra.run.dir={tmp_path}")
    assert done.status == 0, done.err
    (stage,) = read(tmp_path)["stages"]
    assert list(stage["evaluations"]["white_box"]["check"]) == ["clean"]
    assert "nothing here says how robust a model is" in " ".join(done.out.split())


def test_a_folder_with_brackets_in_its_name_is_told_in_full(tmp_path):
    folder = tmp_path / "order=[fgsm]"
    done = door(*SMALL, f'hydra.run.dir="{folder}"')
    assert done.status == 0, done.err
    assert str(folder) in done.out


@pytest.mark.parametrize("key", ["+logger.api_key", "logger.WANDB_API_KEY", "+model.password", "++dataset.auth_token"])
def test_a_secret_on_the_command_line_is_refused_before_anything_is_written(key, tmp_path):
    done = door(*SMALL, f"{key}=hunter2", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 2
    assert "a key or password on the command line would be written to the run folder" in done.message
    assert "hunter2" not in done.out + done.err
    assert not (tmp_path / "run").exists()


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_ctrl_c_in_stage_1_leaves_stage_0_whole(tmp_path):
    process = shell(
        *TOY, "trainer.threads=1", "cascade.order=[pgm]", "evaluation.attacks=[fgsm]", "cascade.epochs=100000",
        "evaluation.gallery=2", f"hydra.run.dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "stages" / "1_pgm" / "metrics.csv").exists():  # some epochs of stage 1 are behind
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted in stage 1 pgm; finished stages stay" in Done(130, "", err).message
    results = read(tmp_path)
    assert results["status"].startswith("stopped: interrupted in stage 1 pgm")
    assert [stage["name"] for stage in results["stages"]] == ["undefended"]
    assert (tmp_path / "report.md").is_file()
    assert (tmp_path / "stages" / "1_pgm" / "last_good.safetensors").is_file()
    expected = load_file(tmp_path / "stages" / "0_undefended" / "weights.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(tmp_path).state_dict().items())


def test_ctrl_c_while_a_stage_is_measured_leaves_those_before(tmp_path):
    # The attack split has 12 rows, the batch that is probed 16: the first measurement is interrupted, no probe is.
    stop = STOP.replace("{eps: 0.1}", "{eps: 0.1, at_most: 12}")
    done = door(*SMALL, stop, "evaluation.attacks=[fgsm,stop]", f"hydra.run.dir={tmp_path}")
    assert done.status == 130
    assert re.match("amc_lightning: interrupted.*finished stages stay", done.message)
    assert read(tmp_path)["status"].startswith("stopped: ")
    assert read(tmp_path)["stages"] == []
    assert (tmp_path / "stages" / "0_undefended" / "weights.safetensors").is_file()


def test_ctrl_c_ends_a_sweep(tmp_path):
    done = door("-m", *SMALL, STOP, "cascade.order=[stop],[fgsm]", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 130
    assert not (tmp_path / "1").exists()


# --- disks and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_folder_is_told_in_one_line(below, tmp_path):
    place = tmp_path / "taken"
    place.write_text("mine")
    done = door(*SMALL, f"hydra.run.dir={place / below}")
    assert done.status in (1, 2)
    assert "taken" in done.message
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    ("size", "model", "finished"),
    [
        (2_000, "tests.test_cascade.ToyNet", None),  # Hydra's own record of the configuration does not fit
        (40_000, "amc_lightning.models.LeNet", []),  # weights do not
        (16_000, "tests.test_cascade.ToyNet", ["undefended", "fgsm"]),  # figures do not
    ],
    ids=["nothing fits", "no weights", "no figures"],
)
def test_a_full_disk_is_told_in_one_line_and_what_is_written_stays(size, model, finished, tmp_path):
    with disk_full_after(size):
        done = door(*SMALL, f"model._target_={model}", f"hydra.run.dir={tmp_path}")
    assert done.status == 1
    assert "File too large" in done.message
    assert not list(tmp_path.rglob("*.partial"))
    if finished is not None:
        assert [stage["name"] for stage in read(tmp_path)["stages"]] == finished


def test_a_disk_with_no_room_at_all_is_refused_before_training(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    done = door(*SMALL, f"hydra.run.dir={tmp_path}")
    assert done.status == 2
    assert "hydra.run.dir: " in done.message
    assert "has 10 MB free; at least 50 MB. Free some space" in done.message
    assert files(tmp_path) == []


def test_the_conf_of_a_checkout_is_found():
    assert CONF_DIR == ROOT / "conf" or (CONF_DIR / "config.yaml").is_file()
