"""E19, E20, E21 and E33: models that are random, squashed, optimising, or only slow."""

import time

import pytest
import torch
from torch import nn

from amc_lightning.referee import Status
from amc_lightning.referee.case import Case
from amc_lightning.referee.inference import Averaged, admission, logit_range, optimisation, randomness, repeated
from amc_lightning.referee.probabilities import as_logits
from amc_lightning.referee.workload import watched
from tests.referee.conftest import SMALL, THREAT


class Noisy(nn.Module):
    """Noise in front, in eval mode too."""

    def __init__(self, net, sd=0.1):
        super().__init__()
        self.net, self.sd = net, sd

    def forward(self, x):
        return self.net(x + self.sd * torch.randn_like(x))


class Counting(nn.Module):
    """Another answer in every call."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) + self.calls * torch.arange(10.0)


class Neighbourly(nn.Module):
    """Normalised over the batch."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return nn.functional.batch_norm(self.net(x), None, None, training=True)


class Looping(nn.Module):
    """The mean of many equal answers."""

    def __init__(self, net, times):
        super().__init__()
        self.net, self.times = net, times

    def forward(self, x):
        return torch.stack([self.net(x) for _ in range(self.times)]).mean(0)


class Sleepy(nn.Module):
    """Only slow."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        time.sleep(0.21)
        return self.net(x)


class Purifying(nn.Module):
    """Images are improved before they are answered, in one of three ways."""

    def __init__(self, net, way):
        super().__init__()
        self.net, self.way = net, way

    def forward(self, x):
        if self.way == "func":
            return self.net(x + 0.01 * torch.func.grad(self.energy)(x))
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            if self.way == "grad":
                return self.net(x + 0.01 * torch.autograd.grad(self.energy(z), z)[0])
            optimizer = torch.optim.SGD([z], lr=0.01)
            self.energy(z).backward()
            optimizer.step()
        return self.net(z.detach())

    def energy(self, x):
        return self.net(x).logsumexp(1).sum()


@pytest.fixture
def case(rows):
    return lambda model: Case(model.eval(), *rows, THREAT, SMALL)


def test_sound_and_undefended_models_pass(case, sound, undefended):
    for model in (sound, undefended):
        for check in (randomness, logit_range, optimisation, admission):
            assert check(case(model)).status == Status.PASS


def test_a_random_layer_fails_and_averaging_is_tried(case, undefended):
    noisy = case(Noisy(undefended))
    state = torch.random.get_rng_state()
    assert repeated(noisy)[0] > 1e-4
    assert torch.equal(state, torch.random.get_rng_state())
    finding = randomness(noisy)
    assert finding.status == Status.FAIL
    assert 0 < finding.number < 50
    assert finding.details["eot"] > finding.details["plain"]


@pytest.mark.parametrize("wrapper", [Counting, Neighbourly])
def test_state_and_neighbours_count_as_random(case, undefended, wrapper):
    finding = randomness(case(wrapper(undefended)))
    assert finding.status == Status.FAIL
    assert finding.details["spread"] > 1e-4


def test_differences_of_rounding_are_no_randomness(case, sound):
    assert randomness(case(Noisy(sound, 1e-7))).status == Status.PASS


def test_averaged_by_hand():
    model = Averaged(Counting(nn.Flatten()), 3)
    x = torch.zeros(1, 1, 2, 5)
    assert model(x).tolist() == [[2.0 * i for i in range(10)]]  # the mean of 1, 2 and 3 times i


def test_probabilities_and_squashed_outputs_are_told(case, sound, rows):
    model, found = as_logits(nn.Sequential(sound, nn.Softmax(1)), *rows)
    finding = logit_range(Case(model, *rows, THREAT, SMALL, returns_probabilities=found))
    assert finding.status == Status.WARN
    assert finding.number < 1e-5
    assert logit_range(case(nn.Sequential(sound, nn.Sigmoid()))).status == Status.WARN


def test_the_distance_of_sums_from_one_by_hand():
    logits = torch.tensor([[3.0, -1.0], [0.5, 0.0]])
    case = Case(nn.Flatten(), logits.view(2, 1, 1, 2), torch.tensor([0, 0]), THREAT, SMALL)
    finding = logit_range(case)
    assert (finding.status, finding.number) == (Status.PASS, 1.0)


@pytest.mark.parametrize("way", ["grad", "func", "optimizer"])
def test_gradients_at_inference_fail(case, sound, way):
    finding = optimisation(case(Purifying(sound, way)))
    assert finding.status == Status.FAIL
    assert "gradients" in finding.meaning
    assert finding.details["optimizer_steps"] == (way == "optimizer")


def test_a_defence_that_is_only_slow_fails(case, sound):
    finding = optimisation(case(Looping(sound, 60)))
    assert (finding.status, finding.number) == (Status.FAIL, 60)
    asleep = optimisation(case(Sleepy(sound)))
    assert asleep.status == Status.FAIL
    assert "times as long" in asleep.meaning


def test_layers_may_be_shared_a_few_times(case, sound):
    assert optimisation(case(Looping(sound, 3))).status == Status.PASS
    assert optimisation(case(Looping(sound, 20))).status == Status.WARN


def test_a_forward_pass_counted_by_hand():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.free = nn.Linear(6, 6), nn.ReLU()

        def forward(self, x):
            return self.free(self.layer(self.free(self.layer(x.flatten(1)))))

    work = watched(Twice(), torch.zeros(5, 1, 2, 3))
    assert work.calls == {"Linear": 2}
    assert work.flops == 2 * 5 * 2 * 6 * 6
    assert (work.backward, work.optimizer_steps, work.most_calls) == (0, 0, 2)


def test_admission_names_what_is_broken(case, sound):
    finding = admission(case(Noisy(Purifying(sound, "grad"))))
    assert finding.status == Status.WARN
    assert "E17" not in finding.meaning
    assert [reason[-5:] for reason in finding.details["reasons"]] == ["(E19)", "(E21)"]
