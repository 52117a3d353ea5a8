"""Which rows train, validate, are attacked and test: exact counts, seeded, disjoint.

Counts are integer arithmetic, so that no rounding of 0.3 or 0.7 can move a row. Rows are drawn with a seed of their own
(``dataset.split_seed``), so that every run splits alike whatever its training seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amc_lightning.data.images import Rows
from amc_lightning.errors import UserError

SplitRule = Literal["standard", "official_code"]
SPLIT_RULES: tuple[SplitRule, ...] = ("standard", "official_code")


@dataclass(frozen=True)
class HeldOut:
    """The three parts of a test set: row numbers, each sorted."""

    validation: Rows
    attack: Rows
    test: Rows


def part_sizes(n: int, rule: SplitRule, *, test_total: int, num_classes: int) -> tuple[int, int, int]:
    """Return how many of a class's n test rows go to validation, attack and test.

    Args:
        n: rows of the class, after balancing.
        rule: ``standard`` takes 30 % of n for validation; ``official_code`` takes 30 % of an average class of the test
            set *before* balancing, as the authors' code does. Both then attack 30 % of what is left.
        test_total: rows of the whole test set before balancing; read by ``official_code`` only.
        num_classes: K.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, section 4 (30/21/49 %), and ``data_load.py`` of the authors' code.

    Example:
        >>> part_sizes(892, "standard", test_total=10_000, num_classes=10)  # MNIST
        (267, 187, 438)
        >>> part_sizes(892, "official_code", test_total=10_000, num_classes=10)
        (300, 177, 415)
        >>> part_sizes(1595, "official_code", test_total=26_032, num_classes=10)  # SVHN
        (780, 244, 571)
    """
    validation = 3 * n // 10 if rule == "standard" else min(n, 3 * test_total // (10 * num_classes))
    attack = 3 * (n - validation) // 10
    return validation, attack, n - validation - attack


def balance(y: NDArray[np.int64], rng: np.random.Generator, *, class_names: Sequence[str]) -> Rows:
    """Return the rows that stay when every class is cut, at random, to the size of the rarest.

    Args:
        y: class indices, (N,) int64.
        rng: draws the rows.
        class_names: one per class; a class without a row is an error.

    Raises:
        UserError: if a class has no rows.

    Example:
        >>> rows = balance(np.array([0, 0, 0, 1, 1]), np.random.default_rng(0), class_names=["a", "b"])
        >>> len(rows), sorted(np.array([0, 0, 0, 1, 1])[rows].tolist())
        (4, [0, 0, 1, 1])
    """
    counts = np.bincount(y, minlength=len(class_names))
    _require_rows(counts, class_names)
    return take_per_class(y, int(counts.min()), rng, num_classes=len(class_names))


def take_per_class(y: NDArray[np.int64], n: int, rng: np.random.Generator, *, num_classes: int) -> Rows:
    """Return at most n rows of each class, drawn at random, sorted.

    Example:
        >>> take_per_class(np.array([0, 1, 1]), 1, np.random.default_rng(0), num_classes=2).shape
        (2,)
    """
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k in range(num_classes)]))


def mixed_order(y: NDArray[np.int64], seed: int) -> Rows:
    """Return a seeded order in which every leading part holds the classes in nearly their shares of the whole.

    Args:
        y: class indices, (N,) int64.
        seed: draws the order within each class, and which class comes first.

    Example:
        >>> y = np.array([0, 0, 0, 0, 1, 1])
        >>> sorted(y[mixed_order(y, seed=0)][:3].tolist())
        [0, 0, 1]
    """
    rng = np.random.default_rng([seed, 4])
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        place[rows] = (rng.permutation(len(rows)) + 0.5) / len(rows)
    return np.lexsort((rng.random(len(y)), place))


def split_train(y: NDArray[np.int64], seed: int, *, tenths: int, class_names: Sequence[str]) -> tuple[Rows, Rows]:
    """Divide a set without an official split, class by class, into training rows and held-out rows.

    Args:
        y: class indices, (N,) int64.
        seed: ``dataset.split_seed``.
        tenths: tenths of each class that train, rounded down; the rest is held out.
        class_names: one per class; a class without a row is an error.

    Example:
        >>> train, held_out = split_train(np.zeros(174, np.int64), 0, tenths=6, class_names=["a"])  # digits
        >>> len(train), len(held_out)
        (104, 70)
    """
    _require_rows(np.bincount(y, minlength=len(class_names)), class_names)
    rng = np.random.default_rng([seed, 0])
    train, held_out = [], []
    for k in range(len(class_names)):
        rows = rng.permutation(np.flatnonzero(y == k))
        cut = tenths * len(rows) // 10
        train.append(rows[:cut])
        held_out.append(rows[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def split_test(
    y: NDArray[np.int64], rule: SplitRule, *, seed: int, test_total: int, class_names: Sequence[str]
) -> HeldOut:
    """Divide test rows, class by class, into validation, attack and test rows.

    Args:
        y: class indices of the test set, after balancing if it is balanced, (N,) int64.
        rule: see ``part_sizes``.
        seed: ``dataset.split_seed``.
        test_total: rows of the test set before balancing.
        class_names: one per class.

    Raises:
        UserError: if a class is too small, so that one of its parts would be empty.

    Example:
        >>> parts = split_test(np.repeat([0, 1], 70), "standard", seed=0, test_total=140, class_names=["a", "b"])
        >>> len(parts.validation), len(parts.attack), len(parts.test)
        (42, 28, 70)
    """
    rng = np.random.default_rng([seed, 1])
    validation, attack, test = [], [], []
    for k, name in enumerate(class_names):
        rows = rng.permutation(np.flatnonzero(y == k))
        sizes = part_sizes(len(rows), rule, test_total=test_total, num_classes=len(class_names))
        if min(sizes) < 1:
            raise UserError(
                f"dataset, class {name!r}",
                len(rows),
                f"test images would be split into {sizes[0]} validation, {sizes[1]} attack and {sizes[2]} test images",
                "each part needs at least one (5 images a class by the standard rule)",
                "Add test images of this class, or remove the class.",
            )
        validation.append(rows[: sizes[0]])
        attack.append(rows[sizes[0] : sizes[0] + sizes[1]])
        test.append(rows[sizes[0] + sizes[1] :])
    return HeldOut(*(np.sort(np.concatenate(part)) for part in (validation, attack, test)))


def _require_rows(counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    for name, count in zip(class_names, counts, strict=True):
        if not count:
            raise UserError(
                f"dataset, class {name!r}",
                0,
                "images were found",
                "every class needs some",
                "Add images of this class.",
            )
