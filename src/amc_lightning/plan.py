"""What a run will cost, from a few probe steps, before anything is trained."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from rich.table import Table
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, guarded

TOO_MANY_TO_TRY = 200
"""Gradient passes above which an attack is not tried but reckoned: the plan shall be there in seconds."""


@dataclass
class PassCount:
    """Rows sent through a net: with a gradient to come, and without."""

    gradient: int = 0
    forward: int = 0


@contextmanager
def counting(net: nn.Module, count: PassCount | None = None) -> Iterator[PassCount]:
    """Count the rows that pass ``net`` inside the block; a training row counts as a gradient pass like any other."""
    count = PassCount() if count is None else count

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = len(inputs[0])
        if torch.is_grad_enabled():
            count.gradient += rows
        else:
            count.forward += rows

    handle = net.register_forward_pre_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


@dataclass(frozen=True)
class Probe:
    """Seconds a row of work takes on this machine, measured on one batch.

    Attributes:
        train: one row forward and backward in training.
        attack: one row under each attack, by name, if it makes all the passes it may.
        passes: gradient passes per row of each attack at most.
    """

    train: float
    attack: Mapping[str, float]
    passes: Mapping[str, float]


@dataclass(frozen=True)
class StageCost:
    """What one stage is going to cost, at most: an attack may stop before it has used all its passes.

    Attributes:
        title: such as "2 vap".
        epochs: passes over the training set.
        steps: training steps.
        passes_per_image: gradient passes per training image and epoch.
        minutes: estimated wall time.
    """

    title: str
    epochs: int
    steps: int
    passes_per_image: float
    minutes: float


def probe(net: nn.Module, attacks: Mapping[str, GuardedAttack], x: Tensor, y: Tensor) -> Probe:
    """Time a training step and each attack on one batch, on a copy of the net.

    An attack that may stop early (EAP leaves out what cannot move a pixel, and an untrained net hides how much that
    is) is counted with all its passes, each as slow as a plain one. Of two attacks of one class the first is timed.

    Args:
        net: the model, on the device of x; left as it is.
        attacks: those to time, by any key.
        x: images, (B, C, H, W) float32 in [0, 1].
        y: class indices, (B,) int64.
    """
    net = copy.deepcopy(net).train()

    def train() -> None:
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]

    def gradient_pass() -> None:
        images = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(net(images), y), images)

    def forward_pass() -> None:
        with torch.no_grad():
            net(x)

    train_seconds = _seconds(train, x)
    with guarded(net):
        gradient_seconds, forward_seconds = _seconds(gradient_pass, x), _seconds(forward_pass, x)
    seconds: dict[str, float] = {}
    passes: dict[str, float] = {}
    per_pass: dict[type, float] = {}
    for key, attack in attacks.items():
        kind = attack.attack_class
        if kind in per_pass and attack.max_passes is not None:
            passes[key] = float(attack.max_passes)
            seconds[key] = passes[key] * per_pass[kind]
            continue
        if attack.max_passes is not None and attack.max_passes > TOO_MANY_TO_TRY:
            passes[key] = float(attack.max_passes)
            seconds[key] = passes[key] * (gradient_seconds + forward_seconds) / len(x)
            continue
        with counting(net) as count:
            taken = _seconds(partial(attack, net, x, y), x, repeats=0)
        used = count.gradient / len(x)
        passes[key] = used if attack.max_passes is None else float(attack.max_passes)
        if used < 0.9 * passes[key]:
            extra = count.forward / max(1, count.gradient)
            per_pass[kind] = (gradient_seconds + extra * forward_seconds) / len(x)
        else:
            per_pass[kind] = taken / len(x) / max(passes[key], 1)
        seconds[key] = max(passes[key], 1) * per_pass[kind]
    return Probe(train_seconds / len(x), seconds, passes)


def stage_cost(
    measured: Probe,
    *,
    title: str,
    shares: Mapping[str, Fraction],
    validated: int,
    rows: int,
    steps_per_epoch: int,
    epochs: int,
    copies: int = 1,
) -> StageCost:
    """Estimate a stage from probe times.

    Args:
        measured: what ``probe`` returned.
        title: the stage's title.
        shares: share of each attack in the adversarial half; empty for stage 0.
        validated: images attacked in the stage's validations, all together, with each attack that has a share.
        rows: training images.
        steps_per_epoch: batches of an epoch.
        epochs: of the stage.
        copies: adversarial rows that are trained on for each clean one.
    """
    halves = 1 + copies if shares else 1
    seconds = halves * measured.train + sum(float(share) * measured.attack[name] for name, share in shares.items())
    passes = halves + sum(float(share) * measured.passes[name] for name, share in shares.items())
    watching = validated * sum(measured.attack[name] for name in shares)
    return StageCost(title, epochs, steps_per_epoch * epochs, passes, (seconds * rows * epochs + watching) / 60)


def plan_table(costs: Sequence[StageCost], evaluation_minutes: float, *, stored: Sequence[str] = ()) -> Table:
    """Return the plan as a table for a console.

    Args:
        costs: of the stages that are to be trained.
        evaluation_minutes: of what is to be measured.
        stored: titles of the stages that exist already.
    """
    table = Table(title="Plan (upper estimates from a few probe steps)", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    for column in ("epochs", "steps", "gradient passes per image and epoch", "minutes"):
        table.add_column(column, justify="right")
    for title in stored:
        table.add_row(title, "", "", "in the store", "0.0")
    for cost in costs:
        table.add_row(
            cost.title, str(cost.epochs), f"{cost.steps:,}", f"{cost.passes_per_image:.1f}", f"{cost.minutes:.1f}"
        )
    table.add_row("evaluation", "", "", "", f"{evaluation_minutes:.1f}")
    total = sum(cost.minutes for cost in costs) + evaluation_minutes
    table.add_row("all", "", f"{sum(cost.steps for cost in costs):,}", "", f"{total:.1f}", style="bold")
    return table


def _seconds(call: Callable[[], object], x: Tensor, *, repeats: int = 3) -> float:
    """Return the fastest of a few timed calls; the first pays for memory and kernels and counts only if it is alone."""
    best = math.inf
    for index in range(repeats + 1):
        _wait(x)
        start = time.perf_counter()
        call()
        _wait(x)
        if index or not repeats:
            best = min(best, time.perf_counter() - start)
    return best


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
