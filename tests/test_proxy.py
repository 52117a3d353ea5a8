"""ProxyModule: trained on answers, hard or soft, against numbers worked out by hand."""

import math
from fractions import Fraction

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from amc_lightning.data import Augment
from amc_lightning.data.batches import Batches
from amc_lightning.errors import TrainingDivergedError
from amc_lightning.mixer import Mixer
from amc_lightning.proxy import ProxyModule, distributions
from tests.test_stage import Brightness, attack, cross_entropy, flat


def module(net, *, mixer=None, soft=None, lr=0.0):
    return ProxyModule(
        net,
        soft=soft,
        title="1 fgsm",
        seed=3,
        mixer=mixer,
        alpha=0.5,
        augment=Augment(),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        make_schedule=lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer),
    )


def loss_of(proxy, x, y, rows):
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    proxy.trainer = trainer
    return float(proxy.training_step((x, y, rows), 0).detach())


def test_hard_answers_are_learnt_as_labels():
    x, y = flat(0.75, 0.75), torch.tensor([0, 1])
    # scale 2: the margin of class 0 is 2 * (4 * 0.75 - 2) = 2
    wanted = (cross_entropy(2) + cross_entropy(-2)) / 2
    assert loss_of(module(Brightness()), x, y, torch.arange(2)) == pytest.approx(wanted, rel=1e-6)


def test_soft_answers_are_learnt_by_their_cross_entropy_each_row_its_own():
    soft = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.0, 1.0]])
    proxy = module(Brightness(), soft=soft)
    rows = torch.tensor([2, 0])
    wanted = (cross_entropy(-2) + 0.25 * cross_entropy(2) + 0.75 * cross_entropy(-2)) / 2
    loss = loss_of(proxy, flat(0.75, 0.75), soft[rows].argmax(1), rows)
    assert loss == pytest.approx(wanted, rel=1e-6)


def test_adversarial_examples_shall_get_the_answer_of_their_clean_image():
    soft = torch.tensor([[0.25, 0.75]])
    fgsm = attack("fgsm", eps=0.1)
    proxy = module(Brightness(), soft=soft, mixer=Mixer([fgsm], [Fraction(1)], seed=3, label="true"))
    # the answer is class 1, so FGSM moves towards class 0: every pixel from 0.75 to 0.85, margin 2 * (3.4 - 2) = 2.8
    wanted = [0.25 * cross_entropy(m) + 0.75 * cross_entropy(-m) for m in (2, 2.8)]
    loss = loss_of(proxy, flat(0.75), torch.tensor([1]), torch.tensor([0]))
    assert loss == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_a_proxy_comes_to_the_answers_not_to_the_labels():
    x = (flat(*torch.linspace(0, 1, 64)) * 255).round().to(torch.uint8)
    answers = (x.float().flatten(1).mean(1) < 153).long()  # a target that splits at 0.6, and not at 0.5
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = Batches(x, answers, batch_size=16, shuffle_seed=0)
    trainer = pl.Trainer(
        max_epochs=200, logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module(net, lr=0.2), batches, [0])
    agree = net(x.float() / 255).argmax(1) == answers
    assert agree.float().mean() > 0.95


def test_answers_are_data_and_no_part_of_a_checkpoint():
    proxy = module(Brightness(), soft=torch.full((3, 2), 0.5))
    assert "soft" in dict(proxy.named_buffers())
    assert not [name for name in proxy.state_dict() if "soft" in name]


def test_a_proxy_that_diverges_is_called_a_proxy():
    proxy = module(Brightness(scale=math.inf))
    with pytest.raises(TrainingDivergedError, match=r"proxy 1 fgsm: the loss became .*proxies/1_fgsm/last_good"):
        loss_of(proxy, flat(0.75), torch.tensor([1]), torch.tensor([0]))


@pytest.mark.parametrize("shown", [torch.tensor([[0.5, 0.3, 0.0]]), torch.tensor([[0.001, 0.0, 0.0]])])
def test_what_is_not_shown_is_scaled_away(shown):
    found = distributions(shown)
    assert found.sum() == pytest.approx(1)
    assert torch.equal(found > 0, shown > 0)


def test_an_answer_that_shows_nothing_becomes_uniform_and_its_neighbours_stay():
    shown = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.8, 0.0, 0.0]])
    assert torch.equal(distributions(shown), torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0]]))
