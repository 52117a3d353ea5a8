"""What a run will cost: passes are counted, seconds are measured, the rest is arithmetic."""

import io
from fractions import Fraction

import pytest
import torch
from rich.console import Console
from torch import nn

from amc_lightning.attacks import build
from amc_lightning.plan import Probe, StageCost, counting, plan_table, probe, stage_cost
from tests.test_cascade import ToyNet, composed


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ToyNet()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 1, 8, 8, generator=generator), torch.randint(0, 3, (5,), generator=generator)


@pytest.fixture(scope="module")
def attacks():
    config = composed()
    params = {"pgm": {"nb_iter": 7}, "vap": {"num_iters": 3}, "eap": {"binary_search_steps": 2, "max_iterations": 4}}
    return {
        name: build(name, config.attacks[name], params.get(name, {}), image_shape=(1, 8, 8))
        for name in ("fgsm", "vap", "eap", "pgm")
    }


def test_rows_are_counted_by_whether_a_gradient_follows(net, batch):
    x, _ = batch
    with counting(net) as count:
        net(x)
        net(x[:2])
        with torch.no_grad():
            net(x[:3])
    assert (count.gradient, count.forward) == (7, 3)
    net(x)
    assert (count.gradient, count.forward) == (7, 3), "counting ends with the block"


@pytest.mark.parametrize("fails", [False, True])
def test_counting_leaves_no_hook(net, batch, fails):
    hooks = [len(module._forward_pre_hooks) for module in net.modules()]
    if fails:
        with pytest.raises(RuntimeError), counting(net):
            net(batch[0].flatten(1))
    else:
        with counting(net):
            net(batch[0])
    assert [len(module._forward_pre_hooks) for module in net.modules()] == hooks == [0] * len(hooks)


@pytest.mark.parametrize(
    ("name", "passes"),
    [("fgsm", 1), ("pgm", 7), ("vap", 3), ("eap", 1 + 2 * 3)],  # EAP: one shared first gradient, then 3 a search step
)
def test_an_attack_takes_the_gradient_passes_its_parameters_say(name, passes, net, batch, attacks):
    assert probe(net, {"it": attacks[name]}, *batch).passes == {"it": passes}
    with counting(net) as count:
        attacks[name](net, *batch)
    assert count.gradient <= passes * 5
    if name != "eap":  # it leaves out what cannot change its result
        assert count.gradient == passes * 5


def test_probing_leaves_the_net_as_it_was(net, batch, attacks):
    net.train()
    net.bn.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measured = probe(net, attacks, *batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert net.training
    assert not net.bn.training
    assert all(len(module._forward_pre_hooks) == 0 for module in net.modules())
    assert set(measured.attack) == set(measured.passes) == {"fgsm", "vap", "eap", "pgm"}
    assert min(measured.train, *measured.attack.values()) > 0


def test_an_attack_that_stops_early_is_counted_in_full(batch, attacks):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x, _ = batch
    wrong = (net(x).argmax(1) + 1) % 3  # every row is fooled from the start: nothing to search for
    with counting(net) as count:
        attacks["eap"](net, x, wrong)
    assert count.gradient < 7 * 5
    assert probe(net, {"eap": attacks["eap"]}, x, wrong).passes == {"eap": 7}


def test_an_attack_without_gradients_can_be_planned(net, batch):
    spec = {"_target_": "torchattacks.GN", "norm": None, "uses_labels": False, "params": {"std": 0.1}}
    measured = probe(net, {"noise": build("noise", spec, {})}, *batch)
    assert measured.passes == {"noise": 0}
    assert measured.attack["noise"] > 0


MEASURED = Probe(train=0.01, attack={"fgsm": 0.02, "pgm": 0.1}, passes={"fgsm": 1.0, "pgm": 10.0})


def test_a_stage_costs_its_two_halves_and_its_attacks_by_share():
    cost = stage_cost(
        MEASURED,
        title="2 pgm",
        shares={"fgsm": Fraction(1, 5), "pgm": Fraction(4, 5)},
        validated=50,
        rows=600,
        steps_per_epoch=5,
        epochs=2,
    )
    # a row: 2 * 0.01 + 0.2 * 0.02 + 0.8 * 0.1 = 0.104 s; 1,200 rows; 50 rows validated under both attacks, 0.12 s each
    minutes = (0.104 * 1200 + 50 * 0.12) / 60
    assert cost == StageCost("2 pgm", 2, 10, pytest.approx(2 + 0.2 + 8), pytest.approx(minutes))


def test_stage_0_costs_one_half():
    cost = stage_cost(MEASURED, title="0 undefended", shares={}, validated=50, rows=600, steps_per_epoch=5, epochs=3)
    assert cost == StageCost("0 undefended", 3, 15, 1, pytest.approx(0.01 * 1800 / 60))


def test_the_plan_adds_up():
    costs = [StageCost("0 undefended", 2, 1000, 1.0, 1.5), StageCost("1 fgsm", 1, 500, 3.0, 2.25)]
    out = io.StringIO()
    Console(file=out, width=100).print(plan_table(costs, 0.75))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["0", "undefended", "2", "1,000", "1.0", "1.5"] in rows
    assert ["evaluation", "0.8"] in rows
    assert ["all", "1,500", "4.5"] in rows
