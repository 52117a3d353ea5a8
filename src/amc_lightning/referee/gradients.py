"""E17: are there gradients at the images, and are they the slope of the loss?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from amc_lightning.attacks import guarded
from amc_lightning.attacks.randomness import isolated_randomness
from amc_lightning.metrics import wilson
from amc_lightning.referee.case import Case
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.seeding import derive, generator

TITLE = "gradients are the loss's slope"
ALLOWED = 1.0
"""Percent of rows whose gradient may be zero: E17's rule."""
SLOPE_ROWS, DIRECTIONS = 64, 8
STEPS = (1e-3, 3e-3)
"""Root mean square of the pixels' change over which slopes are measured: far below any radius, far above rounding."""
REACH = 0.09
"""Largest change of a pixel; images are shrunk to [0.1, 0.9] for it, since a model may clip at 0 and 1."""
SMOOTH = 0.3
"""Relative difference of slopes over the two steps from which on the loss has no slope to speak of (E22 looks then)."""
LEAST_ALIGNED = 0.5
"""Share of the steepest slope that the gradient's direction must catch. Measured: sound networks 0.95 to 1.05, median
filters with a stand-in for their gradient 0.79 to 0.98."""
LARGEST_RATIO = 1.5
"""Of the slope along the gradient and the gradient's length, either way. Measured: sound networks 1.00, median filters
1.04 to 1.17, a network of the same task detached beside one as strong 1.65 and 1.87, beside a weaker one 5 to 9."""
SAME_DIRECTION = 0.98
"""Correlation from which on a gradient of another length is only scaled: no attack that is used here minds."""

LOSSES = {"ce": "cross-entropy", "dlr": "DLR", "margin": "margin"}


@dataclass(frozen=True)
class Slopes:
    """How the margin really moves, and what the gradient says; medians over rows.

    Attributes:
        rows: that were measured: with a gradient that is finite and not zero.
        ratio: slope along the gradient, in units of the gradient's length; 1 for a true gradient.
        aligned: the same in units of the steepest slope, estimated from random directions; 1 for a true gradient.
        correlation: of slopes along random directions with what the gradient foretells.
        roughness: relative difference of slopes over the two step sizes.
    """

    rows: int
    ratio: float
    aligned: float
    correlation: float
    roughness: float

    @property
    def smooth(self) -> bool:
        """Whether there is a slope at all."""
        return self.roughness < SMOOTH

    @property
    def scaled(self) -> bool:
        """Whether the gradient has another length than the slope."""
        return not 1 / LARGEST_RATIO <= self.ratio <= LARGEST_RATIO

    @property
    def wrong(self) -> bool:
        """Whether the gradient is that of another function."""
        return self.smooth and (self.aligned < LEAST_ALIGNED or (self.scaled and self.correlation < SAME_DIRECTION))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far the best wrong class leads, (B,), of logits (B, K) and labels (B,).

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    column = y.unsqueeze(1)
    return logits.scatter(1, column, -torch.inf).amax(1) - logits.gather(1, column).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio, (B,), of logits (B, K), K >= 3, and labels (B,).

    Reference:
        Croce and Hein, ICML 2020, https://arxiv.org/abs/2003.01690, equation 6.

    Example:
        >>> dlr(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    ordered = logits.sort(1, descending=True).values
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2])


def gradients(case: Case) -> Finding:
    """Return E17: the share of rows without a gradient, loss by loss, and whether gradients are the loss's slope."""
    if bool(case.clean_wrong.all()):
        return Finding("E17", TITLE, Status.NOT_RUN, "The model answers no image rightly: there is nothing to attack.")
    shares = useless_shares(case)
    count = int((~case.clean_wrong).sum())
    counted = {key: f"{LOSSES[key]} {100 * share:.1f} %" for key, share in shares.items()}
    worst = 100 * max(shares.values())
    surely = [key for key, share in shares.items() if wilson(round(share * count), count)[0] > ALLOWED]
    details: dict[str, object] = {"zero_or_not_finite": {key: 100 * share for key, share in shares.items()}}
    if "margin" in surely:
        return _finding(
            Status.FAIL, worst, details,
            f"The gradient of the margin is zero or not finite on {100 * shares['margin']:.1f} % of the images, so "
            "attacks that follow gradients stand still there whatever their loss, and their failure proves nothing.",
            "Attack through a differentiable stand-in (E22), and with attacks that need no gradient.",
        )  # fmt: skip
    slopes = measured_slopes(case)
    details["slopes"] = None if slopes is None else vars(slopes)
    if slopes is not None and slopes.wrong:
        return _finding(
            Status.FAIL, worst, details,
            f"Gradients are not the slope of the loss: along them it rises {slopes.ratio:.2f} times as fast as told, "
            f"and they catch {100 * slopes.aligned:.0f} % of the steepest rise, so that attacks are led astray.",
            "Look for a detached branch, or a backward pass that is not that of its forward pass, and attack without.",
        )  # fmt: skip
    if "ce" in surely:
        return _finding(
            Status.FAIL, worst, details,
            f"Gradients vanish for {' and '.join(counted[key] for key in surely)} of the images while the margin keeps "
            "its own: the softmax is saturated, and published attacks on these losses stand still.",
            "Divide the logits by a constant, or attack the margin; PGM of this package does not depend on it.",
        )  # fmt: skip
    told = "Rows with a zero or not finite gradient: " + ", ".join(counted.values())
    if worst > ALLOWED:
        return _finding(
            Status.WARN, worst, details, f"{told}; the rule allows {ALLOWED:g} %.",
            "Examine more images, and attack another loss.",
        )  # fmt: skip
    if slopes is None:
        return _finding(Status.PASS, worst, details, f"{told}.")
    if not slopes.smooth:
        return _finding(
            Status.PASS, worst, details,
            f"{told}; the loss moves in steps, or at random, so it has no slope to compare them with: E22 and E19 look "
            "at that.",
        )  # fmt: skip
    if slopes.scaled:
        return _finding(
            Status.WARN, worst, details,
            f"{told}; gradients point along the slope but are not as long: it is {slopes.ratio:.3g} times theirs.",
            "Find out where the backward pass scales them: attacks whose steps depend on length are led astray.",
        )  # fmt: skip
    return _finding(
        Status.PASS, worst, details,
        f"{told}; along its gradient the loss rises {slopes.ratio:.2f} times as fast as that says.",
    )  # fmt: skip


