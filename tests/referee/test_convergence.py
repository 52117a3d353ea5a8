"""E10, E11, E12: attacks have converged, their loss is flat, and their steps reach the ball."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.errors import NotFiniteError
from amc_lightning.referee import QUICK, Provenance, Status, ThreatModel
from amc_lightning.referee.case import Case
from amc_lightning.referee.convergence import has_converged, loss_is_flat, steps_reach_the_ball, traced_attack
from amc_lightning.referee.trace import Trace, traced
from tests.referee.conftest import EPS, SMALL, THREAT, trained
from tests.referee.test_curves import Detached, Rounded

CHECKS = (has_converged, loss_is_flat, steps_reach_the_ball)
STRONG = load("pgm", eps=EPS, eps_iter=None, nb_iter=20, keep_best=True)
SHORT = load("pgm", eps=EPS, eps_iter=EPS / 20, nb_iter=3)
FAINT = load("pgm", eps=EPS, eps_iter=EPS / 1000, nb_iter=20)


FEW = replace(SMALL, curve_rows=16)


def case(model, rows, **settings):
    return Case(model, *rows, THREAT, settings.pop("level", FEW), **settings)


def linear(weights):
    """Two classes, of which the second has the logit w x."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 2, bias=False))
    net[1].weight.data = torch.stack([torch.zeros(len(weights)), torch.tensor(weights)])
    return net.eval()


def test_sound_and_undefended_pass(sound, undefended, rows):
    for model in (sound, undefended):
        examined = case(model, rows, level=SMALL, given={"pgd": STRONG})
        findings = [check(examined) for check in CHECKS]
        assert [finding.status for finding in findings] == [Status.PASS] * 3
        assert findings[2].details["reach"] == {"reference": 2.5, "given pgd": 2.5}


@pytest.mark.parametrize("weak", [SHORT, FAINT], ids=["too few steps", "too small steps"])
def test_given_attack_that_has_not_converged(weak, sound, rows):
    finding = has_converged(case(sound, rows, given={"weak": weak}))
    assert finding.status is Status.FAIL
    assert finding.details["too weak"] == ["weak"]
    assert finding.number > 10


def test_a_claim_about_a_weaker_adversary_may_lie_behind_the_reference(sound, rows):
    threat = ThreatModel("linf", EPS, knowledge="black_box", queries=100)
    finding = has_converged(Case(sound, *rows, threat, FEW, given={"weak": SHORT}))
    assert (finding.status, finding.details["too weak"]) == (Status.WARN, ["weak"])
    assert "white-box" in finding.advice


def test_weak_attack_beside_a_strong_one_is_a_warning(sound, rows):
    finding = has_converged(case(sound, rows, given={"weak": SHORT, "strong": STRONG}))
    assert (finding.status, finding.details["too weak"]) == (Status.WARN, ["weak"])


def test_reference_that_does_not_converge(undefended, rows):
    """Without gradients only the random starts harm, and each further one harms more."""
    threat, level = ThreatModel("linf", 0.5), replace(SMALL, steps=2, curve_rows=96)
    finding = has_converged(Case(Rounded(undefended), *rows, threat, level))
    assert finding.status is Status.FAIL
    assert finding.number == finding.details["twice the restarts"] > 5
    assert finding.details["four times the restarts"] > 5
    assert "far from converged" in finding.meaning


def test_reference_that_converges_later_is_a_warning(undefended, rows):
    finding = has_converged(case(undefended, rows, level=replace(SMALL, steps=1)))
    assert finding.status is Status.WARN
    assert finding.number == finding.details["twice the steps"] > 1


def test_model_without_gradients(undefended, rows):
    examined = case(Detached(undefended), rows)
    assert [check(examined).status for check in CHECKS] == [Status.NOT_RUN, Status.NOT_RUN, Status.PASS]
    assert traced_attack(examined) is None
    assert examined.curves == {}


