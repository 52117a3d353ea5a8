"""Attacks that leave their ball or box, or return less than they found, are named."""

import pytest
import torch
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.referee import Status, ThreatModel
from amc_lightning.referee.bounds import best_kept, budget_kept
from amc_lightning.referee.case import Case
from amc_lightning.referee.suite import REFERENCE
from tests.referee.conftest import EPS, SMALL, THREAT


@pytest.fixture
def pgd():
    """A sound attack of the claim's own."""
    return load("pgm", eps=EPS, eps_iter=None, nb_iter=10, keep_best=True)


class Threshold(nn.Module):
    """Class 1 where the mean of the image is above one half: known by hand."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def flat_case(attack, *, eps=0.2, rows=4, batch_size=256, norm="linf"):
    x = torch.full((rows, 1, 2, 2), 0.4)
    given = {"mine": attack}
    return Case(
        Threshold(), x, torch.zeros(rows).long(), ThreatModel(norm, eps), SMALL, given=given, batch_size=batch_size
    )


# --- E4: norm and box ------------------------------------------------------------------------------------------------


def test_sound_attacks_keep_their_budget(sound, undefended, rows, pgd):
    for model in (sound, undefended):
        finding = budget_kept(Case(model, *rows, THREAT, SMALL, given={"mine": pgd}))
        assert (finding.check, finding.status, finding.unit) == ("E4", Status.PASS, "eps")
        assert finding.number == pytest.approx(1, abs=1e-5)
        assert finding.advice == ""


def test_an_attack_that_oversteps_eps_is_named(sound, rows):
    oversteps = load("pgm", eps=1.05 * EPS, eps_iter=None, nb_iter=5)
    finding = budget_kept(Case(sound, *rows, THREAT, SMALL, given={"mine": oversteps}))
    assert finding.status is Status.FAIL
    assert finding.number == pytest.approx(1.05, abs=1e-4)
    assert f"mine oversteps eps in {len(rows[0])} rows" in finding.meaning
    assert finding.details["attacks"][REFERENCE]["oversteps eps"] == 0


def test_an_attack_that_leaves_the_box_is_named(sound, rows):
    finding = budget_kept(Case(sound, *rows, THREAT, SMALL, given={"mine": lambda model, x, y: x - EPS / 2}))
    assert finding.status is Status.FAIL
    assert "leaves [0, 1]" in finding.meaning
    assert "oversteps" not in finding.meaning
    assert finding.details["attacks"]["mine"]["min"] == pytest.approx(-EPS / 2)


def test_one_row_that_is_not_finite_is_enough(sound, rows):
    def breaks_one(model, x, y):
        x[3, 0, 0, 0] = torch.nan
        return x

    finding = budget_kept(Case(sound, *rows, THREAT, SMALL, given={"mine": breaks_one}))
    assert finding.status is Status.FAIL
    assert finding.meaning.startswith("mine is not finite in 1 rows")


@pytest.mark.parametrize(
    ("norm", "size", "eps", "status"),
    [
        ("linf", 0.2, 0.2, Status.PASS),
        ("linf", 0.2001, 0.2, Status.FAIL),
        ("l2", 0.2, 0.4, Status.PASS),  # 4 pixels of 0.2 are 0.4 in l2 and 0.8 in l1
        ("l2", 0.2, 0.3999, Status.FAIL),
        ("l1", 0.2, 0.8, Status.PASS),
        ("l1", 0.2, 0.7999, Status.FAIL),
    ],
)
def test_the_norm_is_that_of_the_claim(norm, size, eps, status):
    finding = budget_kept(flat_case(lambda model, x, y: x + size, eps=eps, norm=norm))
    assert finding.status is status
    known = {"linf": size, "l2": 2 * size, "l1": 4 * size}[norm]
    assert finding.details["attacks"]["mine"]["largest_norm"] == pytest.approx(known, rel=1e-5)


# --- E13: the best point ---------------------------------------------------------------------------------------------


def early(model, x, y):
    """PGD that goes on from a point that fools, and ends at the image's side of it."""
    attack = load("pgm", eps=EPS, eps_iter=None, nb_iter=10, keep_best=True)
    model(attack(model, x, y))
    return x + (attack(model, x, y) - x) / 4


