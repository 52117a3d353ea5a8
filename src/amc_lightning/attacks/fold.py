"""A faster copy of a model for crafting: the same function in eval mode, batch norm folded into the convolutions."""

import weakref

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from amc_lightning.attacks.fold_graph import CannotFold, Recording, record
from amc_lightning.attacks.fold_tangent import with_tangent

__all__ = ["CannotFold", "CraftingCopy"]

_HALF = (torch.float16, torch.bfloat16)


class CraftingCopy:
    """The eval-mode function of a model as of the last refresh, made fast for gradients by the images.

    Batch norm fed by a convolution alone is folded into it, dropout is gone, weights and images are channels-last, ReLU
    and sums work in place. All tensors of the copy are its own: the live model is only read, and may be in any mode;
    the copy does not keep it alive. Operations are recorded once, so what ``forward`` decides by plain Python values
    (a temperature kept as a float, a branch on a flag) stays as it was then; ``agrees`` tells.

    Args:
        model: any module that `torch.fx` can trace and that returns one tensor.
        dtype: of weights and computation; the model's own if left out. ``torch.bfloat16`` is meant for gradients; a
            model that makes float32 tensors in ``forward`` fails in it when the copy is called.

    Raises:
        CannotFold: if the model cannot be traced, or has hooks (other than forward pre-hooks on the model itself, which
            are the caller's to run: he decides what counts as a pass of the model), parametrizations, a ``forward`` put
            on an instance, a ``__call__`` of its own, or tensors on several devices.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        self._model = weakref.ref(model)
        self._dtype = dtype
        self._recording: Recording | None = None
        self._with_tangent: fx.GraphModule | None = None
        self._differentiated: Recording | None = None  # what `_with_tangent` was made of
        self.refresh()

    def refresh(self) -> None:
        """Take over the live model's current weights and buffers.

        A model that changed its device or dtype, or had a layer replaced by another kind, is recorded anew.

        Raises:
            CannotFold: if the model has meanwhile come by something that a copy cannot honour.
            RuntimeError: if the model is gone.
        """
        model = self._model()
        if model is None:
            raise RuntimeError("a crafting copy was refreshed after its model was deleted; needed: the live model")
        with torch.inference_mode(False), torch.no_grad():
            modules = modules_of(model)
            values = self._recording.read(modules) if self._recording else None
            if self._recording is None or values is None:
                self._recording = record(model, self._dtype)
                values = self._recording.read(modules)
                assert values is not None
            self._recording.fill(values)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the model's eval-mode logits as of the last refresh.

        Args:
            images: (B, C, H, W), or any shape the model takes, float; brought to the copy's own dtype if it has one.

        Returns:
            (B, K), in float32 where the copy computes in half precision.
        """
        assert self._recording is not None
        if self._dtype is not None:
            images = images.to(self._dtype)
        logits: Tensor = self._recording.net.forward(_in_channels_last(images))
        return logits.float() if logits.dtype in _HALF else logits

    def linearised(self, images: Tensor, direction: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the logits and their first-order change along a direction, for one forward pass more than the logits.

        Args:
            images: as for a call.
            direction: like ``images``.

        Returns:
            Logits with their graph, bit for bit those of a call, and J d without one, both (B, K); J is the logits'
            Jacobian. None, whatever the images, if a derivative is not known or the copy is in half precision.
        """
        if not self.has_derivative():
            return None
        assert self._with_tangent is not None
        images = images if self._dtype is None else images.to(self._dtype)
        direction = direction.detach().to(images.dtype)
        logits, change = self._with_tangent.forward(_in_channels_last(images), _in_channels_last(direction))
        return logits, change

    def has_derivative(self) -> bool:
        """Return whether ``linearised`` can; found out once for a recording."""
        if self._differentiated is not self._recording:
            assert self._recording is not None
            self._with_tangent = with_tangent(self._recording.net)
            self._differentiated = self._recording
        return self._with_tangent is not None

    def agrees(self, images: Tensor, logits: Tensor, tolerance: float = 1e-5) -> bool:
        """Return whether the copy gives the model's logits for ``images``.

        A copy in bfloat16 does not, to any useful tolerance; check a float32 copy of the same model in its place.

        Args:
            images: (B, C, H, W) float.
            logits: of the live model in eval mode for these images, (B, K).
            tolerance: of the largest difference, in units of max(1, largest absolute logit).
        """
        with torch.no_grad():
            own = self(images)
            if own.shape != logits.shape or own.numel() == 0:
                return own.shape == logits.shape
            return bool((own - logits).abs().max() <= tolerance * logits.abs().max().clamp(min=1.0))


def _in_channels_last(images: Tensor) -> Tensor:
    """Return 4-D images in channels-last; their gradient comes back contiguous, since attacks may ``view`` it."""
    if images.dim() != 4 or images.is_contiguous(memory_format=torch.channels_last):
        return images
    reordered = images.contiguous(memory_format=torch.channels_last)
    if reordered.requires_grad:
        reordered.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return reordered


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by name, the model itself as ""; raise CannotFold for what tracing would pass over."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if problem := _problem(module, is_root=module is model):
            where = f"its module {name!r}" if name else "it"
            raise CannotFold(f"no crafting copy of {type(model).__name__}: {where} has {problem}")
    return modules


def _problem(module: nn.Module, *, is_root: bool) -> str | None:
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "a forward or backward hook"
    for hook in module._forward_pre_hooks.values():
        # weight_norm, spectral_norm and prune make their weights in pre-hooks.
        if not is_root or type(hook).__module__.startswith("torch.nn.utils"):
            return "a forward pre-hook"
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):
        return "a parametrization"
    if isinstance(module, torch.jit.ScriptModule):
        return "a compiled part"
    if "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__:
        return "a forward or __call__ of its own"
    return None
