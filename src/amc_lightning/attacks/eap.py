"""EAP, the elastic-net attack (EAD): the smallest perturbation, in l1 and l2 together, that changes the answer."""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.base import (
    Attack,
    CleanNeed,
    Start,
    full_precision,
    gradient_logits,
    is_fooled,
    is_unknown,
    largest_entries,
    rows_like,
)
from amc_lightning.attacks.search import Nearest, WeightSearch, hinge


class EAP(Attack):
    """Search the least elastic-net distance ||d||_2^2 + beta ||d||_1 of an image that the model gets wrong.

    FISTA on ``c * max(0, real - other + confidence) + ||d||_2^2 + beta ||d||_1``, from the clean image in every search
    step, with a search over c for each row alone. The best image over all iterates of all steps is returned; the clean
    one where none is wrong. Work that cannot change the result is left out: the gradient at the clean image is known
    from the first pass, rows that it cannot move stay put for a whole search step, rows wrong from the start are done,
    and on the CPU (elsewhere it would cost a wait for the device) no iterate is judged that could not be the best.
    Labels are required.

    Args:
        model: returns logits.
        beta: weight of the l1 norm, and threshold of the shrinkage, >= 0.
        binary_search_steps: search steps over c, >= 1.
        max_iterations: FISTA iterations a search step, >= 1.
        initial_const: first c; multiplied by 10 until a row is fooled, then bisected.
        learning_rate: first step size; falls to 0 as sqrt(1 - k / max_iterations).
        confidence: margin by which another class must lead, >= 0.
        decision_rule: what "smallest" means: ``EN`` elastic-net distance, ``L1`` l1 distance.
        abort_early: end a row's search step when its own loss has not fallen by 0.01 % over a tenth of the iterations.

    Attributes:
        zero_gradient: rows right at the start whose margin had a gradient of exactly zero there, (B,) bool.

    Reference:
        Chen et al., AAAI 2018, https://arxiv.org/abs/1709.04114, algorithm 1 and equation 7. The momentum is the
        paper's k / (k + 3), the authors' program has (k + 1) / (k + 4); threshold, step sizes, search and "repeat the
        last step with the upper bound from ten steps on" follow their program, as CleverHans does. Their program
        aborts by the loss of the whole batch, and forgets the iterate at which it does; here each row is judged by
        its own loss, after its iterate has been offered.
    """

    draws_nothing = True
    zero_gradient: Tensor | None = None

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
        abort_early: bool = False,
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
        self.abort_early = abort_early

    @staticmethod
    def gradient_passes(binary_search_steps: int = 9, max_iterations: int = 1000, **arguments: object) -> int:
        """Return the gradient passes per row at most: the one at the clean image serves every search step."""
        return 1 + binary_search_steps * (max_iterations - 1)

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that it needs the gradient at the clean images."""
        return "gradient"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, confidence: float = 0.0, **arguments: object) -> Tensor:
        """Return the gradient of max(0, real - other + confidence) by the logits, (B, K)."""
        column = labels.unsqueeze(1)
        # -inf, not 0, hides the true class: logits may all be negative.
        other, index = logits.scatter(1, column, -math.inf).max(dim=1, keepdim=True)
        active = (logits.gather(1, column) - other + confidence > 0).to(logits)
        return torch.zeros_like(logits).scatter_(1, column, active).scatter_(1, index, -active)

    def forward(self, images: Tensor, labels: Tensor, start: Start | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            start: the pass at ``images``, if it has been made.

        Returns:
            x_adv, like ``images``.
        """
        x0, labels = images.detach().to(self.device), labels.to(self.device)
        if start is None or start.gradient is None:
            gradient, logits = self._hinge_gradient(x0, labels)
            start = Start(logits if self._gradients_are_exact else self._logits(x0), gradient)
        gradient0 = cast(Tensor, start.gradient)
        right, largest = ~is_fooled(start.logits, labels, self.confidence), largest_entries(gradient0)
        best = Nearest.of(x0)
        # An answer that is no number must be noticed, and so must such a gradient.
        best.unknown = is_unknown(start.logits) | (right & largest.isnan())
        movable = right & ~best.unknown
        self.zero_gradient = movable & (largest == 0)
        search = WeightSearch(x0, self.initial_const, self.binary_search_steps)
        for search_step in range(self.binary_search_steps):
            c = search.weight(search_step)
            first = self._shrink(x0, x0, c, gradient0, self.learning_rate)
            moved = (first != x0).flatten(1).any(dim=1) & movable
            rows = moved.nonzero().squeeze(1)  # the one host sync of a search step
            found = torch.zeros_like(movable)
            if len(rows) > 0:
                step_best = self._descend(x0[rows], first[rows], c[rows], labels[rows], best.distance[rows])
                found[rows] = step_best.distance.isfinite()
                best.merge_(rows, step_best)
            search.learn(found)
        return best.result()

    def _descend(self, x0: Tensor, first: Tensor, c: Tensor, labels: Tensor, known: Tensor) -> Nearest:
        """Run one search step from its first iterate on; return the best wrong iterate of each row.

        ``known`` is the distance of the best so far, (B,): of iterates further away one is enough.
        """
        whole = best = Nearest.of(x0)
        left = torch.arange(len(x0), device=x0.device)  # rows that have not aborted
        x = y = first  # the first momentum is 0 / 3
        plateau = torch.full_like(c, math.inf)
        logits: Tensor | None = None
        for k in range(self.max_iterations):
            if k > 0:
                gradient, at_y = self._hinge_gradient(y, labels)
                if logits is None:  # of the first iterate: there y is x
                    logits = at_y if self._gradients_are_exact else self._logits(x)
                    self._judge(best, x, x0, logits, labels)
                    plateau = self._loss(x, x0, c, logits, labels) if self.abort_early else plateau
                previous = x
                x = self._shrink(y, x0, c, gradient, self.learning_rate * math.sqrt(1 - k / self.max_iterations))
                y = torch.add(x, x - previous, alpha=k / (k + 3))
            if (k > 0 or self.max_iterations == 1) and not self.abort_early and x.device.type == "cpu":
                self._judge_promising(best, x, x0, labels, known)
            elif k > 0 or self.max_iterations == 1:
                logits = self._logits(x)
                self._judge(best, x, x0, logits, labels)
            if self.abort_early and logits is not None and k % max(1, self.max_iterations // 10) == 0:
                loss = self._loss(x, x0, c, logits, labels)
                kept = (loss <= 0.9999 * plateau).nonzero().squeeze(1)
                plateau = loss
                if len(kept) < len(left):
                    whole.put_(left, best)
                    if len(kept) == 0:
                        return whole
                    left, best = left[kept], best[kept]
                    x, y, x0, c, labels = x[kept], y[kept], x0[kept], c[kept], labels[kept]
                    plateau, logits = plateau[kept], logits[kept]
        whole.put_(left, best)
        return whole

    @property
    def _gradients_are_exact(self) -> bool:
        return bool(getattr(self.model, "gradients_are_exact", True))

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        return full_precision(self.get_logits(x))

    def _hinge_gradient(self, y: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of max(0, real - other + confidence) by ``y``, per row, and the logits there."""
        point = y.detach().requires_grad_()
        logits = gradient_logits(self, point)
        direction = self.clean_direction(logits.detach(), labels, confidence=self.confidence)
        (gradient,) = torch.autograd.grad(logits, point, direction)
        return gradient, logits.detach()

    def _shrink(self, y: Tensor, x0: Tensor, c: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Take a gradient step from ``y`` on the smooth part, shrink it towards ``x0`` by beta, clip to the box."""
        offset = torch.mul(y - x0, 1 - 2 * step_size)
        offset = offset.addcmul_(rows_like(c, y), gradient, value=-step_size)
        return functional.softshrink(offset, self.beta).add_(x0).clamp_(0.0, 1.0)

    def _distance(self, x: Tensor, x0: Tensor, rule: str) -> Tensor:
        delta = (x - x0).flatten(1)
        distance = delta.abs().sum(dim=1)
        return distance if rule == "L1" else self.beta * distance + delta.square().sum(dim=1)

    def _judge(self, best: Nearest, x: Tensor, x0: Tensor, logits: Tensor, labels: Tensor) -> None:
        best.offer(x, self._distance(x, x0, self.decision_rule), logits, labels, self.confidence)

    def _judge_promising(self, best: Nearest, x: Tensor, x0: Tensor, labels: Tensor, known: Tensor) -> None:
        """Judge the rows that have nothing yet in this search step, or are nearer than what they have."""
        distance = self._distance(x, x0, self.decision_rule)
        open_ = best.distance.isinf() | (distance < torch.minimum(best.distance, known))
        rows = open_.nonzero().squeeze(1)
        if len(rows) == len(x):
            self._judge(best, x, x0, self._logits(x), labels)
        elif len(rows) > 0:
            part, x = best[rows], x[rows]
            self._judge(part, x, x0[rows], self._logits(x), labels[rows])
            best.put_(rows, part)

    def _loss(self, x: Tensor, x0: Tensor, c: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return c * hinge(logits, labels, self.confidence) + self._distance(x, x0, "EN")
