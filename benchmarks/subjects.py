"""What attacks are timed on: two nets, trained a little so that there is work to do, and images they have not seen."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.data.sources import mnist
from amc_lightning.models import LeNet, ResNet32

POOL = 512
"""Images kept for attacks, from which those that are right at the start are taken where that matters."""


@dataclass(frozen=True)
class Subject:
    """A net in eval mode, contiguous, with images and labels it was not trained on.

    Attributes:
        name: ``lenet`` or ``resnet32``.
        title: what the tables say of it.
        net: returns logits.
        x: (N, C, H, W) float32 in [0, 1].
        y: class indices, (N,) int64.
        right: rows of ``x`` that the net gets right.
        eps: l-inf radius of FGSM and PGD.
        vap_eps: l2 radius of VAP.
    """

    name: str
    title: str
    net: nn.Module
    x: Tensor
    y: Tensor
    right: Tensor
    eps: float
    vap_eps: float


def trained(name: str, *, cache: Path, quick: bool, device: torch.device) -> Subject:
    """Return a trained net and its images; weights are kept in ``cache``, one file per net, data and length.

    Args:
        name: ``lenet`` (MNIST where AMC_SHARED_DATA has it, else digits) or ``resnet32`` (CIFAR-10, else digits).
        cache: folder of the weights.
        quick: train for a few steps only.
        device: where all of it goes.
    """
    shared = os.environ.get("AMC_SHARED_DATA")
    if name == "lenet":
        net: nn.Module = LeNet(1, (28, 28), 10)
        data, x, y = _mnist(Path(shared)) if shared else _digits(1, 28)
        steps, eps, vap_eps = 400, 0.2, 2.0
    else:
        net = ResNet32(3, (32, 32), 10)
        data, x, y = _cifar10(Path(shared)) if shared else _digits(3, 32)
        steps, eps, vap_eps = 700, 8 / 255, 0.5
    steps = 20 if quick else steps
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{name}-{data.replace(' ', '_')}-{steps}.pt"
    torch.manual_seed(0)
    if kept.exists():
        net.load_state_dict(torch.load(kept, weights_only=True))
    else:
        _train(net.to(device), x[POOL:], y[POOL:], steps, device)
        torch.save(net.cpu().state_dict(), kept)
    net = net.eval().to(device)
    x, y = x[:POOL].to(device), y[:POOL].to(device)
    with torch.no_grad():
        right = (net(x).argmax(dim=1) == y).nonzero().squeeze(1)
    shape = "x".join(map(str, x.shape[1:]))
    title = f"{type(net).__name__}, {shape}, {data}, {steps} steps, {100 * len(right) / POOL:.0f} % right"
    return Subject(name, title, net, x, y, right, eps, vap_eps)


def _train(net: nn.Module, x: Tensor, y: Tensor, steps: int, device: torch.device) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        functional.cross_entropy(net(x[rows].to(device)), y[rows].to(device)).backward()
        optimizer.step()
        schedule.step()


def _digits(channels: int, side: int) -> tuple[str, Tensor, Tensor]:
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    x = functional.interpolate(x, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return _shuffled("digits", x.expand(-1, channels, -1, -1).contiguous(), torch.tensor(bunch.target))


def _mnist(shared: Path) -> tuple[str, Tensor, Tensor]:
    images = mnist(shared / "mnist").train
    return _shuffled("MNIST", torch.tensor(images.x).float() / 255, torch.tensor(images.y))


def _cifar10(shared: Path) -> tuple[str, Tensor, Tensor]:
    """Read 20,000 training images of the JPEG copy."""
    files = np.load(shared / "cifar10_jpeg" / "train.npz")
    raw, offsets, labels = files["jpeg"].tobytes(), files["offsets"], files["labels"]
    rows = np.random.default_rng(0).permutation(len(labels))[:20_000]
    decoded = [np.asarray(Image.open(io.BytesIO(raw[offsets[i] : offsets[i + 1]])).convert("RGB")) for i in rows]
    x = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous().float() / 255
    return "CIFAR-10 as JPEG", x, torch.from_numpy(labels[rows].astype(np.int64))


def _shuffled(data: str, x: Tensor, y: Tensor) -> tuple[str, Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return data, x[order], y[order]
