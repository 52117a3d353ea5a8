"""MSD, multi steepest descent: one perturbation for a union of l-inf, l2 and l1 balls."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import L1, L2, LINF, Ball
from amc_lightning.attacks.base import (
    Attack,
    cross_entropy_direction,
    full_precision,
    gradient_logits,
    is_zero,
    loss_order,
    rows_like,
)


class MSD(Attack):
    """Steepest ascent on the cross-entropy within a union of balls and the box [0, 1].

    In every step each norm proposes its own steepest step from the current point, brought back into its own ball; each
    row takes the proposal with the largest loss. One gradient and one forward pass a norm and step. Starts at the
    image. Labels are required.

    Args:
        model: returns logits.
        linf: radius of the l-inf ball in pixel units of [0, 1]; 0 for none.
        l2: radius of the l2 ball; 0 for none.
        l1: radius of the l1 ball; 0 for none.
        nb_iter: steps, >= 1.
        reach: length of all steps together, in radii: a step is reach * radius / nb_iter long.

    Attributes:
        zero_gradient: rows whose first gradient was exactly zero in the last call, (B,) bool.

    Raises:
        ValueError: if no ball has a radius, or the steps have no length.

    Reference:
        Maini et al., ICML 2020, https://arxiv.org/abs/1909.04068, algorithm 1; ``reach`` as Madry et al. set steps.
    """

    draws_nothing = True
    zero_gradient: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        linf: float = 0.3,
        l2: float = 2.0,
        l1: float = 10.0,
        nb_iter: int = 20,
        reach: float = 2.5,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("MSD", model)
        radii: Mapping[str, tuple[Ball, float]] = {"linf": (LINF, linf), "l2": (L2, l2), "l1": (L1, l1)}
        self.balls = [(ball, radius) for ball, radius in radii.values() if radius > 0]
        if not self.balls:
            raise ValueError("MSD needs a radius above 0 in at least one norm")
        if not reach > 0:
            raise ValueError(f"MSD needs steps: reach is {reach}, and has to be above 0")
        self.nb_iter = nb_iter
        self.reach = reach

    @staticmethod
    def gradient_passes(nb_iter: int = 20, **arguments: object) -> int:
        """Return the gradient passes per row."""
        return nb_iter

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.

        Returns:
            x_adv, like ``images``.
        """
        images, labels = images.detach().to(self.device), labels.to(self.device)
        self.zero_gradient = None
        x_adv = images.clone()
        for _ in range(self.nb_iter):
            gradient = self._gradient(x_adv, labels)
            if self.zero_gradient is None:
                self.zero_gradient = is_zero(gradient)
            x_adv = self._steepest(images, x_adv, gradient, labels)
        return x_adv

    def _steepest(self, images: Tensor, x_adv: Tensor, gradient: Tensor, labels: Tensor) -> Tensor:
        """Return for each row the proposal of the norm whose loss is largest."""
        best, most = x_adv, torch.empty(0)
        for place, (ball, radius) in enumerate(self.balls):
            moved = ball.step(gradient, x_adv).mul_(self.reach * radius / self.nb_iter).add_(x_adv)
            moved = ball.project(moved - images, radius).add_(images).clamp_(0.0, 1.0)
            if len(self.balls) == 1:
                return moved
            loss = self._loss(moved, labels)
            if place == 0:
                best, most = moved, loss
                continue
            better = ~(loss <= most)  # NaN is taken over, so that it is noticed
            best, most = torch.where(rows_like(better, best), moved, best), torch.where(better, loss, most)
        return best

    def _gradient(self, x_adv: Tensor, labels: Tensor) -> Tensor:
        point = x_adv.detach().requires_grad_()
        logits = gradient_logits(self, point)
        (gradient,) = torch.autograd.grad(logits, point, cross_entropy_direction(logits, labels))
        return gradient

    @torch.no_grad()
    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return loss_order(full_precision(self.get_logits(x)), labels)
