"""E17: gradients that are missing, saturated, or those of another function."""

import pytest
import torch
from torch import nn

from amc_lightning.models import BitDepth, LeNet, MedianSmoothing, Squeezed
from amc_lightning.referee import Status
from amc_lightning.referee.case import Case
from amc_lightning.referee.gradients import dlr, gradients, margin, measured_slopes
from tests.referee.conftest import SMALL, THREAT, network


class Scaled(nn.Module):
    """Logits times a constant; or in the backward pass only."""

    def __init__(self, net, forward=1.0, backward=1.0):
        super().__init__()
        self.net, self.scales = net, (forward, backward)

    def forward(self, x):
        logits = self.net(x)
        return logits.detach() * self.scales[0] + (logits - logits.detach()) * self.scales[0] * self.scales[1]


class Detached(nn.Module):
    """Two networks' sum, of which gradients see the weaker one."""

    def __init__(self, strong, weak, share):
        super().__init__()
        self.strong, self.weak, self.share = strong, weak, share

    def forward(self, x):
        return self.strong(x.detach()) + self.share * self.weak(x)


class ClippingNoise(nn.Module):
    """Clips images to [0, 1], and adds noise."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.clamp(0, 1) + 0.1 * torch.randn_like(x))


@pytest.fixture
def case(rows):
    return lambda model: Case(model.eval(), *rows, THREAT, SMALL)


def test_sound_and_undefended_models_pass(case, sound, undefended):
    for model in (sound, undefended):
        finding = gradients(case(model))
        assert (finding.status, finding.number) == (Status.PASS, 0.0), finding
        assert finding.details["slopes"]["ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_slopes_agree_with_gradients_for_any_weights(case, digits, seed):
    torch.manual_seed(seed)
    for model in (network(seed), LeNet(1, (8, 8), 10)):
        found = measured_slopes(case(model))
        assert found.ratio == pytest.approx(1, abs=0.05)
        assert found.aligned == pytest.approx(1, abs=0.2)
        assert found.correlation > 0.98
        assert not found.wrong


def test_saturated_logits_fail_by_the_loss_that_stands_still(case, sound):
    finding = gradients(case(Scaled(sound, 1e4)))
    assert finding.status == Status.FAIL
    assert finding.number > 50
    assert "cross-entropy" in finding.meaning
    assert "saturated" in finding.meaning
    assert finding.details["zero_or_not_finite"]["margin"] == 0


def test_no_gradient_at_all_fails(case, undefended):
    class Rounded(nn.Module):
        def forward(self, x):
            return undefended((x * 8).round() / 8)

    class Cut(nn.Module):
        def forward(self, x):
            return undefended(x.detach())

    for model in (Rounded(), Cut()):
        finding = gradients(case(model))
        assert (finding.status, finding.number) == (Status.FAIL, 100.0)
        assert "margin" in finding.meaning


def test_gradients_that_are_not_finite_fail(case, undefended):
    class Rooted(nn.Module):
        def forward(self, x):
            return undefended(x) + 0 * x.flatten(1).sub(x.flatten(1).detach()).sqrt().sum(1, keepdim=True)

    assert gradients(case(Rooted())).status == Status.FAIL


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_detached_branch_fails(case, digits, sound, undefended, share):
    for strong, weak in ((undefended, sound), (undefended, network(5))):
        finding = gradients(case(Detached(strong, weak, share)))
        assert finding.status == Status.FAIL, finding
        assert "not the slope" in finding.meaning


def test_a_gradient_of_another_length_is_a_doubt_only(case, sound):
    finding = gradients(case(Scaled(sound, backward=0.1)))
    assert finding.status == Status.WARN
    assert finding.details["slopes"]["ratio"] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("squeezer", [BitDepth(1), BitDepth(3), BitDepth(8), MedianSmoothing(2), MedianSmoothing(3)])
def test_honest_stand_ins_of_squeezers_do_not_fail(case, undefended, sound, squeezer):
    for net in (undefended, sound) if isinstance(squeezer, BitDepth) else (sound,):
        assert gradients(case(Squeezed(net, squeezer))).status != Status.FAIL


def test_a_model_that_clips_and_draws_noise_does_not_fail(case, sound):
    assert gradients(case(ClippingNoise(sound))).status != Status.FAIL


def test_two_classes_and_no_right_answer(rows):
    torch.manual_seed(0)
    x, y = rows[0], torch.zeros_like(rows[1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        net[1].bias += torch.tensor([9.0, 0.0])
    finding = gradients(Case(net, x, y, THREAT, SMALL))
    assert finding.status == Status.PASS
    assert set(finding.details["zero_or_not_finite"]) == {"ce", "margin"}
    assert gradients(Case(net, x, 1 - y, THREAT, SMALL)).status == Status.NOT_RUN


def test_losses_by_hand():
    logits, y = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 2.0]]), torch.tensor([0, 0])
    assert margin(logits, y).tolist() == [-1, 4]
    assert dlr(logits, y).tolist() == [-0.5, 1]
