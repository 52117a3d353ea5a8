"""The logits' change along a direction, computed beside the logits: one forward pass more, and no second backward."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from amc_lightning.attacks.fold_convolution import BlockedConv2d, PairedMaxPool2d, add_, subsample


def with_tangent(net: fx.GraphModule) -> fx.GraphModule | None:
    """Return a module that maps (images, direction) to the logits and their Jacobian's product with the direction.

    It does the operations of ``net`` in their order and with its tensors, so its logits are the same to the bit and
    have the same graph; the product has none. At kinks it takes the derivative that autograd takes.

    Args:
        net: the operations of a crafting copy: eval mode, one input, no parameter with a gradient.

    Returns:
        The module; None if the derivative of an operation is not known here, or a tensor is in half precision, where
        the product would be mostly rounding.
    """
    tensors = (*net.parameters(), *net.buffers())
    if any(tensor.is_floating_point() and tensor.dtype.itemsize < 4 for tensor in tensors):
        return None
    return _Builder(net).build()


class _Pushed(nn.Module):
    """The derivative along a direction of a module or function of the net."""

    def __init__(self, rule: Callable[..., Tensor], of: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.of = of

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        return self.rule(self.of, *arguments, **keywords)


class _Builder:
    """Makes a graph that has every operation of another one, each next to its derivative along the direction.

    Attributes:
        values: the node of the new graph that computes what a node of the old one does.
        tangents: the node that computes its derivative; None where the images have no part in it.
        fresh: nodes of the new graph whose result is memory of its own, not a view.
        pushed: modules of the new graph that the net does not have.
    """

    def __init__(self, net: fx.GraphModule) -> None:
        self.net = net
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.tangents: dict[fx.Node, fx.Node | None] = {}
        self.fresh: set[fx.Node] = set()
        self.pushed: dict[str, nn.Module] = {}

    def build(self) -> fx.GraphModule | None:
        """Return a module that computes both; None where there is no rule for an operation."""
        result: Any = None
        for node in self.net.graph.nodes:
            if node.op == "output":
                (result,) = node.args
            elif node.op == "placeholder":
                self.values[node] = self.graph.placeholder(node.name)
                self.tangents[node] = self.graph.placeholder("direction")
            elif not self._moving(node.all_input_nodes) or _is_about_shape(node):
                self._keep(node, None)
            elif not self._differentiate(node):
                return None
        if self.tangents[result] is None:
            return None
        self.graph.output((self.values[result], self.tangents[result]))
        for node in self.graph.nodes:
            self._work_in_place(node)
        self.graph.lint()
        names = {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}
        parts = {name: operator.attrgetter(name)(self.net) for name in names - self.pushed.keys()}
        return fx.GraphModule({**parts, **self.pushed}, self.graph)

    def _differentiate(self, node: fx.Node) -> bool:
        part = self.part(node)
        overwrites = node.target in _OVERWRITING or node.kwargs.get("inplace") or getattr(part, "inplace", False)
        if overwrites and not self._is_free(node):
            return False
        rule = _RULES.get(node.target if part is None else type(part))
        return rule is not None and rule(self, node)

    def _is_free(self, node: fx.Node) -> bool:
        """Return whether nobody sees the first input of a node overwritten; that of others would miss it."""
        given = node.args[0] if node.args else None
        return isinstance(given, fx.Node) and len(given.users) == 1 and self.values[given] in self.fresh

    def _work_in_place(self, node: fx.Node) -> None:
        def is_free(given: object) -> bool:
            return isinstance(given, fx.Node) and len(given.users) == 1 and given in self.fresh

        if node.target is _masked and is_free(node.args[0]):
            node.target = _masked_
        elif node.target is _sum:
            for total, other in (node.args, node.args[::-1]):
                if is_free(total) and total is not other:
                    node.target, node.args = add_, (total, other)
                    return

    # What rules are made of

    def part(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self.net.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _moving(self, argument: Any) -> list[fx.Node]:
        """Return the nodes of the old graph in an argument that depend on the images."""
        found: list[fx.Node] = []
        fx.map_arg(argument, found.append)
        return [node for node in found if self.tangents[node] is not None]

    def only_tangent(self, node: fx.Node) -> fx.Node | None:
        """Return the tangent of the first argument, if it has one and no other has."""
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        return None if self._moving((node.args[1:], dict(node.kwargs))) else self.tangents[node.args[0]]

    def _keep(self, node: fx.Node, tangent: fx.Node | None) -> None:
        self.values[node] = self.graph.node_copy(node, self.values.__getitem__)
        self.tangents[node] = tangent

    def keep(self, node: fx.Node, tangent: fx.Node, *, fresh: bool = True) -> bool:
        """Add the operation itself, and note its derivative; return that there was a rule."""
        self._keep(node, tangent)
        if fresh:
            self.fresh.add(self.values[node])
        return True

    def call(self, function: Callable[..., Any], *arguments: Any, fresh: bool = True) -> fx.Node:
        """Add an operation on nodes of the new graph."""
        node = self.graph.call_function(function, arguments)
        if fresh:
            self.fresh.add(node)
        return node

    def again(self, node: fx.Node, tangent: Any, *, fresh: bool = True) -> fx.Node:
        """Add the same operation on a tangent, or on a list of them, in place of the first argument."""
        arguments, keywords = self.others(node)
        added = self.graph.create_node(node.op, node.target, (tangent, *arguments[1:]), keywords)
        if fresh:
            self.fresh.add(added)
        return added

    def others(self, node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a node in the new graph."""
        arguments, keywords = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        return list(arguments), dict(keywords)

    def push(self, rule: Callable[..., Tensor], of: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> fx.Node:
        """Add a call of ``rule(of, *arguments, **keywords)``."""
        name = f"pushed_{len(self.pushed)}"
        self.pushed[name] = _Pushed(rule, of)
        node = self.graph.call_module(name, arguments, keywords)
        self.fresh.add(node)
        return node


# Derivatives as the new graph computes them. What has a graph comes in detached: the tangent has none.


def _masked(tangent: Tensor, answer: Tensor) -> Tensor:
    """Return the tangent where ReLU let something through; autograd's own operation."""
    masked: Tensor = torch.ops.aten.threshold_backward(tangent, answer.detach(), 0)
    return masked


def _masked_(tangent: Tensor, answer: Tensor) -> Tensor:
    torch.ops.aten.threshold_backward.grad_input(tangent, answer.detach(), 0, grad_input=tangent)
    return tangent


def _sum(tangent: Tensor, other: Tensor) -> Tensor:
    return tangent + other


def _times(tangent: Tensor, factor: Tensor | float) -> Tensor:
    return tangent * (factor.detach() if isinstance(factor, Tensor) else factor)


def _like(tangent: Tensor, answer: Tensor) -> Tensor:
    """Return the tangent in the shape and dtype that a sum with a constant has."""
    return tangent.to(answer.dtype).expand(answer.shape)


def _picked(tangent: Tensor, indices: Tensor) -> Tensor:
    """Return the tangent at the pixels that max pooling chose."""
    return tangent.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)


