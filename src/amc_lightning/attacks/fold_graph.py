"""The operations of a model, recorded by `torch.fx` and made cheaper, with the copy's own tensors to do them."""

import copy
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from amc_lightning.attacks.fold_convolution import (
    BlockedConv2d,
    FoldedPair,
    Name,
    Values,
    fill_folds,
    is_blockable,
)

_MODEL = "model"  # the attribute of `_OneInput`, hence the first part of every traced name
_M = TypeVar("_M", bound=nn.Module)
# What a user's forward may do with a stand-in for a tensor; anything else is a bug here and keeps its traceback.
_TRACE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError)


class CannotFold(ValueError):  # noqa: N818 - no mistake of anyone's: the caller goes on with the model itself
    """The model has something that a copy cannot honour; the message says what and where."""


class _OneInput(nn.Module):
    """Call the model with images alone, so that further arguments of its ``forward`` have their defaults in the trace.

    fx would otherwise hand over a placeholder where the default is None, and ``is None`` would take the wrong branch.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # computations on buffers are recorded, not done once

    def create_node(self, *arguments: Any, **keywords: Any) -> fx.Node:
        """Refuse what is not recorded: a trace would pass a gradient where the model has none, or another one."""
        if not torch.is_grad_enabled():
            raise NotRecordedError("forward switches gradients off for a part")
        return super().create_node(*arguments, **keywords)


class NotRecordedError(Exception):
    """The forward does something that a trace would pass over in silence."""


@contextmanager
def _without_custom_functions() -> Iterator[None]:
    """Refuse `torch.autograd.Function`: its forward would be traced, or done on nothing, and its backward forgotten.

    Watched by its code, since modules often keep a bound ``apply`` that no patch would reach.
    """
    code = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]

    def refuse(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is code:
            raise NotRecordedError("forward uses a torch.autograd.Function")

    before = sys.getprofile()
    sys.setprofile(refuse)
    try:
        yield
    finally:
        sys.setprofile(before)


@dataclass
class Recording:
    """The operations of a model, modules and tensors to do them with, and where their values come from.

    Attributes:
        net: computes the logits.
        types: of the live model's modules that take part, by name.
        looks: shape, dtype and device of the live model's tensors that take part, by module name and attribute.
        copies: tensors of the copy that have the value of one of those.
        folds: convolutions whose values have to be computed.
        blocked: convolutions that keep their weights in a second form.
    """

    net: fx.GraphModule = field(init=False)
    types: dict[str, type[nn.Module]] = field(default_factory=dict)
    looks: dict[Name, tuple[object, ...] | None] = field(default_factory=dict)
    copies: list[tuple[Name, Tensor]] = field(default_factory=list)
    folds: list[FoldedPair] = field(default_factory=list)
    blocked: list["BlockedConv2d"] = field(default_factory=list)

    def read(self, modules: Mapping[str, nn.Module]) -> Values | None:
        """Return the live model's tensors that take part; None where it is not the model that was recorded."""
        for name, kind in self.types.items():
            if type(modules.get(name)) is not kind:
                return None
        values = {
            (name, attribute): tensor
            for name, attribute in self.looks
            if isinstance(tensor := getattr(modules[name], attribute, None), Tensor) or tensor is None
        }
        same = all(_look(values.get(name)) == look for name, look in self.looks.items())
        return values if same else None

    def fill(self, values: Values) -> None:
        """Give every tensor of the copy its value."""
        if self.copies:
            sources = [values[name] for name, _ in self.copies]
            torch._foreach_copy_([own for _, own in self.copies], cast("list[Tensor]", sources))
        if self.folds:
            fill_folds(self.folds, values)
        for convolution in self.blocked:
            convolution.fill()


def _look(value: object) -> tuple[object, ...] | None:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None


