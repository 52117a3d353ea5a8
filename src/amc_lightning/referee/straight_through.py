"""A stand-in for any model through which gradients pass: what has none gets a straight-through backward.

Reference:
    Athalye, Carlini and Wagner, Obfuscated gradients give a false sense of security, ICML 2018,
    https://arxiv.org/abs/1802.00420, section 4.1 (BPDA). Bengio, Leonard and Courville, Estimating or propagating
    gradients through stochastic neurons, https://arxiv.org/abs/1308.3432 (the straight-through estimator).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc_lightning.referee.calls import (
    CUTS,
    EXITS,
    GRAD_SWITCH,
    REMAINDERS,
    SIGNS,
    STEPS,
    name_of,
    stem,
    tensors_in,
)

CASTS = frozenset(
    {"to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "short", "byte", "char", "bool"}
    | {"dequantize", "quantize_per_tensor", "quantize_per_channel", "round"}
)
ABOVE = frozenset({"gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"})
BELOW = frozenset({"lt", "le", "less", "less_equal", "__lt__", "__le__"})
SHIFTS = {"__rshift__": -1, "bitwise_right_shift": -1, "__lshift__": 1, "bitwise_left_shift": 1}
NOTS = frozenset({"logical_not", "bitwise_not", "__invert__"})
NO_STAND_IN = frozenset({"eq", "ne", "__eq__", "__ne__", "isnan", "isinf", "isfinite"})
SHARPNESS = 10.0
"""Of the softmax that stands for argmax, in units of the values' mean deviation."""


def straight_through(model: nn.Module) -> nn.Module:
    """Return a module with the model's answers, bit for bit, and gradients where the model has none.

    Backward, rounding is the identity, a sign a hard tanh, a comparison a sigmoid, a cast the identity, argmax a
    softmax, a value that comes back from NumPy the tensor that went there; ``detach`` and ``no_grad`` do nothing. A
    backward pass that the model brings itself stays, and so does what is hidden in compiled code.

    Args:
        model: any module; it is shared, not copied.

    Example:
        >>> class Rounded(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x.round()
        >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
        >>> torch.autograd.grad(straight_through(Rounded())(x).sum(), x)[0]
        tensor([2., 2.])
    """
    return StraightThrough(model)


class StraightThrough(nn.Module):
    """See ``straight_through``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits, (B, K), of images (B, C, H, W)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            given: Tensor = self.model(x)
            return given
        with _StraightThrough():
            logits: Tensor = self.model(x.clone())
        return logits


class _Attach(torch.autograd.Function):
    """A value with the gradient of a stand-in added to its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, gradient


def _attached(value: Tensor, stand_in: Tensor | None) -> Tensor:
    if stand_in is None or not stand_in.requires_grad or stand_in.numel() == 0:
        return value
    if stand_in.shape != value.shape:
        try:
            stand_in = stand_in.expand_as(value)
        except RuntimeError:
            return value
    attached: Tensor = _Attach.apply(value, stand_in.to(value.dtype))  # type: ignore[no-untyped-call]
    return attached


