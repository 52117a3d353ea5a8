"""Ask a net about rows of a split, as they are or under one attack."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, Norm, guarded
from amc_lightning.seeding import generator

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True)
class Outcome:
    """What a net answered to each row of a split, clean or under one attack, in the split's order.

    Attributes:
        wrong: prediction differs from the true label, (N,) bool.
        predicted: class indices, (N,) int64.
        norms: by norm name, size of the perturbation of each row in pixel units of [0, 1], (N,) float64; none if clean.
        kept: the first perturbed images, (G, C, H, W) float32 in [0, 1].
        gradient_passes: gradient passes of the attack, mean per row.
        zero_gradient: rows that gave the attack no gradient; None if it does not say.
        crafter_predicted: what the model that the examples were crafted on answers to them, (N,) int64; None where that
            is the net itself.
        architecture: name of that model, where there is one.
    """

    wrong: NDArray[np.bool_]
    predicted: NDArray[np.int64]
    norms: dict[str, NDArray[np.float64]]
    kept: NDArray[np.float32]
    gradient_passes: float
    zero_gradient: int | None
    crafter_predicted: NDArray[np.int64] | None = None
    architecture: str | None = None


def predict(net: nn.Module, images: Tensor, *, batch_size: int) -> Tensor:
    """Return predicted classes, (N,) int64, of uint8 or [0, 1] float images (N, C, H, W), in eval mode."""
    parts = []
    with guarded(net), torch.no_grad():
        parts = [net(_pixels(images[start : start + batch_size])).argmax(1) for start in _starts(images, batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=images.device)


def clean_rows(net: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int) -> Outcome:
    """Ask a net about every row of a split as it is; arguments as of ``attack_rows``."""
    predicted = predict(net, images, batch_size=batch_size).cpu().numpy()
    nothing = np.empty((0, *images.shape[1:]), dtype=np.float32)
    return Outcome(predicted != labels.cpu().numpy(), predicted, {}, nothing, 0.0, None)


def attack_rows(
    net: nn.Module,
    attack: GuardedAttack,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    batch_size: int,
    keep: int = 0,
    craft_on: nn.Module | None = None,
) -> Outcome:
    """Attack every row of a split once, with true labels, and recheck range and budget of every example.

    Noise is drawn for the whole split at once from (seed, attack), so that the batch size changes no row's noise.

    Args:
        net: the model under attack; left bit for bit as it was.
        attack: crafts the examples.
        images: (N, C, H, W) uint8, or float32 in [0, 1].
        labels: true class indices, (N,) int64.
        seed: the evaluation's seed.
        batch_size: rows per call, >= 1.
        keep: number of leading rows whose perturbed images are returned.
        craft_on: another model that the examples are crafted on (transfer); ``net`` is then only asked about them.

    Raises:
        RuntimeError: if an example leaves [0, 1] or its budget: the figures would mean nothing.
    """
    noise = attack.draw_noise(tuple(images.shape), generator(seed, "evaluation", attack.name))
    rng = generator(seed, "evaluation", attack.name, "calls")
    predicted, of_crafter, kept = [], [], []
    passes, unmoved = 0.0, None
    norms: dict[str, list[Tensor]] = {name: [] for name in NORMS}
    for start in _starts(images, batch_size):
        rows = slice(start, start + batch_size)
        x, y = _pixels(images[rows]), labels[rows]
        crafted = attack.craft(craft_on or net, x, y, noise=None if noise is None else noise[rows].to(x), generator=rng)
        x_adv = crafted.x_adv
        for name in NORMS:
            norms[name].append(crafted.distances[name].cpu())
        if bool((x_adv < 0).any() | (x_adv > 1).any()):
            raise RuntimeError(f"attack {attack.name} left the range [0, 1]")
        of_crafter.append(crafted.predicted.cpu())
        predicted.append(of_crafter[-1] if craft_on is None else predict(net, x_adv, batch_size=batch_size).cpu())
        passes += crafted.gradient_passes * len(x)
        if crafted.zero_gradient is not None:
            unmoved = (unmoved or 0) + int(crafted.zero_gradient.sum())
        kept.append(x_adv[: max(0, keep - start)].cpu())
    sizes = {name: torch.cat(parts).numpy() for name, parts in norms.items()}
    if attack.norm is not None and attack.eps is not None:
        largest = float(sizes[attack.norm].max(initial=0.0))
        # float32 rounds each pixel of x + delta by at most half an ulp of 1
        power = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[attack.norm]
        if largest > attack.eps * (1 + 1e-6) + 6e-8 * images[0].numel() ** power:
            raise RuntimeError(f"attack {attack.name} oversteps its budget: {largest} > {attack.eps} ({attack.norm})")
    classes = torch.cat(predicted).numpy()
    wrong = classes != labels.cpu().numpy()
    crafter = None if craft_on is None else torch.cat(of_crafter).numpy()
    return Outcome(wrong, classes, sizes, torch.cat(kept).numpy(), passes / len(labels), unmoved, crafter)


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _starts(images: Tensor, batch_size: int) -> range:
    return range(0, len(images), batch_size)
