"""What attacks see of a model: its logits, in the precision and by the path that the caller chose, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import full_precision
from amc_lightning.attacks.batch import check_types, check_values
from amc_lightning.attacks.copies import PLAIN, Execution, copies_of
from amc_lightning.attacks.fold import CraftingCopy
from amc_lightning.attacks.guard import guarded, unwrapped
from amc_lightning.attacks.randomness import kept_torch_randomness
from amc_lightning.errors import UserError


class ModelView(nn.Module):
    """The logits of a model that is held by the guard, on the images' device, and no switch to turn.

    `torchattacks` calls ``eval`` and ``train`` on what it is given and takes its device from the first parameter.
    Images are brought to the model's dtype at its door. The first logits of a view are checked: (B, K) with K >= 2,
    labels below K, not probabilities; the last without waiting for the device, until ``verify``.

    Args:
        model: returns logits.
        images: the batch the view is opened for, (B, C, H, W).
        labels: its class indices, (B,) int64; None if there are none.
        execution: which path passes take.

    Attributes:
        gradient_rows: rows passed with a gradient to come, so far.
        forward_rows: rows passed without.
        answers_in_half: whether the model answers in half precision, known after the first pass.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor | None, execution: Execution = PLAIN) -> None:
        super().__init__()
        self.largest_label = check_values(images, labels)
        self.anchor = nn.Parameter(images.new_empty(0), requires_grad=False)
        self.model = model
        self.training = False
        self.gradient_rows = 0
        self.forward_rows = 0
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self.checked = False
        self.answers_in_half = False
        self.probabilities: Tensor | None = None
        # Not modules of this one: torchattacks and the guard shall not see them.
        self._paths: dict[str, CraftingCopy | None] = {"float32": None, "bfloat16": None}
        if (execution.fast or execution.bf16) and len(images) > 0:
            self._paths = copies_of(model, images, execution)

    @property
    def crafting_dtype(self) -> torch.dtype:
        """The dtype attacks compute in: float64 on a float64 model, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def gradients_are_exact(self) -> bool:
        """Whether ``gradient_logits`` are good enough to decide on."""
        return self._paths["bfloat16"] is None

    def train(self, mode: bool = True) -> "ModelView":
        """Leave every mode alone: the guard has set them."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits, (B, K), in at least float32."""
        return self._pass(images, self._paths["float32"])

    def gradient_logits(self, images: Tensor) -> Tensor:
        """Return logits to be differentiated, (B, K) in at least float32; in bfloat16 inside where that was asked."""
        return self._pass(images, self._paths["bfloat16"] or self._paths["float32"])

    def judge(self, images: Tensor) -> Tensor:
        """Return the plain model's logits, (B, K), not counted as the attack's work."""
        images = images if self.dtype is None else images.to(self.dtype)
        return full_precision(self._asked(images))

    def _asked(self, images: Tensor) -> Tensor:
        """Call the model, and refuse one that writes to its images: they are the caller's, or the attack's own."""
        version = images._version
        try:
            logits: Tensor = self.model(images)
        except RuntimeError as error:
            if "leaf Variable that requires grad is being used in an in-place" not in str(error):
                raise
            raise self._writes() from error
        if images._version != version:
            raise self._writes()
        return logits

    def _writes(self) -> UserError:
        return UserError(
            "model",
            type(self.model).__name__,
            "writes to its images in place",
            "needed: a forward that leaves them as they are",
            "Write x = x - mean, not x.sub_(mean).",
        )

    def verify(self, x_adv: Tensor, name: str) -> bool:
        """Return whether ``x_adv`` is finite, after one wait for the device.

        Raises:
            UserError: if the first logits were probabilities.
        """
        ends = torch.stack(x_adv.aminmax())  # several times as fast as isfinite() of every pixel
        flags = [ends.isfinite().all()]
        if self.probabilities is not None:
            flags.append(self.probabilities)
            self.probabilities = None
        finite, *probabilities = torch.stack(flags).tolist()
        if any(probabilities):
            raise UserError(
                "model",
                type(self.model).__name__,
                f"returns probabilities, which attack {name} cannot use",
                "needed: logits, before any softmax",
                "Remove the softmax from the end of the model.",
            )
        return bool(finite)

    def linearised(self, images: Tensor, direction: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the logits, to be differentiated, and their derivative along a direction, both (B, K).

        None where there is no copy that can; the derivative is then up to double backward.
        """
        copy = self._paths["float32"]
        if copy is None or not copy.has_derivative():
            return None
        images = self._count(images)
        if self._shown(images) is not images:
            return None
        pair = copy.linearised(images, direction)
        if pair is not None:
            self._check(images, pair[0])
        return pair

    def _pass(self, images: Tensor, copy: CraftingCopy | None) -> Tensor:
        images = self._count(images)
        logits = self._asked(images) if copy is None else copy(self._shown(images))
        self._check(images, logits)
        return full_precision(logits)

    def _count(self, images: Tensor) -> Tensor:
        """Count the rows of a pass; return them in the model's dtype."""
        if torch.is_grad_enabled() and images.requires_grad:
            self.gradient_rows += len(images)
        else:
            self.forward_rows += len(images)
        return images if self.dtype is None else images.to(self.dtype)

    def _shown(self, images: Tensor) -> Tensor:
        """Run the model's forward pre-hooks: a copy stands for it, and whoever counts its passes counts these too."""
        for key, hook in self.model._forward_pre_hooks.items():
            if key in self.model._forward_pre_hooks_with_kwargs:
                result = hook(self.model, (images,), {})
                result = result if result is None else result[0]
            else:
                result = hook(self.model, (images,))
            if result is not None:
                images = result[0] if isinstance(result, tuple) else result
        return images

    def _check(self, images: Tensor, logits: Tensor) -> None:
        if not self.checked:
            self._check_logits(images, logits)
        if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
            raise UserError(
                "model",
                type(self.model).__name__,
                "passes no gradient back to its images",
                "needed: a forward without detach, no_grad or numpy",
                "Attack a differentiable stand-in of the model.",
            )

    def _check_logits(self, images: Tensor, logits: object) -> None:
        name = type(self.model).__name__
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                "model",
                name,
                f"returns {shape} for {len(images)} images",
                "needed: logits of shape (B, K) with K >= 2",
                "Return logits from its forward.",
            )
        if self.largest_label >= logits.shape[1]:
            raise UserError(
                "y",
                self.largest_label,
                f"is a label, but the model has {logits.shape[1]} classes",
                f"allowed: 0 to {logits.shape[1] - 1}",
                "Match the labels to the model.",
            )
        self.checked = True
        self.answers_in_half = logits.dtype in (torch.float16, torch.bfloat16)
        values = logits.detach()
        if len(values) == 0:
            self.checked = False
            return
        if len(values) == 1:  # a single row may sum to 1 by chance
            return
        sums_to_1 = (values.sum(dim=1, dtype=torch.float32) - 1).abs().amax() < (2e-2 if self.answers_in_half else 1e-4)
        self.probabilities = (values.amin() >= 0) & sums_to_1


@contextmanager
def opened(
    model: nn.Module, images: Tensor, labels: Tensor | None, execution: Execution = PLAIN
) -> Iterator[ModelView]:
    """Hold a model still, check a batch, and give the view on the model that attacks are crafted through.

    Args:
        model: returns logits; a view that is open already is given back as it is. What wraps it for distributed
            training is taken off: its forward would broadcast buffers and wait for gradients that never come.
        images: (B, C, H, W) float32 or float64 in [0, 1].
        labels: class indices, (B,) int64; None if there are none.
        execution: how passes are made.

    Raises:
        UserError: for images or labels of a wrong shape, dtype or range (in an open view: shape and dtype only), for
            something that is not a module, or a model on another device.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            "model",
            type(model).__name__,
            "is not a torch.nn.Module",
            "needed: a module from images to logits",
            "Call attack(model, x, y) in this order, and put a function into a module.",
        )
    check_types(model, images, labels)
    if isinstance(model, ModelView):
        yield model
        return
    model = unwrapped(model)
    with kept_torch_randomness(images.device), guarded(model):
        yield ModelView(model, images, labels, execution)
