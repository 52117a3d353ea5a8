"""PGM, the projected gradient method in the l-inf ball (PGD), with a start given from outside."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.base import Attack, full_precision


class PGM(Attack):
    """Projected gradient ascent on the cross-entropy within an l-inf ball and the box [0, 1].

    With the same start it takes the steps of `torchattacks.PGD`. Labels are required.

    Args:
        model: returns logits.
        eps: l-inf radius in pixel units of [0, 1].
        eps_iter: step size in pixel units; None for 2.5 * eps / nb_iter.
        nb_iter: steps, >= 1.
        rand_init: start uniformly in the ball (clipped to the box), else at the image.
        keep_best: return the best point on the path instead of the last: a fooling one if there is one, and the
            largest loss among those. Costs one more forward pass.

    Reference:
        Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083, equation 1 and, for the step size, section 5;
        ``eps_iter`` and ``nb_iter`` default to CleverHans' ``MadryEtAl``.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        eps_iter: float | None = 0.01,
        nb_iter: int = 40,
        rand_init: bool = True,
        keep_best: bool = False,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("PGM", model)
        self.eps = eps
        self.eps_iter = 2.5 * eps / nb_iter if eps_iter is None else eps_iter
        self.nb_iter = nb_iter
        self.rand_init = rand_init
        self.keep_best = keep_best

    @staticmethod
    def completed(params: Mapping[str, object]) -> dict[str, object]:
        """Return parameters with the step size that None stands for, so that records show what was done."""
        if params.get("eps_iter", 0) is not None:
            return dict(params)
        return {**params, "eps_iter": 2.5 * cast(float, params["eps"]) / cast(int, params["nb_iter"])}

    @staticmethod
    def gradient_passes(nb_iter: int = 40, **arguments: object) -> int:
        """Return the gradient passes per row."""
        return nb_iter

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw uniform noise in [-1, 1], to be scaled by eps; None where the start is the image."""
        if not arguments.get("rand_init", True):
            return None
        return torch.rand(tuple(shape), generator=generator).mul_(2.0).sub_(1.0)

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            noise: start in the unit ball, (B, C, H, W) in [-1, 1]; drawn from the global state if ``rand_init`` asks
                for a start and none is given.

        Returns:
            x_adv, like ``images``.
        """
        images, labels = images.detach().to(self.device), labels.to(self.device)
        lower = (images - self.eps).clamp_(min=0.0)
        upper = (images + self.eps).clamp_(max=1.0)
        x_adv = images
        if self.rand_init:
            if noise is None:
                noise = torch.empty_like(images).uniform_(-1.0, 1.0)
            x_adv = torch.clamp(images + self.eps * noise, lower, upper)
        best = _Best(x_adv) if self.keep_best else None
        for _ in range(self.nb_iter):
            x_adv = x_adv.detach().requires_grad_()
            logits = full_precision(self.get_logits(x_adv))
            losses = functional.cross_entropy(logits, labels, reduction="none")
            # The sum, not the mean: a row's gradient must not shrink with the batch.
            (gradient,) = torch.autograd.grad(losses.sum(), x_adv)
            x_adv = x_adv.detach()
            if best is not None:
                best.offer(x_adv, logits.detach(), losses.detach(), labels)
            x_adv = torch.clamp(x_adv + self.eps_iter * gradient.sign(), lower, upper)
        if best is None:
            return x_adv
        with torch.no_grad():
            logits = full_precision(self.get_logits(x_adv))
            best.offer(x_adv, logits, functional.cross_entropy(logits, labels, reduction="none"), labels)
        return best.x


class _Best:
    """Per row the best point offered so far: fooling before not fooling, then by loss."""

    def __init__(self, start: Tensor) -> None:
        self.x = start.clone()
        self.fooled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.loss: Tensor | None = None

    def offer(self, x: Tensor, logits: Tensor, losses: Tensor, labels: Tensor) -> None:
        fooled = logits.argmax(dim=1) != labels
        if self.loss is None:
            self.loss, self.fooled = losses, fooled
            return
        better = (fooled & ~self.fooled) | ((fooled == self.fooled) & (losses > self.loss))
        self.x = torch.where(better.view(-1, 1, 1, 1), x, self.x)
        self.fooled = self.fooled | fooled
        self.loss = torch.where(better, losses, self.loss)
