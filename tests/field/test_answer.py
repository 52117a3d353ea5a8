"""Verdicts and sentences: better, worse, within noise, at another cost, from another start."""

import pytest

from amc_lightning.field.answer import answer, clean_sentence, sentences
from amc_lightning.field.contrast import contrasts
from amc_lightning.field.entrants import entrants, of_family
from tests.field.made import CHECK, Field, first
from tests.paper.made import N_ATTACK

RESAMPLES = 400


@pytest.fixture
def book(tmp_path):
    book = Field(tmp_path / "runs")
    book.norms("norms_amc", 30)
    return book


def compared(book, quantity="union", strength="check"):
    rows = entrants(book.all.of("mnist"))
    (cascade,) = of_family(rows, "norms", "cascade")
    rivals = of_family(rows, "norms", "several", "single")
    return contrasts(cascade, rivals, quantity, strength, resamples=RESAMPLES)


def test_better_than_every_baseline(book):
    book.norms("norms_avg", 20, 55)  # 25 rows more, none fewer
    (one,) = found = compared(book)
    assert (one.ours, one.theirs) == pytest.approx((30.0, 55.0))
    assert (one.n, one.only_ours, one.only_theirs) == (N_ATTACK, 0, 25)
    assert one.verdict() == "holds"
    assert one.interval().estimate == -25.0
    assert answer(found).startswith(
        "A cascade with replay buys a lower union error than the one baseline against several attacks at equal cost: "
        "AVG (by 25.0 points). n = 100 images, one seed (0)"
    )
    (text,) = sentences(found)
    assert text.startswith("against AVG: 30.0 % against 55.0 %, 25.0 points lower (")
    assert text.endswith("; p <0.001: **holds**.")


def test_worse_than_one_is_nothing(book):
    book.norms("norms_avg", 55)
    book.norms("norms_max", 10)
    book.norms("norms_msd", 29)
    text = answer(compared(book))
    assert text.startswith(
        "A cascade with replay buys nothing that a baseline against several attacks does not give at equal cost: a "
        "lower union error than the cascade has MAX (by 20.0 points). It is better than AVG (by 25.0 points). Within "
        "noise of it: MSD."
    )
    assert "20.0 points higher (" in sentences(compared(book))[1]


def test_within_noise(book):
    book.norms("norms_sat", 35)  # five rows of one side: p = 0.0625
    (one,) = found = compared(book)
    assert one.interval().high < 0  # the bootstrap alone would call it better
    assert one.p == 0.0625
    assert one.verdict() == "within noise"
    assert answer(found).startswith(
        "A cascade with replay buys nothing at equal cost that can be told from noise: its union error is not shown to "
        "be lower than that of SAT."
    )


def test_what_fails_by_itself_only_is_said(book):
    for system in ("norms_avg", "norms_max", "norms_msd", "norms_sat", "norms_e_at"):
        book.norms(system, 24)  # six rows of one side: p = 0.031, five times that is no more
    found = compared(book)
    assert {one.verdict() for one in found} == {"fails"}
    text = answer(found)
    assert text.startswith("A cascade with replay buys nothing at equal cost that can be told from noise")
    assert "Lower by itself, but not corrected for 5 comparisons: AVG, MAX, MSD, SAT and E-AT." in text


def test_equal_rows_are_no_difference(book):
    book.norms("norms_sat", 30)
    assert sentences(compared(book)) == [
        "against SAT: 30.0 % against 30.0 %, no difference (0.0 to 0.0 points); p = 1: **within noise**."
    ]


@pytest.mark.parametrize(("passes", "is_equal"), [(352.0, True), (448.0, True), (351.0, False), (449.0, False)])
def test_twelve_percent_of_the_passes_are_equal_cost(book, passes, is_equal):
    book.norms("norms_avg", 55, passes=passes)
    (one,) = found = compared(book)
    assert one.is_equal_cost is is_equal
    assert ("Not at equal cost" in answer(found)) is not is_equal
    assert ("Not at equal cost" in sentences(found)[0]) is not is_equal


def test_a_baseline_at_another_cost_has_no_say(book):
    book.norms("norms_avg", 55, passes=200.0)
    text = answer(compared(book))
    assert text.startswith("Whether a cascade with replay buys anything at equal cost these runs do not say")
    assert "left out of this answer: AVG (0.50 times its passes)." in text