def test_the_best_point_is_kept(sound, undefended, rows, pgd):
    for model in (sound, undefended):
        finding = best_kept(Case(model, *rows, THREAT, SMALL, given={"mine": pgd}))
        assert (finding.check, finding.status, finding.number) == ("E13", Status.PASS, 0)
        watched = finding.details[REFERENCE]
        assert watched["matched_calls"] == watched["calls"] == SMALL.steps + 1  # each step, and the end
        assert watched["fooled_on_path"] == watched["fooled"] > 10


def test_an_attack_that_returns_less_than_it_saw_is_named(sound, rows):
    finding = best_kept(Case(sound, *rows, THREAT, SMALL, given={"early": early}))
    assert finding.status is Status.FAIL
    assert finding.meaning.startswith("early passed a point")
    watched = finding.details["early"]
    assert finding.number == watched["silent"] >= 5
    assert watched["fooled_on_path"] - watched["fooled"] == watched["silent"]
    assert finding.details[REFERENCE]["silent"] == 0


def test_silent_successes_are_counted_by_row_and_batch():
    def forgets_the_first(model, x, y):
        model(x + 0.2)  # above one half: fools
        model(x + 0.5)  # so does this, but outside the ball
        end = x + 0.2
        end[0] = x[0]
        return end

    finding = best_kept(flat_case(forgets_the_first, rows=10, batch_size=4))
    assert finding.number == 3  # of batches of 4, 4 and 2
    assert finding.details["mine"] == {
        "calls": 6, "matched_calls": 6, "fooled_on_path": 10, "fooled": 7, "silent": 3, "mended": 0, "rows": 10,
    }  # fmt: skip


def test_what_is_outside_the_ball_or_wrong_anyway_does_not_count():
    def looks_outside(model, x, y):
        model(x + 0.21)
        return x

    assert best_kept(flat_case(looks_outside)).status is Status.PASS
    case = flat_case(lambda model, x, y: x - 0.1 + 0 * model(x).sum())
    case.y = 1 - case.y  # wrong as they are, and mended by nothing
    assert best_kept(case).details["mine"]["fooled"] == 0


def test_one_row_of_many_is_a_doubt_only():
    def forgets_one(model, x, y):
        model(x + 0.2)
        end = x + 0.2
        end[0] = x[0]
        return end

    finding = best_kept(flat_case(forgets_one, rows=201))
    assert (finding.status, finding.number) == (Status.WARN, 1)
    assert best_kept(flat_case(forgets_one, rows=199)).status is Status.FAIL


def test_calls_with_part_of_a_batch_are_not_matched():
    def by_row(model, x, y):
        for row in x.split(1):
            model(row + 0.2)
        return x

    finding = best_kept(flat_case(by_row))
    assert finding.status is Status.NOT_RUN
    assert finding.meaning.startswith("mine asked the model about no whole batch")
    assert (finding.details["mine"]["calls"], finding.details["mine"]["matched_calls"]) == (4, 0)


def test_a_random_model_is_no_proof_against_an_attack(sound, rows):
    class Random(nn.Module):
        def forward(self, x):
            return sound(x) + 3 * torch.randn(len(x), 10)

    finding = best_kept(Case(Random(), *rows, THREAT, SMALL))
    assert finding.status is not Status.FAIL


def test_the_wrapper_shows_the_attack_what_the_model_has(sound, rows, pgd):
    def looks(model, x, y):
        assert len(list(model.parameters())) == 8
        assert model.note == 0
        return pgd(model, x, y)

    sound.note = 0
    case = Case(sound, *rows, THREAT, SMALL, given={"mine": looks})
    found = best_kept(case).details["mine"]
    del sound.note
    assert found["matched_calls"] == 11
