"""A proxy in training: a network that learns what a target answers, from the answers alone."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from amc_lightning.stage import StageModule


class ProxyModule(StageModule):
    """Train a proxy on a target's answers, hard or soft, with or without adversarial examples of its own.

    It is trained as a stage is, with answers in the place of labels: where the answers are probabilities, the loss is
    the cross-entropy with them. Adversarial examples are crafted on the proxy itself and shall get the answer that the
    clean image got: the target is not asked about them.

    Args:
        net: the proxy, from images (B, C, H, W) in [0, 1] to logits (B, K).
        soft: the answers to all images of the set, (N, K) float32, each row a distribution; None where they are
            classes, which the batches then hold as labels.
        **settings: as of ``StageModule``, without ``craft_on``.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, sections 3.3 and 4.4 (proxies); Papernot et al., Practical Black-Box Attacks
        against Machine Learning, 2017 (training on answers; without their augmentation by queries).
    """

    kind: Literal["stage", "proxy"] = "proxy"

    def __init__(self, net: nn.Module, *, soft: Tensor | None = None, **settings: Any) -> None:
        super().__init__(net, **settings)
        self.soft: Tensor | None
        self.register_buffer("soft", soft, persistent=False)  # it is data, and no part of a checkpoint

    def goals(self, y: Tensor, rows: Tensor) -> Tensor:
        """Return the answers to a batch: classes (B,), or distributions (B, K)."""
        return y if self.soft is None else self.soft[rows]


def distributions(answers: Tensor) -> Tensor:
    """Return probabilities as an interface shows them as distributions that can be learnt.

    Rounding and leaving out classes take from the sum, which is scaled back to 1. A row of which nothing is shown (all
    rounded to 0) says nothing and becomes uniform.

    Args:
        answers: (N, K) float32 in [0, 1].

    Returns:
        (N, K) float32, each row summing to 1.

    Example:
        >>> distributions(torch.tensor([[0.6, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])).tolist()
        [[0.75, 0.25, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]
    """
    total = answers.sum(dim=1, keepdim=True)
    uniform = torch.full_like(answers, 1 / answers.shape[1])
    return torch.where(total > 0, answers / total.clamp(min=torch.finfo(answers.dtype).tiny), uniform)
