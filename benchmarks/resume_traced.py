"""The program itself, with a line in a trace for every step, checkpoint and stage; ``resume`` starts and kills it."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from amc_lightning import cascade, checkpoint, stage
from amc_lightning.__main__ import main

TRACE = os.open(os.environ["AMC_TRACE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(kind: str, stage: str = "", step: str = "") -> None:
    """Write one line, whole, at once: the next moment may be the last."""
    line = json.dumps({"kind": kind, "stage": stage, "step": step, "time": time.monotonic()})
    os.write(TRACE, f"{line}\n".encode())


def traced(function: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
    """Return a function that does the same, and then notes it."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        after(*arguments)
        return result

    return call


def begin(trainer: Any, which: Any, *arguments: Any, **keywords: Any) -> Any:
    """Note that a stage begins, or goes on; then train it."""
    note("stage", stage=which.title)
    result = TRAIN(trainer, which, *arguments, **keywords)
    note("published", stage=which.title)
    return result


TRAIN = cascade.StageTrainer.train
cascade.StageTrainer.train = begin  # type: ignore[method-assign]
stage.StageModule.training_step = traced(  # type: ignore[method-assign]
    stage.StageModule.training_step,
    lambda module, *_: note("step", stage=module.title, step=f"{module.title} {module.global_step}"),
)
checkpoint.WholeCheckpoints.save_checkpoint = traced(  # type: ignore[method-assign]
    checkpoint.WholeCheckpoints.save_checkpoint, lambda *_: note("saved")
)
note("start")
sys.exit(main(sys.argv[1:]))
