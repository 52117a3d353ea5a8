"""One attack with its parameters, as the method uses it: images in, adversarial images out, nothing else changed."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from amc_lightning.attacks.ball import Norm
from amc_lightning.attacks.base import Attack, CleanNeed, Start, StartsClean, TakesNoise
from amc_lightning.attacks.copies import PLAIN, Execution
from amc_lightning.attacks.randomness import isolated_randomness, seed_torch
from amc_lightning.attacks.view import ModelView, opened
from amc_lightning.errors import NotFiniteError

Label = Literal["true", "predicted"]
ORDERS: Mapping[Norm, float] = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True)
class Crafted:
    """Adversarial images and what is known of them.

    Attributes:
        x_adv: (B, C, H, W), like the images, in [0, 1].
        predicted: the model's answers to them in its own precision, (B,) int64.
        fooled: whether they differ from the given labels, (B,) bool; also where the model was wrong before.
        distances: by norm (``linf``, ``l2``, ``l1``), size of each row's perturbation in pixel units of [0, 1],
            (B,) float64.
        gradient_passes: forward passes that were differentiated, mean per row; several gradients taken from one pass
            (DeepFool's candidates, VAP's exact product) count once.
        forward_passes: passes without gradient made besides, mean per row.
        zero_gradient: rows whose first gradient was exactly zero, (B,) bool: such a row was not attacked, and is no
            evidence of robustness. None for a class that does not say.
    """

    x_adv: Tensor
    predicted: Tensor
    fooled: Tensor
    distances: Mapping[Norm, Tensor]
    gradient_passes: float
    forward_passes: float
    zero_gradient: Tensor | None


@dataclass(frozen=True)
class GuardedAttack:
    """A `torchattacks` attack class and its arguments behind the guard; made by ``load`` or ``build``.

    The attack object is made anew in every call: it keeps the device its model had when it was made.

    Args:
        name: the name in configs, keys and tables, such as ``pgm``.
        attack_class: a subclass of `torchattacks.attack.Attack`.
        arguments: keywords of its constructor, checked.
        params: the same under the project's own names, for records.
        norm: norm of the budget; None for an unbounded search.
        eps: radius of the budget in pixel units of [0, 1]; None for an unbounded search.
        uses_labels: whether the attack looks at labels at all.
        label: whose labels: ``true`` those given, ``predicted`` the model's own answers on the clean images.
        execution: how passes through the model are made.
        seed: seeds the noise of a call that gets neither noise nor generator; every such call draws the same.
        generator: a CPU generator used by calls that get none; it goes on from call to call.
    """

    name: str
    attack_class: type[Attack]
    arguments: Mapping[str, object]
    params: Mapping[str, object]
    norm: Norm | None
    eps: float | None
    uses_labels: bool
    label: Label = "true"
    execution: Execution = PLAIN
    seed: int = 0
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        """Hash what is hashable of what ``==`` compares."""
        return hash((self.name, self.attack_class, self.label, self.execution, self.seed))

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Craft adversarial images on ``model``, which comes back bit for bit as it was.

        Works in train mode, under ``no_grad``, ``inference_mode`` and autocast. The same noise gives the same result;
        the global random states are neither used nor moved.

        Args:
            model: returns logits, (B, K) of any float type, K >= 2; on the device of ``x``. Several attacks on one
                batch may share a view (``opened``).
            x: images, (B, C, H, W) float32 (or float64) in [0, 1].
            y: class indices, (B,) int64; not needed where the attack or ``label`` does not ask for them.
            noise: rows of ``draw_noise``; drawn from ``generator`` if left out.
            generator: a CPU generator; if left out the attack's own, else one seeded with its seed.
            start: what a pass at ``x`` told, as ``share_clean`` gives it; ``y`` are then the labels to move away from.

        Returns:
            x_adv, like ``x``, in [0, 1], without gradient.

        Raises:
            NotFiniteError: if the result is not finite.
            UserError: if images, labels or the model's answers have a wrong shape, dtype or range.
            ValueError: if noise is given that does not fit.
        """
        with opened(model, x, y, self.execution) as view:
            return self._craft(view, x, y, noise, generator, start)[0]

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Crafted:
        """Craft as ``__call__`` does, and say what came of it; costs one forward pass more.

        Args:
            model: as in ``__call__``.
            x: as in ``__call__``.
            y: true class indices, (B,) int64. Where ``__call__`` can do without and they are left out, a row counts as
                fooled if its answer is not the clean one.
            noise: as in ``__call__``.
            generator: as in ``__call__``.

        Returns:
            Images, the model's answers to them, distances and passes.

        Raises:
            NotFiniteError: as ``__call__``, and if the answers to the result are not finite.
            UserError: as ``__call__``.
            ValueError: as ``__call__``.
        """
        with opened(model, x, y, self.execution) as view:
            before = view.gradient_rows, view.forward_rows
            x_adv, zero_gradient = self._craft(view, x, y, noise, generator, None)
            rows = max(1, len(x))
            gradient_passes = (view.gradient_rows - before[0]) / rows
            forward_passes = (view.forward_rows - before[1]) / rows
            with torch.no_grad():
                predicted = self._answers(view, x_adv)
                truth = y.to(x.device) if y is not None else self._answers(view, x.detach())
        delta = (x_adv.double() - x.detach().double()).flatten(1)
        distances = {norm: torch.linalg.vector_norm(delta, order, dim=1) for norm, order in ORDERS.items()}
        return Crafted(x_adv, predicted, predicted != truth, distances, gradient_passes, forward_passes, zero_gradient)

    def _answers(self, view: ModelView, x: Tensor) -> Tensor:
        if len(x) == 0:
            return torch.empty(0, dtype=torch.int64, device=x.device)
        logits = view.judge(x.clone())
        if bool(logits.isnan().any()):
            raise NotFiniteError(f"attack {self.name}: the model answers its images with NaN; look at the model")
        return logits.argmax(dim=1)

    def _craft(
        self,
        view: ModelView,
        x: Tensor,
        y: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
        start: Start | None,
    ) -> tuple[Tensor, Tensor | None]:
        if y is None and self.uses_labels and self.label == "true":
            raise ValueError(f"attack {self.name} needs labels: give y, or load it with label='predicted'")
        if len(x) == 0:
            return x.detach().clone(), None
        generator = generator or self.generator or torch.Generator().manual_seed(self.seed)
        noise = self._fitting_noise(x, noise, generator)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        own = getattr(self.attack_class, "draws_nothing", False)
        if own:  # what the model draws in eval mode is its own affair, but shall be the same again
            seed_torch(seed, x.device)
        with nullcontext() if own else isolated_randomness(seed, x.device):
            dtype = view.crafting_dtype if x.dtype == torch.float32 else x.dtype
            images = x.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            labels = None if y is None else y.to(x.device, copy=True)
            if start is None:
                labels, start = self._begin(view, images, labels)
            keywords: dict[str, object] = {} if noise is None else {"noise": noise.to(images, copy=True)}
            if start is not None and self.clean_need != "nothing":
                keywords["start"] = start.to(images.dtype)
            attack = self.attack_class(view, **self.arguments)
            x_adv = attack(images, labels, **keywords).detach().to(x.dtype)
        if not view.verify(x_adv, self.name):
            raise NotFiniteError(f"attack {self.name} returned values that are not finite; look at the model's weights")
        return x_adv.clamp_(0.0, 1.0), getattr(attack, "zero_gradient", None)

    def _begin(self, view: ModelView, images: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Start | None]:
        """Make the pass at the clean images if the attack or its labels need one."""
        if self.label == "predicted" and self.uses_labels:
            ((aim, start),) = share_clean(view, images, labels, [(self, None)], label="predicted")
            return aim, start
        return labels, None

    def _fitting_noise(self, x: Tensor, noise: Tensor | None, generator: torch.Generator) -> Tensor | None:
        if noise is None:
            return self.draw_noise(x.shape, generator)
        wanted = x.shape
        if issubclass(self.attack_class, TakesNoise):
            drawn = self.attack_class.draw_noise((1, *x.shape[1:]), torch.Generator(), **self.arguments)
            wanted = torch.Size() if drawn is None else torch.Size((len(x), *drawn.shape[1:]))
        if not issubclass(self.attack_class, TakesNoise) or noise.shape != wanted:
            raise ValueError(f"attack {self.name}: noise of shape {tuple(noise.shape)} for images {tuple(x.shape)}")
        return noise

    @property
    def clean_need(self) -> CleanNeed:
        """What the attack needs of the clean images, and may share."""
        if not issubclass(self.attack_class, StartsClean):
            return "nothing"
        return self.attack_class.clean_need(**self.arguments)

    @property
    def max_passes(self) -> int | None:
        """Gradient passes per row at most, for estimates; None for a class that does not say."""
        count = getattr(self.attack_class, "gradient_passes", None)
        return None if count is None else int(count(**self.arguments))

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """Draw the start noise of a whole batch, to be cut to rows and given back as ``noise``.

        Args:
            shape: (B, C, H, W) of the images.
            generator: a CPU generator.

        Returns:
            (B, ..., C, H, W) float32 on the CPU; None for an attack that takes no noise.
        """
        if not issubclass(self.attack_class, TakesNoise):
            return None
        return self.attack_class.draw_noise(shape, generator, **self.arguments)


