"""Batches by indexing tensors that already lie on the device: nothing is collated, copied or awaited."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """One batch.

    Args:
        x: images, (B, C, H, W) float32 in [0, 1].
        y: class indices, (B,) int64.
        rows: which rows of the split these are, (B,) int64.
    """

    x: Tensor
    y: Tensor
    rows: Tensor


class Batches:
    """The batches of one split, in its order or shuffled anew in every epoch; the last one may be smaller.

    The order of an epoch depends on ``(shuffle_seed, epoch)`` alone: not on the device or on earlier iterations.
    Lightning calls ``loader.sampler.set_epoch`` before each epoch. With ``state_dict`` and ``load_state_dict`` it
    can go on within an epoch: the next iteration leaves out the batches that are done.

    Args:
        x: images, (N, C, H, W) uint8, on the device the batches shall have.
        y: class indices, (N,) int64, on the same device.
        batch_size: rows per batch, >= 1.
        shuffle_seed: ``None`` keeps the order.

    Example:
        >>> batches = Batches(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5), batch_size=2)
        >>> len(batches), [batch.rows.tolist() for batch in batches]
        (3, [[0, 1], [2, 3], [4]])
    """

    batch_sampler = None  # Lightning reads it wherever there is a sampler

    def __init__(self, x: Tensor, y: Tensor, *, batch_size: int, shuffle_seed: int | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0
        self._given = self._skipped = 0

    @property
    def sampler(self) -> "Batches":
        """What Lightning calls ``set_epoch`` on."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the rows in this epoch's order, (N,) int64 on the CPU."""
        if self.shuffle_seed is None:
            return torch.arange(len(self.y))
        return torch.from_numpy(np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(len(self.y)))

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were given."""
        return {"position": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin behind the batches that were given."""
        self._given = self._skipped = state["position"]

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.y) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of this epoch, or those that are left of it."""
        order = self.order().to(self.y.device)
        first, self._skipped = self._skipped, 0
        for index in range(first, len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            self._given = index + 1
            yield Batch(self.x[rows].to(torch.float32).div_(255), self.y[rows], rows)
