"""Real offline W&B runs in a temporary folder; no server is ever asked for anything that matters."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import wandb
import yaml
from pytorch_lightning.loggers import WandbLogger

from amc_lightning import tracking
from amc_lightning.errors import UserError

CONFIG = {"name": "wandb", "project": "amc_lightning", "entity": None, "mode": None, "group": None, "tags": ["t"]}
RATE = {"n": 140, "wrong": 17, "error": 12.5, "low": 7.6, "high": 18.4}
RECORD: dict[str, Any] = {
    "index": 1,
    "name": "pgm",
    "minutes": 0.5,
    "gradient_passes_per_image": 400.0,
    "evaluations": {
        "white_box": {
            "clean": {**RATE, "error": 2.5, "split": "test"},
            "paper": {"pgm": RATE, "mean": RATE, "worst": RATE},
            "check": {"pgm": {**RATE, "error": 25.0}, "mean": RATE, "worst": RATE},
        }
    },
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no server and no memory of earlier tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setattr(tracking, "_SILENT", set())
    yield
    assert wandb.run is None, "a run was left as wandb's global one"


def _open(
    folder: Path, stage: tuple[int, str] = (1, "pgm"), run_id: str | None = None, **changes: Any
) -> pl.loggers.Logger | None:
    return tracking.open_stage_logger(
        {**CONFIG, **changes},
        run_folder=folder,
        group="digits_amc-0123456789ab",
        run_id=run_id,
        stage_index=stage[0],
        stage_name=stage[1],
        hparams={"seed": 0, "cascade": {"order": ["pgm"]}},
    )


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "amc_lightning.tracking"]


def _written(folder: Path) -> bytes:
    """The file of the one offline run in a folder, as `wandb sync` would read it: protobuf, its texts in the open."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    size = -1
    for _ in range(60):  # the service writes on its own time: wait until it has, and has stopped
        time.sleep(0.25)
        if size == path.stat().st_size > 100:
            break
        size = path.stat().st_size
    return path.read_bytes()


def test_a_stage_without_a_key_is_an_offline_run_with_its_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        logger = _open(folder)
    assert isinstance(logger, WandbLogger)
    assert _said(caplog) == [
        f"W&B: no key (wandb login, or WANDB_API_KEY). The runs of this cascade are kept offline in {folder / 'wandb'}."
    ]
    logger.log_metrics({"train/loss": 0.5}, step=3)
    tracking.log_stage_result(logger, RECORD)
    run = logger.experiment
    assert (run.project, run.group, run.name, run.tags) == (
        "amc_lightning",
        "digits_amc-0123456789ab",
        "1_pgm",
        ("t",),
    )
    assert run.config["cascade"] == {"order": ["pgm"]}
    assert run.config["stage"] == {"index": 1, "name": "pgm"}
    assert run.summary["err/clean"] == 2.5
    assert run.summary["err/paper/pgm"] == 12.5
    assert run.summary["err/check/pgm"] == 25.0
    assert run.summary["gradient_passes_per_image"] == 400.0
    tracking.close(logger)

    written = _written(folder)
    assert all(text in written for text in (run.group.encode(), b"1_pgm", b"train/loss", b"err/check/worst"))
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["strength", "attack", "n", "wrong", "error", "low", "high"]
    assert content["data"][0] == ["test", "clean", 140, 17, 2.5, 7.6, 18.4]
    assert len(content["data"]) == 7


def test_other_threat_models_have_keys_of_their_own_and_an_unmeasured_stage_its_costs(tmp_path: Path) -> None:
    logger = _open(tmp_path)
    assert isinstance(logger, WandbLogger)
    tracking.log_stage_result(logger, {**RECORD, "evaluations": {}})
    run = logger.experiment
    assert run.summary["minutes"] == 0.5
    assert not any(key.startswith("err/") for key in dict(run.summary))
    proxies = {"proxy_cnn": {"agreement": {"share": 91.5}}}
    black = {**RECORD["evaluations"]["white_box"], "clean": {**RATE, "error": 3.5}, "proxies": proxies}
    both = {"white_box": RECORD["evaluations"]["white_box"], "black_box_label": black}
    tracking.log_stage_result(logger, {**RECORD, "evaluations": both})
    assert run.summary["err/clean"] == 2.5
    assert run.summary["err/black_box_label/clean"] == 3.5
    assert run.summary["err/black_box_label/check/pgm"] == 25.0
    assert run.summary["agreement/black_box_label/proxy_cnn"] == 91.5
    tracking.close(logger)
    tables = list(tmp_path.glob("wandb/offline-run-*/files/media/table/**/*.json"))
    assert len(tables) == 2


