"""Keep global random states out of attacks, and attacks out of global random states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, numpy and python inside; put their states back on leaving.

    Attacks of other hands draw from, and some reseed, the global state: in training that would repeat shuffling,
    augmentation and dropout after every call.

    Args:
        seed: seeds all of them inside, in [0, 2**32).
        device: device of the model; its generator is covered too where it is a CUDA device. Others are left alone.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    generators = [torch.default_generator, *_generators(device)]
    states = [generator.get_state() for generator in generators]
    try:
        # Not torch.manual_seed: it reseeds every device, and only this one is put back.
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def kept_torch_randomness(device: torch.device) -> Iterator[None]:
    """Put the states of torch's global generators back on leaving: a model may draw in eval mode too.

    Args:
        device: device of the model; its generator is covered beside the CPU's where it is a CUDA device.
    """
    generators = [torch.default_generator, *_generators(device)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed the generators that ``kept_torch_randomness`` keeps.

    Args:
        seed: in [0, 2**63).
        device: device of the model.
    """
    for generator in (torch.default_generator, *_generators(device)):
        generator.manual_seed(seed)


def _generators(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda":
        return []
    current = torch.cuda.current_device()  # also fills the tuple of generators, where CUDA has not been used yet
    return [torch.cuda.default_generators[current if device.index is None else device.index]]
