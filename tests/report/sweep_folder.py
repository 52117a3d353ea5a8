"""A sweep's folder as its jobs leave it, made up: every rate is a count of 100 attacked or 200 test images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.report.conftest import hardened_by_proxy, results, under_black_box, wilson

N_TEST, N_ATTACK = 200, 100
HEAD = "stage,name,epoch,step,train/loss,val/err/clean,val/err/mean"


def write_job(
    sweep: Path,
    number: int,
    order: Sequence[str],
    *,
    seed: int = 0,
    extra: Sequence[str] = (),
    exit_status: int = 0,
    message: str = "",
    validation: float | None = None,
    validate_rows: int = 25,
    total: int | None = None,
    **wrong: int,
) -> Path:
    """Write one job's folder; with counts of wrong images (``measured``) it holds results, without it holds none."""
    swept = [f"cascade.order=[{','.join(order)}]", f"seed={seed}", *extra]
    folder = sweep / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "format": 1,
        "number": number,
        "total": total,
        "folder": str(number),
        "label": " ".join(swept),
        "overrides": ["+experiment=digits_amc", *swept],
        "exit_status": exit_status,
        "message": message,
        "seed": seed,
        "order": list(order),
        "validate_rows": validate_rows,
    }
    (folder / "job.json").write_text(json.dumps(job))
    if wrong:
        (folder / "results.json").write_text(json.dumps(run(order, seed, **wrong)))
    if validation is not None:
        (folder / "metrics.csv").write_text(metrics(order, validation))
    return folder


def run(order: Sequence[str], seed: int, **wrong: int) -> dict[str, Any]:
    """Return results.json with ``measured(**wrong)`` as its last stage."""
    raw = {**results(order, ("fgsm", "pgm"), (1, 16, 16)), "seed": seed}
    raw["stages"][-1]["evaluations"] = {"white_box": measured(**wrong)}
    return raw


def measured(*, clean: int, fgsm: int, pgm: int, pgm_check: int, worst: int, worst_check: int) -> dict[str, Any]:
    """Return an evaluation in which so many images are wrong; a mean over attacks is known to 4 points."""
    evaluation: dict[str, Any] = {"clean": {**wilson(clean, N_TEST), "split": "test"}}
    for strength, own, any_of in (("paper", pgm, worst), ("check", pgm_check, worst_check)):
        mean = (fgsm + own) / 2
        evaluation[strength] = {
            "clean": wilson(clean // 2, N_ATTACK),
            "fgsm": wilson(fgsm, N_ATTACK),
            "pgm": wilson(own, N_ATTACK),
            "mean": {**wilson(mean, N_ATTACK), "low": mean - 4, "high": mean + 4},
            "worst": wilson(any_of, N_ATTACK),
        }
    return evaluation


def metrics(order: Sequence[str], validation: float) -> str:
    """Return a metrics.csv whose last stage validates twice: 99 first, then what is asked for."""
    last = len(order)
    lines = [HEAD, "0,undefended,0,1,2.0,50.0,77.0", f"{last},{order[-1]},0,3,1.5,40.0,99.0"]
    lines += [f"{last},{order[-1]},1,4,1.0,,", f"{last},{order[-1]},1,5,,30.0,{validation}"]
    return "\n".join([*lines, f"{last},{order[-1]},1,6,0.9,,"]) + "\n"


def two_orders(sweep: Path, *, total: int | None = None) -> Path:
    """Write four jobs: two orders of two attacks with two seeds each.

    By validation pgm > fgsm is the better one, 19.5 to 20.0, though it is wrong under FGSM more often.
    """
    one, other = ("fgsm", "pgm"), ("pgm", "fgsm")
    a = {"clean": 4, "fgsm": 10, "pgm": 20, "pgm_check": 30, "worst": 25, "worst_check": 35}
    b = {"clean": 8, "fgsm": 14, "pgm": 24, "pgm_check": 34, "worst": 29, "worst_check": 39}
    c = {"clean": 6, "fgsm": 40, "pgm": 10, "pgm_check": 16, "worst": 42, "worst_check": 46}
    write_job(sweep, 0, one, seed=0, validation=18.0, total=total, **a)
    write_job(sweep, 1, one, seed=1, validation=22.0, total=total, **b)
    write_job(sweep, 2, other, seed=0, validation=19.0, total=total, **c)
    write_job(sweep, 3, other, seed=1, validation=20.0, total=total, **c)
    return sweep


def write_system(
    sweep: Path, number: int, raw: dict[str, Any], *, seed: int = 0, extra: Sequence[str] = (), total: int | None = None
) -> Path:
    """Write one job of a sweep over systems from the content of its results.json."""
    folder = write_job(sweep, number, raw["order"], seed=seed, extra=extra, total=total)
    (folder / "results.json").write_text(json.dumps({**raw, "seed": seed}))
    return folder


def system(
    order: Sequence[str], defence: str, *, by_proxy: bool, dataset: str = "mnist", **kwargs: Any
) -> dict[str, Any]:
    """Return results.json of a defence measured under the black-box threat models, M0 and the last stage only."""
    raw = under_black_box(results(order, ("fgsm", "vap", "eap", "pgm"), (1, 28, 28)), **kwargs)
    raw = hardened_by_proxy(raw) if by_proxy else raw
    for stage in raw["stages"]:
        stage["key"] = "0a" * 32 if stage["index"] == 0 else f"{defence}{'-'.join(order)}{by_proxy}"
        if 0 < stage["index"] < len(order):
            stage["evaluations"] = {}
    return {**raw, "defence": defence, "dataset": {**raw["dataset"], "name": dataset}}


CASCADE = ("fgsm", "vap", "eap", "pgm")


def systems(sweep: Path, **kwargs: Any) -> Path:
    """Write the jobs of Table 4, in another order than its rows."""
    rows = [
        (CASCADE, "amc", False),
        (CASCADE, "amc", True),
        (("pgm",), "adversarial_training", False),
        (("vap",), "adversarial_training", True),
        (("eap",), "adversarial_training", True),
        (("fgsm",), "adversarial_training", True),
        ((), "undefended", False),
    ]
    for number, (order, defence, by_proxy) in enumerate(rows):
        write_system(sweep, number, system(order, defence, by_proxy=by_proxy, **kwargs), extra=[f"system={number}"])
    return sweep
