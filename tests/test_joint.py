"""The multi-attack baselines: which rows meet which attack, against what is known by hand."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
import yaml
from hydra import compose, initialize_config_dir
from torch import nn

from amc_lightning.attacks import build, load
from amc_lightning.build import training_attacks
from amc_lightning.config import CONF_DIR, read, register
from amc_lightning.equal_cost import at_equal_cost
from amc_lightning.errors import UserError
from amc_lightning.joint import MEMORY, RULES, Average, Extremes, Maximum, Sampled, Steepest
from amc_lightning.seeding import generator
from amc_lightning.stage_recipe import stage_recipes
from amc_lightning.stages import stages_of
from tests.test_stage import module_of
from tests.test_stage import step as one_step

SEED = 5


class Linear(nn.Module):
    """Two classes by a weighted sum of four pixels, which every gradient attack moves as far as its ball allows."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, x):
        margin = (x.flatten(1) - 0.5) @ self.weights
        return torch.stack([margin, -margin], dim=1)


def ball_attack(name, **params):
    spec = yaml.safe_load((CONF_DIR / "attack" / f"{name}.yaml").read_text())
    return build(name, spec, {"nb_iter": 10, "rand_init": False, **params})


@pytest.fixture
def batch():
    """Grey images but for small differences, so that no pixel ends at the border of the box."""
    x = 0.5 + 0.02 * torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.fixture
def three():
    return [
        ball_attack("pgd_linf", eps=0.05),
        ball_attack("pgd_l2", eps=0.2),
        ball_attack("pgd_l1", eps=0.1),
    ]


@pytest.fixture
def quick():
    """The same with one step, where only the choice matters."""
    return [ball_attack(name, eps=0.05, nb_iter=1) for name in ("pgd_linf", "pgd_l2", "pgd_l1")]


def crafted(rule, attacks, net, batch, step=0):
    return RULES[rule](attacks, seed=SEED, label="true")(net, *batch, step=step)


def test_avg_gives_every_row_under_every_attack(three, batch):
    net = Linear(1.0, -2.0, 0.5, 0.25)
    found = crafted("avg", three, net, batch)
    assert found.x.shape == (18, 1, 2, 2)
    assert found.source.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.equal(found.y, batch[1].repeat(3))
    for place, attack in enumerate(three):
        alone = attack(net, *batch)
        torch.testing.assert_close(found.x[6 * place : 6 * place + 6], alone, rtol=0, atol=1e-7)


def test_max_takes_the_largest_ball_of_a_linear_model(three, batch):
    """Against weights w a ball of radius r moves the margin by r times the dual norm of w.

    w = (1, 1, 1, 1): l-inf 0.05 * 4 = 0.2, l2 0.2 * 2 = 0.4, l1 0.1 * 1 = 0.1. With w = (1, 0, 0, 0) these are 0.05,
    0.2 and 0.1; l2 leads in both, so the radii are changed until each norm leads once.
    """
    even, single = Linear(1.0, 1.0, 1.0, 1.0), Linear(1.0, 0.0, 0.0, 0.0)
    assert crafted("max", three, even, batch).source.tolist() == [1] * 6
    small = [three[0], ball_attack("pgd_l2", eps=0.04), three[2]]
    assert crafted("max", small, even, batch).source.tolist() == [0] * 6  # 0.2, 0.08, 0.1
    found = crafted("max", small, single, batch)
    assert found.source.tolist() == [2] * 6  # 0.05, 0.04, 0.1
    torch.testing.assert_close(found.x, small[2](single, *batch), rtol=0, atol=1e-7)


def test_msd_reaches_the_end_of_the_ball_that_leads(batch):
    x, y = batch
    sign = (2 * y - 1).float().view(-1, 1, 1, 1)  # class 0 falls with the margin
    for weights, radii, expected in (
        ((1.0, 1.0, 1.0, 1.0), {"linf": 0.05, "l2": 0.04, "l1": 0.1}, 0.05 * torch.ones(4)),
        ((1.0, 0.0, 0.0, 0.0), {"linf": 0.05, "l2": 0.04, "l1": 0.1}, torch.tensor([0.1, 0.0, 0.0, 0.0])),
        ((1.0, 1.0, 1.0, 1.0), {"linf": 0.0, "l2": 0.2, "l1": 0.0}, 0.1 * torch.ones(4)),
    ):
        attack = load("msd", nb_iter=10, **radii)
        moved = attack(Linear(*weights), x, y) - x
        torch.testing.assert_close(moved, sign * expected.view(1, 1, 2, 2).expand(6, -1, -1, -1), rtol=0, atol=2e-3)
        assert attack.max_passes == 10


