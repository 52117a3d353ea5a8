"""The operations of a model, recorded by `torch.fx` and made cheaper, with the copy's own tensors to do them."""

import copy
import operator
import re
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
    add_,
    fill_folds,
    is_blockable,
    paired,
    subsample,
    subsampling,
)

_MODEL = "model"  # the attribute of `_OneInput`, hence the first part of every traced name
_M = TypeVar("_M", bound=nn.Module)
# What a user's forward may do with a stand-in for a tensor; anything else is a bug here and keeps its traceback.
_TRACE_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    NameError,
)


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
        looks: shape, dtype and device of the live model's tensors that take part, by module name and attribute.
        copies: tensors of the copy that have the value of one of those.
        folds: convolutions whose values have to be computed.
        blocked: convolutions that keep their weights in a second form.
    """

    net: fx.GraphModule = field(init=False)
    looks: dict[Name, tuple[object, ...] | None] = field(default_factory=dict)
    copies: list[tuple[Name, Tensor]] = field(default_factory=list)
    folds: list[FoldedPair] = field(default_factory=list)
    blocked: list["BlockedConv2d"] = field(default_factory=list)

    def read(self, modules: Mapping[str, nn.Module]) -> Values | None:
        """Return the live model's tensors that take part; None where they are not as in what was recorded.

        Args:
            modules: of the live model, of the same names and settings as then.
        """
        values = {}
        for key, look in self.looks.items():
            tensor = getattr(modules[key[0]], key[1], None)
            if _look(tensor) != look:
                return None
            values[key] = tensor
        return values

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
    """Return the operations of ``model`` in eval mode, with tensors that have no values yet."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        if len(devices) > 1:
            raise NotRecordedError("its tensors are on several devices")
        root, graph = _traced(model)
        _refuse_writes(root, graph)
        return _Builder(root, graph, dtype).build(blocks=devices == {torch.device("cpu")})
    except NotRecordedError as error:
        raise CannotFold(f"no crafting copy of {type(model).__name__}: {error}") from error