def test_two_stages_are_two_runs_of_one_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = set()
    for index, name in enumerate(["undefended", "pgm"]):
        logger = _open(tmp_path, (index, name), group="mine")
        assert isinstance(logger, WandbLogger)
        assert logger.experiment.group == "mine"
        assert logger.experiment.name == f"{index}_{name}"
        ids.add(logger.version)
        tracking.close(logger)
    assert len(ids) == 2
    assert len(_said(caplog)) == 1, "why it is offline is said once"
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


def test_a_stage_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        logger = _open(tmp_path / folder, run_id="0123456789abcdef")
        assert isinstance(logger, WandbLogger)
        assert (logger.version, logger.experiment.id) == ("0123456789abcdef", "0123456789abcdef")
        logger.log_metrics({"train/loss": 0.5}, step=3)
        tracking.close(logger)
        assert [path.name.rpartition("-")[2] for path in tmp_path.glob(f"{folder}/wandb/offline-run-*")] == [
            "0123456789abcdef"
        ]


def test_an_unreachable_server_is_asked_once_and_the_run_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with caplog.at_level(logging.WARNING):
        first, second = _open(tmp_path / "a"), _open(tmp_path / "b")
    for logger, folder in ((first, "a"), (second, "b")):
        assert isinstance(logger, WandbLogger)
        assert logger.experiment.offline
        tracking.close(logger)
        assert list((tmp_path / folder).glob("wandb/offline-run-*/run-*.wandb"))
    messages = _said(caplog)
    assert len(messages) == 2
    assert messages[0].startswith("W&B: no online run of stage 1_pgm: ")
    assert messages[1].startswith("W&B: 127.0.0.1 did not answer before. The runs of this cascade are ")
    assert "a" * 40 not in caplog.text


def test_a_lightning_trainer_logs_into_the_run(tmp_path: Path) -> None:
    logger = _open(tmp_path, mode="offline")
    assert logger is not None
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"val/err/pgm": 50.0}, step=1)
    logger.finalize("success")
    assert isinstance(logger, WandbLogger)
    assert dict(logger.experiment.config)["lr"] == 0.1
    tracking.close(logger)
    assert b"val/err/pgm" in _written(tmp_path)


@pytest.mark.parametrize("changes", [{"name": "csv"}, {"mode": "disabled"}])
def test_nothing_is_tracked_where_it_is_not_wanted(tmp_path: Path, changes: dict[str, str]) -> None:
    assert _open(tmp_path / "run", **changes) is None
    assert not (tmp_path / "run").exists()


def test_other_loggers_are_left_alone(tmp_path: Path) -> None:
    for logger in (None, pl.loggers.CSVLogger(tmp_path)):
        tracking.log_stage_result(logger, RECORD)
        tracking.log_report(logger, tmp_path)
        tracking.close(logger)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "comet"}, "logger.name: 'comet' is not a known logger; known: csv, wandb"),
        ({"mode": "onlin"}, "logger.mode: 'onlin' is not a mode; known: online, offline, disabled, null"),
        ({"api_key": "secret"}, "logger: 'api_key' is not a setting of a logger; known: .*never stand in a config"),
    ],
)
def test_bad_settings_are_one_clear_message(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _open(tmp_path, **changes)
    assert "secret" not in str(caught.value)


def test_a_failure_of_wandb_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**settings: object) -> None:
        raise wandb.errors.CommError("the service is gone\nsecond line")

    monkeypatch.setattr(wandb, "init", fail)
    with caplog.at_level(logging.WARNING):
        assert _open(tmp_path, mode="offline") is None
    assert _said(caplog) == ["W&B: no offline run of stage 1_pgm: the service is gone"]


def test_a_lost_service_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = _open(tmp_path, mode="offline")
    assert isinstance(logger, WandbLogger)

    def lose(*arguments: object, **settings: object) -> None:
        raise ConnectionResetError("Connection lost")  # what wandb 0.31 raises once its service is killed

    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING, logger="amc_lightning"):
        broken.setattr(type(logger.experiment), "log", lose)
        broken.setattr(type(logger.experiment), "finish", lose)
        logger.log_metrics({"train/loss": 1.0}, step=0)
        tracking.log_stage_result(logger, RECORD)
        tracking.close(logger)
    assert _said(caplog) == [
        "W&B: a metric was not recorded: Connection lost",
        "W&B: the evaluation was not recorded: Connection lost",
        "W&B: the end of the run was not recorded: Connection lost",
    ]
    tracking.close(logger)


def test_the_shipped_configs_are_accepted(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "conf" / "logger"
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    assert {name: config["name"] for name, config in configs.items()} == {"csv": "csv", "wandb": "wandb"}
    assert configs["wandb"] | {"tags": ["t"]} == CONFIG
    assert _open(tmp_path, **configs["csv"]) is None
