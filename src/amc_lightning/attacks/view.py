"""What attacks see of a model: its logits, in the precision and by the path that the caller chose, and nothing else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import full_precision
from amc_lightning.attacks.fold import CannotFold, CraftingCopy
from amc_lightning.attacks.guard import guarded, unwrapped
from amc_lightning.errors import UserError

# Images read from 8 bits and resized may leave the box by rounding.
BOX_TOLERANCE = 1e-6

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """How passes are made while crafting.

    Attributes:
        fast: through a copy of the model with batch norm folded into convolutions and channels-last memory; the same
            logits to 1e-5, which is checked on the first batch (else the plain model, with one warning).
        bf16: gradients in bfloat16; what is decided (fooled or not, labels, distances) stays in float32.
    """

    fast: bool = False
    bf16: bool = False


PLAIN = Execution()


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
        self.anchor = nn.Parameter(images.new_empty(0), requires_grad=False)
        self.model = model
        self.training = False
        self.gradient_rows = 0
        self.forward_rows = 0
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self.largest_label = _check_batch(model, images, labels)
        self.checked = False
        self.answers_in_half = False
        self.probabilities: Tensor | None = None
        # Not modules of this one: torchattacks and the guard shall not see them.
        self._paths: dict[str, CraftingCopy | None] = {"float32": None, "bfloat16": None}
        if (execution.fast or execution.bf16) and len(images) > 0:
            self._paths = _copies(model, images, execution)

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
        return full_precision(self.model(images if self.dtype is None else images.to(self.dtype)))

    def verify(self, x_adv: Tensor, name: str) -> bool:
        """Return whether ``x_adv`` is finite, after one wait for the device.

        Raises:
            UserError: if the first logits were probabilities.
        """
        flags = [x_adv.isfinite().all()]
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

    def _pass(self, images: Tensor, copy: CraftingCopy | None) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            self.gradient_rows += len(images)
        else:
            self.forward_rows += len(images)
        if copy is None:
            logits = self.model(images if self.dtype is None else images.to(self.dtype))
        else:
            # The copy stands for the model: whoever counts or records the model's inputs sees them all the same.
            for hook in self.model._forward_pre_hooks.values():
                hook(self.model, (images,))
            logits = copy(images)
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
        return full_precision(logits)

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
        sums_to_1 = (values.sum(dim=1) - 1).abs().amax() < 1e-4
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
        UserError: for images or labels of a wrong shape, dtype or range, or a model on another device.
    """
    if isinstance(model, ModelView):
        yield model
        return
    model = unwrapped(model)
    with guarded(model):
        yield ModelView(model, images, labels, execution)


def _check_batch(model: nn.Module, x: Tensor, y: Tensor | None) -> int:
    """Refuse a batch that no attack could use; return its largest label."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in (torch.float32, torch.float64):
        found = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            "x", found, "are no images", "needed: (B, C, H, W) float32 in [0, 1]", "Add .float() / 255 to 8-bit images."
        )
    if y is not None and (y.dim() != 1 or len(y) != len(x) or y.dtype != torch.int64):
        raise UserError(
            "y",
            f"{tuple(y.shape)} {y.dtype}",
            f"are no labels of {len(x)} images",
            f"needed: class indices, ({len(x)},) int64",
            "Give one class index per image.",
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) == 1 and x.device not in devices:
        raise UserError(
            "x", str(x.device), "is not where the model is", f"needed: {devices.pop()}", "Move one to the other."
        )
    if x.numel() == 0:
        return -1
    lowest, highest = x.detach().aminmax()
    ends = [lowest.double(), highest.double()]
    if y is not None:
        ends += [end.to(x.device).double() for end in y.aminmax()]
    low, high, *labels = torch.stack(ends).tolist()  # the one wait for the device before an attack
    if not (low >= -BOX_TOLERANCE and high <= 1 + BOX_TOLERANCE):
        values = "NaN among its values" if low != low else f"values from {low:.4g} to {high:.4g}"
        raise UserError(
            "x",
            values,
            "is not a range of pixels",
            "allowed: [0, 1]",
            "Divide 8-bit images by 255, and normalise inside the model.",
        )
    if labels and labels[0] < 0:
        raise UserError("y", int(labels[0]), "is no class", "allowed: 0 to K - 1", "Correct the labels.")
    return int(labels[1]) if labels else -1


_COPIES: "WeakKeyDictionary[nn.Module, dict[str, CraftingCopy | None]]" = WeakKeyDictionary()


@torch.no_grad()
def _copies(model: nn.Module, images: Tensor, execution: Execution) -> dict[str, CraftingCopy | None]:
    """Return the copies of a model, with its weights of now; made and compared with the model on its first batch."""
    made = _COPIES.setdefault(model, {})
    if "float32" not in made:
        made["float32"] = _tried(model, images)
    if execution.bf16 and "bfloat16" not in made:
        made["bfloat16"] = None if made["float32"] is None else CraftingCopy(model, dtype=torch.bfloat16)
    wanted = {
        "float32": made["float32"] if execution.fast else None,
        "bfloat16": made["bfloat16"] if execution.bf16 else None,
    }
    for copy in wanted.values():
        if copy is not None:
            copy.refresh()
    return wanted


def _tried(model: nn.Module, images: Tensor) -> CraftingCopy | None:
    try:
        copy = CraftingCopy(model)
        copy.refresh()
    except CannotFold as error:
        _log.warning("attacks use the plain %s, not a faster copy: %s", type(model).__name__, error)
        return None
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    images = images[:8].detach().to(dtype)
    if copy.agrees(images, model(images)):
        return copy
    _log.warning(
        "attacks use the plain %s, not a faster copy: its logits differ by more than 1e-5", type(model).__name__
    )
    return None
