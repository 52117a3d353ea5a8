"""What the paper's tables are made of: its numbers, cells of one seed or several, and the three kinds of file."""

import numpy as np
import pytest

from amc_lightning.evaluate import _mean
from amc_lightning.paper import table3
from amc_lightning.paper.cells import CLEAN, Error, Fact, error, mean_rate
from amc_lightning.paper.document import Grid, Row, tex_text, write_document
from amc_lightning.paper.measures import paper_columns
from amc_lightning.paper.numbers import TABLE_2, TABLE_3, TABLE_5, TABLE_6
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.tables import write_tables
from amc_lightning.paper.trained import models
from amc_lightning.report.paper_table4 import ATTACKS
from amc_lightning.report.record import Rate
from tests.paper.made import Book, Wrong, assert_balanced, cells, rows_of, text_of


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path / "runs")


# --- the paper's numbers ---------------------------------------------------------------------------------------------


def test_the_paper_s_columns_are_f_e_p_v():
    assert ATTACKS == ("fgsm", "eap", "pgm", "vap")
    # As the paper says in words: against each attack the model hardened against it is the best single one.
    for dataset, rows in TABLE_3.items():
        for attack in ATTACKS:
            own = rows[attack][ATTACKS.index(attack)]
            assert own == min(rows[other][ATTACKS.index(attack)] for other in ATTACKS), (dataset, attack)


def test_tables_of_the_paper_agree_with_each_other():
    for dataset, rows in TABLE_3.items():
        bare, amc = rows["undefended"], rows["amc"]
        assert TABLE_6[dataset][0] == bare[0]
        assert (TABLE_5[dataset]["paper", "eap"][0], TABLE_5[dataset]["paper", "pgm"][0]) == amc[1:3]
    assert set(TABLE_2) == set(TABLE_3) == set(TABLE_5) == set(TABLE_6) == {"mnist", "svhn", "cifar10"}


def test_the_paper_s_gains_over_the_best_single_model():
    # evaluation.md, section 2: 6.275, 4.825 and 2.65 points from the table as printed.
    for dataset, gain in {"mnist": 6.275, "svhn": 4.825, "cifar10": 2.65}.items():
        rows = TABLE_3[dataset]
        best = [min(rows[attack][place] for attack in ATTACKS) for place in range(4)]
        assert np.mean(np.array(best) - rows["amc"]) == pytest.approx(gain)


# --- cells -----------------------------------------------------------------------------------------------------------


def test_a_mean_over_models_is_the_mean_over_attacks_of_an_evaluation():
    rng = np.random.default_rng(0)
    for chance in (0.0, 0.3, 1.0):
        wrong = [rng.random(50) < chance for _ in range(4)]
        expected = _mean(np.mean(wrong, axis=0))
        found = mean_rate(wrong)
        assert {key: getattr(found, key) for key in expected} == pytest.approx(expected)


def test_a_mean_over_models_by_hand():
    rate = mean_rate([np.array([True, True, False, False]), np.array([True, False, False, False])])
    # shares 1, 0.5, 0, 0: mean 0.375, sample sd 0.4787; 1.96 * 0.4787 / 2 = 0.4691
    assert (rate.n, rate.wrong, rate.error) == (4, 1.5, 37.5)
    assert (rate.low, rate.high) == (0.0, pytest.approx(84.41, abs=0.01))


def test_one_seed_has_an_interval_and_several_have_a_spread(book):
    for seed, fgsm in ((2, 14), (0, 10), (1, 12)):
        book.add("at_fgsm", Wrong(fgsm=fgsm), seed=seed)
    column = paper_columns()[0]
    found = models(book.all.of("mnist"), "at_fgsm")
    several = error("at_fgsm", found, column, paper=5.5)
    assert [*several.rates] == [0, 1, 2]
    assert (several.main, several.small, several.below) == ("12.0", ("+- 2.0 (3 seeds)",), "paper 5.5")
    one = error("at_fgsm", found[:1], column)
    assert (one.main, one.small, one.below) == ("10.0", ("5.5-17.4",), "")
    (row,) = rows_of([Grid("t", "mnist", "t", ("a", "b"), (Row("x", (several,)),))])
    expected = {"seeds": "0 1 2", "n": "100", "percent": "12.0000", "sd": "2.0000", "paper_percent": "5.5", "low": ""}
    assert expected.items() <= row.items()


def test_two_seeds_are_called_few_and_three_are_not(book):
    few = "Fewer than 3 seeds say next to nothing about a spread"
    for seed in range(3):
        book.add("at_fgsm", Wrong(), seed=seed)
        text = text_of(table3.table3(book.all))
        assert (few in text) == (seed == 1)
        assert ("One seed (0)" in text) == (seed == 0)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_csv_has_four_decimals_and_more_of_a_p_value():
    row = Row(
        "x", (Fact("<0.001", "p", 1.25e-9, "a - b", {"attack": "fgsm"}), Fact("12", "minutes", 12.345678), Fact("-"))
    )
    found = rows_of([Grid("t", "mnist", "t", ("a", "b", "c", "d"), (row,))])
    assert [(line["quantity"], line["value"]) for line in found] == [("p", "1.25e-09"), ("minutes", "12.3457")]
    assert (found[0]["system"], found[0]["attack"]) == ("a - b", "fgsm")


def test_a_cell_that_was_not_measured_shows_the_paper_s_number_alone():
    cell = Error("at_fgsm", paper_columns()[0], "", {}, paper=5.5)
    grid = Grid("t", "mnist", "t", ("a", "b"), (Row("x", (cell,)),))
    assert cells(text_of([grid]), "x") == ["-<br>paper 5.5"]
    (row,) = rows_of([grid])
    assert (row["percent"], row["paper_percent"]) == ("", "5.5")


def test_latex_is_made_harmless():
    rate = Rate(n=10, wrong=1, error=10.0, low=1.0, high=40.0)
    row = Row("a_b & 5 %", (Error("s", CLEAN, "white_box", {0: rate, 1: rate}), Fact("<0.001")))
    text = tex_text([Grid("t", "mnist", "x_y {z}", ("a", "b", "p of 5 %"), (row,), ("50 % & more",))])
    assert_balanced(text)
    assert r"a\_b \& 5 \%" in text
    assert r"$\pm$ 0.0 (2 seeds)" in text


def test_nothing_is_written_of_nothing(tmp_path):
    assert write_document(tmp_path / "no", "table3", "title", []) == []
    assert write_tables(Runs(()), tmp_path / "no") == []
    assert not (tmp_path / "no").exists()
