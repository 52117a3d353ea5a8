"""The union over norms, counted by hand."""

import pytest

from amc_lightning.field.entrants import PLACES, entrants, others
from amc_lightning.field.union import radii, union
from tests.field.made import CHECK, Field, first
from tests.paper.made import N_JUDGE


def only(book):
    (entrant,) = entrants(book.all.of("mnist"))
    (model,) = entrant.models
    return model


@pytest.fixture
def book(tmp_path):
    return Field(tmp_path / "runs")


def test_a_row_is_wrong_that_is_wrong_clean_or_in_any_ball(book):
    check = {"pgd_linf": first(10), "pgd_l2": first(10, 5), "pgd_l1": [40], "fgsm": first(99), "vap": first(99)}
    book.enter("norms_amc", check, clean_attack=[0, 50])
    found = union(only(book), "check")
    # 0..14, 40 and 50; FGSM and VAP are not among the three
    assert sorted(found.wrong.nonzero()[0]) == [*range(15), 40, 50]
    assert (found.rate.n, found.rate.wrong, found.rate.error) == (100, 17, 17.0)
    assert {(one.attack, one.norm, one.eps) for one in found.members} == {
        ("pgd_linf", "linf", 0.3), ("pgd_l2", "l2", 2.0), ("pgd_l1", "l1", 10.0)
    }  # fmt: skip
    assert radii(only(book)) == {"linf": 0.3, "l2": 2.0, "l1": 10.0}


def test_at_judge_every_attack_in_one_of_the_balls_counts_and_no_other(book):
    check = {
        "pgd_linf": [0], "pgd_l2": [1], "pgd_l1": [2, 60], "pgm": [3], "fgsm": [4], "vap": [5], "eap": first(100),
        "eap@budget": [6],
    }  # fmt: skip
    judge = {
        "apgd_linf": ("linf", 0.3, [7]),
        "apgd_l2": ("l2", 2.0, [8]),
        "apgdt_l1": ("l1", 10.0, [9]),
        "square_linf": ("linf", 0.4, [10]),  # another radius
        "other": ("l0", 10.0, [11]),
    }
    book.enter("norms_amc", check, clean_attack=[12, 70], judge=judge)
    found = union(only(book), "judge")
    # pgm is in the l-inf ball, eap@budget in the l1 ball; fgsm (0.1) and vap (5 in l2) are in others
    assert len(found.wrong) == N_JUDGE == 20
    assert sorted(found.wrong.nonzero()[0]) == [0, 1, 2, 3, 6, 7, 8, 9, 12]
    assert sorted(one.attack for one in found.members if one.strength == "judge") == [
        "apgd_l2",
        "apgd_linf",
        "apgdt_l1",
    ]


def test_without_one_of_the_norms_there_is_no_union(book):
    book.enter("norms_amc", {"pgd_linf": [0], "pgd_l2": [1]})
    found = union(only(book), "check")
    assert found.wrong is None
    assert found.rate is None
    assert found.missing == ("pgd_l1",)
    assert union(only(book), "judge").missing == ("pgd_l1", "an attack of the judge in these balls")


def test_a_radius_that_is_not_on_record_is_none(book):
    book.enter("norms_amc", {name: [0] for name in CHECK if name.startswith("pgd_")}, parameters={"pgd_l2": {"eps": 2}})
    assert union(only(book), "check").missing == ("pgd_linf", "pgd_l1")


def test_costs_and_places(book):
    book.norms("norms_amc", 10, passes=600.0)
    book.norms("something_else", 10)
    systems = book.all.of("mnist")
    (entrant,) = entrants(systems)
    assert (entrant.passes, entrant.first_passes, entrant.minutes, entrant.first_minutes) == (600.0, 40.0, 6.0, 1.0)
    assert entrant.order == "pgd_l1 -> pgd_l2 -> pgd_linf"
    assert others(systems) == ["something_else"]
    assert PLACES["attacks_e_at"].name == "attacks: E-AT"
