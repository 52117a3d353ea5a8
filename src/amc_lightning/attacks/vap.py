"""VAP, the virtual adversarial perturbation: the l2 direction in which the model's own answer changes most."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import nonzero, unit_l2
from amc_lightning.attacks.base import Attack, CleanNeed, Start, full_precision, is_zero

LOGIT_STEP = 1e-3
"""Length of the step in which ``logit`` takes the change of the logits: rounding and curvature are both small there."""
# Max pooling has ties on flat backgrounds, where the derivative at x is not the one along d; this far along d it is.
OFF_TIES = 1e-4


class VAP(Attack):
    """One l2 step along the dominant curvature of KL(f(x) || f(x + d)), found by power iteration. Needs no labels.

    The product of the KL's Hessian (J^T F J: J the logits' Jacobian, F the softmax's Fisher matrix at the clean answer)
    with a direction is taken by one of three methods. ``exact`` takes J d exactly, right in any precision: by double
    backward, two to three passes for one, or through a crafting copy for the price of a forward pass. ``logit`` takes
    J d from the change of the logits over a short step, the rest exactly: the passes of the paper's own method, and in
    float32 mostly the exact direction (docs/attacks.md has the cosines); a model that answers in half precision gets
    ``exact`` instead (one that computes so but answers in float32 is not recognised). ``finite`` is the paper's
    difference of gradients at distance ``xi``, which in float32 with ``xi`` = 1e-6 is mostly rounding. A row whose
    curvature vanishes is returned clean. Passes are made in float32 even where gradients in bfloat16 are allowed.

    Args:
        model: returns logits.
        eps: l2 length of the perturbation before clipping, in pixel units of [0, 1]; 0 costs no pass.
        num_iters: power iterations, >= 1.
        xi: distance of the finite difference; used by ``finite`` only.
        method: ``exact``, ``logit`` or ``finite``.

    Attributes:
        zero_gradient: rows whose curvature vanished in the last call, (B,) bool.

    Reference:
        Miyato et al., ICLR 2016, https://arxiv.org/abs/1507.00677, section 3.3. Defaults of CleverHans'
        ``VirtualAdversarialMethod``, except for the method.
    """

    draws_nothing = True
    zero_gradient: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        eps: float = 2.0,
        num_iters: int = 1,
        xi: float = 1e-6,
        method: Literal["exact", "logit", "finite"] = "exact",
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
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that it needs the clean logits only."""
        return "nothing" if arguments.get("eps") == 0 else "logits"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return zeros: at the clean images the KL has no gradient."""
        return torch.zeros_like(logits)

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw the first direction, standard normal."""
        return torch.randn(tuple(shape), generator=generator)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: ignored.
            noise: first direction, (B, C, H, W); drawn from the global state if left out.
            start: the pass at ``images``, if it has been made.

        Returns:
            x_adv, like ``images``.
        """
        images = images.detach().to(self.device)
        self.zero_gradient = None
        if self.eps == 0:
            return images.clone()
        with torch.no_grad():
            answer = self.get_logits(images) if start is None else start.logits
        half = answer.dtype in (torch.float16, torch.bfloat16) or getattr(self.model, "answers_in_half", False)
        clean_logits = full_precision(answer)
        product = {"logit": self._logit_product, "exact": self._exact_product, "finite": self._finite_product}[
            "exact" if half and self.method == "logit" else self.method
        ]
        direction = unit_l2(torch.randn_like(images) if noise is None else noise)
        for _ in range(self.num_iters):
            direction = unit_l2(product(images, clean_logits, direction))
        self.zero_gradient = is_zero(direction)
        return direction.mul_(self.eps).add_(images).clamp_(0.0, 1.0)

    def _logit_product(self, images: Tensor, clean_logits: Tensor, direction: Tensor) -> Tensor:
        """Return J^T F (z(x + h d) - z(x)), which is h times the product: one pass."""
        point = (images + LOGIT_STEP * direction).requires_grad_()
        logits = full_precision(self.get_logits(point))
        (product,) = torch.autograd.grad(logits, point, _fisher_product(clean_logits, logits.detach() - clean_logits))
        return product

    def _exact_product(self, images: Tensor, clean_logits: Tensor, direction: Tensor) -> Tensor:
        """Return J^T F J d up to a positive factor per row: J the logits' Jacobian, F the softmax's Fisher matrix."""
        point = (images + OFF_TIES * direction).requires_grad_()
        linearised = getattr(self.model, "linearised", None)
        if linearised is not None and (pair := linearised(point, direction)) is not None:
            logits, pushed = pair
            (product,) = torch.autograd.grad(logits, point, _fisher_product(clean_logits, pushed))
            return product
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
    """Return (diag p - p p^T) u per row, scaled to a largest entry of 1; no cancellation, no underflow.

    Adding a constant to u changes nothing, so u is taken relative to its entry at the most probable class m. With t the
    probability of the other classes together, and q the softmax over them alone, the product is t times
    q_j (u_j - t q.u) for the others and -(1 - t) q.u for m: exact to rounding even where t rounds to 0.
    """
    top = logits.argmax(dim=1, keepdim=True)
    rest = logits.softmax(dim=1).scatter(1, top, 0.0).sum(dim=1, keepdim=True)
    q = logits.scatter(1, top, -torch.inf).softmax(dim=1)
    u = u - u.gather(1, top)
    mean = (q * u).sum(dim=1, keepdim=True)
    v = (q * (u - rest * mean)).scatter(1, top, (rest - 1) * mean)
    return v / nonzero(v.abs().amax(dim=1, keepdim=True))