def _convolved(part: nn.Conv2d, tangent: Tensor) -> Tensor:
    # Once for both, on [images; direction], is no faster and would carry the direction into the logits' graph.
    answer: Tensor = part._conv_forward(tangent, part.weight, None)
    return answer


def _blocked(part: BlockedConv2d, tangent: Tensor) -> Tensor:
    """Return what blocks give, by the plain weights: where no gradient is to come, those are faster."""
    return functional.conv2d(tangent, part.plain.weight, None, padding=part.padding)


def _applied(part: nn.Linear, tangent: Tensor) -> Tensor:
    return functional.linear(tangent, part.weight)


def _scaled(part: nn.BatchNorm2d, tangent: Tensor) -> Tensor:
    assert part.running_var is not None
    scale = (part.running_var + part.eps).rsqrt()
    scale = scale if part.weight is None else scale * part.weight
    return tangent * scale.view(-1, *[1] * (tangent.dim() - 2))


def _along(function: Callable[..., Tensor], tangent: Tensor, given: Tensor, *rest: Any, **keywords: Any) -> Tensor:
    """Return the derivative of a function of single entries; its Jacobian is diagonal, so backward is forward too."""
    with torch.enable_grad():
        point = given.detach().requires_grad_()
        answer = function(point.clone(), *rest, **keywords)  # a clone may be overwritten
    (product,) = torch.autograd.grad(answer, point, tangent)
    return product


