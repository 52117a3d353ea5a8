"""Which jobs of a sweep are compared, by what, and when the comparison means something."""

import pytest

from amc_lightning.report.sweep_comparison import choices, order_rows, spread, sweep_columns
from amc_lightning.report.sweep_reading import read_entries
from amc_lightning.report.sweep_wording import choice_text, choosing, nothing_to_choose, seeds_warning
from tests.report.sweep_folder import two_orders, write_job

LOW = {"clean": 2, "fgsm": 5, "pgm": 5, "pgm_check": 5, "worst": 5, "worst_check": 5}
HIGH = {"clean": 20, "fgsm": 90, "pgm": 90, "pgm_check": 90, "worst": 95, "worst_check": 95}


def rows_of(sweep):
    return order_rows(read_entries(sweep))


def test_the_order_is_chosen_by_validation_and_not_by_what_is_reported(tmp_path):
    write_job(tmp_path, 0, ("fgsm", "pgm"), validation=30.0, **LOW)
    write_job(tmp_path, 1, ("pgm", "fgsm"), validation=10.0, **HIGH)
    (choice,) = choices(rows_of(tmp_path))
    assert [(row.order, value) for row, value in choice.ranked] == [(("pgm", "fgsm"), 10.0), (("fgsm", "pgm"), 30.0)]
    assert choice.attacks == ("fgsm", "pgm")
    assert "Chosen by the validation split alone" in choosing()


def test_validation_is_averaged_over_seeds(tmp_path):
    (choice,) = choices(rows_of(two_orders(tmp_path)))
    assert [(row.order, value) for row, value in choice.ranked] == [(("pgm", "fgsm"), 19.5), (("fgsm", "pgm"), 20.0)]
    assert choice.seeds == (0, 1)


def test_a_gap_that_the_rows_cannot_resolve_is_called_so(tmp_path):
    """Half the interval of the mean is 4 points on 100 attacked rows, so sqrt(100 / 25) times that on 25 rows."""
    (choice,) = choices(rows_of(two_orders(tmp_path)))
    assert (choice.gap, choice.resolution, choice.rows) == (0.5, pytest.approx(8.0), 25)
    assert (choice.is_resolved, choice.close) == (False, 2)
    assert choice_text(choice) == [
        "Best of 2 orders of fgsm, pgm: pgm > fgsm, with 19.5 % validation error (mean over the seeds 0, 1). "
        "Runner-up: fgsm > pgm, 0.5 points behind.",
        "That is no more than the 8.0 points that 25 attacked validation images can resolve (half a 95 % interval): "
        "this sweep does not show that the one order is better than the other.",
    ]


def test_a_gap_that_the_rows_resolve_is_called_so(tmp_path):
    write_job(tmp_path, 0, ("fgsm", "pgm"), validation=30.0, validate_rows=512, **LOW)
    write_job(tmp_path, 1, ("pgm", "fgsm"), validation=20.0, validate_rows=512, **LOW)
    (choice,) = choices(rows_of(tmp_path))
    assert choice.rows == 210, "all validation images there are"
    assert choice.resolution == pytest.approx(4 * (100 / 210) ** 0.5)
    assert choice.is_resolved
    assert choice_text(choice)[1] == (
        "That is more than the 2.8 points that 210 attacked validation images can resolve (half a 95 % interval)."
    )
    assert "(seed 0)" in choice_text(choice)[0]


def test_how_many_lie_close_to_the_best_is_counted(tmp_path):
    orders = [("fgsm", "vap", "pgm"), ("vap", "fgsm", "pgm"), ("pgm", "vap", "fgsm")]
    for number, (order, validation) in enumerate(zip(orders, (20.0, 27.9, 28.1), strict=True)):
        write_job(tmp_path, number, order, validation=validation, **LOW)
    (choice,) = choices(rows_of(tmp_path))
    assert choice.close == 2
    assert choice_text(choice)[-1] == "2 of the 3 orders lie that close to the best."


def test_only_orders_of_the_same_attacks_are_compared(tmp_path):
    write_job(tmp_path, 0, ("fgsm",), validation=1.0, **LOW)
    write_job(tmp_path, 1, ("fgsm", "pgm"), validation=20.0, **LOW)
    write_job(tmp_path, 2, ("pgm", "fgsm"), validation=21.0, **LOW)
    write_job(tmp_path, 3, ("pgm", "vap"), validation=2.0, **LOW)
    (choice,) = choices(rows_of(tmp_path))
    assert [row.order for row, _ in choice.ranked] == [("fgsm", "pgm"), ("pgm", "fgsm")]


