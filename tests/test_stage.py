"""One step and one stage, against numbers worked out by hand on nets whose answers are known."""

import copy
import math
from fractions import Fraction

import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from amc_lightning.attacks import build
from amc_lightning.config import CONF_DIR
from amc_lightning.data import Augment
from amc_lightning.data.batches import Batches
from amc_lightning.errors import TrainingDivergedError
from amc_lightning.keep import KeepLastGood
from amc_lightning.mixer import Mixer
from amc_lightning.seeding import derive
from amc_lightning.stage import StageModule
from amc_lightning.transfer import save_weights
from tests.test_cascade import ToyNet

EPS = 0.1
SEED = 7


class Brightness(nn.Module):
    """Two classes by the brightness of a 2x2 image: the margin of class 0 is 4 * scale * (mean - 0.5)."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        margin = self.scale * (x.flatten(1).sum(dim=1) - 2)
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


def flat(*values):
    """Images of one grey each, (B, 1, 2, 2)."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def cross_entropy(margin):
    return math.log1p(math.exp(-margin))


def attack(name, **params):
    if name == "eap":
        params = {"binary_search_steps": 2, "max_iterations": 3, **params}
    return build(name, yaml.safe_load((CONF_DIR / "attack" / f"{name}.yaml").read_text()), params)


def mixer_of(*attacks, shares=None, label="true"):
    shares = shares or [Fraction(1, len(attacks))] * len(attacks)
    return Mixer(attacks, shares, seed=SEED, label=label)


def fgsm():
    return mixer_of(attack("fgsm", eps=EPS))


def constant(optimizer, steps):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def module_of(net, mixer, *, lr=0.0, schedule=constant, **settings):
    return StageModule(
        net,
        title=settings.pop("title", "2 vap"),
        seed=SEED,
        mixer=mixer,
        alpha=settings.pop("alpha", 0.5),
        augment=settings.pop("augment", Augment()),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        make_schedule=schedule,
        **settings,
    )


def step(module, x, y):
    module.net.train()
    return module.training_step((x, y, torch.arange(len(y))), 0)


def fit(module, x, y, folder, *, epochs=1, batch_size=4, callbacks=()):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    loader = Batches((x * 255).round().to(torch.uint8), y, batch_size=batch_size)
    trainer.fit(module, loader, [0])  # as the cascade does: one empty validation batch
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def seen_by(net):
    """Every batch that passes ``net`` in train mode."""
    batches = []

    def hook(module, inputs):
        if module.training:
            batches.append(inputs[0].detach().clone())

    net.register_forward_pre_hook(hook)
    return batches


