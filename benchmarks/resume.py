"""Kill a digits cascade by SIGKILL at random moments, finish it by the same command, and compare every bit.

A reference run in a store of its own is never disturbed. Each trial has a store of its own too: the command is
started, killed after a time drawn uniformly from the reference's length, and started again; then every stage's weights,
metrics and counts, and every measurement, must equal the reference's. How much work was done twice is read from a trace
that the benchmark's own entry point writes: a line for every training step, complete checkpoint and stage. The steps
done twice must be those since the last checkpoint, or since the stage's start, and no more.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = ("+experiment=digits_amc", "figures=false", "trainer.progress=none", "trainer.accelerator=cpu")


@dataclass(frozen=True)
class Trial:
    """What one killed and finished cascade came to.

    Attributes:
        moment: seconds after its start at which it was killed.
        where: what it was doing then.
        equal: whether all stages are bit for bit those of the reference.
        since: training steps between the last checkpoint, or the stage's start, and the kill.
        seconds: the time between them.
        repeated: training steps that were done twice.
    """

    moment: float
    where: str
    equal: bool
    since: int
    seconds: float
    repeated: int


def main() -> None:
    """Print one line per trial, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, each with the threads of a single one")
    parser.add_argument("--threads", type=int, default=1, help="of every run: bits are equal at equal threads")
    parser.add_argument("overrides", nargs="*", help="of the cascade, such as cascade.epochs=5")
    options = parser.parse_args()
    command = (*COMMAND, f"trainer.threads={options.threads}", *options.overrides)
    print(f"python -m amc_lightning {' '.join(command)}\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        start = time.perf_counter()
        _run(place / "whole", command)
        length = time.perf_counter() - start
        moments = random.Random(options.seed)
        draws = [moments.uniform(0, length) for _ in range(options.trials)]
        print(f"uninterrupted: {length:.1f} s\n")
        print("| killed after, s | in | equal | steps since a checkpoint | s since | steps done twice |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)

        def trial(index: int) -> Trial:
            return _trial(place / str(index), command, draws[index], place / "whole")

        with ThreadPoolExecutor(options.jobs) as pool:
            trials = []
            for done in pool.map(trial, range(options.trials)):
                print(
                    f"| {done.moment:.1f} | {done.where} | {'yes' if done.equal else 'NO'} | {done.since} | "
                    f"{done.seconds:.2f} | {done.repeated} |",
                    flush=True,
                )
                trials.append(done)
    within = sum(done.repeated <= done.since for done in trials)
    seconds = [done.seconds for done in trials]
    print(
        f"\n{sum(done.equal for done in trials)} of {len(trials)} bit-identical; in {within} of {len(trials)} nothing "
        f"was done twice but the steps since the last checkpoint: median {statistics.median(seconds):.2f} s, at most "
        f"{max(seconds):.2f} s"
    )


def _trial(place: Path, command: tuple[str, ...], moment: float, whole: Path) -> Trial:
    process = _start(place, command, 0)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = list(_trace(place, 0))
    _run(place, command, attempt=1)
    since: list[dict[str, Any]] = []
    where = "start-up"
    for event in before:
        if event["kind"] in ("stage", "saved", "published"):
            since = [event]
        elif event["kind"] == "step":
            since.append(event)
        where = {"stage": f"stage {event['stage']}", "published": "measuring"}.get(event["kind"], where)
    known = {event["step"] for event in before if event["kind"] == "step"}
    repeated = sum(event["kind"] == "step" and event["step"] in known for event in _trace(place, 1))
    seconds = since[-1]["time"] - since[0]["time"] if since else 0.0
    return Trial(moment, where, _entries(place) == _entries(whole), max(0, len(since) - 1), seconds, repeated)


def _run(place: Path, command: tuple[str, ...], attempt: int = 0) -> None:
    process = _start(place, command, attempt)
    if process.wait() != 0:
        raise SystemExit(f"the run in {place} ended with {process.returncode}; see its log")


def _start(place: Path, command: tuple[str, ...], attempt: int) -> "subprocess.Popen[bytes]":
    place.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "AMC_STORE": str(place / "store"), "AMC_TRACE": str(place / f"trace-{attempt}.jsonl")}
    arguments = [sys.executable, "-m", "benchmarks.resume_traced", *command, f"hydra.run.dir={place / 'run'}"]
    with (place / f"log-{attempt}.txt").open("wb") as log:
        return subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _trace(place: Path, attempt: int) -> Iterator[dict[str, Any]]:
    path = place / f"trace-{attempt}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        yield json.loads(line)


def _entries(place: Path) -> dict[str, Any]:
    """Return what must be equal, by key: checksums of weights and answers, metrics and counts."""
    found = {}
    for path in (place / "store" / "entries").glob("*/*/entry.json"):
        record = json.loads(path.read_text())
        lines = (line.split("  ") for line in (path.parent / "SHA256SUMS").read_text().splitlines())
        sums = {name: checksum for checksum, name in lines if name != "entry.json"}
        facts = {name: record["facts"].get(name) for name in ("metrics", "rows", "steps", "passes_per_image")}
        found[record["key"]] = [facts, sums]
    return found


if __name__ == "__main__":
    main()
