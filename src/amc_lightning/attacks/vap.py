"""VAP, the virtual adversarial perturbation: the l2 direction in which the model's own answer changes most."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import Attack, full_precision

# Max pooling has ties on flat backgrounds, where the derivative at x is not the one along d; this far along d it is.
OFF_TIES = 1e-4


class VAP(Attack):
    """One l2 step along the dominant curvature of KL(f(x) || f(x + d)), found by power iteration. Needs no labels.

    ``exact`` takes the product of the KL's Hessian (the Fisher matrix at the clean answer) with d by double backward;
    ``finite`` is the paper's difference of gradients at distance ``xi``, which in float32 with ``xi`` = 1e-6 is
    mostly rounding. A row whose curvature vanishes is returned clean.

    Args:
        model: returns logits.
        eps: l2 length of the perturbation before clipping, in pixel units of [0, 1].
        num_iters: power iterations, >= 1.
        xi: distance of the finite difference; not used by ``exact``.
        method: ``exact`` or ``finite``.

    Reference:
        Miyato et al., ICLR 2016, https://arxiv.org/abs/1507.00677, section 3.3. Defaults of CleverHans'
        ``VirtualAdversarialMethod``, except for the method.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 2.0,
        num_iters: int = 1,
        xi: float = 1e-6,
        method: Literal["exact", "finite"] = "exact",
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("VAP", model)
        self.eps = eps
        self.num_iters = num_iters
        self.xi = xi
        self.method = method

    @staticmethod
    def gradient_passes(num_iters: int = 1, **arguments: object) -> int:
        """Return the gradient passes per row; an exact one costs two to three plain ones."""
        return num_iters

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw the first direction, standard normal."""
        return torch.randn(tuple(shape), generator=generator)

    def forward(self, images: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: ignored.
            noise: first direction, (B, C, H, W); drawn from the global state if left out.

        Returns:
            x_adv, like ``images``.
        """
        images = images.detach().to(self.device)
        with torch.no_grad():
            clean_logits = full_precision(self.get_logits(images))
        product = self._exact_product if self.method == "exact" else self._finite_product
        direction = _unit(torch.randn_like(images) if noise is None else noise)
        for _ in range(self.num_iters):
            direction = _unit(product(images, clean_logits, direction))
        return (images + self.eps * direction).clamp_(0.0, 1.0)

    def _exact_product(self, images: Tensor, clean_logits: Tensor, direction: Tensor) -> Tensor:
        """Return J^T F J d up to a positive factor per row: J the logits' Jacobian, F the softmax's Fisher matrix."""
        point = (images + OFF_TIES * direction).requires_grad_()
        logits = full_precision(self.get_logits(point))
        # J^T w is linear in w, so its derivative by w along d is J d, whatever w is.
        w = torch.zeros_like(logits, requires_grad=True)
        (pulled,) = torch.autograd.grad(logits, point, w, create_graph=True)
        if not pulled.requires_grad:  # a model that rounds its input passes nothing back
            return torch.zeros_like(images)
        (pushed,) = torch.autograd.grad(pulled, w, direction, retain_graph=True)
        (product,) = torch.autograd.grad(logits, point, _fisher_product(clean_logits, pushed))
        return product

    def _finite_product(self, images: Tensor, clean_logits: Tensor, direction: Tensor) -> Tensor:
        """Return the gradient of KL(f(x) || f(x + xi d)), in the model's own precision as the paper has it."""
        point = (images + self.xi * direction).requires_grad_()
        log_answer = full_precision(self.get_logits(point)).log_softmax(dim=1)
        cross_entropy = -(clean_logits.softmax(dim=1) * log_answer).sum()
        (gradient,) = torch.autograd.grad(cross_entropy, point)
        return gradient


def _fisher_product(logits: Tensor, u: Tensor) -> Tensor:
    """Return (diag p - p p^T) u per row, scaled to a largest entry of 1, without cancellation where p is nearly 1.

    Adding a constant to u changes nothing, so u is taken relative to its entry at the most probable class: then every
    sum below is one of small probabilities, exact to rounding even where the others round to 1.
    """
    p = logits.softmax(dim=1)
    u = u - u.gather(1, p.argmax(dim=1, keepdim=True))
    v = p * (u - (p * u).sum(dim=1, keepdim=True))
    return v / _nonzero(v.abs().amax(dim=1, keepdim=True))


def _unit(rows: Tensor) -> Tensor:
    """Scale every row to l2 length 1; zero rows stay zero, and NaN stays NaN so that it is noticed."""
    flat = rows.flatten(1)
    # By the largest entry first: the squares of a confident model's gradient underflow.
    flat = flat / _nonzero(flat.abs().amax(dim=1, keepdim=True))
    flat = flat / _nonzero(flat.norm(dim=1, keepdim=True))
    return flat.view_as(rows)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
