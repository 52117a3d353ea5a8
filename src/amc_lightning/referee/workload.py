"""What one forward pass of a model does: calls, gradients, operations, seconds."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from amc_lightning.attacks import guarded
from amc_lightning.attacks.randomness import kept_torch_randomness

REPEATS, PATIENCE = 3, 2.0
"""Timed passes at most, and seconds after which no further one is begun; the quickest counts."""
SIDE, WIDTH = 32, 32
"""Of the yardstick: 3x3 convolutions of ``WIDTH`` channels on images of this side."""


@dataclass(frozen=True)
class Workload:
    """One forward pass, watched.

    Attributes:
        backward: operations made while a gradient was being taken.
        optimizer_steps: of any `torch.optim.Optimizer`.
        calls: by class name, how often a module with weights of its own was called: the most called one of its class.
        flops: of products and convolutions.
        seconds: that a pass takes.
        yardstick: seconds that a plain convolution net takes for as many operations, at the same time on the same
            device.
    """

    backward: int
    optimizer_steps: int
    calls: Mapping[str, int]
    flops: int
    seconds: float
    yardstick: float

    @property
    def most_calls(self) -> int:
        """Calls of the module that is called most."""
        return max(self.calls.values(), default=0)

    @property
    def slowness(self) -> float:
        """Seconds for each operation, in units of the yardstick's; at least one operation is counted."""
        return self.seconds / max(self.yardstick, 1e-12)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and those that a backward pass makes: by hand, through autograd or through torch.func."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backward = 0
        self.flops: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.backward += torch._C._current_autograd_node() is not None
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=result))
        return result


def watched(model: nn.Module, x: Tensor) -> Workload:
    """Watch a model while it answers images.

    Gradients and products are seen wherever they are made; calls of modules also of those that are not registered.

    Args:
        model: returns logits.
        x: images, (B, C, H, W) float32 in [0, 1].
    """
    calls: Counter[tuple[str, int]] = Counter()
    steps = 0

    def called(module: nn.Module, _: Any) -> None:
        if next(module.parameters(recurse=False), None) is not None:
            calls[type(module).__name__, id(module)] += 1

    def stepped(*_: Any) -> None:
        nonlocal steps
        steps += 1

    with guarded(model), torch.no_grad(), kept_torch_randomness(x.device):
        hooks = [register_module_forward_pre_hook(called), register_optimizer_step_pre_hook(stepped)]
        watch = _Watch()
        try:
            with watch:
                model(x.clone())
        finally:
            for hook in hooks:
                hook.remove()
        seconds = timed(lambda: model(x), x.device)
        most: dict[str, int] = {}
        for (kind, _), times in calls.items():
            most[kind] = max(times, most.get(kind, 0))
        yardstick = seconds_per_operation(len(x), x.device) * max(watch.flops, 1)
    return Workload(watch.backward, steps, most, watch.flops, seconds, yardstick)


def seconds_per_operation(batch: int, device: torch.device) -> float:
    """Return what one operation of a plain convolution net takes here and now."""
    net = nn.Sequential(*(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))).to(device)
    images = torch.zeros(batch, WIDTH, SIDE, SIDE, device=device)
    with torch.no_grad(), _Watch() as watch:
        net(images)
    with torch.no_grad():
        seconds = timed(lambda: net(images), device)
    return seconds / float(watch.flops)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that work takes, the least of a few times."""
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < PATIENCE:
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