class _StraightThrough(TorchFunctionMode):
    """Gives calls a stand-in; tensors that cannot have a gradient carry a float tensor that can, their carrier."""

    def __init__(self) -> None:
        super().__init__()
        self._carriers: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor too, so that its id stays its own
        self._left: list[Tensor] = []  # what went to NumPy and is not back
        self._back: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = name_of(func), dict(kwargs or {})
        if name == GRAD_SWITCH:
            return func(*args) if args and args[0] else None
        if self._left or self._back:
            args, named = self._come_back(args), self._come_back(named)
        given = list(tensors_in([args, named]))
        if not any(tensor.requires_grad or id(tensor) in self._carriers for tensor in given):
            result = func(*args, **named)
            return self._come_back(result) if isinstance(result, Tensor) else result
        return self._called(func, name, args, named)

    def _called(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first.requires_grad:
            if name in CUTS:
                return first if name.endswith("_") and name != "data.__get__" else first.view_as(first)
            if name == "requires_grad.__set__":
                return None
        if first is not None and name in EXITS:
            self._left.append(self._float(first))
            return func(first.detach(), *args[1:], **kwargs)
        if name == "__setitem__":
            return self._set(func, args)
        plain = stem(name)
        if first is not None and first.is_floating_point() and plain in STEPS | REMAINDERS | SIGNS:
            return self._stepped(func, name, plain, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            return self._one(func, plain, args, kwargs, result)
        if isinstance(result, list | tuple) and any(id(tensor) in self._carriers for tensor in tensors_in(args)):
            soft = self._again(func, args, kwargs)
            if isinstance(soft, list | tuple) and all(isinstance(part, Tensor) for part in (*result, *soft)):
                for hard, carrier in zip(result, soft, strict=False):
                    self._carry(hard, carrier)
        return result

    def _stepped(
        self, func: Callable[..., Any], name: str, plain: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        x: Tensor = args[0]
        hard = [part.detach() if isinstance(part, Tensor) else part for part in args]
        in_place = name != plain
        value: Tensor = func(x.detach().clone() if in_place else hard[0], *hard[1:], **kwargs)
        stand_in: Tensor | None = x
        if "div" in plain:
            stand_in = args[1] / x if plain == "__rfloordiv__" else x / args[1]
        elif plain in REMAINDERS:
            stand_in = None  # x - step(x), and a step passes x on
        elif plain in SIGNS:
            stand_in = nn.functional.hardtanh(x)
        if not in_place:
            return _attached(value, stand_in)
        return x.copy_(_attached(value, None if stand_in is None else stand_in.clone()))

    def _one(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> Tensor:
        if result.is_floating_point():
            if any(id(tensor) in self._carriers for tensor in tensors_in([args, kwargs])):
                return _attached(result, self._stand_in(func, name, args, kwargs, result))
        elif name not in NO_STAND_IN:
            self._carry(result, self._stand_in(func, name, args, kwargs, result))
        return result

    def _stand_in(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> Tensor | None:
        """Return a float tensor that moves as the result would if it could; None if none is known."""
        soft = [self._float(part) if isinstance(part, Tensor) else part for part in args]
        if name in CASTS:
            return soft[0]
        if name in ABOVE | BELOW:
            return _sigmoid(soft[0] - soft[1] if name in ABOVE else soft[1] - soft[0])
        if name in ("argmax", "argmin"):
            sign = 1 if name == "argmax" else -1
            return _soft_index(sign * soft[0], kwargs.get("dim", args[1] if len(args) > 1 else None), result)
        if name in ("bucketize", "searchsorted"):
            values, bounds = (soft[0], args[1]) if name == "bucketize" else (args[1], soft[0])
            return values * (bounds.numel() / (bounds.amax() - bounds.amin()).clamp_min(1e-12)).detach()
        if name == "one_hot":
            return (-(soft[0].unsqueeze(-1) - torch.arange(result.shape[-1], device=result.device)).square()).exp()
        if name in SHIFTS:
            return soft[0] * 2.0 ** (SHIFTS[name] * soft[1])
        if name in NOTS:
            return -soft[0]
        if name in ("floor_divide", "__floordiv__"):
            return soft[0] / soft[1]
        if name == "where" and len(args) == 3:
            yes, no = (torch.as_tensor(part, device=result.device).detach() for part in args[1:])
            return soft[0] * (yes - no)
        if name == "masked_fill":
            jump: Tensor = (args[2] - args[0]).detach()
            return soft[1] * jump
        again = self._again(func, args, kwargs)
        if isinstance(again, Tensor) and again.is_floating_point() and again.shape == result.shape:
            return again
        carried = (self._float(part) for part in tensors_in([args, kwargs]) if id(part) in self._carriers)
        return next((part for part in carried if part.shape == result.shape), None)

    def _again(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call once more, with the carriers in place of what they stand for and the other tensors fixed."""

        def soft(part: Any) -> Any:
            if isinstance(part, Tensor):
                return self._float(part) if id(part) in self._carriers else part.detach()
            return type(part)(map(soft, part)) if type(part) in (list, tuple) else part

        try:
            return func(*map(soft, args), **{key: soft(part) for key, part in kwargs.items() if key != "dtype"})
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
            return None  # no function of floats: there is no such stand-in

    def _set(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Set entries; where a mask says which, it has a say in the gradient."""
        x, where, value = args[:3]
        carrier = self._carriers.get(id(where)) if isinstance(where, Tensor) else None
        fits = carrier is not None and x.is_floating_point() and where.shape == x.shape
        before = x.detach().clone() if fits else None
        func(*args)
        if fits and before is not None and carrier is not None and not isinstance(value, list | tuple):
            new = value.detach() if isinstance(value, Tensor) else value
            if not isinstance(new, Tensor) or new.numel() == 1:
                x.copy_(_attached(x.clone(), carrier[1] * (new - before)))

    def _carry(self, tensor: Tensor, carrier: Tensor | None) -> None:
        if carrier is not None and carrier.requires_grad and not tensor.is_floating_point():
            self._carriers[id(tensor)] = (tensor, carrier)

    def _float(self, tensor: Tensor) -> Tensor:
        """Return a tensor as floats, with its carrier's gradient."""
        if id(tensor) in self._carriers:
            return self._carriers[id(tensor)][1]
        return tensor if tensor.is_floating_point() or tensor.is_quantized else tensor.float()

    def _come_back(self, value: Any) -> Any:
        """Recognise what comes back from NumPy by its shape, wherever it stands."""
        if isinstance(value, Tensor):
            if value.requires_grad or id(value) in self._carriers or isinstance(value, nn.Parameter):
                return value
            if id(value) in self._back:
                return self._back[id(value)][1]
            place = next((at for at, tensor in enumerate(self._left) if tensor.shape == value.shape), None)
            if place is None:
                return value
            source = self._left.pop(place)
            if value.is_floating_point():
                self._back[id(value)] = (value, _attached(value, source))
                return self._back[id(value)][1]
            self._carry(value, source)
            return value
        if type(value) in (list, tuple):
            return type(value)(map(self._come_back, value))
        return {key: self._come_back(part) for key, part in value.items()} if type(value) is dict else value


def _sigmoid(difference: Tensor) -> Tensor:
    """Return a sigmoid as wide as the values that it divides."""
    return (difference / difference.detach().abs().mean().clamp_min(1e-12)).sigmoid()


def _soft_index(values: Tensor, dim: object, result: Tensor) -> Tensor | None:
    if not isinstance(dim, int):
        return None
    width = (values - values.mean(dim, keepdim=True)).detach().abs().mean().clamp_min(1e-12)
    weights = (values * (SHARPNESS / width)).softmax(dim).movedim(dim, -1)
    index = (weights * torch.arange(weights.shape[-1], device=values.device)).sum(-1)
    return index.reshape(result.shape)
