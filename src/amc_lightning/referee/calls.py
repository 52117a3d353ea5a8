"""Which calls of a forward pass have no gradient worth following: rounding, casts, comparisons, detached branches."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc_lightning.attacks import guarded

STEPS = frozenset({"round", "floor", "ceil", "trunc", "fix", "floor_divide", "__floordiv__", "__rfloordiv__"})
"""Calls whose values move in steps."""
REMAINDERS = frozenset({"remainder", "__mod__", "fmod", "frac"})
"""Calls that hide a step: x - x % s is one, and its derivative is zero."""
SIGNS = frozenset({"sign", "sgn", "heaviside"})
CUTS = frozenset({"detach", "detach_", "data.__get__", "requires_grad_"})
"""Calls after which no gradient flows."""
EXITS = frozenset({"numpy", "__array__", "tolist"})
"""Calls by which values leave torch."""
QUANTIZERS = ("quantize_per", "fake_quantize")
GRAD_SWITCH = "_set_grad_enabled"


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function as a mode sees it; of an attribute, such as ``data.__get__``.

    Example:
        >>> name_of(torch.Tensor.round_), name_of(torch.Tensor.data.__get__)
        ('round_', 'data.__get__')
    """
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return f"{getattr(getattr(function, '__self__', None), '__name__', '')}.{name}"
    return str(name)


def stem(name: str) -> str:
    """Return a name without the mark of an in-place function.

    Example:
        >>> stem("round_"), stem("__mod__")
        ('round', '__mod__')
    """
    return name if name.endswith("__") or name in CUTS else name.rstrip("_")


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in arguments, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class _Recorder(TorchFunctionMode):
    """Counts the calls through which the images' gradient does not pass, or not truly."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = stem(name_of(func))
        if name == GRAD_SWITCH:
            if args and args[0] is False and torch.is_grad_enabled():
                self.found["no_grad"] += 1
            return func(*args, **(kwargs or {}))
        follows = any(tensor.requires_grad for tensor in tensors_in([args, kwargs]))
        result = func(*args, **(kwargs or {}))
        if follows and (
            name in STEPS | REMAINDERS | SIGNS | EXITS
            or (name in CUTS and not (name == "requires_grad_" and result.requires_grad))
            or name.startswith(QUANTIZERS)
            or (isinstance(result, Tensor) and not (result.is_floating_point() or result.is_complex()))
        ):
            self.found[name.removesuffix(".__get__")] += 1
        return result


def parts_of(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return what stands between images and logits that has no true gradient, and how often each is called.

    ``no gradient`` says that nothing connects the two, ``backward of NAME`` that a function brings a backward pass of
    its own. What runs in compiled code is not seen, except by its having no gradient.

    Args:
        model: returns logits.
        x: a few images, (B, C, H, W) float32 in [0, 1].

    Example:
        >>> class Rounded(nn.Module):
        ...     def forward(self, x):
        ...         return x.round().flatten(1)
        >>> parts_of(Rounded(), torch.rand(2, 1, 2, 2))
        {'round': 1}
    """
    recorder = _Recorder()
    with guarded(model):
        images = x.detach().clone().requires_grad_()
        with recorder:
            logits = model(images.clone())
        found = dict(recorder.found)
        if not logits.requires_grad:
            found["no gradient"] = 1
        for name, times in _own_backwards(logits).items():
            found[f"backward of {name}"] = times
    return found


def _own_backwards(logits: Tensor) -> Counter[str]:
    """Return the functions in a graph that are written in Python, with a backward pass of their own."""
    found: Counter[str] = Counter()
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found[type(node).__name__.removesuffix("Backward")] += 1
        waiting += [parent for parent, _ in node.next_functions]
    return found
