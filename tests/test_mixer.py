import random
from fractions import Fraction

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_lightning.attacks import build
from amc_lightning.config import CONF_DIR
from amc_lightning.mixer import Mixer, partition, stage_shares
from amc_lightning.models import LeNet

RULE = {"current_share": Fraction(4, 5), "shares": None}


def test_the_rule_gives_the_totals_of_the_specification_not_those_the_paper_prints():
    totals = [sum(stage_shares(stage, **RULE)[i] for stage in range(i + 1, 5)) for i in range(4)]
    assert [round(float(total / totals[-1]), 4) for total in totals] == [1.7083, 1.2083, 1.0833, 1.0]


def test_every_stage_hands_out_everything():
    for stage in range(1, 8):
        assert sum(stage_shares(stage, **RULE)) == 1


def test_current_share_of_one_leaves_nothing_for_earlier_attacks():
    assert stage_shares(3, current_share=Fraction(1), shares=None) == [0, 0, 1]


def test_an_explicit_vector_is_rescaled_to_the_attacks_seen_so_far():
    vector = [Fraction(1, 10), Fraction(2, 10), Fraction(3, 10), Fraction(4, 10)]
    assert stage_shares(2, current_share=Fraction(4, 5), shares=vector) == [Fraction(1, 3), Fraction(2, 3)]
    assert stage_shares(4, current_share=Fraction(4, 5), shares=vector) == vector


def test_a_vector_that_leaves_a_stage_empty_is_refused():
    with pytest.raises(ValueError, match="the shares of the first 1 attacks are all zero"):
        stage_shares(1, current_share=Fraction(4, 5), shares=[Fraction(0), Fraction(1)])


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=40),
)
def test_partition_is_exact_and_never_strays_by_a_row(weights, sizes):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    carry = [Fraction(0)] * len(shares)
    handed = [0] * len(shares)
    for size in sizes:
        parts, carry = partition(size, shares, carry)
        assert sum(parts) == size
        assert all(part >= 0 for part in parts)
        handed = [total + part for total, part in zip(handed, parts, strict=True)]
    exact = [share * sum(sizes) for share in shares]
    assert carry == [want - got for want, got in zip(exact, handed, strict=True)]
    # one batch is rounded by less than a row; that an earlier attack is ahead can move at most one more
    assert all(abs(rest) < 2 for rest in carry)


def test_batches_of_one_reach_every_earlier_attack():
    shares = stage_shares(4, **RULE)
    carry = [Fraction(0)] * 4
    handed = [0] * 4
    for _ in range(300):
        parts, carry = partition(1, shares, carry)
        handed = [total + part for total, part in zip(handed, parts, strict=True)]
    assert handed == [20, 20, 20, 240]


def test_partition_refuses_shares_that_do_not_sum_to_one():
    with pytest.raises(ValueError, match="the shares sum to 9/10, not to 1"):
        partition(4, [Fraction(1, 10), Fraction(8, 10)], [Fraction(0)] * 2)
    with pytest.raises(ValueError, match="1 shares but 2 carries"):
        partition(4, [Fraction(1)], [Fraction(0)] * 2)


def attack(name, **params):
    spec = yaml.safe_load((CONF_DIR / "attack" / f"{name}.yaml").read_text())
    return build(name, spec, params)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return LeNet(1, (16, 16), 10).train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(20, 1, 16, 16, generator=generator), torch.randint(0, 10, (20,), generator=generator)


def make(*, seed=5, label="true"):
    attacks = [attack("fgsm", eps=0.05), attack("pgm", eps=0.2, eps_iter=0.1, nb_iter=3)]
    return Mixer(attacks, stage_shares(2, **RULE), seed=seed, label=label)


def test_rows_keep_their_place_and_each_is_perturbed_by_its_source_alone(net, batch):
    x, y = batch
    adv = make()(net, x, y, step=0)
    assert torch.equal(adv.y, y)
    assert adv.source.bincount(minlength=2).tolist() == [4, 16]
    reach = (adv.x - x).abs().flatten(1).amax(dim=1)
    assert torch.all(reach[adv.source == 0] <= 0.05 + 1e-6)
    assert torch.all(reach[adv.source == 1] > 0.05 + 1e-3)
    assert torch.all(reach[adv.source == 1] <= 0.2 + 1e-6)


def test_a_step_can_be_crafted_again_and_another_step_differs(net, batch):
    first, again = make()(net, *batch, step=3), make()(net, *batch, step=3)
    other = make()(net, *batch, step=4)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.source, again.source)
    assert not torch.equal(first.source, other.source)


def test_crafting_moves_no_global_random_state_and_leaves_the_net_as_it_was(net, batch):
    before = torch.get_rng_state(), random.getstate()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    make()(net, *batch, step=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert net.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_predicted_labels_are_the_crafting_models_own(net, batch):
    x, _ = batch
    predicted = net(x).argmax(1)
    wrong = (predicted + 1) % 10
    by_prediction = make(label="predicted")(net, x, wrong, step=0)
    assert torch.equal(by_prediction.x, make(label="true")(net, x, predicted, step=0).x)
    assert torch.equal(by_prediction.y, wrong)
    assert not torch.equal(by_prediction.x, make(label="true")(net, x, wrong, step=0).x)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_batches_smaller_than_the_number_of_attacks_work(net, batch, size):
    names = ("fgsm", "vap", "eap", "pgm")
    attacks = [
        attack(name, **({"max_iterations": 3, "binary_search_steps": 2} if name == "eap" else {})) for name in names
    ]
    mixer = Mixer(attacks, stage_shares(4, **RULE), seed=0, label="predicted")
    adv = mixer(net, batch[0][:size], batch[1][:size], step=0)
    assert adv.x.shape == (size, 1, 16, 16)


def test_the_carry_survives_a_checkpoint(net, batch):
    mixer, resumed = make(), make()
    x, y = batch[0][:3], batch[1][:3]
    mixer(net, x, y, step=0)
    resumed.load_state_dict(mixer.state_dict())
    for step in range(1, 4):
        assert torch.equal(mixer(net, x, y, step=step).source, resumed(net, x, y, step=step).source)
