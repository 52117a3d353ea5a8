"""AutoAttack: the members of `reference`, one after the other, as the reference's ``standard`` version has them."""

from collections.abc import Sequence
from typing import cast

from torch import Generator, Tensor, nn

from amc_lightning.attacks.ball import Norm
from amc_lightning.attacks.base import Start
from amc_lightning.attacks.reference import APGDCE, FAB, Reference, Square
from amc_lightning.attacks.reference_search import (
    DLR_CLASSES,
    check_square,
    draw_starts,
    given_starts,
    run_apgd_ce,
    run_apgd_t,
    run_fab_t,
    run_square,
)

# The reference's ``standard`` version has other numbers for l1.
L1_RESTARTS, L1_TARGET_CLASSES = 5, 5


class AutoAttack(Reference):
    """AutoAttack, ``standard``: its members one after the other, each on the rows that are still standing.

    It is the reference, saturated softmax of APGD-CE included; the losses of the other members do not saturate.
    With its noise given, a row's result is its own and nothing is drawn.

    Args:
        model: returns logits.
        eps: radius in pixel units of [0, 1].
        norm: ``linf``, ``l2`` or ``l1``; for l1 the reference makes 5 starts in APGD-CE and takes 5 targets in APGD-T.
        nb_iter: iterations of APGD and FAB, >= 1.
        n_target_classes: targets of APGD-T and FAB, >= 1; all other classes if there are fewer.
        n_queries: of Square, >= 1.
        square_seed: of Square's random numbers, >= 0.

    Attributes:
        zero_gradient: rows that nobody fooled and whose gradients were all exactly zero, in every member that takes
            gradients, in the last call, (B,) bool: only Square has tried them.
    """

    draws_nothing = True

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        norm: Norm = "linf",
        nb_iter: int = 100,
        n_target_classes: int = 9,
        n_queries: int = 5000,
        square_seed: int = 0,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("AutoAttack", model, eps, norm)
        self.nb_iter = nb_iter
        self.n_target_classes = n_target_classes
        self.n_queries = n_queries
        self.square_seed = square_seed

    @staticmethod
    def members(num_classes: int) -> tuple[str, ...]:
        """Return the attacks in order: the reference's, without APGD-T where its loss is not defined.

        Args:
            num_classes: of the model, >= 2.

        Example:
            >>> AutoAttack.members(10), AutoAttack.members(3)
            (('apgd-ce', 'apgd-t', 'fab-t', 'square'), ('apgd-ce', 'fab-t', 'square'))
        """
        targeted = ("apgd-t",) if num_classes >= DLR_CLASSES else ()
        return ("apgd-ce", *targeted, "fab-t", "square")

    @staticmethod
    def gradient_passes(
        nb_iter: int = 100, n_target_classes: int = 9, n_queries: int = 5000, **arguments: object
    ) -> int:
        """Return the passes per row at most, a query of Square counted as half a gradient pass."""
        starts, targets = _starts(cast(Norm, arguments.get("norm", "linf")), n_target_classes)
        climbs = APGDCE.gradient_passes(nb_iter, starts + targets)
        return climbs + FAB.gradient_passes(nb_iter, n_target_classes) + Square.gradient_passes(n_queries)

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: Generator, **arguments: object) -> Tensor | None:
        """Draw the starts of APGD-CE, then those of APGD-T, before scaling: (B, starts, C, H, W)."""
        counts = _starts(cast(Norm, arguments.get("norm", "linf")), cast(int, arguments.get("n_target_classes", 9)))
        return draw_starts(shape, sum(counts), generator, arguments.get("norm", "linf"))

    def forward(
        self, images: Tensor, labels: Tensor, noise: Tensor | None = None, start: Start | None = None
    ) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            noise: what ``draw_noise`` returns; drawn from the global state if left out.
            start: what a pass at ``images`` told; only its logits are read.

        Returns:
            x_adv, like ``images``.

        Raises:
            UserError: for l2 or l1 and images of a size that pyautoattack cannot tile.
        """
        check_square(images, self.norm)
        starts, targets = _starts(self.norm, self.n_target_classes)
        draws = given_starts(noise, images, starts + targets, self.norm)
        standing = self._stand(images, labels, start)
        for member in self.members(standing.num_classes):
            if member == "apgd-ce":
                run_apgd_ce(standing, draws[:, :starts], nb_iter=self.nb_iter)
            elif member == "apgd-t":
                run_apgd_t(standing, draws[:, starts:], nb_iter=self.nb_iter, n_target_classes=targets, restarts=1)
            elif member == "fab-t":
                run_fab_t(standing, nb_iter=self.nb_iter, n_target_classes=self.n_target_classes)
            else:
                run_square(standing, [self.square_seed], n_queries=self.n_queries)
        self.zero_gradient = standing.zero_gradient
        return standing.result()


def _starts(norm: Norm, n_target_classes: int) -> tuple[int, int]:
    """Return how many starts APGD-CE and APGD-T make within AutoAttack."""
    return (L1_RESTARTS, min(n_target_classes, L1_TARGET_CLASSES)) if norm == "l1" else (1, n_target_classes)
