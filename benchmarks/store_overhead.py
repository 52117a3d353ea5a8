"""What the store costs a cascade of tiny stages: time in it, checkpoints included, as a share of the whole run.

Every call into the store that is not the computing itself is timed where it happens, inside whole runs of one epoch a
stage on digits, data, plan, measuring and report included; the first run, which imports and warms up, does not count.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amc_lightning import checkpoint, run, stage_recipe
from amc_lightning.__main__ import main as program
from amc_lightning.store import Store

SPENT: dict[str, float] = {}
TINY = (
    "+experiment=digits_amc", "cascade.undefended_epochs=1", "cascade.epochs=1", "trainer.progress=none",
    "figures=false", "trainer.accelerator=cpu",
)  # fmt: skip


def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that does the same, and adds its time to ``SPENT``."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            SPENT[name] = SPENT.get(name, 0.0) + time.perf_counter() - start

    return call


def obtain(store: Store, what: Any, make: Callable[[Path], Any], **keywords: Any) -> Any:
    """Time the whole of ``obtain`` without the computing that it asks for."""
    computing = 0.0

    def computed(work: Path) -> Any:
        nonlocal computing
        start = time.perf_counter()
        result = make(work)
        computing = time.perf_counter() - start
        return result

    start = time.perf_counter()
    result = OBTAIN(store, what, computed, **keywords)
    SPENT["obtain: lock, publish, load"] = (
        SPENT.get("obtain: lock, publish, load", 0.0) + time.perf_counter() - start - computing
    )
    return result


OBTAIN = Store.obtain


def main() -> None:
    """Print the share of every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    Store.obtain = obtain  # type: ignore[method-assign,assignment]
    Store.prepare = timed(Store.prepare, "prepare")  # type: ignore[method-assign]
    run.stage_recipes = timed(stage_recipe.stage_recipes, "keys")
    save = checkpoint.WholeCheckpoints.save_checkpoint
    checkpoint.WholeCheckpoints.save_checkpoint = timed(save, "checkpoints")  # type: ignore[method-assign]
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        for index in range(options.rounds + 1):
            os.environ["AMC_STORE"] = str(Path(name) / f"store-{index}")
            SPENT.clear()
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                status = program([*TINY, f"hydra.run.dir={Path(name) / str(index)}"])
            seconds = time.perf_counter() - start
            assert status == 0
            if index:
                shares.append(sum(SPENT.values()) / seconds)
                parts = ", ".join(f"{part} {1000 * spent:.0f} ms" for part, spent in SPENT.items())
                print(
                    f"run {index}: {seconds:.2f} s, of it {100 * shares[-1]:.2f} % in the store ({parts})", flush=True
                )
    print(f"median {100 * statistics.median(shares):.2f} %, largest {100 * max(shares):.2f} %")


if __name__ == "__main__":
    main()
