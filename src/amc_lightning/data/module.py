"""A dataset, balanced and split, in memory and on the device: what training and evaluation read."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pooch
import pytorch_lightning as pl
import torch
from torch import Tensor

from amc_lightning.data.batches import Batches
from amc_lightning.data.images import Images, Source, checked
from amc_lightning.data.splits import SPLIT_RULES, SplitRule, balance, split_test, split_train, take_per_class
from amc_lightning.errors import UserError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "attack", "test")
_TENTHS_WITHOUT_TEST_SET = 6  # 60 % of a set without an official test split trains


class ImageData(pl.LightningDataModule):
    """Read a dataset, balance and split it, and serve batches from tensors on the device.

    The keyword arguments are the keys of ``conf/dataset/<name>.yaml``, with ``source`` a function. Reading happens in
    ``prepare``, which ``setup`` calls; what is read, counted and drawn does not depend on ``seed``.

    Args:
        name: the dataset's name.
        source: called with ``root``, ``trust_files`` and ``split_seed``; see ``sources``.
        root: folder of the files; ``None`` is ``amc_lightning/<name>`` in the user's cache folder.
        trust_files: whether pickles that are not the official ones may be read.
        limit: at most so many training images, after balancing; class-balanced where ``balanced``.
        balanced: whether each class is cut to the rarest one's size, in training and test images.
        split_seed: draws which rows stay and where they go.
        split_rule: see ``splits.part_sizes``.
        size: read by the folder source only, through its own arguments.
        shape: (C, H, W) that the images must have; ``None`` takes what is read.
        num_classes: K that there must be; ``None`` takes what is read.
        augment: not read here; the YAML holds it for the stage that augments.
        epochs: not read here; the YAML holds it for the schedule.
        budget: not read here; the YAML holds it for the evaluation.
        batch_size: rows per batch.
        seed: orders the training batches.

    Attributes:
        splits: images and labels of train, validation, attack and test; ``prepare`` fills it and all that follows.
        pool: the training images before ``limit`` cut them, balanced where ``balanced``.
        counts: images in each split.
        counts_read: training and test images before balancing; test is 0 where a set has no official test split.
        class_names: one per class index.
        num_classes: K.
        shape: (C, H, W).
        verified: whether every file was the official one by checksum.

    Raises:
        UserError: for a setting that cannot be, files that cannot be read, or images that are not what is configured.
    """

    def __init__(
        self,
        *,
        name: str,
        source: Callable[..., Source],
        root: str | Path | None = None,
        trust_files: bool = False,
        limit: int | None = None,
        balanced: bool = True,
        split_seed: int = 0,
        split_rule: SplitRule = "standard",
        size: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        augment: Mapping[str, float | bool] | None = None,
        epochs: Mapping[str, int] | None = None,
        budget: Mapping[str, float] | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if split_rule not in SPLIT_RULES:
            raise UserError(
                "dataset.split_rule", split_rule, "is not a rule", f"known: {', '.join(SPLIT_RULES)}", "Choose one."
            )
        self.name = name
        self.source = source
        self.root = Path(pooch.os_cache("amc_lightning")) / name if root is None else Path(root).expanduser()
        self.trust_files = trust_files
        self.limit = limit
        self.balanced = balanced
        self.split_seed = split_seed
        self.split_rule = split_rule
        self.expected_shape = None if shape is None else tuple(shape)
        self.expected_classes = num_classes
        self.batch_size = batch_size
        self.seed = seed
        self.splits: dict[str, Images] = {}
        self._on_device: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}
        if num_classes is not None:
            self._check_limit(num_classes)

    # --- reading -----------------------------------------------------------------------------------------------------

    def prepare(self) -> "ImageData":
        """Read, check, balance and split, once; return itself."""
        if self.splits:
            return self
        source = self.source(root=self.root, trust_files=self.trust_files, split_seed=self.split_seed)
        num_classes = len(source.class_names)
        self._check_limit(num_classes)
        train = checked(source.train, num_classes, f"{self.name}, training images")
        test = None if source.test is None else checked(source.test, num_classes, f"{self.name}, test images")
        self._check_shape(train, num_classes)
        if test is not None:
            self._check_shape(test, num_classes)
        self.class_names = source.class_names
        self.num_classes = num_classes
        self.shape: tuple[int, int, int] = train.x.shape[1:]
        self.verified = source.verified
        self.counts_read = {"train": len(train), "test": 0 if test is None else len(test)}
        self.splits = self._split(train, test)
        self.counts = {split: len(images) for split, images in self.splits.items()}
        logger.debug("%s: read %s, used %s", self.name, self.counts_read, self.counts)
        return self

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook: prepare the data."""
        self.prepare()

    def _split(self, train: Images, test: Images | None) -> dict[str, Images]:
        names = self.class_names
        if test is None:
            whole = self._balance(train, 0)
            rows, held_out = split_train(whole.y, self.split_seed, tenths=_TENTHS_WITHOUT_TEST_SET, class_names=names)
            train, test = whole.take(rows), whole.take(held_out)
            test_total = len(test)
        else:
            test_total = len(test)
            train, test = self._balance(train, 0), self._balance(test, 1)
        self.pool = train
        parts = split_test(test.y, self.split_rule, seed=self.split_seed, test_total=test_total, class_names=names)
        return {
            "train": self._cut(train),
            "validation": test.take(parts.validation),
            "attack": test.take(parts.attack),
            "test": test.take(parts.test),
        }

    def _balance(self, images: Images, purpose: int) -> Images:
        if not self.balanced:
            return images
        rng = np.random.default_rng([self.split_seed, 2, purpose])
        return images.take(balance(images.y, rng, class_names=self.class_names))

    def _cut(self, train: Images) -> Images:
        if self.limit is None or self.limit >= len(train):
            return train
        rng = np.random.default_rng([self.split_seed, 3])
        if self.balanced:
            return train.take(
                take_per_class(train.y, self.limit // self.num_classes, rng, num_classes=self.num_classes)
            )
        return train.take(np.sort(rng.permutation(len(train))[: self.limit]))

    def _check_limit(self, num_classes: int) -> None:
        if self.limit is not None and self.limit < num_classes:
            raise UserError(
                "dataset.limit",
                self.limit,
                f"is fewer training images than the {num_classes} classes",
                f"at least {num_classes}, or null for all",
                "Raise dataset.limit.",
            )

    def _check_shape(self, images: Images, num_classes: int) -> None:
        if self.expected_shape is not None and images.x.shape[1:] != self.expected_shape:
            raise UserError(
                "dataset.shape",
                list(self.expected_shape),
                "is not the shape of the images",
                f"those of {self.name} are {list(images.x.shape[1:])} (channels, height, width)",
                "Correct dataset.shape, or choose another dataset.",
            )
        if self.expected_classes is not None and num_classes != self.expected_classes:
            raise UserError(
                "dataset.num_classes",
                self.expected_classes,
                "is not the number of classes",
                f"{self.name} has {num_classes}",
                "Correct dataset.num_classes, or choose another dataset.",
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the images and labels of all splits, in hexadecimal."""
        return self.fingerprint_of(*SPLITS)

    def fingerprint_of(self, *splits: str) -> str:
        """Return SHA-256 over the images and labels of some splits, in hexadecimal."""
        digest = hashlib.sha256()
        for split in splits:
            images = self.prepare().splits[split]
            digest.update(f"{split}{images.x.shape}".encode())
            digest.update(np.ascontiguousarray(images.x).data)
            digest.update(np.ascontiguousarray(images.y).data)
        return digest.hexdigest()

    # --- serving -----------------------------------------------------------------------------------------------------

    def tensors(self, split: str, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Return a whole split on a device: images (N, C, H, W) uint8 and labels (N,) int64; moved there once.

        Args:
            split: train, validation, attack or test.
            device: ``None`` is the device of the attached trainer, or the CPU.
        """
        place = self._device() if device is None else torch.device(device)
        if (split, place) not in self._on_device:
            images = self.prepare().splits[split]
            # torch shares memory with contiguous, writable arrays only; anything else is copied here.
            x, y = (np.require(array, requirements=["C", "W"]) for array in (images.x, images.y))
            self._on_device[split, place] = (torch.from_numpy(x).to(place), torch.from_numpy(y).to(place))
        return self._on_device[split, place]

    def batches(
        self,
        split: str,
        *,
        batch_size: int | None = None,
        shuffle_seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> Batches:
        """Return the batches of a split; in its own order unless ``shuffle_seed`` is given."""
        x, y = self.tensors(split, device)
        return Batches(
            x, y, batch_size=self.batch_size if batch_size is None else batch_size, shuffle_seed=shuffle_seed
        )

    def train_batches(self, seed: int | None = None) -> Batches:
        """Return shuffled training batches; the order of an epoch depends on the seed and the epoch alone."""
        return self.batches("train", shuffle_seed=self.seed if seed is None else seed)

    def train_dataloader(self) -> Batches:
        """Lightning's hook: ``train_batches`` with this module's seed."""
        return self.train_batches()

    def val_dataloader(self) -> Batches:
        """Lightning's hook: the validation split in its own order."""
        return self.batches("validation")

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
