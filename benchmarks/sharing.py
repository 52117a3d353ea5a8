"""All 24 orders of four attacks on digits through one store: what is trained, how long it takes, what again costs.

Three sweeps, each a command of its own: from an empty store, one job after another; the same again at once; and from an
empty store with two jobs at a time. What each job trained is read from its results.json, what there is from the store.
The naive sum is what 24 runs without a store would have taken: for each order the minutes of its five stages and of
their measurements, as recorded when they were computed once, and the fixed cost of a job, as the second sweep shows it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SWEEP = ("+experiment=digits_amc", "+sweep=all_orders", "trainer.accelerator=cpu")
TWO = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def main() -> None:
    """Print one line per sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of every job, such as cascade.epochs=5")
    parser.add_argument("--keep", type=Path, help="folder for the sweeps, to be looked at; else they are thrown away")
    options = parser.parse_args()
    overrides = options.overrides
    print(f"python -m amc_lightning {' '.join((*SWEEP, *overrides))}\n\n{HEAD}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        place = options.keep or Path(name)
        first = _sweep(place / "one", place / "store", *overrides)
        _tell("empty store, one job at a time", first, place / "store")
        again = _sweep(place / "again", place / "store", *overrides)
        _tell("again at once", again, place / "store")
        naive = _naive(place / "one", place / "store", fixed=again["seconds"] / again["jobs"])
        both = _sweep(place / "two", place / "other", *overrides, *TWO)
        _tell("empty store, two jobs at a time", both, place / "other")
        print(
            f"\nnaive sum {naive:.0f} s; one job at a time {first['seconds'] / naive:.2f} of it, two at a time "
            f"{both['seconds'] / naive:.2f}, again {again['seconds'] / naive:.3f}"
        )


HEAD = "| sweep | seconds | jobs | stages trained | stages in the store | measurements there |\n" + "| --- " * 6 + "|"


def _sweep(folder: Path, store: Path, *overrides: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "amc_lightning", *SWEEP, *overrides, f"hydra.sweep.dir={folder}"]
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "AMC_STORE": str(store)}, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    stages = [stage for result in _results(folder) for stage in result["stages"]]
    trained = sum(not stage["from_store"] for stage in stages)
    return {"seconds": seconds, "jobs": len(_results(folder)), "trained": trained}


def _tell(title: str, sweep: dict[str, Any], store: Path) -> None:
    kinds = [record["recipe"]["kind"] for record in _records(store)]
    print(
        f"| {title} | {sweep['seconds']:.0f} | {sweep['jobs']} | {sweep['trained']} | {kinds.count('stage')} | "
        f"{kinds.count('outcome')} |",
        flush=True,
    )


def _naive(folder: Path, store: Path, *, fixed: float) -> float:
    measuring: dict[str, float] = {}
    for record in _records(store):
        if record["recipe"]["kind"] == "outcome":
            model = record["recipe"]["model"]
            measuring[model] = measuring.get(model, 0.0) + record["facts"]["seconds"]
    return sum(
        fixed + sum(60 * stage["minutes"] + measuring[stage["key"]] for stage in result["stages"])
        for result in _results(folder)
    )


def _results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*/results.json")]


def _records(store: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (store / "entries").glob("*/*/entry.json")]


if __name__ == "__main__":
    main()
