"""E7, E8, E9: the error grows with the radius, reaches the end, and nothing impossible is claimed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.metrics import wilson
from amc_lightning.referee import QUICK, Provenance, Status, ThreatModel
from amc_lightning.referee.case import Case
from amc_lightning.referee.curves import (
    claims_nothing_impossible,
    error_by_eps,
    grows_with_radius,
    reaches_the_end,
)
from amc_lightning.referee.paired import Pair, compared
from tests.referee.conftest import EPS, SMALL, THREAT, trained

CHECKS = (grows_with_radius, reaches_the_end, claims_nothing_impossible)


class Rounded(nn.Module):
    """Rounds its images to a few levels: no gradient comes back, so that PGD stays at its random start."""

    def __init__(self, net, levels=2):
        super().__init__()
        self.net = net
        self.levels = levels

    def forward(self, x):
        return self.net(torch.round(x * self.levels) / self.levels)


class Detached(nn.Module):
    """Cuts the graph."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).detach()


class Cliff(nn.Module):
    """Looks rough images up in a table of known ones, without gradient: attacks with a rough start get stuck."""

    def __init__(self, net, x, y, limit=0.6):
        super().__init__()
        self.net = net
        self.x, self.y, self.limit = x.flatten(1), y, limit

    def forward(self, x):
        across, down = (x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs()
        rough = across.mean((1, 2, 3)) + down.mean((1, 2, 3))
        nearest = torch.cdist(x.detach().flatten(1), self.x).argmin(1)
        table = 10.0 * nn.functional.one_hot(self.y[nearest], 10)
        return torch.where((rough > self.limit).unsqueeze(1), table, self.net(x))


class Constant(nn.Module):
    """Answers 0 to everything."""

    def forward(self, x):
        return 3 * torch.eye(4)[0] + 0 * x.flatten(1)[:, :4]


FEW = replace(SMALL, curve_rows=24)


def case(model, rows, threat=THREAT, **settings):
    return Case(model, *rows, threat, settings.pop("level", FEW), **settings)


def test_sound_and_undefended_pass(sound, undefended, rows):
    for model in (sound, undefended):
        examined = case(model, rows, level=SMALL)
        assert [check(examined).status for check in CHECKS] == [Status.PASS] * 3


@pytest.mark.parametrize("threat", [ThreatModel("l2", 0.5), ThreatModel("l1", 3.0), ThreatModel("linf", 0.6)], ids=str)
def test_sound_passes_in_other_balls(threat, sound, rows):
    examined = case(sound, rows, threat, level=replace(SMALL, curve_rows=16))
    assert Status.FAIL not in [check(examined).status for check in CHECKS]


def test_curve(sound, rows):
    examined = case(sound, rows)
    curve = error_by_eps(examined)
    assert curve["eps"] == [0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5]
    assert examined.curves["error_by_eps"] is curve
    assert (curve["n"], curve["chance"]) == (FEW.curve_rows, 90.0)
    wrong = int(examined.clean_wrong[: FEW.curve_rows].sum())
    assert curve["error"][0] == pytest.approx(100 * wrong / FEW.curve_rows)
    assert (curve["low"][0], curve["high"][0]) == pytest.approx(wilson(wrong, FEW.curve_rows))


def test_radii_stop_at_the_whole_box(rows):
    examined = case(Constant(), (rows[0][:4], torch.tensor([0, 1, 2, 3])), ThreatModel("linf", 0.5))
    assert error_by_eps(examined)["eps"] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]
    assert [(examined.high_radius(norm), examined.whole_box(norm)) for norm in ("linf", "l2", "l1")] == [
        (0.5, 1.0), (4.0, 8.0), (32.0, 64.0),
    ]  # fmt: skip


def test_constant_model_is_at_chance_but_cannot_be_broken(rows):
    finding = reaches_the_end(case(Constant(), (rows[0][:80], torch.arange(80) % 4)))
    assert finding.status is Status.FAIL
    assert finding.details["short"] == ["unbounded"]
    assert (finding.number, finding.details["high"]) == (75.0, 75.0)


def test_rounding_does_not_reach_the_end(sound, rows):
    examined = case(Rounded(sound), rows)
    end, impossible = reaches_the_end(examined), claims_nothing_impossible(examined)
    assert (end.status, end.details["short"]) == (Status.FAIL, ["high", "unbounded"])
    assert end.number < 60
    assert impossible.status is Status.FAIL
    assert "above chance at eps 0.5 is impossible" in impossible.meaning
    assert impossible.details["constructed"] == 100
    assert impossible.number == pytest.approx(100 - end.number)  # the same rows and the same attack


def test_model_without_gradients(undefended, rows):
    examined = case(Detached(undefended), rows)
    assert [check(examined).status for check in CHECKS] == [Status.PASS, Status.FAIL, Status.FAIL]
    assert set(examined.curves["error_by_eps"]["error"]) == {examined.curves["error_by_eps"]["error"][0]}


