"""Weights & Biases beside the CSV files: one group per cascade, one run per stage. The only module that knows wandb.

Tracking is never the only record and never a reason to stop: without a key or a server a run is kept offline in the
run folder (``wandb sync`` uploads it later), and an error of wandb's is a warning.
"""

import logging
import netrc
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, WandbLogger

from amc_lightning.errors import UserError
from amc_lightning.report import read_results
from amc_lightning.report.columns import columns
from amc_lightning.report.figures import FIGURES_FOLDER

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
_KEYS = {"name", "project", "entity", "mode", "group", "tags"}
# Seconds until an unreachable server is given up on: it is asked once per process, before the first stage.
_PATIENCE = 20.0
_SILENT: set[str] = set()
_UPSTREAM = "api.wandb.ai"  # the host that `wandb login` writes to .netrc, whatever the address of the service


class HarmlessLogger(WandbLogger):
    """A W&B logger that warns where the parent would end the training: a killed service, a full disk."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics of one step."""
        with _harmless("a metric"):
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Record settings of the run."""
        with _harmless("a setting"):
            super().log_hyperparams(params)


def open_stage_logger(
    config: Mapping[str, Any],
    *,
    run_folder: Path,
    group: str,
    run_id: str | None,
    stage_index: int,
    stage_name: str,
    hparams: Mapping[str, Any],
) -> Logger | None:
    """Start the W&B run of one stage and return its logger; None where nothing is to be tracked.

    The run is offline where ``mode`` says so, where there is no key, or where the server does not answer.

    Args:
        config: the logger group: name, project, entity, mode, group, tags.
        run_folder: the cascade's output folder; W&B's files go to ``wandb`` below it.
        group: what the runs of the cascade share, unless the config names a group; the same when a cascade goes on.
        run_id: id under which the run goes on if it began earlier; None for a run of its own.
        stage_index: place of the stage in the cascade, from 0.
        stage_name: "undefended" or the stage's attack.
        hparams: the resolved config, plain containers only.

    Raises:
        UserError: for an unknown logger, key or mode, or if wandb is not installed.
    """
    check(config)
    mode = config.get("mode") or os.environ.get("WANDB_MODE")
    if config["name"] != "wandb" or mode == "disabled":
        return None
    if find_spec("wandb") is None:
        problem = "needs a package that is not installed"
        raise UserError("logger", "wandb", problem, "installed: csv", "Run pip install wandb.")
    run_folder = Path(run_folder)
    settings: dict[str, Any] = {
        "project": config.get("project") or "amc_lightning",
        "entity": config.get("entity"),
        "group": config.get("group") or group,
        "name": f"{stage_index}_{stage_name}",
        "tags": list(config.get("tags") or []),
        "dir": str(run_folder),
        "config": dict(hparams) | {"stage": {"index": stage_index, "name": stage_name}},
        **({} if run_id is None else {"id": run_id, "resume": "allow"}),
        "reinit": "create_new",  # a run of the caller's own stays what it is
    }
    run_folder.mkdir(parents=True, exist_ok=True)
    run = _start(settings, "offline" if mode == "dryrun" else mode)
    if run is None:
        return None
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return HarmlessLogger(experiment=run, project=run.project, save_dir=run_folder, name=run.name)


def replay(logger: Logger | None, metrics: list[dict[str, float]]) -> None:
    """Show a run the curves of a stage that was not trained now; one that goes on has them.

    Args:
        logger: the stage's logger; anything but a W&B logger is left alone.
        metrics: rows as Lightning logged them, each with its ``step``.
    """
    run = _run(logger)
    if run is None or logger is None or run.resumed:
        return
    for row in metrics:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))


def log_stage_result(logger: Logger | None, stage_record: Mapping[str, Any]) -> None:
    """Add the evaluations of a stage to its run: one number per rate in the summary, and tables with intervals.

    The primary threat model's keys are ``err/<strength>/<attack>``, those of any other ``err/<threat model>/...``. Of
    a stage that was not measured there are its costs alone.

    Args:
        logger: the stage's logger; anything but a W&B logger is left alone.
        stage_record: the stage's entry of results.json.
    """
    run = _run(logger)
    if run is None:
        return
    import wandb

    with _harmless("the evaluation"):
        summary = {key: stage_record[key] for key in ("minutes", "gradient_passes_per_image")}
        head: list[str | int] = ["strength", "attack", "n", "wrong", "error", "low", "high"]
        for position, (threat_model, evaluation) in enumerate(stage_record["evaluations"].items()):
            below = () if position == 0 else (threat_model,)
            rates = {("test", "clean"): evaluation["clean"]}
            for strength in ("paper", "check"):
                rates |= {(strength, name): rate for name, rate in evaluation[strength].items()}
            errors = {"/".join(("err", *below, *place)): rate["error"] for place, rate in rates.items()}
            errors["/".join(("err", *below, "clean"))] = errors.pop("/".join(("err", *below, "test", "clean")))
            summary |= errors
            for name, proxy in evaluation.get("proxies", {}).items():
                if proxy["agreement"] is not None:
                    summary["/".join(("agreement", threat_model, name))] = proxy["agreement"]["share"]
            rows = [[*place, *(rate[key] for key in head[2:])] for place, rate in rates.items()]
            run.log({"/".join(("evaluation", *below)): wandb.Table(columns=head, data=rows)})
        run.summary.update(summary)


def log_report(logger: Logger | None, folder: Path) -> None:
    """Add the whole cascade's tables, one per threat model, and its figures to a run, the last stage's.

    Args:
        logger: the stage's logger; anything but a W&B logger is left alone.
        folder: the run folder, with results.json and the figures that were drawn.
    """
    run = _run(logger)
    if run is None:
        return
    import wandb

    with _harmless("the report"):
        for position, view in enumerate(read_results(folder).each()):
            shown = columns(view)
            rows = [
                [stage.label, *(None if rate is None else rate.error for rate in (part.rate(stage) for part in shown))]
                for stage in view.measured
            ]
            title = "error_rates" if position == 0 else f"error_rates/{view.primary}"
            run.log({title: wandb.Table(columns=["stage", *(column.title for column in shown)], data=rows)})
        for path in sorted((Path(folder) / FIGURES_FOLDER).glob("*.png")):
            run.log({f"figures/{path.stem}": wandb.Image(str(path))})


def close(logger: Logger | None) -> None:
    """Finish the W&B run of a logger; anything but a W&B logger is left alone."""
    run = _run(logger)
    if run is not None:
        with _harmless("the end of the run"):
            run.finish()


def check(config: Mapping[str, Any]) -> None:
    """Refuse a logger or a setting of it that does not exist.

    Raises:
        UserError: for an unknown name, key or mode.
    """
    name = config.get("name")
    if name not in ("csv", "wandb"):
        raise UserError("logger.name", name, "is not a known logger", "known: csv, wandb", "Choose one of them.")
    for key in config:
        if key not in _KEYS:
            raise UserError(
                "logger", key, "is not a setting of a logger", f"known: {', '.join(sorted(_KEYS))}",
                "Keys and passwords never stand in a config: run wandb login, or set WANDB_API_KEY.",
            )  # fmt: skip
    if config.get("mode") not in (None, *MODES):
        raise UserError(
            "logger.mode", config["mode"], "is not a mode", f"known: {', '.join(MODES)}, null", "Choose one of them."
        )


def _start(settings: Mapping[str, Any], mode: str | None) -> "Run | None":
    """Start a run, online if that is wanted and works, else offline; None if even that fails."""
    import wandb

    # wandb reads its environment once per process; an address that was set since then counts all the same.
    base_url = os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)
    patience = float(os.environ.get("WANDB_INIT_TIMEOUT", _PATIENCE))
    options = wandb.Settings(base_url=base_url, console="off", silent=True, save_code=False, init_timeout=patience)
    name = settings["name"]
    if mode != "offline" and (reason := _why_offline(base_url)):
        place = Path(settings["dir"]) / "wandb"
        if not place.exists():  # said once a cascade
            log.warning("W&B: %s. The runs of this cascade are kept offline in %s.", reason, place)
        mode = "offline"
    attempts: tuple[Literal["online", "offline"], ...] = ("offline",) if mode == "offline" else ("online", "offline")
    for attempt in attempts:
        try:
            run = wandb.init(**settings, mode=attempt, settings=options)
        except (wandb.errors.Error, OSError) as error:
            log.warning("W&B: no %s run of stage %s: %s", attempt, name, _first_line(error))
            if attempt == "online":
                _SILENT.add(base_url)
            continue
        if attempt == "online":
            log.info("W&B: stage %s is at %s", name, run.url)
        return run
    return None


def _why_offline(base_url: str) -> str | None:
    """Say why a run cannot be online; None where that is worth trying."""
    if base_url in _SILENT:
        return f"{urlsplit(base_url).hostname} did not answer before"  # an address may hold a password
    # Without a key wandb would ask for one on the terminal, and wait.
    return None if _has_key(base_url) else "no key (wandb login, or WANDB_API_KEY)"


def _has_key(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(base_url).netloc in hosts or _UPSTREAM in hosts


def _run(logger: Logger | None) -> "Run | None":
    return logger.experiment if isinstance(logger, WandbLogger) else None


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Turn an error of wandb's into a warning: the files of the run folder have everything."""
    import wandb

    try:
        yield
    except (wandb.errors.Error, OSError) as error:
        log.warning("W&B: %s was not recorded: %s", what, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