def test_loss_that_never_rises(sound, rows):
    finding = loss_is_flat(case(Rounded(sound), rows))
    assert (finding.status, finding.details["rows that never rose"]) == (Status.WARN, 100.0)


def test_loss_that_still_rises(sound, rows):
    examined = case(sound, rows)
    margins = torch.arange(21.0).unsqueeze(1).expand(21, 5)
    examined.memo["trace"] = Trace(margins > 90, margins)
    assert loss_is_flat(examined).number == 0.25  # a straight line: 5 of 20 steps
    assert loss_is_flat(examined).status is Status.WARN
    examined.memo["trace"] = Trace(margins > 90, margins**2)
    assert loss_is_flat(examined).number == pytest.approx(1 - 15**2 / 20**2)
    assert loss_is_flat(examined).status is Status.FAIL


def test_curves(sound, rows):
    examined = case(sound, rows)
    traced_attack(examined)
    steps, loss = examined.curves["error_by_steps"], examined.curves["loss"]
    assert steps["steps"] == [1, 2, 5, 10, 20, 40]
    assert steps["n"] == FEW.curve_rows
    assert steps["error"] == sorted(steps["error"])
    assert loss["steps"] == list(range(41))
    assert all(
        low <= median <= high for low, median, high in zip(loss["low"], loss["median"], loss["high"], strict=True)
    )


def test_trace_by_hand():
    """The margin of class 0 is 2 a - b; steps of 0.1 from the start, until the ball of 0.2 ends."""
    x, y = torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 1])
    net = linear([2.0, -1.0])
    trace = traced(net, x, y, norm="linf", eps=0.2, eps_iter=0.1, steps=6, seed=0, batch_size=1)
    assert trace.steps == 6
    assert trace.margins[-1].tolist() == pytest.approx([2 * 0.7 - 0.3, -(2 * 0.3 - 0.7)])
    rises = trace.margins.diff(dim=0)
    assert bool((rises >= -1e-6).all())
    assert float(rises.max()) <= 0.3 + 1e-6  # 0.1 (2 + 1)
    assert bool((trace.fooled == (trace.margins > 0).cummax(0).values).all())


def test_nan_is_noticed():
    x, y = torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 1])
    with pytest.raises(NotFiniteError):
        traced(linear([torch.nan, 1.0]), x, y, norm="linf", eps=0.2, eps_iter=0.1, steps=2, seed=0, batch_size=2)


def test_paper_attack_does_not_reach_its_ball(sound, rows):
    members = {
        "fgsm": {"eps": 0.3},
        "pgm": {"eps": 0.3, "eps_iter": 0.01, "nb_iter": 15},
        "eap": {"beta": 0.01},
        "pgd": {"eps": 0.3, "alpha": 0.1, "steps": 3},
        "zero": {"eps": 0, "eps_iter": 0.1, "nb_iter": 3},
    }
    record = {"attacks": {"white_box": {"paper": members, "check": None}}}
    finding = steps_reach_the_ball(case(sound, rows, provenance=Provenance(record=record)))
    assert finding.status is Status.WARN
    assert finding.number == pytest.approx(0.5)  # 0.15 / 0.3
    assert finding.details["reach"] == pytest.approx(
        {"reference": 2.5, "white_box paper pgm": 0.5, "white_box paper pgd": 1.0}
    )
    assert "white_box paper pgm 0.50." in finding.meaning


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sound_and_undefended_never_fail(seed, digits):
    attack = load("pgm", eps=EPS, eps_iter=None, nb_iter=5)
    for model in (trained(*digits[:2], seed=seed), trained(*digits[:2], attack=attack, epochs=14, seed=seed)):
        for level, start in ((SMALL, 0), (SMALL, 200), (SMALL, 400), (QUICK, 0)):
            few = tuple(part[start : start + level.rows] for part in digits[2:])
            examined = case(model, few, level=level, seed=seed, given={"pgd": STRONG})
            assert Status.FAIL not in [check(examined).status for check in CHECKS]