# Rules: add the derivative of a node's operation, and the operation; return False if that cannot be done.

_Rule = Callable[[_Builder, fx.Node], bool]


def _linear(builder: _Builder, node: fx.Node, *, fresh: bool = True) -> bool:
    tangent = builder.only_tangent(node)
    if tangent is None:
        return False
    return builder.keep(node, builder.again(node, tangent, fresh=fresh), fresh=fresh)


def _view(builder: _Builder, node: fx.Node) -> bool:
    return _linear(builder, node, fresh=False)


def _padding(builder: _Builder, node: fx.Node) -> bool:
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return (mode != "constant" or not value) and _linear(builder, node)


def _affine(rule: Callable[..., Tensor]) -> _Rule:
    def add(builder: _Builder, node: fx.Node) -> bool:
        tangent, part = builder.only_tangent(node), builder.part(node)
        if tangent is None or part is None or len(node.args) > 1:
            return False
        return builder.keep(node, builder.push(rule, part, tangent))

    return add


def _norm(builder: _Builder, node: fx.Node) -> bool:
    part = builder.part(node)
    # Without statistics of its own it takes the batch's, which depend on the images.
    return getattr(part, "running_var", None) is not None and _affine(_scaled)(builder, node)


def _relu(builder: _Builder, node: fx.Node) -> bool:
    tangent = builder.only_tangent(node)
    if tangent is None:
        return False
    builder.keep(node, tangent)
    builder.tangents[node] = builder.call(_masked, tangent, builder.values[node])
    return True


def _elementwise(builder: _Builder, node: fx.Node) -> bool:
    tangent = builder.only_tangent(node)
    if tangent is None or len(node.all_input_nodes) > 1:
        return False
    arguments, keywords = builder.others(node)
    function: Any = builder.part(node) or node.target
    if node.op == "call_method":
        function = getattr(Tensor, str(node.target))
    return builder.keep(node, builder.push(_along, function, tangent, *arguments, **keywords))


def _max_pool(builder: _Builder, node: fx.Node) -> bool:
    tangent, part = builder.only_tangent(node), builder.part(node)
    arguments, keywords = builder.others(node)
    if isinstance(part, nn.MaxPool2d):
        arguments += [part.kernel_size, part.stride, part.padding, part.dilation, part.ceil_mode]
        keywords["return_indices"] = part.return_indices
    if tangent is None or keywords.get("return_indices"):
        return False
    pooled = builder.graph.call_function(functional.max_pool2d_with_indices, tuple(arguments), keywords)
    builder.values[node] = builder.call(operator.getitem, pooled, 0)
    indices = builder.call(operator.getitem, pooled, 1)
    builder.tangents[node] = builder.call(_picked, tangent, indices)
    return True


def _sides(builder: _Builder, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None] | None:
    """Return the tangents of an operation's two arguments; None if it has more arguments than two."""
    if len(node.args) != 2 or node.kwargs:
        return None
    left, right = (builder.tangents[given] if isinstance(given, fx.Node) else None for given in node.args)
    return left, right