def share_clean(
    view: ModelView,
    x: Tensor,
    y: Tensor | None,
    parts: Sequence[tuple[GuardedAttack, Tensor | None]],
    *,
    label: Label,
) -> list[tuple[Tensor | None, Start | None]]:
    """Pass every row of a batch at most once through the model at its clean images, for all attacks of the batch.

    The pass gives each part what it needs: predicted labels, clean logits, the gradient of its own direction there.
    Rows that need a gradient go together, rows that need logits only go together, the rest is not passed.

    Args:
        view: an open view on the model.
        x: images, (B, C, H, W).
        y: class indices, (B,) int64.
        parts: attacks and the rows each gets, (n,) int64; None for all rows.
        label: ``predicted`` replaces labels by the model's own answers.

    Raises:
        UserError: if the model's answers have a wrong shape, or labels do not fit them.

    Returns:
        For each part the labels to move away from, (n,), and its start, for ``GuardedAttack.__call__``; None for a
        part that needs none.
    """
    if x.is_inference():
        x = x.clone()
    needs: list[CleanNeed] = [attack.clean_need for attack, _ in parts]
    for index, (attack, _) in enumerate(parts):
        if needs[index] == "nothing" and label == "predicted" and attack.uses_labels:
            needs[index] = "logits"
    found: list[tuple[Tensor | None, Start | None]] = [
        (y if y is None or rows is None else y[rows], None) for _, rows in parts
    ]
    for need in ("gradient", "logits"):
        chosen = [index for index in range(len(parts)) if needs[index] == need]
        if not chosen:
            continue
        images = [x if rows is None else x[rows] for _, rows in (parts[index] for index in chosen)]
        sizes = [len(part) for part in images]
        batch = images[0] if len(images) == 1 else torch.cat(images)
        source = None
        if need == "gradient":
            batch = batch.detach().requires_grad_()
            source = view.gradient_logits(batch)
        if source is not None and view.gradients_are_exact:
            logits = source.detach()
        else:
            with torch.no_grad():
                logits = view(batch)
        directions = []
        for index, part in zip(chosen, torch.split(logits, sizes), strict=True):
            attack, labels = parts[index][0], found[index][0]
            if label == "predicted" and attack.uses_labels:
                labels = part.argmax(dim=1)
            found[index] = labels, Start(part)
            if need == "gradient":
                directs = cast(type[StartsClean], attack.attack_class).clean_direction
                directions.append(directs(part, cast(Tensor, labels), **attack.arguments))
        if source is not None:
            (gradient,) = torch.autograd.grad(source, batch, torch.cat(directions).to(source))
            for index, part in zip(chosen, torch.split(gradient, sizes), strict=True):
                labels, start = found[index]
                found[index] = labels, Start(cast(Start, start).logits, part)
    return found