def noise(n, *shape, seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _one_thread():
    """On nets this small a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_weighs_the_clean_and_the_adversarial_half(alpha):
    x, y = flat(0.8, 0.6, 0.3), torch.tensor([0, 0, 1])
    loss = step(module_of(Brightness(), fgsm(), alpha=alpha), x, y)
    # margins of the true class: 8 * |mean - 0.5|, and 8 * 0.1 less once FGSM has moved every pixel by 0.1
    clean = sum(map(cross_entropy, (2.4, 0.8, 1.6))) / 3
    adversarial = sum(map(cross_entropy, (1.6, 0.0, 0.8))) / 3
    assert loss.item() == pytest.approx(alpha * clean + (1 - alpha) * adversarial, rel=1e-5)


def test_stage_0_is_ordinary_cross_entropy():
    loss = step(module_of(Brightness(), None, alpha=0.3), flat(0.8, 0.3), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((cross_entropy(2.4) + cross_entropy(1.6)) / 2, rel=1e-5)


def test_the_gradient_of_the_loss_does_not_reach_into_crafting():
    net = Brightness()
    step(module_of(net, fgsm(), alpha=0.0), flat(0.8), torch.tensor([0])).backward()
    # d/ds log(1 + exp(-m)) = -(m / s) / (1 + exp(m)) with m = 1.6 held at the crafted image
    assert float(net.scale.grad) == pytest.approx(-0.8 / (1 + math.exp(1.6)), rel=1e-5)


def test_the_label_of_an_attack_may_be_the_models_own_answer_but_the_loss_keeps_the_truth():
    x, wrong = flat(0.8), torch.tensor([1])  # the model answers 0
    by_truth = step(module_of(Brightness(), mixer_of(attack("fgsm", eps=EPS), label="true"), alpha=0.0), x, wrong)
    by_answer = step(module_of(Brightness(), mixer_of(attack("fgsm", eps=EPS), label="predicted"), alpha=0.0), x, wrong)
    assert by_truth.item() == pytest.approx(cross_entropy(-3.2), rel=1e-5)  # away from the true label: still brighter
    assert by_answer.item() == pytest.approx(cross_entropy(-1.6), rel=1e-5)  # away from the answer: darker


# --- one forward pass for both halves --------------------------------------------------------------------------------


def test_both_halves_go_through_the_net_together_in_train_mode():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2))
    x, y = noise(6, 1, 4, 4), torch.tensor([0, 1] * 3)
    before = copy.deepcopy(net)
    seen = seen_by(net)
    step(module_of(net, fgsm()), x, y)
    (both,) = seen
    assert torch.equal(both[:6], x)
    assert torch.allclose(both[6:], fgsm()(before, x, y, step=0).x)
    # batch norm has seen 12 images, once
    assert int(net[0].num_batches_tracked) == 1
    assert float(net[0].running_mean) == pytest.approx(0.1 * float(both.mean()), rel=1e-5)
    assert float(net[0].running_var) == pytest.approx(0.9 + 0.1 * float(both.var()), rel=1e-5)


def test_crafting_sees_the_net_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2))
    modes = []
    net.register_forward_pre_hook(lambda module, inputs: modes.append((len(inputs[0]), module[1].training)))
    step(module_of(net, fgsm()), noise(3, 1, 4, 4), torch.tensor([0, 1, 0]))
    assert modes == [(3, False), (6, True)]


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augment_clean", "augment_adversarial"), [(True, False), (True, True), (False, False), (False, True)]
)
def test_which_half_is_augmented(augment_clean, augment_adversarial):
    augment = Augment(rotation=30, shift=0.3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x, y = noise(8, 1, 8, 8), torch.arange(8) % 3
    seen = seen_by(net)
    module = module_of(
        net, fgsm(), augment=augment, augment_clean=augment_clean, augment_adversarial=augment_adversarial
    )
    step(module, x, y)
    augmented = augment(x, seed=derive(SEED, 0, "augment"))
    assert (augmented - x).abs().amax() > 0.3
    assert torch.equal(seen[0][:8], augmented if augment_clean else x)
    origin = augmented if augment_clean and augment_adversarial else x
    assert (seen[0][8:] - origin).abs().amax() <= EPS + 1e-6


def test_every_step_augments_anew(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    seen = seen_by(net)
    module = module_of(net, None, augment=Augment(shift=0.3))
    fit(module, noise(4, 1, 8, 8), torch.arange(4) % 3, tmp_path, epochs=2)
    assert not torch.allclose(seen[0], seen[1])


# --- what is logged --------------------------------------------------------------------------------------------------


def test_errors_and_distances_are_logged_per_source(tmp_path):
    x, y = flat(0.9, 0.7, 0.55, 0.3, 0.8), torch.zeros(5, dtype=torch.int64)
    logged = fit(module_of(Brightness(), fgsm()), x, y, tmp_path, batch_size=2)
    assert logged["train/err/clean"] == pytest.approx(20)  # 0.3
    assert logged["train/err/fgsm"] == pytest.approx(40)  # 0.55 is pushed over
    assert logged["train/delta/fgsm"] == pytest.approx(2 * EPS, rel=1e-4)  # l2 of four pixels moved by 0.1
    assert logged["train/rows/fgsm"] == 5
    greys = [round(value * 255) / 255 for value in (0.9, 0.7, 0.55, 0.3, 0.8)]
    losses = [0.5 * cross_entropy(8 * (g - 0.5)) + 0.5 * cross_entropy(8 * (g - 0.6)) for g in greys]
    assert logged["train/loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)  # a mean over rows: the last batch is small


def test_errors_start_anew_in_every_epoch_and_rows_add_up_over_the_stage(tmp_path):
    # Bright images of class 1: wrong in the first epoch, one step a long way down, right in the second.
    x, y = flat(0.8, 0.8), torch.ones(2, dtype=torch.int64)
    logged = fit(module_of(Brightness(), fgsm(), lr=10.0), x, y, tmp_path, epochs=2)
    assert (logged["train/err/clean"], logged["train/err/fgsm"]) == (0, 0)
    assert logged["train/loss"] < 0.01
    assert logged["train/rows/fgsm"] == 4


def test_stage_0_logs_no_attack(tmp_path):
    logged = fit(module_of(Brightness(), None), flat(0.9, 0.3), torch.zeros(2, dtype=torch.int64), tmp_path)
    assert {name for name in logged if name.startswith("train/")} == {"train/loss", "train/err/clean"}


def test_an_attack_without_rows_in_an_epoch_is_left_out(tmp_path):
    mixer = mixer_of(attack("fgsm"), attack("pgm"), shares=[Fraction(0), Fraction(1)])
    logged = fit(module_of(Brightness(), mixer), flat(0.9, 0.3), torch.zeros(2, dtype=torch.int64), tmp_path)
    assert "train/err/fgsm" not in logged
    assert "train/delta/fgsm" not in logged
    assert logged["train/rows/pgm"] == 2


@pytest.mark.parametrize("batch_size", [1, 3, 5, 13])
def test_realised_rows_match_the_shares_exactly_on_average(batch_size, tmp_path):
    mixer = mixer_of(attack("fgsm", eps=EPS), attack("pgm", nb_iter=1), shares=[Fraction(1, 5), Fraction(4, 5)])
    module = module_of(Brightness(), mixer)
    fit(module, noise(13, 1, 2, 2), torch.arange(13) % 2, tmp_path, epochs=5, batch_size=batch_size)
    assert module.rows.tolist() == [65, 13, 52]


def test_validation_errors_and_their_mean_are_logged(tmp_path):
    module = module_of(Brightness(), fgsm(), validate=lambda net: {"clean": 10.0, "fgsm": 40.0})
    logged = fit(module, flat(0.9, 0.3), torch.zeros(2, dtype=torch.int64), tmp_path)
    assert {name: value for name, value in logged.items() if name.startswith("val/")} == {
        "val/err/clean": 10.0,
        "val/err/fgsm": 40.0,
        "val/err/mean": 25.0,
    }


# --- training --------------------------------------------------------------------------------------------------------


def test_every_parameter_moves(tmp_path):
    torch.manual_seed(0)
    net = ToyNet()
    before = copy.deepcopy(net)
    fit(module_of(net, fgsm(), lr=0.1), noise(6, 1, 8, 8), torch.arange(6) % 3, tmp_path)
    for (name, parameter), start in zip(net.named_parameters(), before.parameters(), strict=True):
        if name != "conv.bias":  # batch norm takes it away again: its gradient is rounding
            assert not torch.equal(parameter, start), name


def test_a_step_of_gradient_descent_is_the_one_worked_out_by_hand(tmp_path):
    net = Brightness()
    x = torch.tensor([0.8, 0.8]).view(2, 1, 1, 1).expand(2, 1, 2, 2)  # 204 / 255
    fit(module_of(net, fgsm(), lr=0.5), x, torch.zeros(2, dtype=torch.int64), tmp_path)
    slope = 0.5 * -1.2 / (1 + math.exp(2.4)) + 0.5 * -0.8 / (1 + math.exp(1.6))
    assert net.scale.item() == pytest.approx(2 - 0.5 * slope, rel=1e-5)


# --- when the loss stops being finite --------------------------------------------------------------------------------


@pytest.fixture
def _every_warning():
    """Let torch repeat what it warns of once a process, so that these tests do not depend on their order."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_every_warning")
