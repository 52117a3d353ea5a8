"""Step time of each cascade stage against the passes it cannot do without, as a ratio.

The floor of a step is what its passes would take if nothing else were done: every row that the attacks sent through the
net (counted by a hook, with and without gradient) at the speed of a whole batch of bare forward and input-gradient
passes with frozen parameters, plus one forward and backward of the clean and adversarial halves in training. Above 1 is
what guard, mixing, small sub-batches and the attacks' own arithmetic cost. Step and floor are timed in turn; each ratio
is the median over rounds of the ratio within a round.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
import yaml
from sklearn.datasets import load_digits
from torch import Tensor, nn

from amc_lightning.attacks import Execution, build, guarded
from amc_lightning.data import Augment
from amc_lightning.mixer import Mixer, stage_shares
from amc_lightning.models import LeNet, ResNet32
from amc_lightning.plan import counting
from amc_lightning.schema import CONF_DIR
from amc_lightning.stage import StageModule

ORDER = ("fgsm", "vap", "eap", "pgm")


def main() -> None:
    """Print one table per net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed steps and floors of each stage, in turn")
    parser.add_argument("--crafting", choices=["plain", "fast", "fast_bf16"], default="fast", help="path of attacks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {name}\n")
    torch.manual_seed(0)
    path = Execution(fast=options.crafting != "plain", bf16=options.crafting == "fast_bf16")
    print(f"attacks craft {options.crafting}; the floor is of the plain net\n")
    lenet, resnet = LeNet(1, (28, 28), 10), ResNet32(3, (32, 32), 10)
    measure("LeNet, 1x28x28, MNIST's attacks", lenet, "mnist", 128, 150, options.rounds, device, path)
    measure("ResNet-32, 3x32x32, CIFAR-10's attacks", resnet, "cifar10", 128, 60, options.rounds, device, path)


def measure(
    title: str,
    net: nn.Module,
    dataset: str,
    batch_size: int,
    steps: int,
    rounds: int,
    device: torch.device,
    path: Execution,
) -> None:
    """Train a net a little, so that the attacks have work to do, and time the stages on it."""
    net = net.to(device, memory_format=torch.channels_last)
    channels, side = (3, 32) if isinstance(net, ResNet32) else (1, 28)
    x, y = _digits(channels, side, device)
    _train(net, x, y, batch_size, steps)
    attacks = _attacks(dataset, path)
    print(f"### {title}, batch {batch_size}\n")
    print("| stage | step, ms | floor, ms | ratio | gradient rows / image |")
    print("| --- | --- | --- | --- | --- |")
    for index in range(len(ORDER) + 1):
        mixer = None
        if index:
            shares = stage_shares(index, current_share=Fraction(4, 5), shares=None)
            mixer = Mixer([attacks[name] for name in ORDER[:index]], shares, seed=0, label="predicted")
        module = StageModule(
            net,
            title=f"{index} bench",
            seed=0,
            mixer=mixer,
            alpha=0.5,
            augment=Augment(),
            make_optimizer=torch.optim.SGD,
            make_schedule=lambda o, n: None,
        ).to(device)
        batch = (x[:batch_size], y[:batch_size], torch.arange(batch_size, device=device))

        def step(module: StageModule = module, batch: tuple[Tensor, Tensor, Tensor] = batch) -> None:
            net.zero_grad()
            module.training_step(batch, 0).backward()

        step()
        with counting(net) as count:
            step()
        halves = 2 if index else 1
        gradient = count.gradient - halves * batch_size
        times, floors, ratios = [], [], []
        for _ in range(rounds):
            times.append(_seconds(step, device))
            floors.append(_floor(net, *batch[:2], gradient, count.forward, halves, device))
            ratios.append(times[-1] / floors[-1])
        label = "0 undefended" if not index else f"{index} {ORDER[index - 1]}"
        print(
            f"| {label} | {1e3 * statistics.median(times):.0f} | {1e3 * statistics.median(floors):.0f} | "
            f"{statistics.median(ratios):.2f} | {gradient / batch_size:.1f} |",
            flush=True,
        )
    print()


def _floor(
    net: nn.Module, x: Tensor, y: Tensor, gradient: int, forward: int, halves: int, device: torch.device
) -> float:
    def input_gradient() -> None:
        images = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(net(images), y), images)

    def logits() -> None:
        with torch.no_grad():
            net(x)

    def train() -> None:
        net.zero_grad()
        F.cross_entropy(net(torch.cat([x] * halves)), torch.cat([y] * halves)).backward()

    repeats = 5
    with guarded(net):
        a = sum(_seconds(input_gradient, device) for _ in range(repeats)) / repeats
        b = sum(_seconds(logits, device) for _ in range(repeats)) / repeats
    net.train()
    return gradient / len(x) * a + forward / len(x) * b + _seconds(train, device)


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _digits(channels: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    x = F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return x.expand(-1, channels, -1, -1).contiguous(), torch.tensor(bunch.target, device=device)


def _train(net: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (batch_size,), device=x.device)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()


def _attacks(dataset: str, path: Execution) -> dict:
    column = yaml.safe_load((CONF_DIR / "attack_params" / "paper" / f"{dataset}.yaml").read_text())["white_box"]
    return {
        name: build(
            name, yaml.safe_load((CONF_DIR / "attack" / f"{name}.yaml").read_text()), column[name], execution=path
        )
        for name in ORDER
    }


if __name__ == "__main__":
    main()
