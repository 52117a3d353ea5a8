"""A faster copy of a model for crafting: the same function in eval mode, batch norm folded into the convolutions."""

import weakref
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from amc_lightning.attacks.fold_graph import CannotFold, Recording, record
from amc_lightning.attacks.fold_tangent import with_tangent

__all__ = ["CannotFold", "CraftingCopy", "Unsettled", "Watch", "modules_of", "settings_of"]

Settings = tuple[tuple[Any, ...], ...]
_HALF = (torch.float16, torch.bfloat16)


class CraftingCopy:
    """The eval-mode function of a model as of the last refresh, made fast for gradients by the images.

    Batch norm fed by a convolution alone is folded into it, dropout is gone, weights and images are channels-last, ReLU
    and sums work in place. All tensors of the copy are its own: the live model is only read, and may be in any mode;
    the copy does not keep it alive. Operations are recorded, and recorded anew when the model's modules or their plain
    attributes are found changed. What ``forward`` decides by other Python values (a global, an attribute of an object
    that is no module) stays as it was then; ``agrees`` tells.

    Attributes:
        recordings: how often operations were recorded; a new recording may not agree where the last one did.

    Args:
        model: any module that `torch.fx` can trace and that returns one tensor.
        dtype: of weights and computation; the model's own if left out. ``torch.bfloat16`` is meant for gradients; a
            model that makes float32 tensors in ``forward`` fails in it when the copy is called.

    Raises:
        CannotFold: if the model cannot be traced, or has hooks (other than forward pre-hooks on the model itself, which
            are the caller's to run: he decides what counts as a pass of the model), parametrizations, a ``forward`` put
            on an instance, a ``__call__`` of its own, tensors on several devices, or a ``forward`` that writes to its
            images or to tensors of the model.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        self._model = weakref.ref(model)
        self._dtype = dtype
        self.recordings = 0
        self._recording: Recording | None = None
        self._recorded: Settings = ()  # what the model was then
        self._watch = Watch()
        self._with_tangent: fx.GraphModule | None = None
        self._differentiated: Recording | None = None  # what `_with_tangent` was made of
        self.refresh()

    def refresh(self) -> None:
        """Take over the live model's current weights and buffers.

        A model that changed its device or dtype, its modules, or their plain attributes is recorded anew.

        Raises:
            CannotFold: if the model has meanwhile come by something that a copy cannot honour.
            Unsettled: if its plain attributes change from call to call; asked again, it may have come to rest.
            RuntimeError: if the model is gone.
        """
        model = self._model()
        if model is None:
            raise RuntimeError("a crafting copy was refreshed after its model was deleted; needed: the live model")
        with torch.inference_mode(False), torch.no_grad():
            modules = modules_of(model)
            settings = settings_of(modules)
            if change := self._watch.restless(settings):
                raise Unsettled(f"no crafting copy of {type(model).__name__}: {change}")
            values = self._recording.read(modules) if self._recording and settings == self._recorded else None
            if self._recording is None or values is None:
                self._recording, self._recorded = record(model, self._dtype), settings
                self.recordings += 1
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
            Logits with their graph, bit for bit those of such a call, and J d without, both (B, K); J is the logits'
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


class Unsettled(CannotFold):
    """The model's plain attributes change so often that recording it anew each time would cost more than it saves."""


class Watch:
    """Notes what a model is from call to call, and tells whether it changes all the time."""

    limit = 3.0  # changes, less what calm calls have paid back
    calm = 1 / 16

    def __init__(self) -> None:
        self.seen: Settings | None = None
        self.changes = 0.0
        self.last = ""

    def restless(self, settings: Settings) -> str | None:
        """Return what changes, if it did most of the last times; to be asked once a call."""
        if self.seen is not None and settings != self.seen:
            self.last = _difference(self.seen, settings)
            self.changes = min(self.changes + 1, self.limit + 1)
        else:
            self.changes = max(self.changes - self.calm, 0.0)
        self.seen = settings
        return f"its plain attributes change from call to call ({self.last})" if self.changes > self.limit else None


def settings_of(modules: Mapping[str, nn.Module]) -> Settings:
    """Return what a trace may depend on besides the values of tensors, to be compared; it keeps no module alive."""
    return tuple(
        [
            (
                name,
                kind := type(module),
                kind.forward,
                [key for key, tensor in module._parameters.items() if tensor is not None],
                [key for key, tensor in module._buffers.items() if tensor is not None],
                [*module._modules],
                [
                    (key, value if type(value) in _SIMPLE else _simplified(value))
                    for key, value in vars(module).items()
                    if key not in _BOOKKEEPING
                ],
            )
            for name, module in modules.items()
        ]
    )


_SIMPLE = frozenset({int, float, bool, str, complex, bytes, type(None), torch.dtype, torch.device, torch.Size})
# Attributes that every module has; and what Lightning's modules note about which of their methods is running.
_BOOKKEEPING = frozenset({*vars(nn.Module()), "_current_fx_name"})
_LONGEST = 64  # a list that grows with training shall not be read at every call


def _simplified(value: Any, depth: int = 3) -> object:
    """Return something to compare in place of a value: parts of containers, functions by identity, else the type."""
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if kind in (list, tuple) and len(value) <= _LONGEST and _SIMPLE.issuperset(map(type, value)):
        return value[:]  # the quick way for the many of a convolution
    if kind in (FunctionType, BuiltinFunctionType):
        return weakref.ref(value)  # a closure may hold the model
    if kind in (list, tuple, dict) and len(value) <= _LONGEST and depth > 0:
        items = value.items() if kind is dict else value
        return (kind, [_simplified(item, depth - 1) for item in items])
    return kind


def _difference(before: Settings, after: Settings) -> str:
    """Return the first thing that differs, for people."""
    for old, new in zip(before, after, strict=False):
        if old != new:
            changed = [f"{key!r}" for key, value in new[-1] if (key, value) not in old[-1]]
            where = f"of its module {new[0]!r}" if new[0] else "of its own"
            return f"{', '.join(changed) or 'layers'} {where}"
    return "layers"


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by name, the model itself as ""; raise CannotFold for what tracing would pass over."""
    modules: dict[str, nn.Module] = {}
    _gather(model, "", modules, set())
    for name, module in modules.items():
        if problem := _problem(module, is_root=module is model):
            where = f"its module {name!r}" if name else "it"
            raise CannotFold(f"no crafting copy of {type(model).__name__}: {where} has {problem}")
    return modules


def _gather(module: nn.Module, name: str, found: dict[str, nn.Module], seen: set[int]) -> None:
    """Do what ``named_modules`` does, in half the time."""
    if id(module) in seen:
        return
    seen.add(id(module))
    found[name] = module
    for key, child in module._modules.items():
        if child is not None:
            _gather(child, f"{name}.{key}" if name else key, found, seen)


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