def test_jobs_of_other_settings_are_compared_among_themselves(tmp_path):
    number = 0
    for alpha, values in (("0.3", (10.0, 11.0)), ("0.5", (31.0, 30.0))):
        for order, validation in zip((("fgsm", "pgm"), ("pgm", "fgsm")), values, strict=True):
            write_job(tmp_path, number, order, extra=[f"cascade.alpha={alpha}"], validation=validation, **LOW)
            number += 1
    found = choices(rows_of(tmp_path))
    assert [(choice.settings, choice.ranked[0][0].order) for choice in found] == [
        ("cascade.alpha=0.3", ("fgsm", "pgm")),
        ("cascade.alpha=0.5", ("pgm", "fgsm")),
    ]
    assert choice_text(found[1])[0].startswith("With cascade.alpha=0.5: best of 2 orders of fgsm, pgm: pgm > fgsm")
    assert [row.name for row in rows_of(tmp_path)] == [
        "cascade.alpha=0.3: fgsm > pgm",
        "cascade.alpha=0.3: pgm > fgsm",
        "cascade.alpha=0.5: pgm > fgsm",
        "cascade.alpha=0.5: fgsm > pgm",
    ]


def test_orders_are_compared_over_the_seeds_that_all_of_them_have(tmp_path):
    """With the third seed, which one order lacks, the other would win: 20 against (10 + 10 + 49) / 3."""
    for seed, validation in enumerate((10.0, 10.0, 49.0)):
        write_job(tmp_path, seed, ("fgsm", "pgm"), seed=seed, validation=validation, **LOW)
    for seed in (0, 1):
        write_job(tmp_path, 3 + seed, ("pgm", "fgsm"), seed=seed, validation=20.0, **LOW)
    write_job(tmp_path, 5, ("pgm", "fgsm"), seed=2, exit_status=1, message="diverged")
    (choice,) = choices(rows_of(tmp_path))
    assert choice.seeds == (0, 1)
    assert [(row.order, value) for row, value in choice.ranked] == [(("fgsm", "pgm"), 10.0), (("pgm", "fgsm"), 20.0)]


def test_without_a_common_seed_or_an_attacked_validation_image_nothing_is_chosen(tmp_path):
    write_job(tmp_path / "a", 0, ("fgsm", "pgm"), seed=0, validation=10.0, **LOW)
    write_job(tmp_path / "a", 1, ("pgm", "fgsm"), seed=1, validation=20.0, **LOW)
    write_job(tmp_path / "b", 0, ("fgsm", "pgm"), validation=10.0, validate_rows=0, **LOW)
    write_job(tmp_path / "b", 1, ("pgm", "fgsm"), validation=20.0, validate_rows=0, **LOW)
    for name in "ab":
        rows = rows_of(tmp_path / name)
        assert choices(rows) == []
        assert nothing_to_choose(rows).startswith("No order is chosen: no two orders of the same attacks")
    assert "nothing to choose from" in nothing_to_choose(rows[:1])


def test_rows_are_sorted_by_validation_and_those_without_come_last(tmp_path):
    write_job(tmp_path, 0, ("vap", "fgsm", "pgm"), **LOW)
    write_job(tmp_path, 1, ("fgsm", "vap", "pgm"), validation=30.0, **LOW)
    write_job(tmp_path, 2, ("pgm", "vap", "fgsm"), validation=20.0, **LOW)
    assert [row.order[0] for row in rows_of(tmp_path)] == ["pgm", "fgsm", "vap"]


def test_the_columns_stand_in_the_order_of_the_evaluation_whatever_the_cascade(tmp_path):
    entries = read_entries(two_orders(tmp_path))
    assert [column.title for column in sweep_columns(reversed(entries))] == [
        "clean", "fgsm", "pgm paper", "pgm check", "mean paper", "mean check", "worst paper", "worst check",
    ]  # fmt: skip


def test_a_spread_is_that_of_the_sample(tmp_path):
    row = next(row for row in rows_of(two_orders(tmp_path)) if row.order == ("fgsm", "pgm"))
    clean = next(column for column in sweep_columns(row.by_seed.values()) if column.key == "clean")
    assert row.errors(clean) == [2.0, 4.0]
    found = spread(row.errors(clean))
    assert (found.mean, found.least, found.most) == (3.0, 2.0, 4.0)
    assert found.sd == pytest.approx(2**0.5)
    assert spread([2.0]) is None


@pytest.mark.parametrize(("count", "says"), [(1, True), (2, True), (3, False)])
def test_few_seeds_are_said_to_mean_little(count, says):
    assert seeds_warning(count) == ("With fewer than 3 seeds, a spread means little." if says else "")
