"""Small networks that the referee trains itself: a model without a defence, and one to transfer examples from."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.referee.case import Case
from amc_lightning.seeding import derive, generator

ROWS = 2000
"""Images of ``train`` that a network is trained on, at most: seconds."""
BATCH = 64
STEPS = (120, 400)
"""Steps of training, at least and at most, whatever the level says of epochs."""
LEARNING_RATE = 3e-3
SIDE = 8
"""Height and width of the last feature map, at most."""


def reference_net(case: Case, *, seed: int) -> nn.Module:
    """Return a small network trained on clean images, without a defence; the same one if asked again.

    Two convolutions, of stride 2 where images are larger than 8x8 (and more of them beyond 32x32), and a hidden layer,
    trained with Adam on true labels for the level's number of epochs (within bounds of steps). The images are the first
    of ``case.train``; where that was not given, the second half of the rows of the case, so that the first half are
    images it has not seen.

    Args:
        case: what is examined; on its device.
        seed: of weights and order. Networks of different seeds are different networks.

    Returns:
        In eval mode; from images (B, C, H, W) in [0, 1] to logits (B, K).
    """
    key = f"reference net {seed}"
    if key not in case.memo:
        case.progress(f"training a small network without a defence (seed {seed})")
        case.memo[key] = _trained(case, seed)
    net: nn.Module = case.memo[key]
    return net


def undefended_model(case: Case) -> nn.Module:
    """Return the model without a defence that was given, or else one that is trained now (``reference_net``)."""
    return reference_net(case, seed=case.seed) if case.undefended is None else case.undefended


def training_rows(case: Case) -> tuple[Tensor, Tensor]:
    """Return what ``reference_net`` is trained on: images (N, C, H, W) in [0, 1], and class indices (N,) int64."""
    if case.train is not None:
        images, labels = case.train
        return images[:ROWS].detach().to(case.x), labels[:ROWS].to(case.y)
    half = len(case.x) // 2
    return case.x[half:], case.y[half:]


def _trained(case: Case, seed: int) -> nn.Module:
    x, y = training_rows(case)
    net = _network(tuple(x.shape[1:]), case.num_classes, derive(seed, "referee", "network")).to(x)
    rng = generator(seed, "referee", "order")
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    low, high = (math.ceil(steps / math.ceil(len(x) / BATCH)) for steps in STEPS)
    epochs = min(max(case.level.substitute_epochs, low), high)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x), generator=rng), BATCH):
                chosen = rows.to(x.device)
                optimizer.zero_grad()
                torch.autograd.backward(functional.cross_entropy(net(x[chosen]), y[chosen]))
                optimizer.step()
    return net.eval()


def _network(shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    channels, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every device
        layers: list[nn.Module] = []
        before = channels
        for wide in _widths(max(height, width)):
            stride = 2 if max(height, width) > SIDE else 1
            layers += [nn.Conv2d(before, wide, 3, stride=stride, padding=1), nn.ReLU()]
            before, height, width = wide, math.ceil(height / stride), math.ceil(width / stride)
        layers += [nn.Flatten(), nn.Linear(before * height * width, 64), nn.ReLU(), nn.Linear(64, num_classes)]
        return nn.Sequential(*layers)


def _widths(side: int) -> list[int]:
    """Return the channels of convolutions that each halve a side while it is above ``SIDE``; two at least."""
    return [8, *[24] * max(1, math.ceil(math.log2(side / SIDE)) - 1)]