def useless_shares(case: Case) -> dict[str, float]:
    """Return the share of rows, 0 to 1, whose gradient is zero or not finite, by loss; remembered.

    Of the rows that are answered rightly: the others need no attack, and DLR is constant where the label comes third.
    Losses are taken plainly, in the model's own precision, as published attacks take them: cross-entropy's gradient
    vanishes where the softmax is saturated. DLR needs three classes.
    """
    if "useless_gradients" not in case.memo:
        case.memo["useless_gradients"] = _useless_shares(case)
    found: dict[str, float] = case.memo["useless_gradients"]
    return found


def _useless_shares(case: Case) -> dict[str, float]:
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ce": lambda logits, y: functional.cross_entropy(logits, y, reduction="none"), "dlr": dlr, "margin": margin,
    }  # fmt: skip
    if case.num_classes < 3:
        del losses["dlr"]
    useless = dict.fromkeys(losses, 0)
    right = ~case.clean_wrong.to(case.x.device)
    rows = case.x[right], case.y[right]
    with guarded(case.model):
        for x, y in zip(*(torch.split(part, case.batch_size) for part in rows), strict=True):
            images = x.clone().requires_grad_()
            logits = case.model(images.clone())
            for key, loss in losses.items():
                value = loss(logits, y).sum()
                largest = _gradient(value, images).flatten(1).abs().amax(1)
                useless[key] += int(((largest == 0) | ~largest.isfinite()).sum())
    return {key: count / max(1, int(right.sum())) for key, count in useless.items()}


def _gradient(value: Tensor, images: Tensor) -> Tensor:
    """Return the gradient, zero where nothing connects value and images."""
    if not value.requires_grad:
        return torch.zeros_like(images)
    found = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(images) if found is None else found


def measured_slopes(case: Case) -> Slopes | None:
    """Return how the margin's slopes and its gradient compare; None if too few rows have a gradient.

    The best wrong class is that of the image, at each step. Slopes are central differences along the gradient and along
    random directions, with the same random numbers in every pass.
    """
    x, y = 0.1 + 0.8 * case.x[:SLOPE_ROWS], case.y[:SLOPE_ROWS]
    rng, seed = generator(case.seed, "referee", "slopes"), derive(case.seed, "referee", "slopes") % 2**32

    def logits(images: Tensor) -> Tensor:
        with isolated_randomness(seed, x.device):
            found: Tensor = case.model(images)
        return found

    with guarded(case.model):
        with torch.no_grad():
            rival = logits(x).scatter(1, y.unsqueeze(1), -torch.inf).argmax(1)  # else a change of rival bends the loss

        def loss(images: Tensor) -> Tensor:
            pair = logits(images).gather(1, torch.stack([rival, y], 1))
            return pair[:, 0] - pair[:, 1]

        images = x.clone().requires_grad_()
        gradient = _gradient(loss(images.clone()).sum(), images).double().flatten(1)
        length = gradient.norm(dim=1)
        known = length.isfinite() & (length > 0)
        if int(known.sum()) < max(2, len(x) // 2):
            return None
        along = torch.where(known, length, 1.0)
        ways = [gradient / along.unsqueeze(1)]
        for _ in range(DIRECTIONS):
            drawn = torch.randn(tuple(x.shape), generator=rng).to(gradient).flatten(1)
            ways.append(drawn / drawn.norm(dim=1, keepdim=True))
        with torch.no_grad():
            near, far = (torch.stack([_slope(loss, x, way, step) for way in ways], 1)[known] for step in STEPS)
    foretold = torch.stack([(gradient * way).sum(1) for way in ways[1:]], 1)[known]
    measured, largest = far[:, 1:], torch.maximum(near.norm(dim=1), far.norm(dim=1))
    steepest = (x[0].numel() * measured.square().mean(1)).sqrt()
    return Slopes(
        rows=int(known.sum()),
        ratio=_median(far[:, 0] / length[known]),
        aligned=_median(far[:, 0] / steepest.clamp_min(1e-300)),
        correlation=_median(functional.cosine_similarity(measured, foretold, dim=1, eps=1e-300)),
        roughness=_median(torch.where(largest > 0, (near - far).norm(dim=1) / largest.clamp_min(1e-300), 1.0)),
    )


def _slope(loss: Callable[[Tensor], Tensor], x: Tensor, way: Tensor, step: float) -> Tensor:
    length = (REACH / way.abs().amax(1).clamp_min(1e-12)).clamp_max(step * way.shape[1] ** 0.5)
    change = (length.unsqueeze(1) * way).view_as(x)
    ahead, behind = (loss((x + sign * change).to(x.dtype)).double() for sign in (1, -1))
    return (ahead - behind) / (2 * length)


def _median(values: Tensor) -> float:
    return float(values.nan_to_num(0.0).median())


def _finding(status: Status, number: float, details: dict[str, object], meaning: str, advice: str = "") -> Finding:
    return Finding("E17", TITLE, status, meaning, advice, number, "%", details)
