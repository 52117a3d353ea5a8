"""Random noise of a given size: the baseline that an attack with gradients has to beat."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.ball import BALLS, Norm
from amc_lightning.attacks.base import Attack, full_precision, is_fooled, nan_where, rows_like


class RandomNoise(Attack):
    """Add random noise within a budget; of several draws, keep the one that harms most.

    The noise is uniform in the ball of its norm, and clipped with the image to [0, 1]
    afterwards. Of ``restarts`` draws each row keeps the first that fools the model, else the one with the largest
    cross-entropy; a single draw is not judged and costs no pass. The clean image is not among the draws, so that
    noise may also mend a row that was wrong. Labels are required for more than one draw.

    Args:
        model: returns logits.
        eps: radius in pixel units of [0, 1].
        norm: ``linf``, ``l2`` or ``l1``.
        restarts: draws for each row, >= 1.
    """

    draws_nothing = True

    def __init__(self, model: nn.Module, eps: float = 0.3, norm: Norm = "linf", restarts: int = 1) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("RandomNoise", model)
        self.eps = eps
        self.norm = norm
        self.restarts = restarts

    @staticmethod
    def needs_labels(restarts: int = 1, **arguments: object) -> bool:
        """Return that a single draw, which is not judged, needs none."""
        return restarts > 1

    @staticmethod
    def gradient_passes(restarts: int = 1, **arguments: object) -> int:
        """Return the passes per row at most, a forward pass counted as half a gradient pass."""
        return 0 if restarts == 1 else math.ceil(restarts / 2)

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw noise in the unit ball: (B, C, H, W), or (B, restarts, C, H, W) for more than one draw."""
        restarts = cast(int, arguments.get("restarts", 1))
        ball = BALLS[cast(Norm, arguments.get("norm", "linf"))]
        draws = [ball.draw(shape, generator) for _ in range(restarts)]
        return torch.stack(draws, dim=1) if restarts > 1 else draws[0]

    def forward(self, images: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Return noisy images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64; not read for a single draw.
            noise: in the unit ball, as ``draw_noise`` returns it; drawn from the global state if left out.

        Returns:
            Noisy images, like ``images``.
        """
        images = images.detach()
        if noise is None:
            noise = self.draw_noise(images.shape, torch.default_generator, norm=self.norm, restarts=self.restarts)
            assert noise is not None
        draws = noise.to(images).view(len(images), -1, *images.shape[1:])
        x = (images + self.eps * draws[:, 0]).clamp_(0.0, 1.0)
        if self.restarts == 1:
            return x
        assert labels is not None
        labels = labels.to(images.device)
        loss, fooled = self._judge(x, labels)
        # An answer that is no number must be noticed, unless another draw fools.
        x = nan_where(loss.isnan(), x)
        for draw in range(1, self.restarts):
            rows = (~fooled).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            x_new = (images[rows] + self.eps * draws[rows, draw]).clamp_(0.0, 1.0)
            new_loss, new_fooled = self._judge(x_new, labels[rows])
            better = new_fooled | ~((new_loss <= loss[rows]) | loss[rows].isnan())
            x[rows] = torch.where(rows_like(better, x), nan_where(new_loss.isnan(), x_new), x[rows])
            loss[rows] = torch.where(better, new_loss, loss[rows])
            fooled[rows] = new_fooled
        return x

    @torch.no_grad()
    def _judge(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's cross-entropy, and whether the model gets it wrong."""
        logits = full_precision(self.get_logits(x))
        return functional.cross_entropy(logits, labels, reduction="none"), is_fooled(logits, labels)
