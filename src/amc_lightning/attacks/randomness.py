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
        device: device of the model; its generator is covered too where it is a CUDA device.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it reseeds every CUDA device, and only this one is put back.
        torch.default_generator.manual_seed(seed)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
