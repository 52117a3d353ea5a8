"""Measure one net: clean error, error under every attack in two strengths, worst case per example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, Norm, guarded
from amc_lightning.metrics import wilson
from amc_lightning.seeding import generator

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
QUANTILES = (0.1, 0.5, 0.9)

Remember = Callable[[str, GuardedAttack | None, str | None, Callable[[], "Outcome"]], "Outcome"]
"""Gives the outcome of a split under an attack (None: clean) that was crafted on the proxy of that name (None: on the
net itself), by the function it is handed or from memory."""


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


@dataclass(frozen=True)
class Evaluation:
    """One net's figures, and the per-example results they come from.

    Attributes:
        record: the ``evaluation`` entry of results.json.
        examples: per-row arrays by name, such as ``paper/fgsm/wrong``.
        gallery: kept images and predictions by name, such as ``x_adv/fgsm``.
    """

    record: dict[str, Any]
    examples: dict[str, NDArray[Any]]
    gallery: dict[str, NDArray[Any]]


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


def evaluate(
    net: nn.Module,
    splits: Mapping[str, tuple[Tensor, Tensor]],
    attacks: Mapping[str, Mapping[str, GuardedAttack]],
    *,
    budgets: Mapping[str, float],
    seed: int,
    batch_size: int,
    gallery: int,
    craft_on: Mapping[str, nn.Module] | None = None,
    on_attack: Callable[[str], None] = lambda name: None,
    remember: Remember = lambda split, attack, crafter, compute: compute(),
) -> Evaluation:
    """Measure a net on the test split (clean) and the attack split (attacked).

    Attacked through proxies, the examples of each are tried on the net: an attack's rate is that of the most harmful
    proxy, and the worst case is over the examples of all of them.

    Args:
        net: the model, on the device of the splits.
        splits: ``test`` and ``attack``, each images (N, C, H, W) uint8 and labels (N,) int64.
        attacks: by strength (``paper``, ``check``), then by name.
        budgets: l1 radius at which an unbounded attack is also counted, by attack name.
        seed: the evaluation's seed.
        batch_size: rows per call.
        gallery: rows kept with their perturbed copies.
        craft_on: proxies by the name of their architecture; None for attacks on the net itself.
        on_attack: told the name of each attack as it begins.
        remember: may give an outcome without computing it.

    Returns:
        Figures and per-example results. The mean is over the attacks as they are (as the paper's claims); the worst
        case counts a row as wrong if it is wrong clean or under any attack at its budget (spec.md section 6).
    """
    tested, clean = (
        remember(split, None, None, partial(clean_rows, net, *splits[split], batch_size=batch_size))
        for split in ("test", "attack")
    )
    record: dict[str, Any] = {"clean": {"split": "test", **rate_of(tested.wrong)}}
    examples: dict[str, NDArray[Any]] = {"clean/test/wrong": tested.wrong, "clean/attack/wrong": clean.wrong}
    kept: dict[str, NDArray[Any]] = {"clean_predicted": clean.predicted[:gallery]}
    labels = splits["attack"][1].cpu().numpy()
    done: list[tuple[GuardedAttack, list[Outcome]]] = []  # a strength that changes nothing costs nothing

    def compute(attack: GuardedAttack, title: str, crafter: nn.Module | None) -> Outcome:
        on_attack(title)
        return attack_rows(
            net, attack, *splits["attack"], seed=seed, batch_size=batch_size, keep=gallery, craft_on=crafter
        )

    def outcomes_of(attack: GuardedAttack, title: str) -> list[Outcome]:
        if craft_on is None:
            return [remember("attack", attack, None, partial(compute, attack, title, None))]
        return [
            replace(remember("attack", attack, name, partial(compute, attack, title, proxy)), architecture=name)
            for name, proxy in craft_on.items()
        ]

    for strength, members in attacks.items():
        rates: dict[str, Any] = {"clean": rate_of(clean.wrong)}
        reached = [clean.wrong]
        outcomes = []
        for name, attack in members.items():
            if (tried := next((known for other, known in done if other == attack), None)) is None:
                title = name if strength == "paper" else f"{name} ({strength})"
                tried = outcomes_of(attack, title)
                done.append((attack, tried))
            outcome = max(tried, key=lambda one: int(one.wrong.sum()))  # of equal ones the first
            outcomes.append(outcome.wrong)
            rates[name] = rate_of(outcome.wrong) | {
                "norms": _norms(outcome),
                "gradient_passes": outcome.gradient_passes,
            }
            if outcome.zero_gradient is not None:
                rates[name]["zero_gradient"] = outcome.zero_gradient
            rates[name] |= _of_proxy(outcome, labels)
            if outcome.crafter_predicted is not None:
                examples[f"{strength}/{name}/proxy_wrong"] = outcome.crafter_predicted != labels
            if attack.norm is None:
                rates[name]["quantiles"] = _quantiles(outcome, attack, clean.wrong)
                if name in budgets:
                    inside = [one.wrong & (one.norms["l1"] <= budgets[name]) for one in tried]
                    most = max(range(len(tried)), key=lambda place: int(inside[place].sum()))
                    rates[f"{name}@budget"] = rate_of(inside[most]) | _of_proxy(tried[most], labels, budgets[name])
                    reached += inside
            else:
                reached += [one.wrong for one in tried]
            examples[f"{strength}/{name}/wrong"] = outcome.wrong
            for norm, values in outcome.norms.items():
                examples[f"{strength}/{name}/{norm}"] = values.astype(np.float32)
            if strength == "paper":
                kept[f"x_adv/{name}"], kept[f"predicted/{name}"] = outcome.kept, outcome.predicted[:gallery]
        if outcomes:
            rates["mean"] = _mean(np.mean(outcomes, axis=0))
            rates["worst"] = rate_of(np.any(reached, axis=0))
            examples[f"{strength}/worst/wrong"] = np.any(reached, axis=0)
        record[strength] = rates
    return Evaluation(record, examples, kept)


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _starts(images: Tensor, batch_size: int) -> range:
    return range(0, len(images), batch_size)


def rate_of(wrong: NDArray[np.bool_]) -> dict[str, Any]:
    """Return n, the wrong rows, the error rate in percent and its 95 % Wilson interval, as results.json has them."""
    low, high = wilson(int(wrong.sum()), len(wrong))
    return {"n": len(wrong), "wrong": int(wrong.sum()), "error": 100 * float(wrong.mean()), "low": low, "high": high}


def _mean(share: NDArray[np.float64]) -> dict[str, Any]:
    """Mean over attacks of the per-row results: the interval is normal, over rows, since a row's results correlate."""
    error, n = float(share.mean()), len(share)
    if share.std() == 0:  # all rows agree, which proves nothing about the next row: Wilson's bounds for that share
        low, high = wilson(round(error * n), n)
    else:
        half = 196 * float(share.std(ddof=1)) / n**0.5
        low, high = max(0.0, 100 * error - half), min(100.0, 100 * error + half)
    return {
        "n": n,
        "wrong": float(share.sum()),
        "error": 100 * error,
        "low": low,
        "high": high,
    }


def _norms(outcome: Outcome) -> dict[str, dict[str, float]]:
    return {
        name: {"median": float(np.median(values)), "max": float(values.max(initial=0.0))}
        for name, values in outcome.norms.items()
    }


def _of_proxy(outcome: Outcome, labels: NDArray[np.int64], budget: float | None = None) -> dict[str, Any]:
    """Return whose examples these were, and the proxy's own error on them (in the l1 radius); nothing without one."""
    if outcome.crafter_predicted is None:
        return {}
    wrong = outcome.crafter_predicted != labels
    if budget is not None:
        wrong &= outcome.norms["l1"] <= budget
    return {"architecture": outcome.architecture, "proxy": rate_of(wrong)}


def _quantiles(outcome: Outcome, attack: GuardedAttack, clean_wrong: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Distances over the rows that were right and that the attack fooled: the rest have no distance to speak of."""
    rows = outcome.wrong & ~clean_wrong
    if not rows.any():
        return {}
    distances = {name: outcome.norms[name][rows] for name in ("l1", "l2")}
    beta = attack.params.get("beta")
    if isinstance(beta, int | float):
        distances["elastic_net"] = np.square(distances["l2"]) + beta * distances["l1"]
    return {name: {str(q): float(np.quantile(values, q)) for q in QUANTILES} for name, values in distances.items()}
