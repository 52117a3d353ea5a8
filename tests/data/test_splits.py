import numpy as np
import pytest

from amc_lightning.data.splits import SPLIT_RULES, balance, part_sizes, split_test, split_train, take_per_class
from amc_lightning.errors import UserError

TEN = tuple("0123456789")


@pytest.mark.parametrize(
    ("n", "rule", "total", "sizes"),
    [
        (892, "standard", 10_000, (267, 187, 438)),  # MNIST
        (892, "official_code", 10_000, (300, 177, 415)),
        (1595, "standard", 26_032, (478, 335, 782)),  # SVHN
        (1595, "official_code", 26_032, (780, 244, 571)),
        (1000, "standard", 10_000, (300, 210, 490)),  # CIFAR-10: 30, 21 and 49 %
        (1000, "official_code", 10_000, (300, 210, 490)),
        (70, "standard", 700, (21, 14, 35)),  # digits
        (5, "standard", 10, (1, 1, 3)),
        (10, "official_code", 1_000_000, (10, 0, 0)),  # a rare class cannot give more than it has
    ],
)
def test_part_sizes_known(n, rule, total, sizes):
    assert part_sizes(n, rule, test_total=total, num_classes=10) == sizes


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_part_sizes_are_whole_and_exact_for_every_n(rule):
    for n in range(2000):
        validation, attack, test = part_sizes(n, rule, test_total=10 * n, num_classes=10)
        assert validation + attack + test == n
        assert 10 * validation <= 3 * n < 10 * (validation + 1)
        assert 10 * attack <= 3 * (n - validation) < 10 * (attack + 1)


def test_balance_cuts_to_the_rarest_class_at_random():
    y = np.repeat([0, 1, 2], [50, 7, 20])
    rows = balance(y, np.random.default_rng(0), class_names=["a", "b", "c"])
    assert np.bincount(y[rows]).tolist() == [7, 7, 7]
    assert (np.diff(rows) > 0).all()
    others = balance(y, np.random.default_rng(1), class_names=["a", "b", "c"])
    assert set(rows) != set(others)
    assert rows[:7].tolist() != list(range(7))  # not the first ones


def test_balance_names_an_empty_class():
    with pytest.raises(
        UserError, match=r"^dataset, class 'c': 0 images were found; every class needs some\. Add images"
    ):
        balance(np.array([0, 1, 1]), np.random.default_rng(0), class_names=["a", "b", "c"])


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_split_test_is_disjoint_complete_and_class_balanced(rule):
    y = np.random.default_rng(5).permutation(np.repeat(np.arange(10), 100))
    parts = split_test(y, rule, seed=0, test_total=1000, class_names=TEN)
    together = np.concatenate([parts.validation, parts.attack, parts.test])
    assert sorted(together) == list(range(1000))
    for rows, n in ((parts.validation, 30), (parts.attack, 21), (parts.test, 49)):
        assert np.bincount(y[rows]).tolist() == [n] * 10


def test_split_test_unbalanced_takes_each_class_by_its_own_size():
    y = np.repeat([0, 1], [10, 100])
    parts = split_test(y, "standard", seed=0, test_total=110, class_names=["a", "b"])
    assert np.bincount(y[parts.validation]).tolist() == [3, 30]
    assert np.bincount(y[parts.attack]).tolist() == [2, 21]
    assert np.bincount(y[parts.test]).tolist() == [5, 49]


def test_split_test_repeats_with_its_seed_and_changes_with_another():
    y = np.repeat(np.arange(10), 50)
    np.random.seed(1)
    first = split_test(y, "standard", seed=0, test_total=500, class_names=TEN)
    np.random.seed(2)  # a global seed does not matter
    again = split_test(y, "standard", seed=0, test_total=500, class_names=TEN)
    other = split_test(y, "standard", seed=1, test_total=500, class_names=TEN)
    assert np.array_equal(first.attack, again.attack)
    assert not np.array_equal(first.attack, other.attack)


def test_split_test_names_a_class_too_small():
    y = np.repeat([0, 1], [50, 4])
    with pytest.raises(
        UserError,
        match=r"^dataset, class 'cat': 4 test images would be split into 1 validation, 0 attack and 3 test images; "
        r"each part needs at least one \(5 images a class by the standard rule\)\. Add test images of this class",
    ):
        split_test(y, "standard", seed=0, test_total=54, class_names=["dog", "cat"])


def test_split_train_digits_and_folder():
    y = np.repeat(np.arange(10), 174)
    train, held_out = split_train(y, 0, tenths=6, class_names=TEN)
    assert np.bincount(y[train]).tolist() == [104] * 10
    assert np.bincount(y[held_out]).tolist() == [70] * 10
    assert sorted([*train, *held_out]) == list(range(1740))
    train, held_out = split_train(np.zeros(11, np.int64), 0, tenths=8, class_names=["a"])
    assert (len(train), len(held_out)) == (8, 3)


def test_take_per_class_takes_what_there_is():
    y = np.array([0, 0, 0, 1])
    rows = take_per_class(y, 2, np.random.default_rng(0), num_classes=2)
    assert y[rows].tolist() == [0, 0, 1]