def test_msd_stays_in_the_union_of_its_balls(three):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
        x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 5
    radii = {"linf": 0.1, "l2": 0.6, "l1": 2.5}
    crafted = load("msd", nb_iter=15, **radii).craft(net, x, y)
    inside = torch.stack([crafted.distances[norm] <= radius * (1 + 1e-6) + 1e-6 for norm, radius in radii.items()])
    assert inside.any(dim=0).all()
    assert not inside.all()
    assert crafted.gradient_passes == 15
    assert crafted.forward_passes == 45
    clean = load("msd", nb_iter=15, linf=1e-6, l2=0, l1=0).craft(net, x, y)
    assert int(crafted.fooled.sum()) > int(clean.fooled.sum())


def test_msd_needs_a_ball(batch):
    with pytest.raises(ValueError, match="MSD needs a radius above 0"):
        load("msd", linf=0, l2=0, l1=0)(Linear(1.0, 1.0, 1.0, 1.0), *batch)


def test_sat_draws_one_attack_a_batch_evenly(quick, batch):
    rule = Sampled(quick, seed=SEED, label="true")
    net = Linear(1.0, -2.0, 0.5, 0.25)
    drawn = Counter()
    for step in range(120):
        (place,) = set(rule(net, *batch, step=step).source.tolist())
        drawn[place] += 1
    assert all(20 <= drawn[place] <= 60 for place in range(3)), drawn  # 40 each; 4 standard deviations are 21
    again = Sampled(quick, seed=SEED, label="true")
    assert again(net, *batch, step=7).source.tolist() == rule(net, *batch, step=7).source.tolist()


def test_e_at_draws_by_the_running_robust_error(quick, batch):
    rule = Extremes([quick[0], quick[2]], seed=SEED, label="true")
    net = Linear(1.0, -2.0, 0.5, 0.25)
    assert rule.errors == [1.0, 1.0]
    rule.observe(torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.int64))
    assert rule.errors == [pytest.approx(MEMORY + (1 - MEMORY) / 4), 1.0]
    rule.errors = [0.1, 0.9]
    drawn = Counter(int(rule(net, *batch, step=step).source[0]) for step in range(120))
    assert 1 <= drawn[0] <= 25  # 12; 4 standard deviations are 13
    other = Extremes([quick[0], quick[2]], seed=SEED, label="true")
    other.load_state_dict(rule.state_dict())
    assert other.errors == rule.errors
    rule.errors = [0.0, 0.0]  # nothing is wrong: evenly
    assert {int(rule(net, *batch, step=step).source[0]) for step in range(20)} == {0, 1}


def test_an_attack_that_ignores_labels_and_predicted_labels_go_through_every_rule(batch):
    net = Linear(1.0, -2.0, 0.5, 0.25)
    attacks = [load("vap", eps=0.3), load("fgsm", eps=0.1)]
    for rule in ("avg", "max", "sat", "e_at"):
        found = RULES[rule](attacks, seed=SEED, label="predicted")(net, *batch, step=0)
        assert len(found.x) % 6 == 0
        assert bool(((found.x >= 0) & (found.x <= 1)).all())


def test_noise_depends_on_seed_step_and_attack_alone(batch):
    noisy = replace(ball_attack("pgd_linf", eps=0.05, rand_init=True, nb_iter=1), seed=99)
    net = Linear(1.0, -2.0, 0.5, 0.25)
    for cls in (Average, Maximum, Sampled, Steepest):
        found = cls([noisy], seed=SEED, label="true")(net, *batch, step=3)
        noise = noisy.draw_noise(batch[0].shape, generator(SEED, 3, "pgd_linf"))
        assert torch.equal(found.x, noisy(net, *batch, noise=noise))


@pytest.mark.parametrize("rule", ["avg", "max"])
def test_one_step_of_a_joint_stage_by_hand(rule, batch):
    """Attacks of radius 0 leave the images: every half of the loss is that of the clean batch, with any copies."""
    x, y = batch
    net = Linear(1.0, -2.0, 0.5, 0.25)
    still = [ball_attack("pgd_linf", eps=0.0), ball_attack("pgd_l2", eps=0.0)]
    mixer = RULES[rule](still, seed=SEED, label="true")
    module = module_of(net, mixer, alpha=0.25)
    loss = one_step(module, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(net(x), y))
    rows = {"avg": [6, 6, 6], "max": [6, 6, 0]}[rule]
    assert module.rows.tolist() == rows
    assert module.delta.by_source()[1] == 0.0


def test_e_at_is_told_the_errors_of_its_batches(batch):
    still = [ball_attack("pgd_linf", eps=0.0), ball_attack("pgd_l1", eps=0.0)]
    mixer = Extremes(still, seed=SEED, label="true")
    net = Linear(0.0, 0.0, 0.0, 1e-3)  # class 0 for brighter fourth pixels, always: half of the rows are wrong
    one_step(module_of(net, mixer), *batch)
    assert sorted(mixer.errors) == [pytest.approx(MEMORY + (1 - MEMORY) / 2), 1.0]


def config_of(*overrides):
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=["+comparison=multi_norm", *SCALE, *overrides])
    return read(cfg)


