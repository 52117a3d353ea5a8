"""FGSM, the fast gradient sign method: one step of size eps along the sign of the gradient."""

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import LINF
from amc_lightning.attacks.base import Attack, CleanNeed, Start, cross_entropy_direction, gradient_logits, is_zero


class FGSM(Attack):
    """Move every pixel by eps in the direction that raises the cross-entropy, within the box [0, 1].

    Pixel by pixel what `torchattacks.FGSM` does where that has a gradient; the sign stays right where the softmax is
    saturated and theirs vanishes. Labels are required.

    Args:
        model: returns logits.
        eps: l-inf radius in pixel units of [0, 1]; 0 costs no pass.

    Attributes:
        zero_gradient: rows whose gradient was exactly zero in the last call, (B,) bool; they come back clean.

    Reference:
        Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572, section 4. Default of CleverHans'
        ``FastGradientMethod``.
    """

    draws_nothing = True
    zero_gradient: Tensor | None = None

    def __init__(self, model: nn.Module, eps: float = 0.3) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("FGSM", model)
        self.eps = eps

    @staticmethod
    def gradient_passes(**arguments: object) -> int:
        """Return the gradient passes per row."""
        return 1

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that it needs the gradient at the clean images."""
        return "nothing" if arguments.get("eps") == 0 else "gradient"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return the direction of the cross-entropy, (B, K)."""
        return cross_entropy_direction(logits, labels)

    def forward(self, images: Tensor, labels: Tensor, start: Start | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            start: the pass at ``images``, if it has been made.

        Returns:
            x_adv, like ``images``.
        """
        images, labels = images.detach().to(self.device), labels.to(self.device)
        self.zero_gradient = None
        if self.eps == 0:
            return images.clone()
        if start is not None and start.gradient is not None:
            gradient = start.gradient
        else:
            point = images.requires_grad_()
            logits = gradient_logits(self, point)
            (gradient,) = torch.autograd.grad(logits, point, cross_entropy_direction(logits, labels))
            images = point.detach()
        self.zero_gradient = is_zero(gradient)
        return LINF.step(gradient, images).mul_(self.eps).add_(images).clamp_(0.0, 1.0)
