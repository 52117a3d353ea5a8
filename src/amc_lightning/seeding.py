"""Random generators that depend on what they are for, and on nothing else."""

import hashlib

import torch


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts, in order, and is the same on every machine.

    Example:
        >>> derive(0, "fgsm") == derive(0, "fgsm"), derive(0, "fgsm") == derive(0, "pgm")
        (True, False)
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``derive(*parts)``; its numbers do not depend on the device that uses them."""
    return torch.Generator().manual_seed(derive(*parts))
