"""E16: examples made on a substitute do not beat the white box, and the substitute is worth something."""

import pytest
import torch
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.referee import QUICK, Status, ThreatModel
from amc_lightning.referee.case import Case
from amc_lightning.referee.transfer import transfer_does_not_win
from tests.referee.conftest import EPS, SMALL, THREAT, network, trained
from tests.referee.test_curves import Rounded


def examine(model, rows, **settings):
    return transfer_does_not_win(Case(model, *rows, THREAT, settings.pop("level", SMALL), **settings))


def silent(net):
    """The same network with weights of zero."""
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net.eval()


def test_sound_and_undefended_pass(sound, undefended, rows):
    for model, substitute in ((sound, undefended), (undefended, sound)):
        finding = examine(model, rows, substitute=substitute, undefended=undefended)
        assert finding.status is Status.PASS
        assert finding.details["rows beyond"] == finding.number == 0
        assert finding.details["agreement"] > 80


@pytest.mark.slow
def test_substitute_of_ones_own(sound, digits, rows):
    finding = examine(sound, rows, train=(digits[0][:300], digits[1][:300]))
    assert (finding.status, finding.details["substitute"]) == (Status.PASS, "trained here")


def test_masked_gradient_loses_against_transfer(sound, undefended, rows):
    finding = examine(Rounded(undefended), rows, substitute=sound)
    assert finding.status is Status.FAIL
    assert finding.details["rows beyond"] == round(finding.number * 96 / 100) > 5
    assert "misses" in finding.meaning


def test_given_substitute_that_is_untrained(sound, rows):
    finding = examine(sound, rows, substitute=network(3).eval())
    assert finding.status is Status.FAIL
    assert "too weak to transfer" in finding.meaning
    assert finding.details["agreement"] < 50


def test_given_substitute_that_is_dead(sound, rows):
    assert "too weak to transfer" in examine(sound, rows, substitute=silent(network(3))).meaning


def test_given_substitute_whose_own_gradients_are_masked(sound, undefended, rows):
    finding = examine(sound, rows, substitute=Rounded(undefended, levels=8))
    assert finding.status is Status.FAIL
    assert "its own attack brings it to" in finding.meaning
    assert finding.details["agreement"] > 80


def test_examples_that_harm_no_more_than_noise(sound, rows):
    class ByHeart(nn.Module):
        """Has the labels by heart, so that nothing harms it."""

        def forward(self, x):
            return 9.0 * nn.functional.one_hot(rows[1][: len(x)], 10).float()

    given = {"substitute": sound, "undefended": ByHeart()}
    finding = examine(sound, rows, **given)
    assert finding.status is Status.FAIL
    assert "under noise of that size" in finding.meaning
    # At a radius that does not harm the substitute either, harmless examples say nothing against it.
    tiny = Case(sound, *rows, ThreatModel("linf", 1e-3), SMALL, **given)
    assert transfer_does_not_win(tiny).status is Status.PASS


def test_substitute_of_ones_own_that_is_too_weak_is_a_warning(sound, digits, rows):
    x, y = digits[0][:200], digits[1][:200]
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    finding = examine(sound, rows, train=(x, shuffled))
    assert (finding.status, finding.details["substitute"]) == (Status.WARN, "trained here")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sound_and_undefended_never_fail(seed, digits):
    attack = load("pgm", eps=EPS, eps_iter=None, nb_iter=5)
    plain = trained(*digits[:2], seed=seed)
    hardened = trained(*digits[:2], attack=attack, epochs=14, seed=seed)
    given = {"undefended": plain, "substitute": trained(*digits[:2], seed=seed + 10)}
    for model in (plain, hardened):
        for level, start in ((SMALL, 0), (SMALL, 200), (SMALL, 400), (QUICK, 0)):
            few = tuple(part[start : start + level.rows] for part in digits[2:])
            assert examine(model, few, level=level, seed=seed).status is not Status.FAIL
            assert examine(model, few, level=level, seed=seed, **given).status is not Status.FAIL
