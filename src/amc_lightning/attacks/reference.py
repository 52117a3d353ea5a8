"""The members of AutoAttack at the reference's budget, on the reference's own code (`pyautoattack`).

torchattacks has classes of the same names, but its ``AutoAttack`` runs APGD, APGD-T and FAB with 10 iterations in
place of 100 and has to be told the number of classes (10 if it is not), so that its robust accuracies are not
AutoAttack's. Here the reference's numbers are the defaults, and the number of classes is read from the logits.

They are the reference, with its weaknesses: APGD-CE stands still where the float32 softmax of a confident model has
saturated, which ``pgm`` does not. ``zero_gradient`` says of which rows that is so.

All classes return the clean image of a row that was wrong from the start, and of a row that nothing has fooled within
the budget.

Reference:
    Croce and Hein, ICML 2020, https://arxiv.org/abs/2003.01690; for l1 ICML 2021, https://arxiv.org/abs/2103.01208;
    https://github.com/fra31/auto-attack, the version called ``standard``.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import Norm
from amc_lightning.attacks.base import Attack, CleanNeed, Start
from amc_lightning.attacks.reference_search import (
    DLR_CLASSES,
    Standing,
    check_square,
    draw_starts,
    given_starts,
    run_apgd_ce,
    run_apgd_t,
    run_fab_t,
    run_square,
)
from amc_lightning.errors import UserError


class Reference(Attack):
    """What all of them share: a budget, and the clean pass that finds the rows wrong from the start."""

    zero_gradient: Tensor | None = None

    def __init__(self, name: str, model: nn.Module, eps: float, norm: Norm) -> None:
        super().__init__(name, model)
        self.eps = eps
        self.norm: Norm = norm

    @staticmethod
    def clean_need(**arguments: object) -> CleanNeed:
        """Return that it needs the logits at the clean images."""
        return "logits"

    @staticmethod
    def clean_direction(logits: Tensor, labels: Tensor, **arguments: object) -> Tensor:
        """Return zeros; not asked for, as no gradient at the clean images is needed."""
        return torch.zeros_like(logits)

    def _stand(self, images: Tensor, labels: Tensor, start: Start | None) -> Standing:
        return Standing(self.get_logits, images, labels, eps=self.eps, norm=self.norm, start=start)


class APGDCE(Reference):
    """APGD on the cross-entropy: PGD with momentum and a step size that it adapts to the progress of each row.

    It is the reference's, whose cross-entropy has no gradient where its softmax saturates: of a confident model it may
    move few rows, which is no evidence of robustness (``zero_gradient`` tells; ``pgm`` moves them). With its noise
    given, a row's result is its own and nothing is drawn.

    Args:
        model: returns logits.
        eps: radius in pixel units of [0, 1].
        norm: ``linf``, ``l2`` or ``l1``; for l1 the radius shrinks from 3 eps to eps on the way, as in the reference.
        nb_iter: iterations from each start, >= 1.
        restarts: random starts, >= 1; rows that are fooled make no more.

    Attributes:
        zero_gradient: rows that nothing fooled and whose gradients were exactly zero from every start in the last
            call, (B,) bool; they never left it.
    """

    draws_nothing = True

    def __init__(
        self, model: nn.Module, eps: float = 0.3, norm: Norm = "linf", nb_iter: int = 100, restarts: int = 1
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("APGDCE", model, eps, norm)
        self.nb_iter = nb_iter
        self.restarts = restarts

    @staticmethod
    def gradient_passes(nb_iter: int = 100, restarts: int = 1, **arguments: object) -> int:
        """Return the gradient passes per row at most."""
        # The first iterate of a search is not counted in nb_iter, and for l1 there are three searches.
        return restarts * (max(nb_iter, 2) + 3)

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw the starts before scaling: (B, C, H, W), or (B, restarts, C, H, W) for more than one."""
        return draw_starts(shape, cast(int, arguments.get("restarts", 1)), generator, arguments.get("norm", "linf"))

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
        """
        standing = self._stand(images, labels, start)
        draws = given_starts(noise, images, self.restarts, self.norm)
        run_apgd_ce(standing, draws, nb_iter=self.nb_iter)
        self.zero_gradient = standing.zero_gradient
        return standing.result()


class APGDT(Reference):
    """APGD on the targeted DLR loss, towards the most probable other classes one after the other.

    With its noise given, a row's result is its own and nothing is drawn.

    Args:
        model: returns logits of at least 4 classes.
        eps: radius in pixel units of [0, 1].
        norm: ``linf``, ``l2`` or ``l1``; for l1 the radius shrinks from 3 eps to eps on the way, as in the reference.
        nb_iter: iterations from each start, >= 1.
        restarts: random starts for each target, >= 1.
        n_target_classes: targets, >= 1; all other classes if there are fewer.

    Attributes:
        zero_gradient: rows that nothing fooled and whose gradients were exactly zero from every start, for every
            target, in the last call, (B,) bool.
    """

    draws_nothing = True

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        norm: Norm = "linf",
        nb_iter: int = 100,
        restarts: int = 1,
        n_target_classes: int = 9,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("APGDT", model, eps, norm)
        self.nb_iter = nb_iter
        self.restarts = restarts
        self.n_target_classes = n_target_classes

    @staticmethod
    def gradient_passes(nb_iter: int = 100, restarts: int = 1, n_target_classes: int = 9, **arguments: object) -> int:
        """Return the gradient passes per row at most."""
        return n_target_classes * APGDCE.gradient_passes(nb_iter, restarts)

    @staticmethod
    def draw_noise(shape: Sequence[int], generator: torch.Generator, **arguments: object) -> Tensor | None:
        """Draw the starts before scaling: (B, n_target_classes * restarts, C, H, W), (B, C, H, W) if that is one."""
        targets, restarts = arguments.get("n_target_classes", 9), arguments.get("restarts", 1)
        return draw_starts(shape, cast(int, targets) * cast(int, restarts), generator, arguments.get("norm", "linf"))

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
            UserError: for a model of fewer than 4 classes.
        """
        standing = self._stand(images, labels, start)
        if standing.num_classes < DLR_CLASSES:
            raise UserError(
                "apgd_t",
                standing.num_classes,
                "classes are too few for the targeted DLR loss",
                f"allowed: {DLR_CLASSES} or more",
                "Use apgd_ce, fab or autoattack.",
            )
        draws = given_starts(noise, images, self.n_target_classes * self.restarts, self.norm)
        run_apgd_t(
            standing, draws, nb_iter=self.nb_iter, n_target_classes=self.n_target_classes, restarts=self.restarts
        )
        self.zero_gradient = standing.zero_gradient
        return standing.result()