SCALE = [
    "+scale.radii={linf: 0.2, l2: 1.0, l1: 5.0}",
    "+scale.steps=10",
    "+scale.passes=120",
    "+scale.judged_steps=5",
    "+scale.queries=9",
]


@cache
def norms():
    """One composition serves all tests that only differ in the rule."""
    return config_of("system=norms_msd", "cascade.epochs=3")  # which has that attack too


NORMS = ["pgd_l1", "pgd_l2", "pgd_linf"]


def planned(joint, order=NORMS, **cascade):
    config = norms()
    config = replace(config, cascade=replace(config.cascade, joint=joint, order=list(order), **cascade))
    attacks = training_attacks(config)
    return config, attacks, at_equal_cost(config, attacks)


def test_epochs_are_what_the_passes_buy():
    """One epoch of AVG over three attacks of ten steps is 1 + 3 + 30 passes an image, of the others 2 + 10."""
    for joint, order, expected in (
        ("avg", NORMS, 4),  # 120 / 34 = 3.5
        ("max", NORMS, 4),  # 120 / 32 = 3.75
        ("msd", NORMS, 10),
        ("sat", NORMS, 10),
        ("e_at", ["pgd_l1", "pgd_linf"], 10),
        (None, ["pgd_l2"], 10),
        (None, NORMS, 3),  # 120 / (3 * 12) = 3.3
    ):
        assert planned(joint, order)[2].cascade.epochs == expected, (joint, order)
    assert planned("avg", passes=1.0)[2].cascade.epochs == 1
    assert planned("avg", passes=None, epochs=7)[2].cascade.epochs == 7
    undefended = planned(None, [])
    assert undefended[2] is undefended[0]


def test_passes_cannot_be_shared_out_over_an_attack_that_does_not_say():
    attacks = {"torchattacks_pgd": load("torchattacks_pgd"), "pgd_l2": load("pgd_l2")}
    config = norms()
    config = replace(config, cascade=replace(config.cascade, joint=None, order=list(attacks)))
    with pytest.raises(UserError, match=r"cascade\.passes: 120\.0 cannot be shared out: torchattacks_pgd does not say"):
        at_equal_cost(config, attacks)


def test_msd_gets_the_balls_of_the_attacks_of_the_order():
    config = config_of("system=attacks_msd", "dataset=mnist")
    params = training_attacks(config)["msd"].params
    assert {norm: params[norm] for norm in ("linf", "l2", "l1")} == {"linf": 0.3, "l2": 5.0, "l1": 10.0}
    assert params["nb_iter"] == 10  # FGSM's ball lies in PGM's, VAP gives 5, EAP its budget
    assert [stage.title for stage in stages_of(config)] == ["0 undefended", "1 msd"]


def test_rules_are_in_the_key_of_a_stage_and_cascades_keep_theirs():
    keys = set()
    for joint in ("avg", "max", "sat"):
        config, attacks, _ = planned(joint)
        m0, stage = stage_recipes(config, attacks, train="t", validation="v")
        assert stage.recipe["joint"] == joint
        assert [entry["name"] for entry in stage.recipe["attacks"]] == NORMS
        keys |= {m0.key, stage.key}
    assert len(keys) == 4  # one M0
    config, attacks, _ = planned(None)
    assert all("joint" not in stage.recipe for stage in stage_recipes(config, attacks, train="t", validation="v"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["defence=avg", "cascade.joint=max"], "cascade.joint: 'max' does not fit defence=avg; needed: avg"),
        (["defence=amc", "cascade.joint=avg"], "cascade.joint: 'avg' does not fit defence=amc; needed: null"),
        (["defence=avg", "cascade.order=[pgm]"], "does not fit defence=avg; needed: at least two attacks"),
        (["defence=avg", "cascade.shares=[0.5,0.5]", "cascade.order=[fgsm,pgm]"], "cascade.shares: .* does nothing"),
        (["defence=sat", "threat_model=black_box_label"], "threat_model: 'black_box_label' does nothing with"),
        (["defence=max", "cascade.transfer=none"], "cascade.transfer: 'none' does nothing with defence=max"),
        (["defence=avg", "cascade.epochs=[2,3]"], "has 2 entries; one per stage, 1"),
        (["defence=amc", "cascade.passes=0"], "cascade.passes: 0.0 is out of range"),
        (["defence=msd", "cascade.order=[cw,pgm]"], "dataset.budget: .'cw'. has no l1 radius, and MSD needs a ball"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(*overrides)


def test_what_msd_is_chosen_by_is_in_its_key():
    def key(order, pick):
        config, attacks, _ = planned("msd", order, pick=pick)
        return stage_recipes(config, attacks, train="t", validation="v")[1].key

    turned = NORMS[::-1]
    assert key(NORMS, "last") == key(turned, "last")  # the balls are the same
    assert key(NORMS, "best") != key(turned, "best")
