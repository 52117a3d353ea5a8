"""Hold a model still while it is attacked: what the attack does to it is undone, whatever happens."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, starmap, zip_longest
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from amc_lightning.errors import UserError


@contextmanager
def guarded(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in eval mode with frozen parameters, gradients enabled; restore it bit for bit on leaving.

    The caller's inference mode, ``no_grad``, autocast and reduced float32 precision (TF32, bfloat16 products) do not
    reach inside. Modes are set module by module through the attribute: a user's own ``train`` or ``eval`` is never
    called, and a batch norm frozen inside a model in train mode comes back frozen.

    On leaving, also by an exception, these are what and where they were: modes, parameters, buffers, submodules and
    hooks of every module; values and version counters of buffers; of parameters ``requires_grad``, ``grad`` (set aside
    inside, so that an attack can neither add to it nor clear it) and the memory they live in, so that
    ``model.double()`` is undone. Weights written in place are not put back, for that takes a copy of all of them in
    every call; they are found by their version counters, which only writing through ``data`` escapes. Not looked
    after: what a module keeps in attributes of its own, such as a counter in plain Python, and the values of ``grad``
    if an attack gets hold of it elsewhere.

    Guards may be nested. One model must not be guarded in two threads at once, and float32 precision is a setting of
    the whole process. A compiled model is compiled once more, for eval mode with frozen parameters.

    Args:
        model: any module; it need not have parameters. One that is trained in parallel goes through ``unwrapped``.

    Raises:
        UserError: if a lazy module has no parameters yet.
        RuntimeError: on leaving, if weights were written in place.
    """
    with torch.inference_mode(False), torch.enable_grad(), _without_autocast(), _in_full_precision():
        state = _State(model)
        try:
            state.freeze()
            yield
        finally:
            state.restore()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel and DataParallel, or ``model`` itself.

    Attacks go to it and not to the wrapper, whose forward broadcasts buffers, arms the reduction of gradients, and
    waits for ranks that may be crafting another number of steps. A compiled module stays compiled, unless what was
    compiled is the wrapper.

    Args:
        model: any module; wrappers may be nested.
    """
    module = inner = model
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = inner = module.module
        # By name: to import the class of compiled modules takes seconds.
        elif "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        else:
            return inner


# What a module holds by name, and its hooks. Every module has one of each; most are empty.
_HOLDERS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_holders_of = itemgetter(*_HOLDERS)


class _State:
    """What the guard changes and puts back.

    Written in bulk where it can be: a ResNet-32 has 83 modules, 95 parameters and 93 buffers, and waits for this twice
    a step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        modules = _modules_of(model)
        # Those of a TorchScript module are fixed.
        self.eager = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self.modes = [(module, module.training) for module in modules]
        self.marks = [(m, m._is_full_backward_hook, m._non_persistent_buffers_set.copy()) for m in self.eager]
        self.holders = self._holders()
        self.filled = [holder for holder in self.holders if holder]
        self.held = [holder.copy() for holder in self.filled]
        parameters = _distinct(module._parameters for module in modules)
        buffers = _distinct(module._buffers for module in modules)
        self.parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
        self.memories = [(tensor, tensor.data) for tensor in (*parameters, *buffers)]
        self.values = _copied(memory for _, memory in self.memories[len(parameters) :])
        # What was made in inference mode has no version.
        self.counted = tuple(tensor for tensor in (*parameters, *buffers) if not tensor.is_inference())
        self.versions = tuple(tensor._version for tensor in self.counted)

    def freeze(self) -> None:
        """Set eval mode by attribute, freeze the parameters and set their gradients aside."""
        for module, training in self.modes:
            if training:
                _set_training(module, False)
        for parameter, requires_grad, gradient in self.parameters:
            if requires_grad:
                parameter.requires_grad = False
            if gradient is not None:
                parameter.grad = None

    def restore(self) -> None:
        """Put everything back.

        Raises:
            RuntimeError: if weights were written in place; everything else is back by then.
        """
        self._restore_holders()
        for module, is_full_backward_hook, hidden in self.marks:
            if module._is_full_backward_hook is not is_full_backward_hook:
                module._is_full_backward_hook = is_full_backward_hook
            if module._non_persistent_buffers_set != hidden:
                module._non_persistent_buffers_set = hidden
        for module, training in self.modes:
            if module.training != training:
                _set_training(module, training)
        # What was made in inference mode can be written to, and asked for gradients again, in inference mode only.
        with torch.inference_mode():
            # Set, moved or not: to ask costs more.
            for tensor, memory in self.memories:
                tensor.data = memory
            for parameter, requires_grad, gradient in self.parameters:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad = requires_grad
                if parameter.grad is not gradient:
                    parameter.grad = gradient
            # Every buffer is written, changed or not: batch norm updates its statistics without raising their version
            # counters, and comparing values would cost a wait for the device. Written through ``data``, and with the
            # counters put back, a graph that the caller has built before stays valid.
            for memories, values in self.values:
                torch._foreach_copy_(memories, values)
        self._restore_versions()

    def _holders(self) -> list[dict[Any, Any]]:
        return [*chain.from_iterable(map(_holders_of, map(vars, self.eager)))]

    def _restore_holders(self) -> None:
        holders = self._holders()
        if (
            _identical(holders, self.holders)
            and _identical([holder for holder in holders if holder], self.filled)
            and [*map(len, self.filled)] == [*map(len, self.held)]
            and _identical(chain.from_iterable(self.filled), chain.from_iterable(self.held))
            and _identical(
                chain.from_iterable(map(dict.values, self.filled)), chain.from_iterable(map(dict.values, self.held))
            )
        ):
            return
        # Some are new ones, as `del sequential[0]` makes them.
        known = iter(self.holders)
        for module in self.eager:
            vars(module).update(zip(_HOLDERS, known, strict=False))
        for holder in self.holders:
            holder.clear()
        for holder, held in zip(self.filled, self.held, strict=True):
            holder.update(held)

    def _restore_versions(self) -> None:
        changed = {
            id(tensor): (tensor, version)
            for tensor, version in zip(self.counted, self.versions, strict=True)
            if tensor._version != version
        }
        if not changed:
            return
        written = {id(parameter) for parameter, *_ in self.parameters} & changed.keys()
        for key in changed.keys() - written:
            tensor, version = changed[key]
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
        if written:
            names = [name for name, parameter in self.model.named_parameters() if id(parameter) in written]
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise RuntimeError(
                f"model: an attack wrote in place to {names[0]}{more} of {type(self.model).__name__}, which cannot be "
                "undone; allowed: to read parameters. Attack a copy of the model, made by copy.deepcopy."
            )


