"""Measure one net: clean error, error under every attack in two strengths, worst case per example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.metrics import wilson
from amc_lightning.rows import Outcome, attack_rows, clean_rows

QUANTILES = (0.1, 0.5, 0.9)
JUDGE = "judge"
"""The strength, and the split of its rows."""
_WITH_MEAN, _WITH_WORST = ("paper", "check", "predicted"), ("paper", "check", JUDGE)

Remember = Callable[[str, GuardedAttack | None, str | None, Callable[[], Outcome]], Outcome]
"""Gives the outcome of a split under an attack (None: clean) that was crafted on the proxy of that name (None: on the
net itself), by the function it is handed or from memory."""


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
    beside: Mapping[str, NDArray[np.bool_]] | None = None,
    on_attack: Callable[[str], None] = lambda name: None,
    remember: Remember = lambda split, attack, crafter, compute: compute(),
) -> Evaluation:
    """Measure a net on the test split (clean) and the attack split (attacked).

    Attacked through proxies, the examples of each are tried on the net: an attack's rate is that of the most harmful
    proxy, and the worst case is over the examples of all of them.

    Args:
        net: the model, on the device of the splits.
        splits: ``test`` and ``attack``, each images (N, C, H, W) uint8 and labels (N,) int64; with a strength ``judge``
            also ``judge``, leading rows of ``attack``.
        attacks: by strength, then by name. ``paper`` and ``check`` have a mean and a worst case, ``predicted`` a mean,
            ``judge`` a worst case that is over its attacks and, where there is one, that of ``check``; others neither.
        budgets: l1 radius at which an unbounded attack is also counted, by attack name.
        seed: the evaluation's seed.
        batch_size: rows per call.
        gallery: rows kept with their perturbed copies.
        craft_on: other models that examples are crafted on, by name; None for attacks on the net itself.
        beside: by strength, rows of the attack split that are known to be wrong under other attacks; they count in its
            worst case.
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
    done: list[tuple[str, GuardedAttack, list[Outcome]]] = []  # a strength that changes nothing costs nothing

    def compute(split: str, attack: GuardedAttack, title: str, crafter: nn.Module | None) -> Outcome:
        on_attack(title)
        return attack_rows(
            net, attack, *splits[split], seed=seed, batch_size=batch_size, keep=gallery, craft_on=crafter
        )

    def outcomes_of(split: str, attack: GuardedAttack, title: str) -> list[Outcome]:
        if craft_on is None:
            return [remember(split, attack, None, partial(compute, split, attack, title, None))]
        return [
            replace(remember(split, attack, name, partial(compute, split, attack, title, proxy)), architecture=name)
            for name, proxy in craft_on.items()
        ]

    for strength, members in attacks.items():
        split = JUDGE if strength == JUDGE else "attack"
        labels = splits[split][1].cpu().numpy()
        clean_wrong = clean.wrong[: len(labels)]
        rates: dict[str, Any] = {"clean": rate_of(clean_wrong)}
        reached, outcomes = [clean_wrong], []
        for name, attack in members.items():
            tried = next((known for place, other, known in done if (place, other) == (split, attack)), None)
            if tried is None:
                tried = outcomes_of(split, attack, name if strength == "paper" else f"{name} ({strength})")
                done.append((split, attack, tried))
            outcome = max(tried, key=lambda one: int(one.wrong.sum()))  # of equal ones the first
            outcomes.append(outcome.wrong)
            rates[name] = rate_of(outcome.wrong) | _taken(outcome, attack) | _of_proxy(outcome, labels)
            if outcome.crafter_predicted is not None:
                examples[f"{strength}/{name}/proxy_wrong"] = outcome.crafter_predicted != labels
            if attack.norm is None:
                rates[name]["quantiles"] = _quantiles(outcome, attack, clean_wrong)
                if name in budgets:
                    inside = [one.wrong & (one.norms["l1"] <= budgets[name]) for one in tried]
                    most = max(range(len(tried)), key=lambda place: int(inside[place].sum()))
                    rates[f"{name}@budget"] = rate_of(inside[most]) | _of_proxy(tried[most], labels, budgets[name])
                    examples[f"{strength}/{name}@budget/wrong"] = inside[most]
                    reached += inside
            else:
                reached += [one.wrong for one in tried]
            examples[f"{strength}/{name}/wrong"] = outcome.wrong
            for norm, values in outcome.norms.items():
                examples[f"{strength}/{name}/{norm}"] = values.astype(np.float32)
            if strength == "paper":
                kept[f"x_adv/{name}"], kept[f"predicted/{name}"] = outcome.kept, outcome.predicted[:gallery]
        if outcomes and strength in _WITH_MEAN:
            rates["mean"] = _mean(np.mean(outcomes, axis=0))
        if outcomes and strength in _WITH_WORST:
            if strength == JUDGE and (found := examples.get("check/worst/wrong")) is not None:
                reached.append(found[: len(labels)])
            if beside is not None and strength in beside:
                reached.append(beside[strength])
            rates["worst"] = rate_of(np.any(reached, axis=0))
            examples[f"{strength}/worst/wrong"] = np.any(reached, axis=0)
        record[strength] = rates
    return Evaluation(record, examples, kept)


def _taken(outcome: Outcome, attack: GuardedAttack) -> dict[str, Any]:
    """Return the sizes of an attack's perturbations and what it took."""
    most = attack.max_passes if attack.arguments.get("compact") else None  # others keep rows that they have fooled
    found = {"norms": _norms(outcome), "gradient_passes": outcome.gradient_passes, "most_passes": most}
    return found if outcome.zero_gradient is None else {**found, "zero_gradient": outcome.zero_gradient}


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
