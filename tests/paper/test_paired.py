"""Exact tests against hand-counted binomials, the bootstrap against the normal approximation."""

import numpy as np
import pytest

from amc_lightning.paper.paired import (
    bootstrap,
    chosen_on_the_other_half,
    exact_interval,
    mcnemar,
    resampled_means,
    sign_test,
)


def flags(*rows):
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (0, 6, 2 / 2**6),
        (7, 1, 2 * (1 + 8) / 2**8),
        (3, 3, 1.0),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_is_a_two_sided_binomial_test_of_the_discordant_rows(only_a, only_b, p):
    a = np.array([True] * only_a + [False] * only_b + [True] * 11 + [False] * 23)
    b = np.array([False] * only_a + [True] * only_b + [True] * 11 + [False] * 23)
    found = mcnemar(a, b)
    assert (found.n, found.only_a, found.only_b) == (only_a + only_b + 34, only_a, only_b)
    assert found.p == pytest.approx(p)


def test_mcnemar_of_equal_models_is_one():
    a = np.array([True, False, True])
    assert mcnemar(a, a).p == 1.0
    assert mcnemar(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)).p == 1.0


def test_mcnemar_refuses_other_rows():
    with pytest.raises(ValueError, match=r"the shapes are \(3,\) and \(4,\)"):
        mcnemar(np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))


# --- exact tests ------------------------------------------------------------------------------------------------------


def test_the_sign_test_of_one_step_is_mcnemar_s():
    rng = np.random.default_rng(3)
    a, b = rng.random(300) < 0.2, rng.random(300) < 0.25
    assert sign_test(a.astype(float) - b) == pytest.approx(mcnemar(a, b).p)


def test_the_sign_test_by_hand():
    assert sign_test(np.array([0.0, 3.0, 1.0, 2.0, 0.0, 1.0])) == pytest.approx(2 / 2**4)
    assert sign_test(np.array([-3.0, 1.0, 0.0])) == 1.0


def test_exact_bounds_by_hand():
    """None of 200 rows differs: the bound b has (1 - b) ** 200 = 0.0125. All of them: the rest is below the step."""
    bound = 1 - 0.0125 ** (1 / 200)
    found = exact_interval(np.zeros(200), 100.0)
    assert (found.low, found.high) == (pytest.approx(-100 * bound), pytest.approx(100 * bound))
    found = exact_interval(np.full(200, 25.0), 100.0)
    assert found.low == pytest.approx(25 * (1 - bound) - 100 * bound)
    assert found.high == 100.0


def test_exact_bounds_cover_where_few_rows_differ():
    rng = np.random.default_rng(0)
    found = [exact_interval((rng.random(400) < 0.01).astype(float), 1.0) for _ in range(200)]
    assert sum(one.low <= 0.01 <= one.high for one in found) >= 190


# --- the best of several ----------------------------------------------------------------------------------------------


def test_a_model_is_chosen_on_the_other_half():
    """The first is right on even rows, the second on odd ones: each half gets the one that is wrong on it."""
    even = np.arange(7) % 2 == 0
    assert chosen_on_the_other_half(flags(~even, even)).tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert chosen_on_the_other_half(flags(even * 0, even)).tolist() == [0] * 7
    assert chosen_on_the_other_half(flags([1.0], [0.0])).tolist() == [0]


def test_the_best_of_equal_models_is_no_better_when_it_is_compared():
    """The least of five equal rates is below them on the rows that it is chosen on, and is not on others."""
    rng = np.random.default_rng(0)
    chosen, least = [], []
    for _ in range(400):
        rivals = (rng.random((5, 200)) < 0.3).astype(float)
        chosen.append(rivals[chosen_on_the_other_half(rivals), np.arange(200)].mean())
        least.append(rivals.mean(axis=1).min())
    assert np.mean(chosen) == pytest.approx(0.3, abs=0.006)
    assert np.mean(least) < 0.27


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def test_an_interval_of_one_rate_is_the_normal_one():
    n, p = 2000, 0.3
    found = bootstrap((np.arange(n) < p * n).astype(float), resamples=4000)
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert found.estimate == pytest.approx(p)
    assert found.low == pytest.approx(p - half, abs=0.1 * half)
    assert found.high == pytest.approx(p + half, abs=0.1 * half)


def test_a_difference_is_paired():
    """Two models that differ in 20 rows of 2,000: unpaired the half-width would be 2.8 points, paired it is 0.4."""
    n = 2000
    a, b = flags(np.arange(n) < 600, np.arange(n) < 580)
    found = bootstrap(a - b, resamples=2000)
    half = 1.96 * np.sqrt(0.01 * 0.99 / n)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_the_same_rows_are_resampled_for_all_arrays():
    a = np.random.default_rng(1).random(300) < 0.4
    means = resampled_means(flags(a, ~a), resamples=50)
    np.testing.assert_allclose(means.sum(axis=1), 1.0, atol=1e-12)
    assert len(np.unique(means[:, 0])) > 1


def test_it_is_deterministic_and_the_seed_matters():
    a = flags(np.arange(400) < 100)
    assert np.array_equal(resampled_means(a, resamples=600), resampled_means(a, resamples=600))
    assert not np.array_equal(resampled_means(a, resamples=60), resampled_means(a, resamples=60, seed=1))


def test_resamples_do_not_repeat_from_block_to_block():
    means = resampled_means(flags(np.arange(400) < 100), resamples=500)[:, 0]
    assert not np.array_equal(means[:250], means[250:])


def test_a_wider_level_gives_a_wider_interval():
    a = (np.arange(400) < 100).astype(float)
    narrow, wide = (bootstrap(a, level=level, resamples=2000) for level in (0.95, 0.999))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_every_resample_draws_as_many_rows_as_there_are():
    means = resampled_means(flags(np.ones(300), np.arange(300)), resamples=300)
    assert (means[:, 0] == 1.0).all()
    assert means[:, 1].mean() == pytest.approx(149.5, abs=1.5)
    # the variance of a mean of 300 draws from 0..299
    assert means[:, 1].std() == pytest.approx(np.sqrt((300**2 - 1) / 12 / 300), rel=0.15)


@pytest.mark.parametrize("shape", [(3,), (2, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="matrix of arrays x rows"):
        resampled_means(np.zeros(shape))