def _modules_of(model: nn.Module) -> list[nn.Module]:
    """Return what ``model.modules()`` does, in a quarter of the time.

    Raises:
        UserError: if one has parameters without a shape.
    """
    found, seen = [model], {id(model)}
    for module in found:
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise UserError(
                "model",
                type(module).__name__,
                "has no parameters yet",
                "needed: a model whose shapes are known",
                "Pass one batch through the model first.",
            )
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def _distinct(holders: Iterable[Mapping[str, Tensor | None]]) -> list[Tensor]:
    """Return the tensors of modules; one that is shared, once."""
    return list({id(tensor): tensor for held in holders for tensor in held.values() if tensor is not None}.values())


def _set_training(module: nn.Module, training: bool) -> None:
    attributes = vars(module)
    # Ten times as fast as `nn.Module.__setattr__`. A compiled or TorchScript module keeps its mode elsewhere.
    if "training" in attributes:
        attributes["training"] = training
    else:
        module.training = training


def _identical(these: Iterable[object], those: Iterable[object]) -> bool:
    """Return whether both are the same objects in the same order."""
    end = object()
    return all(starmap(is_, zip_longest(these, those, fillvalue=end)))


def _copied(memories: Iterable[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return tensors beside copies of them, made in one kernel per dtype and device where they are contiguous."""
    lines: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    copies: list[tuple[list[Tensor], list[Tensor]]] = []
    for memory in memories:
        if memory.layout is torch.strided and memory.is_contiguous():
            lines.setdefault((memory.dtype, memory.device), []).append(memory.view(-1))
        # An expanded tensor cannot be written to in place, neither by an attack nor here.
        elif memory.layout is not torch.strided or not torch._debug_has_internal_overlap(memory):
            copies.append(([memory], [memory.clone()]))
    for line in lines.values():
        sizes = [part.numel() for part in line]
        copies.append((line, list(torch.cat(line).split_with_sizes(sizes))))
    return copies


@contextmanager
def _without_autocast() -> Iterator[None]:
    # Not by the model's devices: a model without parameters has none, and is attacked on one all the same.
    enabled = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)


# Parents before children: a child at "none" does as its parent.
_PRECISIONS = (
    ("generic", "all"),
    *((library, kind) for library in ("mkldnn", "cuda") for kind in ("all", "matmul", "conv", "rnn")),
)


@contextmanager
def _in_full_precision() -> Iterator[None]:
    """Compute products and convolutions in full float32: less loses EAP's margins and VAP's direction.

    On a GPU that is TF32, for convolutions the default; on the CPU bfloat16, after
    ``torch.set_float32_matmul_precision("medium")``. Torch keeps each setting twice, old and new, and its getters raise
    where the two differ. So both are set, in an order in which none raises, and both are put back as they were.
    """
    # Not by attribute: in torch 2.13 the one of `torch.backends.mkldnn` sets all libraries.
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    found = []
    for node in _PRECISIONS:
        found.append((node, get(*node)))
        put(*node, "none")
    products, convolutions = torch.get_float32_matmul_precision(), _old_convolution_setting()
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        for node, precision in found:
            put(*node, precision)


def _old_convolution_setting() -> bool:
    """Return what `torch.backends.cudnn.allow_tf32` was set to; it raises where it is not what the new ones say."""
    for kind in ("conv", "rnn"):
        torch._C._set_fp32_precision_setter("cuda", kind, "tf32")
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return False