def _traced(model: nn.Module) -> tuple[_OneInput, fx.Graph]:
    """Trace a twin of the model: tracing runs the model's code, and keeps constants as attributes."""
    try:
        # The caller's pre-hooks stay out of the twin: they would count a pass of it, and may hold anything.
        twin = copy.deepcopy(model, {id(model._forward_pre_hooks): OrderedDict()})
        for module in twin.modules():
            module.training = False
        root, before = _OneInput(twin), _buffers_of(twin)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), _without_custom_functions():
            graph = _Tracer().trace(root)
    except (*_TRACE_ERRORS, fx.proxy.TraceError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise NotRecordedError(f"torch.fx cannot trace it ({type(error).__name__}: {reason})") from error
    after = _buffers_of(twin)
    for name in {**before, **after}:
        if before.get(name) is not after.get(name):
            raise NotRecordedError(f"its forward changes its buffer {name!r}")
    (output,) = graph.find_nodes(op="output")
    if not isinstance(output.args[0], fx.Node):
        raise NotRecordedError("it does not return one tensor")
    return root, graph


def _buffers_of(model: nn.Module) -> dict[str, object]:
    """Return the buffers by name, whatever a trace has put in their place."""
    parts = model.named_modules()
    return {f"{name}.{key}".lstrip("."): value for name, part in parts for key, value in part._buffers.items()}


def _refuse_writes(root: _OneInput, graph: fx.Graph) -> None:
    """Refuse what writes to memory that outlives a call: the images, and tensors of the model or made by the trace."""
    owners: dict[object, str] = {}  # of nodes in such memory: what writing to them would be
    for node in graph.nodes:
        first, out = node.args[0] if node.args else None, node.kwargs.get("out")
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        writes = bool(node.kwargs.get("inplace") or _WRITING.fullmatch(name))
        shares = bool(_SHARING.fullmatch(name))
        if node.op == "placeholder":
            owners[node] = "its forward writes to its images"
        elif node.op == "get_attr":
            own = name.removeprefix(f"{_MODEL}.")
            owners[node] = "its forward " + (
                "writes to a tensor that it makes" if own == name else f"changes its tensor {own!r}"
            )
        elif node.op == "call_module":
            part = root.get_submodule(name)
            shares = isinstance(part, nn.Identity | nn.Flatten | nn.Unflatten | nn.modules.dropout._DropoutNd)
            writes = not shares and any(getattr(inner, "inplace", False) for inner in part.modules())
        if (writes and first in owners) or out in owners:
            raise NotRecordedError(owners[first if out is None else out])
        if shares and first in owners:
            owners[node] = owners[first]


class _Builder:
    """Makes a recording of a trace: modules of the copy's own in place of the twin's, and cheaper operations."""

    def __init__(self, root: _OneInput, graph: fx.Graph, dtype: torch.dtype | None) -> None:
        self.root = root
        self.graph = graph
        self.dtype = dtype
        self.own: dict[str, nn.Module | Tensor] = {}
        self.shared: dict[str, str] = {}
        self.result = Recording()

    def build(self, *, blocks: bool) -> Recording:
        """Take over modules and tensors first, since what may work in place depends on them."""
        folded = set()
        for node in list(self.graph.nodes):
            if node.op == "call_module" and node not in folded:
                norm = self._take_module(node)
                folded |= {norm} - {None}
            elif node.op == "get_attr":
                self._take_tensor(node)
        for node in list(self.graph.nodes):
            self._cheapen(node)
        if blocks:
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
            self.result.looks.setdefault((module, attribute), _look(value))
            self.result.copies.append(((module, attribute), own))

    def _watch(self, name: str, twin: nn.Module) -> None:
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
            raise NotRecordedError(f"its forward uses strides ({node.target})")
        elif node.op == "call_function" and node.target is functional.dropout and _dropout_is_off(node):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.graph.erase_node(node)
        elif steps := subsampling(node):
            _become(node, subsample, (node.args[0], *steps))
        elif node.op == "call_function" and node.target in (operator.add, torch.add):
            self._add_in_place(node)
        elif self._is_relu(node) and len(node.args) == 1 and self._is_free(node.args[0]):
            _become(node, torch.relu_, node.args)

    def _add_in_place(self, node: fx.Node) -> None:
        if len(node.args) == 2 and not node.kwargs and node.args[0] is not node.args[1]:
            for total, other in (node.args, node.args[::-1]):
                if isinstance(other, fx.Node) and self._is_free(total):
                    _become(node, add_, (total, other))
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
        return value.op == "call_function" and value.target in (operator.add, add_)

    def _block(self, node: fx.Node) -> None:
        own = self.own[str(node.target)]
        (images,) = node.args if len(node.args) == 1 else (None,)
        if type(own) is nn.Conv2d and isinstance(images, fx.Node) and images.op == "placeholder" and is_blockable(own):
            blocked = BlockedConv2d(own)
            self.own[str(node.target)] = blocked
            self.result.blocked.append(blocked)
        elif pool := paired(own):
            self.own[str(node.target)] = pool


# Names of operations that write to their first argument, and of those whose result may be in its memory.
_WRITING = re.compile(
    r"(?!(and|or|is|not)_)[a-z]\w*[^_]_|(__)?setitem(__)?|(__)?i(add|and|mod|mul|or|pow|sub|xor|(true|floor)div)(__)?"
)
_SHARING = re.compile(
    r"alias|broadcast_to|chunk|contiguous|cpu|cuda|detach|diagonal|double|dropout|expand(_as)?|(un)?flatten|float|getattr"
    r"|(__)?getitem(__)?|hsplit|movedim|narrow|permute|reshape(_as)?|select|split|(un)?squeeze|swap(axes|dims)|t"
    r"|tensor_split|to|transpose|type(_as)?|unbind|unfold|view(_as)?|vsplit"
)
# What depends on how memory is laid out, which is another in the copy.
_STRIDED = ("as_strided", "as_strided_", "stride", "is_contiguous", "storage_offset", "data_ptr", "untyped_storage")


def _live_name(node: fx.Node) -> str:
    return str(node.target).removeprefix(_MODEL).removeprefix(".")


def _become(node: fx.Node, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    node.op, node.target, node.args, node.kwargs = "call_function", function, tuple(arguments), {}


def _dropout_is_off(node: fx.Node) -> bool:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return training is False and bool(node.args)
