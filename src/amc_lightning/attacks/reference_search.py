"""What the attacks of `reference` share: the rows still standing, and pyautoattack's searches run on them.

From pyautoattack come the searches themselves, from one start towards one target. The loops around them (rows,
restarts, targets, members) are written out here, as there they reseed the global random states of all devices (from
the clock by default), make up the starts, run a tracing function and print.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted, L1_projection
from pyautoattack.fab_base import FABAttack
from pyautoattack.square import SquareAttack
from torch import Tensor

from amc_lightning.attacks.ball import Norm
from amc_lightning.attacks.base import Start, full_precision, is_fooled, is_unknown, largest_entries, nan_where
from amc_lightning.errors import UserError

THEIR_NAME = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# Targeted DLR divides by a difference of the first, third and fourth largest logit.
DLR_CLASSES = 4
# Given to pyautoattack, which otherwise warns once per search of gradients that are zero.
_SILENT = logging.Logger("pyautoattack", level=logging.CRITICAL + 1)


class Standing:
    """A batch under attack: which rows nothing has fooled so far, and what fooled the others.

    pyautoattack computes in float32 throughout; what fools is decided here on the model in the images' own precision.

    Args:
        model: from images to logits.
        images: (B, C, H, W) float in [0, 1].
        labels: class indices, (B,) int64.
        eps: radius in pixel units of [0, 1].
        norm: of the radius.
        start: what a pass at ``images`` told; None to make it here.

    Attributes:
        x_adv: images that fool, clean ones where nothing has or the model was wrong from the start; NaN where an answer
            was no number.
        rows: indices of the rows still standing.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        eps: float,
        norm: Norm,
        start: Start | None,
    ) -> None:
        self.model, self.images, self.labels = model, images.detach(), labels.to(images.device)
        self.eps, self.norm = eps, norm
        logits = self._exact_logits(self.images) if start is None else start.logits
        # An answer that is no number must be noticed, and so must such a gradient.
        unknown = is_unknown(logits)
        self.x_adv = nan_where(unknown, self.images)
        self.num_classes = logits.shape[1]
        # Of a length in float32: half a unit in the last place of each pixel.
        self.rounding = 6e-8 * images[0].numel() ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[norm]
        # The label first, even where another class has the same logit.
        self._order = logits.scatter(1, self.labels.unsqueeze(1), math.inf).float().sort(dim=1).indices
        standing = ~is_fooled(logits, self.labels) & ~unknown
        # A budget of nothing leaves every image as it is.
        self.rows = (standing if eps > 0 else torch.zeros_like(standing)).nonzero().squeeze(1)
        # Largest entries of all gradients so far: of each row, and of the standing rows in the search under way.
        self._largest = torch.full((len(images),), -1.0, device=images.device)
        self._searched: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Clean images of the standing rows, float32."""
        return self.images[self.rows].float()

    @property
    def y(self) -> Tensor:
        """Labels of the standing rows."""
        return self.labels[self.rows]

    def target(self, rank: int) -> Tensor:
        """Return the class of the ``rank``-th largest clean logit of the standing rows; 1 is the label."""
        return self._order[self.rows, -rank]

    def logits(self, x: Tensor) -> Tensor:
        """Return logits as pyautoattack wants them: float32, and its own to write into; look at gradients by ``x``."""
        if len(x) == 0:  # Square asks this where a margin is exactly 0
            return x.new_zeros(0, self.num_classes)
        if x.requires_grad:
            self._watch(x)
        logits = full_precision(self.model(x.to(self.images.dtype))).float()
        return logits if logits.requires_grad else logits.clone()

    def _watch(self, x: Tensor) -> None:
        """Note the size of the gradient by ``x``, one row for each that stands, when it is taken."""
        numbers = ~largest_entries(x.detach()).isnan()  # what FAB's own arithmetic has lost says nothing of the model

        def note(gradient: Tensor) -> None:
            largest = torch.where(numbers, largest_entries(gradient.detach()), 0.0)
            self._searched = largest if self._searched is None else torch.maximum(self._searched, largest)

        x.register_hook(note)  # type: ignore[no-untyped-call]

    def offer(self, candidates: Tensor) -> None:
        """Keep what fools the model within the budget; its rows stand no longer.

        FAB's candidates may lie outside, as it minimises a norm; and those of APGD in l1 on images of few pixels, where
        pyautoattack's projection does not end in the ball.

        Args:
            candidates: one for each standing row, float32.
        """
        candidates = candidates.detach()
        if self._searched is not None:
            self._largest[self.rows] = torch.maximum(self._largest[self.rows], self._searched)
            self._searched = None
        logits = self._exact_logits(candidates.to(self.images.dtype))
        unknown = is_unknown(logits) & ~largest_entries(candidates).isnan()
        fooled = is_fooled(logits, self.y)
        fooled &= _length(candidates - self.x, self.norm) <= self.eps * (1 + 1e-6) + self.rounding
        ended = fooled | unknown
        self.x_adv[self.rows[ended]] = nan_where(unknown, candidates)[ended].to(self.images.dtype)
        self.rows = self.rows[~ended]

    @property
    def zero_gradient(self) -> Tensor:
        """Rows still standing that were searched with gradients, every one of which was exactly zero, (B,) bool."""
        return self._of_standing(self._largest == 0)

    def result(self) -> Tensor:
        """Return ``x_adv``, with NaN also for the rows still standing that had a gradient which was no number."""
        return nan_where(self._of_standing(self._largest.isnan()), self.x_adv)

    def _of_standing(self, marked: Tensor) -> Tensor:
        return torch.zeros_like(marked).index_put((self.rows,), marked[self.rows])

    @torch.no_grad()
    def _exact_logits(self, x: Tensor) -> Tensor:
        return full_precision(self.model(x))


def run_apgd_ce(standing: Standing, draws: Tensor, *, nb_iter: int) -> None:
    """Run APGD on the cross-entropy, once for each of the draws, (B, draws, C, H, W)."""
    if len(standing.rows) == 0:
        return
    search = APGDAttack(standing.logits, loss="ce", **_apgd_settings(standing, nb_iter))
    for draw in range(draws.shape[1]):
        if len(standing.rows) > 0:
            standing.offer(_climb(search, standing, draws[:, draw], nb_iter))


def run_apgd_t(standing: Standing, draws: Tensor, *, nb_iter: int, n_target_classes: int, restarts: int) -> None:
    """Run APGD on the targeted DLR loss, for each target and restart in turn; draws (B, targets * restarts, ...)."""
    search = APGDAttack_targeted(standing.logits, **_apgd_settings(standing, nb_iter))
    for target in range(min(n_target_classes, standing.num_classes - 1)):
        for restart in range(restarts):
            if len(standing.rows) > 0:
                search.y_target = standing.target(2 + target)
                standing.offer(_climb(search, standing, draws[:, target * restarts + restart], nb_iter))


def run_fab_t(standing: Standing, *, nb_iter: int, n_target_classes: int) -> None:
    """Run FAB towards each target in turn, from the clean image."""
    search = _FAB(standing, nb_iter)
    for target in range(min(n_target_classes, standing.num_classes - 1)):
        if len(standing.rows) > 0:
            search.target_class = 2 + target
            standing.offer(search.attack_single_run(standing.x, standing.y, is_targeted=True))


def run_square(standing: Standing, seeds: Iterable[int], *, n_queries: int) -> None:
    """Run Square, once for each of the seeds."""
    search = _Square(
        standing.logits,
        norm=THEIR_NAME[standing.norm],
        n_queries=n_queries,
        eps=standing.eps,
        p_init=0.8,
        resc_schedule=False,  # the reference's: the schedule for 10000 queries, whatever n_queries is
        device=standing.images.device,
    )
    for seed in seeds:
        if len(standing.rows) > 0:
            x, y = standing.x, standing.y
            search.init_hyperparam(x)
            with _seeded(seed):
                _, candidates = search.attack_single_run(x, y)
            standing.offer(candidates)


def draw_starts(shape: Sequence[int], count: int, generator: torch.Generator, norm: object) -> Tensor:
    """Draw what APGD's starts are made of: uniform in [-1, 1] for l-inf, normal for l2 and l1.

    Args:
        shape: (B, C, H, W) of the images.
        count: starts for each row.
        generator: on the CPU.
        norm: of the budget.

    Returns:
        (B, count, C, H, W) float32; (B, C, H, W) for one start. The first ones do not depend on ``count``.
    """
    draw = torch.rand if norm == "linf" else torch.randn
    starts = [draw(tuple(shape), generator=generator) for _ in range(count)]
    if norm == "linf":
        starts = [start.mul_(2.0).sub_(1.0) for start in starts]
    return torch.stack(starts, dim=1) if count > 1 else starts[0]


def given_starts(noise: Tensor | None, images: Tensor, count: int, norm: Norm) -> Tensor:
    """Return what ``draw_starts`` returned, (B, count, C, H, W); from the global state if ``noise`` is None."""
    if noise is None:
        noise = draw_starts(images.shape, count, torch.default_generator, norm)
    return noise.to(images.device).view(len(images), count, *images.shape[1:])


def check_square(images: Tensor, norm: Norm) -> None:
    """Raise a UserError for images that pyautoattack's Square cannot tile at its start, for l2 and l1.

    It lays side by side as many windows of a fifth of the height as the height or width holds, from a margin on that
    suits five of them; a sixth must not stick out.
    """
    height, width = images.shape[2:]
    window = height // 5
    margin = (height - 5 * window) // 2
    fits = window == 1 or (window > 1 and all(margin + side // window * window <= side for side in (height, width)))
    if norm != "linf" and not fits:
        raise UserError(
            "square",
            (height, width),
            f"pixels cannot be tiled by pyautoattack for {norm}",
            "allowed: 5 to 11, 13, 15 to 17, 20 to 23, and 25 or more, as wide as high",
            "Use linf.",
        )


def _apgd_settings(standing: Standing, nb_iter: int) -> dict[str, object]:
    return {
        "n_iter": nb_iter,
        "norm": THEIR_NAME[standing.norm],
        "eps": standing.eps,
        "eot_iter": 1,
        "rho": 0.75,
        "device": standing.images.device,
        "logger": _SILENT,
    }


def _climb(search: APGDAttack, standing: Standing, draws: Tensor, nb_iter: int) -> Tensor:
    """Run one APGD search on the standing rows; return the iterates that fooled, the start where none did."""
    x, y = standing.x, standing.y
    noise = draws[standing.rows].to(x)
    search.init_hyperparam(x)
    with _seeded(0):  # it draws a start, even if it is given one
        if search.norm != "L1":
            fooling: Tensor = search.attack_single_run(x, y, x_init=x + search.eps * search.normalize(noise))[3]
            return fooling
        # The reference's schedule for l1: three radii, 30 % of the iterations, 30 % and the rest.
        first = math.ceil(0.3 * nb_iter)
        start = x + noise
        for radius, iterations in ((3.0, first), (2.0, first), (1.0, max(nb_iter - 2 * first, 0))):
            search.eps, search.n_iter = radius * standing.eps, iterations
            start = start + L1_projection(x, start - x, search.eps)
            start, _, _, fooling = search.attack_single_run(x, y, x_init=start)
        return fooling


def _length(delta: Tensor, norm: Norm) -> Tensor:
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    return flat.square().sum(dim=1).sqrt() if norm == "l2" else flat.abs().sum(dim=1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator on the CPU, from which pyautoattack draws whatever the device; put it back on leaving."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class _FAB(FABAttack):  # type: ignore[misc]  # pyautoattack has no types
    """FAB with gradients by `autograd.grad`; its own class for torch calls ``backward``."""

    def __init__(self, standing: Standing, nb_iter: int) -> None:
        super().__init__(
            norm=THEIR_NAME[standing.norm], n_iter=nb_iter, eps=standing.eps, device=standing.images.device
        )
        self._predict_fn = standing.logits

    def _get_predicted_label(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._predict_fn(x).argmax(dim=1)

    def get_diff_logits_grads_batch_targeted(
        self, imgs: Tensor, la: Tensor, la_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = imgs.detach().clone().requires_grad_()
            logits = self._predict_fn(point)
            gap = logits.gather(1, la_target.unsqueeze(1)) - logits.gather(1, la.unsqueeze(1))
            (gradient,) = torch.autograd.grad(gap.sum(), point)
        return gap.detach(), gradient.unsqueeze(1)


class _Square(SquareAttack):  # type: ignore[misc]  # pyautoattack has no types
    """Square whose rows share their random signs as they share the squares' places, so that none sees the others.

    Each row then does what it does in the reference when it is attacked alone with the same seed.
    """

    def random_choice(self, shape: list[int]) -> Tensor:
        per_row = len(shape) == 4
        signs: Tensor = super().random_choice([1, *shape[1:]] if per_row else shape)
        return signs.expand(shape)
