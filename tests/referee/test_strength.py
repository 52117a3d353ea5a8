"""Attacks that lose against single steps, noise or random search, and single steps that a model has learnt to read."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.referee import Provenance, Status, ThreatModel
from amc_lightning.referee.case import Case
from amc_lightning.referee.evidence import is_above, is_below
from amc_lightning.referee.strength import (
    diverse_attacks,
    gradients_beat_noise,
    gradients_beat_square,
    iterative_beats_single_step,
)
from amc_lightning.referee.suite import REFERENCE, fooled_by_noise
from tests.referee.conftest import EPS, SMALL, THREAT, network

LEAK_EPS = 0.5


@pytest.fixture(scope="module")
def cases(sound, undefended, digits):
    """Of the sound and of the undefended model, with a sound attack of the claim's own; attempts are remembered."""
    rows = digits[2][: SMALL.rows], digits[3][: SMALL.rows]
    given = {"mine": load("pgm", eps=EPS, eps_iter=None, nb_iter=10, keep_best=True)}
    return [Case(model, *rows, THREAT, SMALL, given=given) for model in (sound, undefended)]


@pytest.fixture(scope="module")
def leaking(digits):
    """Trained on clean images and those of one large step with true labels, until it reads the label from the step."""
    x, y = digits[0][:300], digits[1][:300]
    net, rng = network(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    step = load("pgm", eps=LEAK_EPS, eps_iter=LEAK_EPS, nb_iter=1, rand_init=False)
    for _ in range(25):
        for rows in torch.split(torch.randperm(len(x), generator=rng), 25):
            both = torch.cat([x[rows], step(net, x[rows], y[rows])])
            optimizer.zero_grad()
            F.cross_entropy(net(both), y[rows].repeat(2)).backward()
            optimizer.step()
    return net.eval()


class Masked(nn.Module):
    """A model whose answers show no slope: its images end in steps too fine to matter."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x * 255).round() / 255)


class Detached(nn.Module):
    """A model that passes no gradient back at all."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.detach())


class Bright(nn.Module):
    """Class 1 where the image's mean is above one half."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class Road(nn.Module):
    """Class 1 where a broken line over the image's mean is above 0.

    From 0.4 it climbs to a hill at 0.45 and falls again, and is above 0 from 0.583 to 0.633: one step of 0.2 gets
    there, small ones do not. From 0.9 it climbs above 0 without a hill.
    """

    KNOTS = ((0.0, -1.0), (0.4, -0.8), (0.45, -0.5), (0.55, -1.0), (0.6, 0.5), (0.7, -1.0), (0.9, -0.1), (1.0, 1.0))

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        line, slope = torch.full_like(mean, self.KNOTS[0][1]), 0.0
        for (start, low), (end, high) in pairwise(self.KNOTS):
            steeper = (high - low) / (end - start)
            line = line + (steeper - slope) * torch.relu(mean - start)
            slope = steeper
        return torch.stack([torch.zeros_like(line), line], dim=1)


def road_case(hills, rows=96, **settings):
    """A case in which the first rows stand before the hill."""
    x = torch.full((rows, 1, 8, 8), 0.9)
    x[:hills] = 0.4
    return Case(Road(), x, torch.zeros(rows).long(), ThreatModel("linf", 0.2), SMALL, **settings)


# --- counting --------------------------------------------------------------------------------------------------------


def test_a_count_is_evidence_only_beyond_chance():
    assert is_above(2, 2, 0.05)  # 0.05 ** 2 = 0.0025
    assert not is_above(1, 1, 0.05)
    assert not is_above(0, 0, 0.05)
    assert is_above(7, 7, 0.5)  # 1 / 128
    assert not is_above(6, 6, 0.5)  # 1 / 64
    assert is_below(0, 2, 0.95)
    assert not is_below(95, 100, 0.95)
    assert not is_below(90, 100, 0.95)
    assert is_below(80, 100, 0.95)


# --- E6: single steps ------------------------------------------------------------------------------------------------


def test_pgd_beats_a_single_step(cases):
    for case in cases:
        finding = iterative_beats_single_step(case)
        assert (finding.check, finding.status) == ("E6", Status.PASS)
        assert finding.details["pgd"] >= finding.details["single_step"] > finding.details["clean"]
        assert finding.details["label_leaking"] is False


def test_label_leaking_is_named(leaking, rows):
    finding = iterative_beats_single_step(Case(leaking, *rows, ThreatModel("linf", LEAK_EPS), SMALL))
    assert finding.status is Status.FAIL
    assert finding.meaning.startswith("Label leaking")
    assert "a single step of 0.5 eps" in finding.meaning
    assert "no evidence" in finding.meaning
    assert finding.details["pgd"] > 95
    assert finding.details["single_step"] < finding.details["a single step of 0.5 eps"] - 10


@pytest.mark.parametrize(("hills", "status"), [(0, Status.PASS), (1, Status.WARN), (4, Status.WARN), (5, Status.FAIL)])
def test_rows_that_the_single_step_has_alone_are_counted(hills, status):
    """Where 1 % of 96 rows may be exceptions, 4 of them come by chance with 1.6 %, and 5 with 0.3 %."""
    finding = iterative_beats_single_step(road_case(hills))
    assert (finding.status, finding.details["alone"]) == (status, hills)
    assert finding.number == pytest.approx(100 * hills / 96)
    assert finding.details["single_step"] == 100


# --- E14: noise ------------------------------------------------------------------------------------------------------


def test_gradients_beat_noise(cases):
    for case in cases:
        finding = gradients_beat_noise(case)
        assert (finding.check, finding.status, finding.number) == ("E14", Status.PASS, 0)
        assert finding.details["wins"] == {REFERENCE: 0, "mine": 0}


def test_an_attack_that_does_nothing_loses_against_noise(undefended, rows):
    case = Case(undefended, *rows, THREAT, SMALL, given={"nothing": lambda model, x, y: x})
    finding = gradients_beat_noise(case)
    assert finding.status is Status.FAIL
    assert "that nothing does not" in finding.meaning
    assert finding.number == int((fooled_by_noise(case) & ~case.clean_wrong).sum()) >= 2
    assert finding.details["wins"][REFERENCE] == 0


def test_a_weak_attack_beside_a_strong_one_is_a_doubt(undefended, rows):
    given = {"nothing": lambda model, x, y: x, "mine": load("pgm", eps=EPS, eps_iter=None, keep_best=True)}
    finding = gradients_beat_noise(Case(undefended, *rows, THREAT, SMALL, given=given))
    assert finding.status is Status.WARN
    assert finding.details["wins"]["nothing"] >= 2
    assert "Do not rely on nothing" in finding.advice


def test_a_model_without_gradients_is_fooled_by_noise(undefended, rows):
    finding = gradients_beat_noise(Case(Detached(undefended), *rows, THREAT, SMALL))
    assert finding.status is Status.FAIL
    assert REFERENCE in finding.meaning


@pytest.mark.parametrize(
    ("rows", "wins", "status"),
    [(96, 0, Status.PASS), (96, 1, Status.WARN), (96, 2, Status.FAIL), (401, 2, Status.WARN), (401, 3, Status.FAIL)],
)
def test_rows_that_noise_wins_are_counted(rows, wins, status):
    def leaves_some(model, x, y):
        x[wins:] += 0.05
        return x

    x = torch.full((rows, 1, 8, 8), 0.499)  # every row has a random point above one half
    given = {"mine": leaves_some}
    case = Case(Bright(), x, torch.zeros(rows).long(), ThreatModel("linf", 0.2), SMALL, given=given, batch_size=rows)
    finding = gradients_beat_noise(case)
    assert (finding.status, finding.number) == (status, wins)
    assert finding.details["noise"] == 100


def test_noise_is_in_the_ball_and_the_same_again(undefended, rows):
    first, again, small = (
        fooled_by_noise(Case(undefended, *rows, THREAT, SMALL, batch_size=size)) for size in (96, 96, 40)
    )
    assert torch.equal(first, again)
    assert int((first ^ small).sum()) < 10  # other draws, as many
    tiny = Case(undefended, *rows, ThreatModel("linf", 1e-6), SMALL)
    assert torch.equal(fooled_by_noise(tiny), tiny.clean_wrong)


# --- E15: random search ----------------------------------------------------------------------------------------------


def test_gradients_beat_random_search(cases):
    for case in cases:
        finding = gradients_beat_square(case)
        assert (finding.check, finding.status, finding.number) == ("E15", Status.PASS, 0)
        assert finding.details["union"] >= finding.details["pgd"] > finding.details["square"]


@pytest.mark.parametrize("hide", [Masked, Detached])
def test_masked_gradients_lose_against_random_search(undefended, rows, hide):
    finding = gradients_beat_square(Case(hide(undefended), *rows, THREAT, SMALL))
    assert finding.status is Status.FAIL
    assert finding.details["square"] - finding.details["union"] == pytest.approx(finding.number)
    assert finding.number > 10


@pytest.mark.parametrize(("dark", "status"), [(1, Status.WARN), (2, Status.FAIL)])
def test_rows_that_square_wins_are_counted(dark, status):
    """Dark images pass no gradient, bright ones do; both are wrong from 0.1 more on."""

    class Half(nn.Module):
        def forward(self, x):
            mean = x.flatten(1).mean(1)
            is_dark = mean.detach() < 0.4
            mean = torch.where(is_dark, mean.detach() - 0.2, mean - 0.8)
            return torch.stack([torch.zeros_like(mean), mean], dim=1)

    x = torch.full((96, 1, 8, 8), 0.7)
    x[:dark] = 0.1
    case = Case(Half(), x, torch.zeros(96).long(), ThreatModel("linf", 0.2), SMALL)
    finding = gradients_beat_square(case)
    assert (finding.status, finding.details["beyond"]) == (status, dark)
    assert finding.number == pytest.approx(100 * dark / 96)
    assert finding.details["square"] == 100


def test_square_is_left_out_where_it_cannot_tile(sound, rows):
    x = F.pad(rows[0], (0, 4, 0, 4))  # 12x12
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(8), sound)
    case = Case(pooled, x, rows[1], ThreatModel("l2", 0.5), SMALL)
    assert gradients_beat_square(case).status is Status.NOT_RUN
    finding = diverse_attacks(case)
    assert finding.status is Status.WARN
    assert finding.details["missing"] == ["square"]


# --- E25: diversity --------------------------------------------------------------------------------------------------


def test_the_union_of_all_attacks_is_told(cases):
    finding = diverse_attacks(replace(cases[0], provenance=Provenance(trained_against=("pgm",))))
    assert (finding.check, finding.status, finding.unit) == ("E25", Status.PASS, "%")
    assert finding.number == finding.details["union"] >= finding.details["pgd"]
    assert finding.details["not_trained_against"] == ["apgd_ce", "apgd_t", "fab", "square"]
    assert finding.details["fab_rows"] == SMALL.curve_rows
    assert {"pgd", "apgd_ce", "apgd_t", "fab", "square"} <= set(finding.details)


def test_a_reference_that_misses_rows_is_told_to_quote_the_union(undefended, rows):
    finding = diverse_attacks(Case(Detached(undefended), *rows, THREAT, SMALL))
    assert finding.status is Status.WARN
    assert "above the reference PGD" in finding.meaning
    assert finding.advice == "Quote the union of all attacks."


def test_attacks_that_were_all_trained_against_are_no_news(cases):
    finding = diverse_attacks(replace(cases[0], provenance=Provenance(trained_against=("pgm", "AutoAttack"))))
    assert finding.status is Status.WARN
    assert "trained against every one" in finding.meaning


def test_three_classes_leave_out_the_targeted_attack(digits):
    x, y = digits[2][digits[3] < 3][:40], digits[3][digits[3] < 3][:40]
    torch.manual_seed(0)
    case = Case(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, y, THREAT, SMALL)
    finding = diverse_attacks(case)
    assert finding.status is Status.WARN
    assert "apgd_t could not be run (it needs 4 classes)" in finding.meaning