class FAB(Reference):
    """FAB towards the most probable other classes: steps onto the linearised boundary, biased to the clean image.

    It minimises the norm; what it finds farther away than ``eps`` does not count. It starts at the clean image, draws
    nothing, and a row's result is its own.

    Args:
        model: returns logits.
        eps: radius in pixel units of [0, 1].
        norm: ``linf``, ``l2`` or ``l1``.
        nb_iter: iterations for each target, >= 1.
        n_target_classes: targets, >= 1; all other classes if there are fewer.

    Attributes:
        zero_gradient: rows that nothing fooled and whose gradients were all exactly zero, for every target, in the last
            call, (B,) bool.

    Reference:
        Croce and Hein, ICML 2020, https://arxiv.org/abs/1907.02044.
    """

    draws_nothing = True

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        norm: Norm = "linf",
        nb_iter: int = 100,
        n_target_classes: int = 9,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("FAB", model, eps, norm)
        self.nb_iter = nb_iter
        self.n_target_classes = n_target_classes

    @staticmethod
    def gradient_passes(nb_iter: int = 100, n_target_classes: int = 9, **arguments: object) -> int:
        """Return the gradient passes per row at most; each comes with a forward pass."""
        return n_target_classes * nb_iter

    def forward(self, images: Tensor, labels: Tensor, start: Start | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            start: what a pass at ``images`` told; only its logits are read.

        Returns:
            x_adv, like ``images``.
        """
        standing = self._stand(images, labels, start)
        run_fab_t(standing, nb_iter=self.nb_iter, n_target_classes=self.n_target_classes)
        self.zero_gradient = standing.zero_gradient
        return standing.result()


class Square(Reference):
    """Square: a random search with squares of one colour, on the margin; needs no gradient.

    All rows see the same random numbers, so that a row does what the reference does with it alone, whatever its
    neighbours. (There, the rows of a batch share the places of the squares, and signs depend on who is left.)

    Args:
        model: returns logits.
        eps: radius in pixel units of [0, 1].
        norm: ``linf``, ``l2`` or ``l1``; for l2 and l1 some small sizes of images are not possible.
        n_queries: queries in each restart, >= 1.
        restarts: random starts, >= 1; rows that are fooled make no more.
        square_seed: of the random numbers, >= 0; restarts count up from it. As in the reference, it is the same for
            every batch.

    Reference:
        Andriushchenko et al., ECCV 2020, https://arxiv.org/abs/1912.00049.
    """

    draws_nothing = True

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        norm: Norm = "linf",
        n_queries: int = 5000,
        restarts: int = 1,
        square_seed: int = 0,
    ) -> None:
        """Keep the parameters; the class says what they mean."""
        super().__init__("Square", model, eps, norm)
        self.n_queries = n_queries
        self.restarts = restarts
        self.square_seed = square_seed

    @staticmethod
    def gradient_passes(n_queries: int = 5000, restarts: int = 1, **arguments: object) -> int:
        """Return the passes per row at most, a query counted as half a gradient pass."""
        return restarts * (n_queries + 1) // 2

    def forward(self, images: Tensor, labels: Tensor, start: Start | None = None) -> Tensor:
        """Craft adversarial images.

        Args:
            images: (B, C, H, W) float in [0, 1].
            labels: class indices, (B,) int64.
            start: what a pass at ``images`` told; only its logits are read.

        Returns:
            x_adv, like ``images``.

        Raises:
            UserError: for l2 or l1 and images of a size that pyautoattack cannot tile.
        """
        check_square(images, self.norm)
        standing = self._stand(images, labels, start)
        seeds = range(self.square_seed, self.square_seed + self.restarts)
        run_square(standing, seeds, n_queries=self.n_queries)
        return standing.result()