def _addition(builder: _Builder, node: fx.Node) -> bool:
    sides = _sides(builder, node)
    if sides is None:
        return False
    left, right = sides
    if right is not None and node.target in _SUBTRACTIONS:
        right = builder.call(operator.neg, right)
    if left is not None and right is not None:
        return builder.keep(node, builder.call(_sum, left, right))
    tangent = left or right
    assert tangent is not None
    builder.keep(node, tangent)
    if all(isinstance(given, fx.Node) for given in node.args):
        builder.tangents[node] = builder.call(_like, tangent, builder.values[node], fresh=False)
    return True


def _multiplication(builder: _Builder, node: fx.Node) -> bool:
    sides = _sides(builder, node)
    if sides is None:
        return False
    factors, _ = builder.others(node)
    terms = [
        builder.call(_times, tangent, factor)
        for tangent, factor in zip(sides, reversed(factors), strict=True)
        if tangent is not None
    ]
    return builder.keep(node, terms[0] if len(terms) == 1 else builder.call(_sum, *terms))


def _division(builder: _Builder, node: fx.Node) -> bool:
    return _sides(builder, node) is not None and _linear(builder, node)


def _joined(builder: _Builder, node: fx.Node) -> bool:
    parts: Any = node.args[0] if node.args else None
    if not isinstance(parts, list | tuple) or not all(isinstance(part, fx.Node) for part in parts):
        return False
    tangents = [builder.tangents[part] or builder.call(torch.zeros_like, builder.values[part]) for part in parts]
    return builder.keep(node, builder.again(node, tangents))


def _by_name(*names: str) -> list[Any]:
    """Return methods, and functions of torch, by the name that they share."""
    return [*names, *(getattr(torch, name) for name in names if hasattr(torch, name))]


_OVERWRITING = (torch.relu_, "relu_", add_, "add_", operator.iadd)
_SUBTRACTIONS = (*_by_name("sub"), operator.sub)
_ABOUT_SHAPE = ("size", "dim", "numel", torch.zeros_like, torch.ones_like)


def _is_about_shape(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in ("shape", "dtype", "device", "ndim")
    return node.op in ("call_function", "call_method") and node.target in _ABOUT_SHAPE


_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _affine(_convolved)),
    BlockedConv2d: _affine(_blocked),
    nn.Linear: _affine(_applied),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    **dict.fromkeys((nn.ReLU, functional.relu, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((nn.MaxPool2d, PairedMaxPool2d, functional.max_pool2d, torch.max_pool2d), _max_pool),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, functional.avg_pool2d, subsample), _linear),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _linear),
    **dict.fromkeys((functional.adaptive_avg_pool2d, *_by_name("mean", "sum", "clone", "neg"), operator.neg), _linear),
    **dict.fromkeys((nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d), _linear),
    functional.pad: _padding,
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, operator.getitem), _view),
    **dict.fromkeys(_by_name("reshape", "view", "flatten", "permute", "transpose", "squeeze", "unsqueeze"), _view),
    **dict.fromkeys(("contiguous", "float", "double", "expand"), _view),
    **dict.fromkeys((*_by_name("add"), "add_", operator.add, operator.iadd, add_, *_SUBTRACTIONS), _addition),
    **dict.fromkeys((*_by_name("mul"), operator.mul), _multiplication),
    **dict.fromkeys((*_by_name("div"), operator.truediv), _division),
    **dict.fromkeys((torch.cat, torch.stack), _joined),
    **dict.fromkeys((nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish), _elementwise),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign), _elementwise),
    **dict.fromkeys((nn.Softplus, nn.Tanh, nn.Sigmoid, functional.leaky_relu, functional.elu), _elementwise),
    **dict.fromkeys((functional.gelu, functional.silu, functional.softplus, functional.mish), _elementwise),
    **dict.fromkeys((functional.relu6, functional.hardtanh, functional.hardswish), _elementwise),
    **dict.fromkeys(_by_name("tanh", "sigmoid", "exp", "log", "sqrt", "rsqrt", "square"), _elementwise),
    **dict.fromkeys((*_by_name("abs", "clamp", "pow"), operator.pow), _elementwise),
}