def _tensors_of(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def record(model: nn.Module, dtype: torch.dtype | None) -> Recording:
    """Trace ``model``, on a twin: tracing runs the model's code, in eval mode, and keeps constants as attributes."""
    kind = type(model).__name__
    try:
        # The caller's pre-hooks stay out of the twin: they would count a pass of it, and may hold anything.
        twin = copy.deepcopy(model, {id(model._forward_pre_hooks): OrderedDict()})
        for module in twin.modules():
            module.training = False
        root = _OneInput(twin)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), _without_custom_functions():
            graph = _Tracer().trace(root)
    except (*_TRACE_ERRORS, NotRecordedError, fx.proxy.TraceError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        if not isinstance(error, NotRecordedError):
            reason = f"torch.fx cannot trace it ({type(error).__name__}: {reason})"
        raise CannotFold(f"no crafting copy of {kind}: {reason}") from error
    (output,) = graph.find_nodes(op="output")
    if not isinstance(output.args[0], fx.Node):
        raise CannotFold(f"no crafting copy of {kind}: it does not return one tensor")
    return _Builder(root, graph, dtype).build()


class _Builder:
    """Makes a recording of a trace: modules of the copy's own in place of the twin's, and cheaper operations."""

    def __init__(self, root: _OneInput, graph: fx.Graph, dtype: torch.dtype | None) -> None:
        self.root = root
        self.graph = graph
        self.dtype = dtype
        self.own: dict[str, nn.Module | Tensor] = {}
        self.shared: dict[str, str] = {}
        self.result = Recording()

    def build(self) -> Recording:
        """Take over modules and tensors first, since what may work in place depends on them."""
        devices = {tensor.device for tensor in (*self.root.parameters(), *self.root.buffers())}
        if len(devices) > 1:
            kind = type(self.root.model).__name__
            raise CannotFold(f"no crafting copy of {kind}: its tensors are on several devices")
        folded = set()
        for node in list(self.graph.nodes):
            if node.op == "call_module" and node not in folded:
                norm = self._take_module(node)
                folded |= {norm} - {None}
            elif node.op == "get_attr":
                self._take_tensor(node)
        for node in list(self.graph.nodes):
            self._cheapen(node)
        if devices == {torch.device("cpu")}:
            for node in self.graph.find_nodes(op="call_module"):
                self._block(node)
        self.graph.lint()
        self.result.net = fx.GraphModule(self.own, self.graph)
        return self.result

    def _take_module(self, node: fx.Node) -> fx.Node | None:
        """Put a module of the copy's own in place of the twin's; return the batch norm folded into it, if any."""
        name = _live_name(node)
        twin = self.root.model.get_submodule(name)
        self._watch(name, twin)
        if isinstance(twin, nn.Identity | nn.modules.dropout._DropoutNd) and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.graph.erase_node(node)
            return None
        if type(twin) is not nn.Conv2d:
            if name not in self.shared:
                self.shared[name] = f"module_{len(self.own)}"
                self.own[self.shared[name]] = self._own(twin, name)
            node.target = self.shared[name]
            return None
        # One for each call: a convolution used twice may have two norms.
        node.target = f"convolution_{len(self.own)}"
        norm = self._foldable_norm(node)
        if norm is None:
            self.own[node.target] = self._own(twin, name)
            return None
        norm_name = _live_name(norm)
        norm_twin = self.root.model.get_submodule(norm_name)
        assert isinstance(norm_twin, nn.BatchNorm2d)
        self._watch(norm_name, norm_twin)
        own = self._own(twin)
        bias = torch.zeros(own.out_channels, dtype=own.weight.dtype, device=own.weight.device)
        own.bias = nn.Parameter(bias, requires_grad=False)
        self.own[node.target] = own
        self.result.folds.append(FoldedPair(name, norm_name, norm_twin.eps, own))
        norm.replace_all_uses_with(node)
        self.graph.erase_node(norm)
        return norm

    def _foldable_norm(self, node: fx.Node) -> fx.Node | None:
        (user,) = node.users if len(node.users) == 1 else (None,)
        if user is None or user.op != "call_module" or user.args != (node,):
            return None
        norm = self.root.model.get_submodule(_live_name(user))
        # Without statistics of its own a batch norm takes the batch's in eval mode too.
        has_statistics = type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None
        return user if has_statistics else None

    def _take_tensor(self, node: fx.Node) -> None:
        """Copy a parameter or buffer that ``forward`` uses itself; a constant made in the trace stays as it is."""
        name = str(node.target)
        if name in self.shared:
            node.target = self.shared[name]
            return
        value: Tensor = operator.attrgetter(name)(self.root)
        own = value.detach().clone()
        own = own.to(self.dtype) if self.dtype is not None and own.is_floating_point() else own
        node.target = self.shared[name] = f"tensor_{len(self.own)}"
        self.own[node.target] = own
        if name.startswith(f"{_MODEL}."):
            module, _, attribute = name.removeprefix(f"{_MODEL}.").rpartition(".")
            self.result.types.setdefault(module, type(self.root.model.get_submodule(module)))
            self.result.looks.setdefault((module, attribute), _look(value))
            self.result.copies.append(((module, attribute), own))

    def _watch(self, name: str, twin: nn.Module) -> None:
        self.result.types.setdefault(name, type(twin))
        for attribute, tensor in _tensors_of(twin).items():
            self.result.looks.setdefault((name, attribute), _look(tensor))

    def _own(self, twin: _M, name: str | None = None) -> _M:
        """Return a copy of a module in the copy's dtype and format, filled from the live one of that name if given."""
        own = copy.deepcopy(twin).requires_grad_(False)
        if self.dtype is not None:
            own.to(self.dtype)
        for parameter in own.parameters():
            parameter.grad = None
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if name is not None:
            for inner, part in twin.named_modules():
                part_name = ".".join(filter(None, (name, inner)))
                self._watch(part_name, part)
                for attribute, tensor in _tensors_of(own.get_submodule(inner)).items():
                    if tensor is not None:
                        self.result.copies.append(((part_name, attribute), tensor))
        return own

    # Operations that give the same with less work

    def _cheapen(self, node: fx.Node) -> None:
        if node.op == "call_method" and node.target in ("view", "view_as"):
            # The original's strides allow a view; those of channels-last tensors may not.
            if not any(isinstance(argument, torch.dtype) for argument in (*node.args, *node.kwargs.values())):
                node.target = node.target.replace("view", "reshape")
        elif node.op == "call_method" and node.target in _STRIDED:
            kind = type(self.root.model).__name__
            raise CannotFold(f"no crafting copy of {kind}: its forward uses strides ({node.target})")
        elif node.op == "call_function" and node.target is functional.dropout and _dropout_is_off(node):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.graph.erase_node(node)
        elif steps := _subsampling(node):
            _become(node, _subsample, (node.args[0], *steps))
        elif node.op == "call_function" and node.target in (operator.add, torch.add):
            self._add_in_place(node)
        elif self._is_relu(node) and len(node.args) == 1 and self._is_free(node.args[0]):
            _become(node, torch.relu_, node.args)

    def _add_in_place(self, node: fx.Node) -> None:
        if len(node.args) == 2 and not node.kwargs and node.args[0] is not node.args[1]:
            for total, other in (node.args, node.args[::-1]):
                if isinstance(other, fx.Node) and self._is_free(total):
                    _become(node, _add_, (total, other))
                    return

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.own[str(node.target)]) is nn.ReLU
        return node.target in (functional.relu, torch.relu, "relu") and set(node.kwargs) <= {"inplace"}

    def _is_free(self, value: object) -> bool:
        """Return whether a value may be overwritten: new memory, with one use, and not needed by its own backward."""
        if not isinstance(value, fx.Node) or len(value.users) != 1:
            return False
        if value.op == "call_module":
            return type(self.own[str(value.target)]) in (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        return value.op == "call_function" and value.target in (operator.add, _add_)

    def _block(self, node: fx.Node) -> None:
        own = self.own[str(node.target)]
        (images,) = node.args if len(node.args) == 1 else (None,)
        if type(own) is nn.Conv2d and isinstance(images, fx.Node) and images.op == "placeholder" and is_blockable(own):
            blocked = BlockedConv2d(own)
            self.own[str(node.target)] = blocked
            self.result.blocked.append(blocked)


# What depends on how memory is laid out, which is another in the copy.
_STRIDED = ("as_strided", "as_strided_", "stride", "is_contiguous", "storage_offset", "data_ptr", "untyped_storage")


def _live_name(node: fx.Node) -> str:
    return str(node.target).removeprefix(_MODEL).removeprefix(".")


def _become(node: fx.Node, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    node.op, node.target, node.args, node.kwargs = "call_function", function, tuple(arguments), {}


def _dropout_is_off(node: fx.Node) -> bool:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return training is False and bool(node.args)


def _subsampling(node: fx.Node) -> tuple[int, int] | None:
    """Return the steps if a node is ``x[:, :, ::down, ::right]`` and nobody writes to the result."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    index: Any = node.args[1]
    if not isinstance(index, tuple) or len(index) != 4 or not all(isinstance(part, slice) for part in index):
        return None
    steps = [1 if part.step is None else part.step for part in index]
    whole = all(part.start in (None, 0) and part.stop is None for part in index)
    readers = (functional.pad, operator.add, torch.add, _add_)
    read_only = all(user.op == "call_function" and user.target in readers for user in node.users)
    if not whole or not read_only or not all(type(step) is int for step in steps) or steps[:2] != [1, 1]:
        return None
    return None if steps[2:] == [1, 1] else (steps[2], steps[3])


def _subsample(features: Tensor, step_down: int, step_right: int) -> Tensor:
    """Return every so-manyth pixel as a pooling of 1x1 windows; the gradient of a slice would lose the format."""
    if features.dim() != 4 or not features.is_floating_point():
        return features[:, :, ::step_down, ::step_right]
    return functional.avg_pool2d(features, 1, (step_down, step_right))


def _add_(total: Tensor, other: Tensor) -> Tensor:
    """Return the sum, in place of ``total`` where it has its shape and dtype."""
    tensors = isinstance(total, Tensor) and isinstance(other, Tensor)
    if tensors and total.shape == other.shape and total.dtype == other.dtype:
        return total.add_(other)
    return total + other
