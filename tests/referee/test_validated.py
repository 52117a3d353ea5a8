"""Attacks that do not even break a model without a defence are named."""

import pytest
import torch
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.referee import Status, ThreatModel
from amc_lightning.referee.case import Case
from amc_lightning.referee.reference import reference_net, training_rows, undefended_model
from amc_lightning.referee.suite import REFERENCE
from amc_lightning.referee.validated import breaks_undefended
from tests.referee.conftest import EPS, SMALL, THREAT


def pgd(eps=EPS, **settings):
    """A sound attack of the claim's own."""
    return load("pgm", eps=eps, eps_iter=None, nb_iter=20, keep_best=True, **settings)


def wrong_sign(model, x, y):
    """Go down where PGD goes up."""
    x_adv = x.clone()
    for _ in range(10):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x_adv), y), x_adv)
        x_adv = (x_adv.detach() - EPS / 4 * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return x_adv


def nothing(model, x, y):
    return x


def test_sound_attacks_break_an_undefended_model(sound, undefended, rows):
    finding = breaks_undefended(Case(sound, *rows, THREAT, SMALL, undefended=undefended, given={"mine": pgd()}))
    assert (finding.check, finding.status, finding.unit) == ("E24", Status.PASS, "%")
    assert finding.number > 90
    assert finding.details["undefended"] == "given"
    assert finding.details["reach_eps"] == pytest.approx(2 * EPS)
    assert finding.details["fooled_of_counted"][REFERENCE] > 95


@pytest.mark.parametrize("attack", [nothing, wrong_sign])
def test_an_attack_that_breaks_nothing_is_named(sound, undefended, rows, attack):
    case = Case(sound, *rows, THREAT, SMALL, undefended=undefended, given={"mine": attack, "good": pgd()})
    finding = breaks_undefended(case)
    assert finding.status is Status.FAIL
    assert "mine fools 0.0 % of the" in finding.meaning
    assert "good" not in finding.meaning
    assert finding.advice.startswith("Correct mine")
    assert finding.number == 0


def test_a_weaker_adversary_s_attack_is_a_doubt_only(sound, undefended, rows):
    threat = ThreatModel("linf", EPS, knowledge="black_box", queries=100)
    case = Case(sound, *rows, threat, SMALL, undefended=undefended, given={"mine": nothing})
    assert breaks_undefended(case).status is Status.WARN


def test_at_a_large_radius_all_rows_count(sound, undefended, rows):
    large = ThreatModel("linf", 0.3)
    case = Case(sound, *rows, large, SMALL, undefended=undefended, given={"mine": pgd(0.3), "weak": pgd(0.1)})
    finding = breaks_undefended(case)
    wrong = case.answers(undefended, rows[0][: SMALL.curve_rows]).argmax(1) != rows[1][: SMALL.curve_rows]
    assert finding.details["counted"] == "all"
    assert finding.details["counted_rows"] == finding.details["rows"] == int((~wrong).sum())
    assert finding.details["reach_eps"] == 0.3
    assert finding.details["fooled_of_counted"]["mine"] == 100
    assert finding.status is Status.FAIL
    assert finding.meaning.startswith("On an undefended model (given) weak fools")


def test_an_undefended_model_is_trained_where_none_is_given(sound, digits, rows):
    case = Case(sound, *rows, THREAT, SMALL, given={"mine": pgd(), "nothing": nothing})
    finding = breaks_undefended(case)
    assert finding.status is Status.FAIL
    assert finding.details["undefended"] == "trained here"
    assert finding.details["clean_error"] < 40  # of 48 images, from 48 others
    assert "nothing fools" in finding.meaning
    assert "mine" not in finding.meaning
    net = undefended_model(case)
    assert net is undefended_model(case) is reference_net(case, seed=0)
    assert not net.training


def test_a_trained_net_depends_on_its_seed_only(sound, rows):
    rows = rows[0][:16], rows[1][:16]
    one = reference_net(Case(sound, *rows, THREAT, SMALL), seed=3)
    state = torch.random.get_rng_state()
    again = reference_net(Case(sound, *rows, THREAT, SMALL), seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        assert again(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_it_is_trained_on_what_is_given_else_on_the_second_half(sound, digits, rows):
    assert torch.equal(training_rows(Case(sound, *rows, THREAT, SMALL))[0], rows[0][48:])
    case = Case(sound, *rows, THREAT, SMALL, train=digits[:2])
    assert torch.equal(training_rows(case)[1], digits[1])


def test_what_cannot_be_broken_is_no_undefended_model(sound, rows, undefended):
    class Detached(nn.Module):
        def forward(self, x):
            return undefended(x.detach())

    finding = breaks_undefended(Case(sound, *rows, THREAT, SMALL, undefended=Detached()))
    assert finding.status is Status.FAIL
    assert "the reference PGD never fools 95 %" in finding.meaning
    assert finding.details["reach_eps"] == 0.5


def test_a_model_that_is_always_wrong_shows_nothing(sound, rows):
    wrong = 1 - nn.functional.one_hot(rows[1], 10).float()

    class Wrong(nn.Module):
        def forward(self, x):
            return wrong[: len(x)]

    finding = breaks_undefended(Case(sound, *rows, THREAT, SMALL, undefended=Wrong()))
    assert finding.status is Status.NOT_RUN


def test_a_radius_too_small_for_anything_is_a_doubt(sound, undefended, rows):
    tiny = ThreatModel("linf", 1e-6)
    finding = breaks_undefended(Case(sound, *rows, tiny, SMALL, undefended=undefended, given={"mine": pgd(1e-6)}))
    assert finding.status is Status.WARN
    assert "could not be tried" in finding.meaning


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l1", 2.0)])
def test_other_norms_are_validated_as_well(sound, undefended, rows, norm, eps):
    finding = breaks_undefended(Case(sound, *rows, ThreatModel(norm, eps), SMALL, undefended=undefended))
    assert finding.status is Status.PASS
    assert finding.details["reach_share"] > 90