def test_what_the_baselines_took_is_said(book):
    book.norms("norms_avg", 55, passes=380.0)
    assert answer(compared(book)).endswith(" Passes of the baselines: 0.95 times those of the cascade.")
    book.norms("norms_max", 55, passes=356.0)
    book.norms("norms_msd", 55, passes=900.0)  # has no say
    assert answer(compared(book)).endswith(" Passes of the baselines: 0.89 to 0.95 times those of the cascade.")


def test_a_baseline_that_guesses_has_no_say(book):
    book.norms("norms_avg", 55)
    book.norms("norms_max", 20, clean=180)  # 90 % of 200: a constant answer, below the cascade in the union
    text = answer(compared(book))
    assert text.startswith("A cascade with replay buys a lower union error than the one baseline")
    assert "No better than guessing on clean images and left out: MAX (clean error 90.0 %)." in text
    assert "No better than guessing on clean images." in sentences(compared(book))[1]


def test_a_cascade_that_guesses_says_nothing(tmp_path):
    book = Field(tmp_path / "guessing")
    book.norms("norms_amc", 30, clean=179)  # 89.5 %: 90 lies within its interval
    book.norms("norms_avg", 55)
    text = answer(compared(book))
    assert text.startswith("Whether a cascade with replay buys anything at equal cost these runs do not say")
    assert "No better than guessing on clean images and left out: AMC (clean error 89.5 %)." in text


def test_single_attacks_are_a_bar_of_their_own(book):
    book.norms("norms_at_l2", 90, order=("pgd_l2",))
    text = answer(compared(book))
    assert text.startswith("Whether a cascade")
    assert "Against a single attack, at equal cost: the cascade's error is below AT l2 (by 60.0 points)." in text


def test_another_start_has_no_say(book):
    book.norms("norms_avg", 55, start="0c")
    text = answer(compared(book))
    assert text.startswith("Whether a cascade")
    assert "Not hardened from the same M0 and left out: AVG." in text


def test_what_cannot_be_compared_is_named(book):
    book.norms("norms_avg", 55, seed=1)
    book.enter("norms_max", {"pgd_linf": [0], "pgd_l2": [0]})
    stronger = {**CHECK, "pgd_l1": {"eps": 10.0, "nb_iter": 400, "restarts": 1}}
    book.norms("norms_msd", 55, parameters=stronger)
    found = compared(book)
    assert [one.missing for one in found] == [
        ("a seed that both were run with",), ("MAX (pgd_l1)",), ("the same attacks for both",),
    ]  # fmt: skip
    assert [one.verdict() for one in found] == ["not measured"] * 3
    assert "Not measured: AVG (wanting: a seed that both were run with)" in answer(found)
    assert sentences(found)[1] == "against MAX: not measured, for want of MAX (pgd_l1)."


def test_seeds_are_averaged(book):
    book.norms("norms_amc", 32, seed=1)
    book.norms("norms_avg", 60)
    book.norms("norms_avg", 70, seed=1)
    (one,) = compared(book)
    assert (one.seeds, one.ours, one.theirs) == ((0, 1), 31.0, 65.0)
    # rows 30..69 differ by one seed or by two
    assert one.interval().estimate == -34.0
    assert (one.only_ours, one.only_theirs) == (0, 40)
    assert one.verdict() == "holds"


def test_the_judge_has_its_own_rows(book, tmp_path):
    judged = Field(tmp_path / "judged")
    for system, count in (("norms_amc", 2), ("norms_avg", 12)):
        judge = {"apgd_l1": ("l1", 10.0, first(count))}
        judged.enter(system, {name: [0] for name in CHECK if name.startswith("pgd_")}, judge=judge)
    (one,) = compared(judged, strength="judge")
    assert (one.n, one.ours, one.theirs) == (20, 10.0, 60.0)
    assert one.verdict() == "holds"


def test_clean_error(book):
    book.norms("norms_avg", 55, clean=45)
    book.norms("norms_max", 55, clean=6)
    assert clean_sentence(compared(book, "clean")) == (
        "Clean error: 2.5 %; lower than AVG 22.5; within noise of MAX 3.0 (n = 200, test split)."
    )


def test_failed_checks_are_said(book):
    book.norms("norms_avg", 55)
    text = answer(compared(book), lambda run: {"E8": "58 % at eps 1"} if run.system == "norms_avg" else {})
    assert (
        "Decisive checks do not hold, so what is said of these is not to be relied on: AVG: E8 (58 % at eps 1)." in text
    )