@pytest.mark.parametrize("name", ["fgsm", "vap", "eap", "pgm"])
def test_weights_that_are_not_finite_stop_the_stage_whatever_the_attack(name):
    net = ToyNet()
    with torch.no_grad():
        net.fc.weight.fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match=r"stage 2 vap: .* in epoch 1, step 1; needed: finite"):
        step(module_of(net, mixer_of(attack(name))), noise(4, 1, 8, 8), torch.arange(4) % 3)


def exploding(after):
    """A schedule that is sane for some steps and then 1e30."""

    def make(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1.0 if number < after else 1e30)

    return make


def test_a_diverged_stage_says_when_and_keeps_the_last_whole_epoch(tmp_path):
    x, y = noise(6, 1, 8, 8), torch.arange(6) % 3

    def net():
        torch.manual_seed(0)
        return ToyNet()

    sane = net()
    fit(module_of(sane, fgsm(), lr=0.05), x, y, tmp_path, batch_size=2)
    keep = KeepLastGood(tmp_path / "last_good.safetensors", save_weights)
    # epoch 1 is steps 1 to 3; step 4 is taken at 1e30, so that the loss of step 5 is the first that is not finite
    with pytest.raises(TrainingDivergedError) as caught:
        fit(
            module_of(net(), fgsm(), lr=0.05, schedule=exploding(3)),
            x,
            y,
            tmp_path,
            epochs=3,
            batch_size=2,
            callbacks=[keep],
        )
    assert str(caught.value).startswith("stage 2 vap: attack fgsm returned values that are not finite")
    assert "in epoch 2, step 5; needed: finite numbers." in str(caught.value)
    assert "stages/2_vap/last_good.safetensors" in str(caught.value)
    assert "schedule.peak_lr" in str(caught.value)
    kept = load_file(keep.path)
    assert keep.epochs == 1
    assert kept.keys() == sane.state_dict().keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in sane.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_without_a_whole_epoch_the_first_weights_are_kept(tmp_path):
    torch.manual_seed(0)
    net = ToyNet()
    before = copy.deepcopy(net.state_dict())
    keep = KeepLastGood(tmp_path / "last_good.safetensors", save_weights)
    with pytest.raises(TrainingDivergedError, match="in epoch 1, step 2"):
        fit(
            module_of(net, None, lr=1e30),
            noise(6, 1, 8, 8),
            torch.arange(6) % 3,
            tmp_path,
            batch_size=2,
            callbacks=[keep],
        )
    assert keep.epochs is None
    assert all(torch.equal(tensor, load_file(keep.path)[name]) for name, tensor in before.items())


def test_a_stage_that_ends_well_leaves_no_such_file(tmp_path):
    keep = KeepLastGood(tmp_path / "last_good.safetensors", save_weights)
    fit(module_of(ToyNet(), None, lr=0.1), noise(6, 1, 8, 8), torch.arange(6) % 3, tmp_path, callbacks=[keep])
    assert not keep.path.exists()
    assert keep.epochs == 1
