"""Sweeps through the door: which jobs there are, what they leave, and what a failure costs the others."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import permutations

import joblib
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException

from amc_lightning.config import CONF_DIR, register
from amc_lightning.sweep import NamedLines, summarise
from tests.test_cascade import STOP, ToyNet
from tests.test_run import ROOT, SMALL, door, read

TINY = (*SMALL, "cascade.undefended_epochs=1", "figures=false")
PARALLEL = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
BUG = "model._target_=tests.test_sweep.BuggyNet,tests.test_cascade.ToyNet"


class UnsendableError(Exception):
    """An error that cannot be sent to another process: it is made of more than it hands on."""

    def __init__(self, text, extra):
        super().__init__(text)


class BuggyNet(ToyNet):
    """A model with a bug in it."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3, dropout=0.2):
        raise UnsendableError("a bug\nof two lines", 3)


class KilledNet(ToyNet):
    """A model whose process the system ends, as it does where memory runs out."""

    def __init__(self, in_channels=1, image_size=(8, 8), num_classes=3, dropout=0.2):
        os.kill(os.getpid(), signal.SIGKILL)


def parallel(*arguments, cwd, **environment):
    """Start a sweep of two jobs at a time, in a process group of its own."""
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    known = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", "amc_lightning", "-m", *arguments, *PARALLEL],
        cwd=cwd,
        env={**known, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def jobs(folder):
    return [
        (job["number"], tuple(job["order"]), job["seed"], job["status"]) for job in summary(folder)["jobs"]
    ]  # fmt: skip


def swept(*overrides):
    """Return what Hydra's sweeper is told to vary."""
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=["+experiment=smoke", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg.hydra.mode, dict(cfg.hydra.sweeper.params)


# --- which jobs there are --------------------------------------------------------------------------------------------


def test_all_orders_are_the_24_and_each_once():
    mode, params = swept("+sweep=all_orders")
    orders = re.findall(r"\[([^\]]*)\]", params["cascade.order"])
    assert (mode.name, list(params)) == ("MULTIRUN", ["cascade.order"])
    assert len(orders) == 24
    assert {tuple(order.split(",")) for order in orders} == set(permutations(("fgsm", "vap", "eap", "pgm")))


def test_sweeps_combine():
    mode, params = swept("+sweep=[all_orders,seeds]")
    assert mode.name == "MULTIRUN"
    assert list(params) == ["cascade.order", "seed"]
    assert params["seed"] == "0,1,2"


def test_a_sweep_that_is_not_there_is_refused():
    with pytest.raises(ConfigCompositionException, match="sweep/all_order"):
        swept("+sweep=all_order")
    done = door(*TINY, "+sweep=all_order")
    assert done.status == 2
    assert "sweep: 'all_order' is not a known choice; known: all_orders, seeds. Did you mean" in done.message


def test_help_shows_the_sweeps_as_any_group(tmp_path):
    command = [sys.executable, "-m", "amc_lightning", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^sweep: all_orders, seeds$", out, flags=re.M), out


@pytest.mark.slow
def test_all_orders_are_24_jobs_of_which_each_plans_its_own(tmp_path):
    """Hydra takes a second for each."""
    some = [item for item in TINY if not item.startswith("cascade.order")]
    done = door(*some, "+sweep=all_orders", "plan_only=true", f"hydra.sweep.dir={tmp_path}")
    assert (done.status, done.err) == (0, "")
    assert [order for _, order, _, _ in jobs(tmp_path)] == list(permutations(("fgsm", "vap", "eap", "pgm")))
    assert {status for *_, status in jobs(tmp_path)} == {"no results"}
    begun = re.findall(r"^job (\d+) \((\d+) of 24\): cascade.order=\[\w+,\w+,\w+,\w+\]$", done.out, flags=re.M)
    assert begun == [(str(number), str(number + 1)) for number in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (
            ["-m", "attack_order=only_fgsm,only_vap", "seed=3"],
            [(0, ("fgsm",), 3), (1, ("vap",), 3)],
        ),
        (
            ["-m", "cascade.order=[fgsm,vap],[vap,fgsm]", "seed=0,1"],
            [(0, ("fgsm", "vap"), 0), (1, ("fgsm", "vap"), 1), (2, ("vap", "fgsm"), 0), (3, ("vap", "fgsm"), 1)],
        ),
        (["+sweep=seeds", "cascade.order=[fgsm]"], [(0, ("fgsm",), 0), (1, ("fgsm",), 1), (2, ("fgsm",), 2)]),
    ],
    ids=["attack_order", "order and seed", "seeds without -m"],
)
def test_orders_and_seeds_are_swept(arguments, found, tmp_path):
    some = [item for item in TINY if not item.startswith("cascade.order")]
    done = door(*arguments, *some, "plan_only=true", f"hydra.sweep.dir={tmp_path}")
    assert (done.status, done.err) == (0, "")
    assert [job[:3] for job in jobs(tmp_path)] == found


# --- what a sweep leaves ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished toy sweep of two orders, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep") / "toy"
    done = door("-m", *TINY, "cascade.order=[fgsm,vap],[vap,fgsm]", "seed=0,1", f"hydra.sweep.dir={folder}")
    assert (done.status, done.err) == (0, "")
    return folder, done


def test_the_summary_has_the_numbers_of_the_jobs(sweep):
    folder, _ = sweep
    assert [job[3] for job in jobs(folder)] == ["finished"] * 4
    for job in summary(folder)["jobs"]:
        last = read(folder / job["folder"])["stages"][-1]["evaluations"]["white_box"]
        assert job["errors"]["clean"]["error"] == last["clean"]["error"]
        for key, rate in job["errors"].items():
            strength, _, name = key.partition("/")
            if name:
                assert (rate["error"], rate["low"]) == (last[strength][name]["error"], last[strength][name]["low"])
        rows = (folder / job["folder"] / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("val/err/mean")
        values = [row.split(",")[column] for row in rows[1:] if row.startswith("2,")]
        assert job["validation"] == float(next(value for value in reversed(values) if value))


def test_the_best_order_has_the_lowest_validation_error(sweep):
    (best,) = summary(sweep[0])["best"]
    means = {}
    for job in summary(sweep[0])["jobs"]:
        means.setdefault(tuple(job["order"]), []).append(job["validation"])
    assert {tuple(entry["order"]): entry["validation"] for entry in best["ranked"]} == {
        order: pytest.approx(sum(values) / 2) for order, values in means.items()
    }
    assert best["rows"] == 6


def test_a_sweep_leaves_its_files_and_can_be_summarised_anew(sweep):
    folder, _ = sweep
    assert (folder / "figures" / "orders.png").read_bytes().startswith(b"\x89PNG")
    before = (folder / "summary.md").read_text()
    (folder / "summary.md").unlink()
    assert summarise(folder) == folder / "summary.md"
    assert (folder / "summary.md").read_text() == before
    job = json.loads((folder / "2" / "job.json").read_text())
    assert (job["number"], job["total"], job["folder"], job["exit_status"], job["message"]) == (2, 4, "2", 0, "")
    assert (job["label"], job["order"], job["seed"]) == ("cascade.order=[vap,fgsm] seed=0", ["vap", "fgsm"], 0)


def test_a_sweep_ends_with_a_table_and_says_where_the_summary_is(sweep):
    folder, done = sweep
    end = done.out[done.out.index("Sweep: 4 jobs: 4 finished, 0 failed.") :]
    assert re.search(r"2 +vap > fgsm +0 .*finished", end)
    assert "Best of 2 orders of fgsm, vap: " in end
    assert end.splitlines()[-1] == f"The summary is in {folder / 'summary.md'}"
    assert "HYDRA" not in done.out
    assert re.findall(r"^job \d.*$", done.out, flags=re.M) == [
        "job 0 (1 of 4): cascade.order=[fgsm,vap] seed=0",
        "job 1 (2 of 4): cascade.order=[fgsm,vap] seed=1",
        "job 2 (3 of 4): cascade.order=[vap,fgsm] seed=0",
        "job 3 (4 of 4): cascade.order=[vap,fgsm] seed=1",
    ]


def test_a_single_run_is_no_sweep(tmp_path):
    done = door(*TINY, f"hydra.run.dir={tmp_path}")
    assert done.status == 0, done.err
    assert not (tmp_path / "job.json").exists()
    assert "Sweep" not in done.out
    assert not re.search("^job 0", done.out, flags=re.M)


def test_one_sweep_is_one_folder_whatever_its_jobs_are_called(tmp_path, monkeypatch):
    """The default folder has the name of the defence in it, which is swept here."""
    monkeypatch.chdir(tmp_path)
    some = [item for item in TINY if not item.startswith("cascade.order")]
    done = door("-m", *some, "defence=undefended,amc", "plan_only=true")
    assert (done.status, done.err) == (0, "")
    (folder,) = (tmp_path / "multirun").glob("*/*")
    assert [job["label"] for job in summary(folder)["jobs"]] == ["defence=undefended", "defence=amc"]


def test_a_second_sweep_into_the_same_folder_forgets_the_jobs_of_the_first(tmp_path):
    folder = f"hydra.sweep.dir={tmp_path}"
    assert door("-m", *TINY, "cascade.order=[fgsm],[nosuch]", folder).status == 2
    done = door("-m", *TINY, "cascade.order=[fgsm]", folder)
    assert (done.status, done.err) == (0, "")
    assert jobs(tmp_path) == [(0, ("fgsm",), 0, "finished")]


# --- what a failure costs --------------------------------------------------------------------------------------------


def test_a_failed_job_is_named_at_the_end_and_loses_no_other(tmp_path):
    done = door("-m", *TINY, "cascade.order=[fgsm],[nosuch],[vap]", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 2
    assert done.message.startswith(
        "amc_lightning: job 1 (cascade.order=[nosuch]) failed: cascade.order: 'nosuch' is not a known attack; known: "
    )
    assert done.err.splitlines()[-1] == done.message
    assert "run the same command again: finished stages are kept" in done.out.splitlines()[-1]
    assert [job[3] for job in jobs(tmp_path)] == ["finished", "failed", "finished"]
    assert "**job 1 (cascade.order=[nosuch])**: cascade.order: 'nosuch' is not" in (tmp_path / "summary.md").read_text()
    assert "failed: cascade.order: 'nosuch'" in (tmp_path / "1" / "amc_lightning.log").read_text()


@pytest.mark.parametrize("batch", [None, 1], ids=["one batch", "a batch each"])
def test_a_bug_in_a_job_loses_no_other_and_is_shown_once(batch, tmp_path):
    size = [] if batch is None else [f"hydra.sweeper.max_batch_size={batch}"]
    done = door("-m", *TINY, BUG, *size, f"hydra.sweep.dir={tmp_path}")
    assert done.status == 1
    assert done.err.count("Traceback (most recent call last)") == 1
    assert done.err.splitlines()[-1] == (
        "amc_lightning: job 0 (model._target_=tests.test_sweep.BuggyNet) failed: tests.test_sweep.UnsendableError: "
        f"a bug (traceback: {tmp_path / '0' / 'amc_lightning.log'})"
    )
    assert "in __init__" in (tmp_path / "0" / "amc_lightning.log").read_text()
    assert [job[3] for job in jobs(tmp_path)] == ["failed", "finished"]
    assert read(tmp_path / "1")["status"] == "finished"


def test_the_same_command_does_only_what_is_missing(tmp_path):
    """The second time the attack that was missing is there, in a folder of the user's own."""
    own = tmp_path / "own"
    (own / "attack").mkdir(parents=True)
    command = [
        "--config-dir",
        str(own),
        "-m",
        *TINY,
        "cascade.order=[fgsm],[mine]",
        f"hydra.sweep.dir={tmp_path / 's'}",
    ]
    assert door(*command).status == 2
    (own / "attack" / "mine.yaml").write_text(
        "_target_: torchattacks.FGSM\nnorm: linf\nuses_labels: true\nnames: {}\nparams: {eps: 0.05}\n"
    )
    done = door(*command)
    assert (done.status, done.err) == (0, "")
    assert [job[3] for job in jobs(tmp_path / "s")] == ["finished", "finished"]
    assert len(re.findall("from the store", done.out)) >= 3, "both stages of job 0, and M0 of job 1"


def test_an_interrupted_job_is_not_counted_as_done(tmp_path):
    done = door("-m", *TINY, STOP, "cascade.order=[fgsm],[stop],[vap]", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 130
    assert jobs(tmp_path) == [(0, ("fgsm",), 0, "finished")]
    assert "Sweep: 1 of 3 jobs have ended: 1 finished, 0 failed." in " ".join(done.out.split())
    assert not (tmp_path / "2").exists()


def test_a_summary_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "summary.md").mkdir()
    done = door("-m", *TINY, "cascade.order=[fgsm],[vap]", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 0
    assert done.err.count("WARNING: the summary of the sweep could not be written") == 2
    assert [read(tmp_path / name)["status"] for name in "01"] == ["finished", "finished"]


def test_a_job_without_a_record_is_missed(tmp_path):
    (tmp_path / "0" / "job.json").mkdir(parents=True)
    done = door("-m", *TINY, "cascade.order=[fgsm],[vap]", f"hydra.sweep.dir={tmp_path}")
    assert done.status == 1
    assert f"amc_lightning: {tmp_path}: 1 of 2 jobs left no record" in done.err


# --- several jobs at once --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_jobs_side_by_side_have_their_share_of_the_cores_and_lines_with_their_names(tmp_path):
    """A finished job, one with bad input and one with a bug; threads are left to the launcher."""
    some = [item for item in TINY if not item.startswith(("trainer.threads", "trainer.progress", "cascade.order"))]
    process = parallel(
        *some, "trainer.threads=null", "trainer.progress=auto", BUG, "cascade.order=[fgsm],[nosuch]",
        f"hydra.sweep.dir={tmp_path}", cwd=tmp_path, FORCE_COLOR="1",
    )  # fmt: skip
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert [job[3] for job in jobs(tmp_path)] == ["failed", "failed", "finished", "failed"]
    assert read(tmp_path / "2")["threads"] == max(1, joblib.cpu_count() // 2)
    assert re.search(r"^job 2 \| stage 1/1 fgsm  step 3/3", out, flags=re.M)
    before = out[: out.rindex("\n", 0, out.index("Sweep: 4 jobs"))]
    assert all(re.match(r"job \d( \||\b)", line) for line in before.splitlines()), before
    assert err.count("Traceback (most recent call last)") == 1
    assert [line.partition(" failed: ")[0] for line in err.splitlines() if line.startswith("amc_lightning: ")] == [
        "amc_lightning: job 0 (model._target_=tests.test_sweep.BuggyNet cascade.order=[fgsm])",
        "amc_lightning: job 1 (model._target_=tests.test_sweep.BuggyNet cascade.order=[nosuch])",
        "amc_lightning: job 3 (model._target_=tests.test_cascade.ToyNet cascade.order=[nosuch])",
    ]
    assert "Warning" not in err


@pytest.mark.slow
def test_ctrl_c_ends_jobs_side_by_side_and_leaves_no_process(tmp_path):
    process = parallel(*TINY, "cascade.order=[fgsm],[pgm]", "cascade.epochs=100000", f"hydra.sweep.dir={tmp_path}",
                       cwd=tmp_path)  # fmt: skip
    deadline = time.monotonic() + 120
    try:
        while not list(tmp_path.glob("*/results.json")) or not list(tmp_path.glob("*/stages/1_*/*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "amc_lightning: interrupted" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*/job.json"))


@pytest.mark.slow
def test_a_job_whose_process_is_killed_is_told_in_one_line(tmp_path):
    process = parallel(*TINY, "model._target_=tests.test_sweep.KilledNet", "seed=0,1", f"hydra.sweep.dir={tmp_path}",
                       cwd=tmp_path)  # fmt: skip
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if not re.match("INFO: |WARNING: ", line)]
    assert line.startswith("amc_lightning: hydra.launcher: the process of a job ended by itself (")
    assert line.endswith("Run the same command again with fewer at once: hydra.launcher.n_jobs=1.")


def test_lines_with_names_come_whole():
    stream = io.StringIO()
    lines = NamedLines(stream, "job 3 | ")
    for text in ("one", " and the rest\ntwo\n", "", "\nthr"):
        assert lines.write(text) == len(text)
    assert stream.getvalue() == "job 3 | one and the rest\njob 3 | two\njob 3 | \n"
    assert lines.writable()
    assert not lines.isatty()
