"""What a sweep's folder holds: job.json files, results, the last validation; and what is damaged or foreign."""

import json

import pytest

from amc_lightning import UserError
from amc_lightning.report.sweep_reading import forget_jobs, last_validation, read_entries, read_jobs
from tests.report.sweep_folder import HEAD, metrics, two_orders, write_job

SOME = {"clean": 2, "fgsm": 5, "pgm": 5, "pgm_check": 5, "worst": 5, "worst_check": 5}


def test_jobs_come_by_number_and_not_by_name(tmp_path):
    for number in (10, 9, 2):
        write_job(tmp_path, number, ("fgsm",))
    assert [job.number for job in read_jobs(tmp_path)] == [2, 9, 10]
    assert read_jobs(tmp_path)[0].title == "job 2 (cascade.order=[fgsm] seed=0)"


def test_settings_are_what_sets_neither_order_nor_seed(tmp_path):
    extra = ["attack_order=only_fgsm", "+sweep=all_orders", "cascade.alpha=0.3"]
    write_job(tmp_path, 0, ("fgsm",), extra=extra)
    assert read_jobs(tmp_path)[0].settings == {"+experiment=digits_amc", "cascade.alpha=0.3"}


def test_the_last_validation_is_that_of_the_last_stage(tmp_path):
    (tmp_path / "metrics.csv").write_text(metrics(("fgsm", "pgm"), 12.5))
    assert last_validation(tmp_path, 2) == 12.5
    assert last_validation(tmp_path, 1) is None, "no row of that stage is left to find"
    assert last_validation(tmp_path, 3) is None


@pytest.mark.parametrize(
    "text",
    ["", f"{HEAD}\n", "stage,name,epoch,step,train/loss\n2,pgm,0,1,1.0\n", f"{HEAD}\n2,pgm,0,1,1.0,nan,nan\n"],
    ids=["empty", "no rows", "never validated", "not a number"],
)
def test_where_nothing_was_validated_there_is_no_validation(text, tmp_path):
    (tmp_path / "metrics.csv").write_text(text)
    assert last_validation(tmp_path, 2) is None
    assert last_validation(tmp_path / "nowhere", 2) is None


@pytest.mark.parametrize("row", ["2,pgm,0,1,1.0,1.0,many", "two,pgm,0,1,1.0,1.0,1.0", "2,pgm"])
def test_a_damaged_row_of_metrics_is_named(row, tmp_path):
    (tmp_path / "metrics.csv").write_text(f"{HEAD}\n{row}\n")
    with pytest.raises(UserError, match=r"metrics.csv: '.*' has a row that cannot be read .*; columns stage, name"):
        last_validation(tmp_path, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 2}', '{"format": 1, "number": "x"}'])
def test_a_damaged_job_file_is_left_out_and_named(text, tmp_path, caplog):
    two_orders(tmp_path)
    (tmp_path / "1" / "job.json").write_text(text)
    assert [job.number for job in read_jobs(tmp_path)] == [0, 2, 3]
    assert "left out of the summary: job.json: " in caplog.text
    assert "cannot be read" in caplog.text


def test_another_sweep_further_down_is_not_read_and_not_forgotten(tmp_path):
    two_orders(tmp_path)
    write_job(tmp_path / "multirun" / "other", 7, ("fgsm",))
    write_job(tmp_path / ".hidden", 8, ("fgsm",))
    assert [job.number for job in read_jobs(tmp_path)] == [0, 1, 2, 3]
    forget_jobs(tmp_path)
    assert read_jobs(tmp_path) == []
    assert (tmp_path / "multirun" / "other" / "7" / "job.json").exists()
    assert (tmp_path / "0" / "results.json").exists(), "nothing else is removed"


def test_a_folder_of_several_parts_is_found(tmp_path):
    job = json.loads((write_job(tmp_path / "elsewhere", 0, ("fgsm",)) / "job.json").read_text())
    place = tmp_path / "sweep" / "seed=0" / "order"
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps({**job, "folder": "seed=0/order"}))
    assert [job.folder for job in read_jobs(tmp_path / "sweep")] == ["seed=0/order"]


def test_a_failed_job_has_no_results_whatever_it_left(tmp_path):
    """Its last measured stage is not the last of its order: as a row among the others it would mislead."""
    write_job(tmp_path, 0, ("fgsm", "pgm"), exit_status=1, message="diverged", validation=1.0, **SOME)
    (entry,) = read_entries(tmp_path)
    assert (entry.results, entry.validation, entry.status) == (None, None, "failed")


def test_a_job_that_only_planned_has_no_results(tmp_path):
    write_job(tmp_path, 0, ("fgsm",))
    (entry,) = read_entries(tmp_path)
    assert (entry.results, entry.status, entry.problem) == (None, "no results", "")


def test_results_that_cannot_be_read_spoil_their_own_row_only(tmp_path):
    two_orders(tmp_path)
    (tmp_path / "2" / "results.json").write_text("{")
    entries = read_entries(tmp_path)
    assert [entry.status for entry in entries] == ["finished", "finished", "unreadable", "finished"]
    assert "results.json" in entries[2].problem


def test_unfinished_results_are_no_results(tmp_path):
    folder = write_job(tmp_path, 0, ("fgsm", "pgm"), validation=1.0, **SOME)
    raw = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**raw, "status": "running"}))
    assert read_entries(tmp_path)[0].status == "no results"
