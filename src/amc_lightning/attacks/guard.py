"""Hold a model still while it is attacked: what the attack does to it is undone, whatever happens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def guarded(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in eval mode with frozen parameters, gradients enabled; restore it bit for bit on leaving.

    Modes are set module by module through the attribute: a user's own ``train`` or ``eval`` is never called, and a
    batch norm frozen inside a model in train mode comes back frozen. Inference mode, ``no_grad``, autocast and TF32 of
    the caller do not reach inside. Gradients are set aside, so that an attack can neither add to them nor clear them.
    Guards may be nested.

    Args:
        model: any module; it need not have parameters.
    """
    modules = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with torch.inference_mode(False), torch.enable_grad(), _without_autocast(model), _without_tf32():
        buffers = _record_buffers(model)
        try:
            for module, training in modules:
                if training:
                    module.training = False
            for parameter, _, gradient in parameters:
                parameter.requires_grad = False
                if gradient is not None:
                    parameter.grad = None
            yield
        finally:
            for module, training in modules:
                if module.training != training:
                    module.training = training
            for parameter, requires_grad, gradient in parameters:
                parameter.requires_grad = requires_grad
                if parameter.grad is not gradient:
                    parameter.grad = gradient
            _restore_buffers(buffers)


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    tensors = [*model.parameters(), *model.buffers()]
    with ExitStack() as stack:
        for kind in sorted({"cpu"} | {tensor.device.type for tensor in tensors}):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Keep convolutions and products in full float32 on a GPU: TF32 loses EAP's margins and VAP's direction."""
    if not torch.cuda.is_available():
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


_BufferRecord = tuple[nn.Module, str, Tensor, Tensor]


def _record_buffers(model: nn.Module) -> list[_BufferRecord]:
    return [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]


def _restore_buffers(records: list[_BufferRecord]) -> None:
    """Write every buffer back, changed or not.

    Version counters cannot tell: batch norm updates its statistics without raising them; comparing values would cost a
    host sync each. Through ``data`` the writing does not raise them either, so that a graph the caller has built
    before stays valid.
    """
    for module, name, buffer, copy in records:
        if getattr(module, name) is not buffer:
            setattr(module, name, buffer)
        buffer.data.copy_(copy)
