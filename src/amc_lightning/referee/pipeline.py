"""One hash over everything that a model computes with, to see that the attacked object is the deployed one."""

import hashlib
import re

import torch
from torch import Tensor, nn

from amc_lightning.referee.probabilities import LogProbabilities

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def pipeline_hash(model: nn.Module) -> str:
    """Return SHA-256 of a model as it answers: its modules with their settings, every parameter and every buffer.

    The same model gives the same hash in another process and on another device. What a model keeps elsewhere, such as
    a plain attribute or its code, is not seen.

    Args:
        model: the whole object, with whatever stands in front of the network (squeezing, normalisation, ensembles).

    Returns:
        64 hexadecimal digits.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = pipeline_hash(net)
        >>> pipeline_hash(net) == before
        True
        >>> _ = net.weight.data.add_(1)
        >>> pipeline_hash(net) == before
        False
    """
    given = model.model if isinstance(model, LogProbabilities) else model  # how it was given, not how it is examined
    digest = hashlib.sha256(_ADDRESS.sub("", repr(given)).encode())
    for name, module in given.named_modules():
        kind = type(module)
        digest.update(f"\n{name} {kind.__module__}.{kind.__qualname__}".encode())
    for name, tensor in [*given.named_parameters(), *given.named_buffers()]:
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """Return SHA-256 of a tensor's values, 64 hexadecimal digits; shape and dtype count as well."""
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + _content(tensor)).hexdigest()


def _content(tensor: Tensor) -> bytes:
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return dense.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