def test_error_that_falls_with_the_radius(undefended, digits, rows):
    finding = grows_with_radius(case(Cliff(undefended, *digits[:2]), rows, level=SMALL))
    assert finding.status is Status.FAIL
    assert finding.number > 10
    assert finding.details["p_value"] < 0.01
    assert finding.details["to"] == 0.5


def test_impossible_claim_of_the_given_attack(undefended, rows):
    idle = {"idle": lambda model, x, y: x}
    finding = claims_nothing_impossible(case(undefended, rows, ThreatModel("linf", 0.5), given=idle))
    assert finding.status is Status.FAIL
    assert "under the claim's attacks (idle)" in finding.meaning
    assert len(finding.details["impossible claims"]) == 1
    strong = {**idle, "strong": load("pgm", eps=0.5, eps_iter=None)}
    assert (
        claims_nothing_impossible(case(undefended, rows, ThreatModel("linf", 0.5), given=strong)).status is Status.PASS
    )


def on_record(error, high, *, eps=0.6, name="pgm", threat_model="white_box"):
    attacks = {threat_model: {"check": {name: {"eps": eps, "eps_iter": None, "nb_iter": 40}}}}
    rate = {"n": 100, "error": error, "low": 0.0, "high": high}
    stage = {"index": 4, "name": "pgm", "evaluations": {threat_model: {"check": {"clean": rate, name: rate}}}}
    return Provenance(record={"attacks": attacks, "stages": [stage]})


def test_impossible_claim_on_record(sound, rows):
    found = claims_nothing_impossible(case(sound, rows, provenance=on_record(6.73, 13.0)))  # the paper's AMC with FS
    assert found.status is Status.FAIL
    assert found.details["impossible claims"] == ["93.3 % right under check pgm with eps 0.6 (4 pgm under white_box)"]


def test_a_constant_answer_is_possible_where_one_class_is_frequent(rows):
    """Nine rows of ten are of class 0: at any radius 90 % are right, and that is no broken evaluation."""
    y = (torch.arange(80) % 10 == 9).long()
    few = case(Constant(), (rows[0][:80], y), ThreatModel("linf", 0.6), provenance=on_record(10.0, 18.0))
    assert few.least_error_on_grey == pytest.approx(10.0)
    assert claims_nothing_impossible(few).details["impossible claims"] == []
    few = case(Constant(), (rows[0][:80], y), ThreatModel("linf", 0.6), provenance=on_record(1.0, 6.0))
    assert len(claims_nothing_impossible(few).details["impossible claims"]) == 1


@pytest.mark.parametrize(
    "provenance",
    [
        on_record(99.0, 99.9),
        on_record(6.7, 13.0, eps=0.3),
        on_record(6.7, 13.0, eps=0.6, name="pgd_l2"),
        on_record(6.7, 13.0, threat_model="black_box"),
        Provenance(record={"stages": "none", "attacks": []}),
        Provenance(record={"attacks": {"white_box": {"check": {"pgm": {"eps": "0.6"}}}}}),
    ],
)
def test_possible_records(provenance, sound, rows):
    few = case(sound, rows, provenance=provenance)
    assert claims_nothing_impossible(few).status is Status.PASS


def test_pairs_by_hand():
    first, second = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    pair = compared(first, second)
    assert pair == Pair(5, 2, 1)
    assert (pair.lead, pair.extra) == (20.0, 40.0)
    assert pair.p_value == 0.5  # of three coins two or three heads
    assert not pair.leads_by(0.5)
    assert Pair(100, 7, 0).leads_by(0.5)  # 1 / 128
    assert not Pair(100, 6, 0).leads_by(0.5)  # 1 / 64
    assert not Pair(100, 7, 0).leads_by(7.0)
    assert Pair(9, 0, 0).p_value == 1
    assert not Pair(10, 8, 2).leads_by(0.0)  # 56 / 1024
    assert Pair(100, 5, 90).exceeds(1, 0.5)  # however many the second has beyond it
    assert not Pair(100, 1, 0).exceeds(1, 0.5)
    assert not Pair(96, 2, 0).exceeds(1, 0.5)  # more than 1 %, but 1 - 0.995**96 - 96 * 0.005 * 0.995**95 = 0.08


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sound_and_undefended_never_fail(seed, digits):
    attack = load("pgm", eps=EPS, eps_iter=None, nb_iter=5)
    held_out = digits[2:]
    for model in (trained(*digits[:2], seed=seed), trained(*digits[:2], attack=attack, epochs=14, seed=seed)):
        for level, start in ((SMALL, 0), (SMALL, 200), (SMALL, 400), (QUICK, 0)):
            few = tuple(part[start : start + level.rows] for part in held_out)
            examined = case(model, few, level=level, seed=seed)
            assert Status.FAIL not in [check(examined).status for check in CHECKS]
