"""EAP, the elastic-net attack (EAD): the smallest perturbation, in l1 and l2 together, that changes the answer."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.base import Attack, full_precision

# "Not known yet" for the upper bound of the search, and the limit below which it counts as known: the authors' values.
NO_UPPER_BOUND, KNOWN_BELOW = 1e10, 1e9


class EAP(Attack):
    """Search the least elastic-net distance ||d||_2^2 + beta ||d||_1 of an image that the model gets wrong.

    FISTA on ``c * max(0, real - other + confidence) + ||d||_2^2 + beta ||d||_1``, from the clean image in every search
    step, with a search over c for each row alone. The best image over all iterates of all steps is returned; the clean
    one where none is wrong. Work that cannot change the result is left out: the gradient at the clean image is known
    from the first pass, rows that it cannot move stay put for a whole search step, and rows wrong from the start are
    done. Labels are required.

    Args:
        model: returns logits.
        beta: weight of the l1 norm, and threshold of the shrinkage, >= 0.
        binary_search_steps: search steps over c, >= 1.
        max_iterations: FISTA iterations a search step, >= 1.
        initial_const: first c; multiplied by 10 until a row is fooled, then bisected.
        learning_rate: first step size; falls to 0 as sqrt(1 - k / max_iterations).
        confidence: margin by which another class must lead, >= 0.
        decision_rule: what "smallest" means: ``EN`` elastic-net distance, ``L1`` l1 distance.

    Reference:
        Chen et al., AAAI 2018, https://arxiv.org/abs/1709.04114, algorithm 1 and equation 7. The momentum is the
        paper's k / (k + 3), the authors' program has (k + 1) / (k + 4); threshold, step sizes, search and "repeat the
        last step with the upper bound from ten steps on" follow their program, as CleverHans does.
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float = 1e-2,
        binary_search_steps: int = 9,
        max_iterations: int = 1000,
        initial_const: float = 1e-3,
        learning_rate: float = 1e-2,
        confidence: float = 0.0,
        decision_rule: Literal["EN", "L1"] = "EN",
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("EAP", model)
        self.beta = beta
        self.binary_search_steps = binary_search_steps
        self.max_iterations = max_iterations
        self.initial_const = initial_const
        self.learning_rate = learning_rate
        self.confidence = confidence
        self.decision_rule = decision_rule

    @staticmethod
    def gradient_passes(binary_search_steps: int = 9, max_iterations: int = 1000, **arguments: object) -> int:
        """Return the gradient passes per row at most: the one at the clean image serves every search step."""
        return 1 + binary_search_steps * (max_iterations - 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.

        Returns:
            x_adv, like ``images``.
        """
        x0, labels = images.detach().to(self.device), labels.to(self.device)
        gradient0, logits0 = self._hinge_gradient(x0, labels)
        movable = ~self._is_fooled(logits0, labels)
        best = _Best(x0)
        c = torch.full((len(x0),), self.initial_const, dtype=x0.dtype, device=x0.device)
        lower, upper = torch.zeros_like(c), torch.full_like(c, NO_UPPER_BOUND)
        for search_step in range(self.binary_search_steps):
            if search_step == self.binary_search_steps - 1 >= 9:
                c = upper
            first = self._shrink(x0, x0, c, gradient0, self.learning_rate)
            moved = (first != x0).flatten(1).any(dim=1) & movable
            rows = moved.nonzero().squeeze(1)  # the one host sync of a search step
            found = torch.zeros_like(movable)
            if len(rows) > 0:
                step_best = self._descend(x0[rows], first[rows], c[rows], labels[rows])
                found[rows] = step_best.distance.isfinite()
                best.merge_(rows, step_best)
            upper = torch.where(found, torch.minimum(upper, c), upper)
            lower = torch.where(found, lower, torch.maximum(lower, c))
            c = torch.where(upper < KNOWN_BELOW, (lower + upper) / 2, torch.where(found, c, c * 10))
        return best.x

    def _descend(self, x0: Tensor, first: Tensor, c: Tensor, labels: Tensor) -> "_Best":
        """Run one search step from its first iterate on; return the best wrong iterate of each row."""
        best = _Best(x0)
        x = y = first  # the first momentum is 0 / 3
        for k in range(1, self.max_iterations):
            gradient, logits = self._hinge_gradient(y, labels)
            if k == 1:
                self._judge(best, x, x0, logits, labels)
            previous = x
            x = self._shrink(y, x0, c, gradient, self.learning_rate * math.sqrt(1 - k / self.max_iterations))
            y = torch.add(x, x - previous, alpha=k / (k + 3))
            self._judge(best, x, x0, self._logits(x), labels)
        if self.max_iterations == 1:
            self._judge(best, x, x0, self._logits(x), labels)
        return best

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        return full_precision(self.get_logits(x))

    def _hinge_gradient(self, y: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of max(0, real - other + confidence) by ``y``, per row, and the logits there."""
        y = y.detach().requires_grad_()
        logits = full_precision(self.get_logits(y))
        column = labels.unsqueeze(1)
        real = logits.gather(1, column).squeeze(1)
        # -inf, not 0, hides the true class: logits may all be negative.
        other = logits.scatter(1, column, -math.inf).amax(dim=1)
        (gradient,) = torch.autograd.grad(functional.relu(real - other + self.confidence).sum(), y)
        return gradient, logits.detach()

    def _is_fooled(self, logits: Tensor, labels: Tensor) -> Tensor:
        handicap = torch.full_like(logits[:, :1], self.confidence)
        return logits.scatter_add(1, labels.unsqueeze(1), handicap).argmax(dim=1) != labels

    def _shrink(self, y: Tensor, x0: Tensor, c: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Take a gradient step from ``y`` on the smooth part, shrink it towards ``x0`` by beta, clip to the box."""
        offset = torch.mul(y - x0, 1 - 2 * step_size)
        offset = offset.addcmul_(c.view(-1, 1, 1, 1), gradient, value=-step_size)
        return functional.softshrink(offset, self.beta).add_(x0).clamp_(0.0, 1.0)

    def _judge(self, best: "_Best", x: Tensor, x0: Tensor, logits: Tensor, labels: Tensor) -> None:
        delta = (x - x0).flatten(1)
        distance = delta.abs().sum(dim=1)
        if self.decision_rule == "EN":
            distance = self.beta * distance + delta.square().sum(dim=1)
        best.offer(x, torch.where(self._is_fooled(logits, labels), distance, math.inf))


class _Best:
    """Per row the nearest wrong image so far; the clean one, at an infinite distance, where there is none."""

    def __init__(self, x0: Tensor) -> None:
        self.x = x0.clone()
        self.distance = torch.full((len(x0),), math.inf, dtype=x0.dtype, device=x0.device)

    def offer(self, x: Tensor, distance: Tensor) -> None:
        nearer = distance < self.distance
        self.x = torch.where(nearer.view(-1, 1, 1, 1), x, self.x)
        self.distance = torch.where(nearer, distance, self.distance)

    def merge_(self, rows: Tensor, other: "_Best") -> None:
        nearer = other.distance < self.distance[rows]
        self.x[rows] = torch.where(nearer.view(-1, 1, 1, 1), other.x, self.x[rows])
        self.distance[rows] = torch.where(nearer, other.distance, self.distance[rows])
