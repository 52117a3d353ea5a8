"""Error rates of a net whose every answer is known: exact counts, intervals, worst cases and distances."""

import copy
import math

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torchattacks.attack import Attack

from amc_lightning.attacks import build
from amc_lightning.config import CONF_DIR
from amc_lightning.evaluate import evaluate
from amc_lightning.metrics import wilson
from amc_lightning.rows import attack_rows, predict
from tests.test_cascade import ToyNet, toy_images

GREYS = (0.95, 0.85, 0.75, 0.65, 0.58, 0.52, 0.4, 0.1)
"""Images of class 0, answered rightly where brighter than 0.5: 6 of 8."""


class Brightness(nn.Module):
    """Class 0 where a 2x2 image is brighter than grey."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        margin = self.weight * (x.flatten(1).sum(dim=1) - 2)
        return torch.stack([margin, -margin], dim=1)


class Darken(Attack):
    """Find the smallest perturbation that fools ``Brightness``: every pixel just below grey; one it cannot, as EAP."""

    def __init__(self, model, beta=0.01, reach=1.0):
        super().__init__("Darken", model)
        self.reach = reach

    def forward(self, images, labels):
        wanted = (images - 0.49).clamp_min(0)
        return images - torch.where(wanted <= self.reach, wanted, torch.zeros_like(wanted))


class Overstep(Attack):
    """Go further than eps says."""

    def __init__(self, model, eps=0.1, by=1.5):
        super().__init__("Overstep", model)
        self.step = eps * by

    def forward(self, images, labels):
        return images - self.step


def spec(name):
    return yaml.safe_load((CONF_DIR / "attack" / f"{name}.yaml").read_text())


def own(cls, norm, **params):
    return {
        "_target_": f"tests.test_evaluate.{cls.__name__}",
        "norm": norm,
        "uses_labels": True,
        "params": params,
    }


def fgsm(eps=0.1):
    return build("fgsm", spec("fgsm"), {"eps": eps})


def pgm(**params):
    return build("pgm", spec("pgm"), {"eps": 0.3, "eps_iter": 0.1, "nb_iter": 5, **params})


def darken(reach=1.0):
    return build("eap", own(Darken, None, beta=0.01, reach=reach), {})


def greys(values=GREYS):
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.zeros(len(values), dtype=torch.int64)


def measured(attacks, *, radius=1.0, calls=None, gallery=3, batch_size=3):
    """Attack the greys; the test split is the first five, all bright, with the last label wrong."""
    x, y = greys()
    labels = y[:5].clone()
    labels[4] = 1
    return evaluate(
        Brightness(),
        {"test": (x[:5], labels), "attack": (x, y)},
        attacks,
        budgets={"eap": radius},
        seed=0,
        batch_size=batch_size,
        gallery=gallery,
        on_attack=(lambda name: None) if calls is None else calls.append,
    )


@pytest.fixture(scope="module")
def both():
    return measured(
        {
            "paper": {"fgsm": fgsm(0.1), "eap": darken(), "pgm": pgm(eps=0.2)},
            "check": {"fgsm": fgsm(0.1), "eap": darken(), "pgm": pgm(eps=0.4)},
        }
    )


def counts(rate):
    return rate["n"], rate["wrong"], rate["error"]


def test_clean_error_on_both_splits(both):
    assert both.record["clean"]["split"] == "test"
    assert counts(both.record["clean"]) == (5, 1, 20)
    assert counts(both.record["paper"]["clean"]) == (8, 2, 25)


def test_errors_under_attacks_are_those_worked_out_by_hand(both):
    # FGSM by 0.1 leaves 0.95, 0.85, 0.75, 0.65 bright; PGM by 0.2 only 0.95, 0.85, 0.75; by 0.4 only 0.95
    assert counts(both.record["paper"]["fgsm"]) == (8, 4, 50)
    assert counts(both.record["paper"]["pgm"]) == (8, 5, 62.5)
    assert counts(both.record["check"]["pgm"]) == (8, 7, 87.5)
    assert counts(both.record["paper"]["eap"]) == (8, 8, 100), "an unbounded search fools everything"


def test_an_unbounded_attack_counts_at_its_budget_only_where_it_keeps_it(both):
    # l1 = 4 * (grey - 0.49) <= 1 up to a grey of 0.74: 0.65, 0.58, 0.52, and the two that are wrong anyway
    assert counts(both.record["paper"]["eap@budget"]) == (8, 5, 62.5)
    assert both.examples["paper/eap/wrong"].all()


def test_the_mean_is_over_attacks_without_limit(both):
    assert both.record["paper"]["mean"]["error"] == pytest.approx((50 + 100 + 62.5) / 3)
    assert both.record["paper"]["mean"]["wrong"] == pytest.approx((4 + 8 + 5) / 3)
    assert both.record["paper"]["mean"]["n"] == 8
    assert both.record["check"]["mean"]["error"] == pytest.approx((50 + 100 + 87.5) / 3)


def test_the_worst_case_is_taken_row_by_row_within_budgets(both):
    assert counts(both.record["paper"]["worst"]) == (8, 5, 62.5)
    assert counts(both.record["check"]["worst"]) == (8, 7, 87.5)


def test_the_worst_case_joins_rows_that_different_attacks_fool():
    # FGSM fools 0.52 and 0.58; this search reaches only what it can darken by at most 0.04: 0.52
    near = measured({"paper": {"fgsm": fgsm(0.05), "eap": darken(0.04)}}).record["paper"]
    assert [near[name]["wrong"] for name in ("clean", "fgsm", "eap", "eap@budget", "worst")] == [2, 3, 3, 3, 3]
    far = measured({"paper": {"fgsm": fgsm(0.05), "eap": darken()}}, radius=0.4).record["paper"]
    # 4 * 0.09 <= 0.4: also 0.58
    assert [far[name]["wrong"] for name in ("clean", "fgsm", "eap", "eap@budget", "worst")] == [2, 3, 8, 4, 4]


def test_rows_wrong_when_clean_count_in_the_worst_case_though_no_attack_leaves_them_wrong():
    x, y = greys((0.4, 0.9))
    brighten = build("fgsm", spec("fgsm"), {"eps": 0.2})
    outcome = evaluate(
        Brightness(),
        {"test": (x, y), "attack": (x, 1 - y)},  # labels 1: FGSM brightens, and 0.9 stays wrong
        {"paper": {"fgsm": brighten}},
        budgets={},
        seed=0,
        batch_size=8,
        gallery=0,
    )
    assert [outcome.record["paper"][name]["wrong"] for name in ("clean", "fgsm", "worst")] == [1, 2, 2]


@pytest.mark.parametrize(("wrong", "n"), [(0, 8), (4, 8), (8, 8), (12, 140), (1, 1)])
def test_intervals_are_wilsons(wrong, n):
    z, p = 1.959963984540054, wrong / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(wrong, n) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)


def test_every_rate_has_an_interval_around_it(both):
    for strength in ("paper", "check"):
        for name, rate in both.record[strength].items():
            assert rate["low"] <= rate["error"] <= rate["high"], name
            if name != "mean":
                assert (rate["low"], rate["high"]) == wilson(rate["wrong"], rate["n"])


def test_the_interval_of_a_mean_knows_that_a_rows_results_go_together(both):
    share = np.mean([both.examples[f"paper/{name}/wrong"] for name in ("fgsm", "eap", "pgm")], axis=0)
    half = 100 * 1.96 * share.std(ddof=1) / math.sqrt(8)
    rate = both.record["paper"]["mean"]
    assert rate["low"] == pytest.approx(rate["error"] - half)
    assert rate["high"] == pytest.approx(min(100, rate["error"] + half))


def test_flags_and_distances_are_kept_row_by_row_and_match_the_rates(both):
    for strength in ("paper", "check"):
        for name in ("fgsm", "eap", "pgm", "worst"):
            flags = both.examples[f"{strength}/{name}/wrong"]
            assert flags.dtype == bool
            assert int(flags.sum()) == both.record[strength][name]["wrong"]
    assert both.examples["clean/attack/wrong"].tolist() == [False] * 6 + [True] * 2
    assert both.examples["clean/test/wrong"].tolist() == [False] * 4 + [True]
    assert both.examples["paper/fgsm/wrong"].tolist() == [False] * 4 + [True] * 4
    assert both.examples["paper/fgsm/linf"] == pytest.approx([0.1] * 8, abs=1e-6)
    assert both.examples["paper/fgsm/l1"] == pytest.approx([0.4] * 8, abs=1e-5)
    l1 = [4 * max(0, grey - 0.49) for grey in GREYS]
    assert both.examples["paper/eap/l1"] == pytest.approx(l1, abs=1e-5)
    assert both.examples["paper/eap/l2"] == pytest.approx([value / 2 for value in l1], abs=1e-5)
    inside = both.examples["paper/eap/wrong"] & (both.examples["paper/eap/l1"] <= 1)
    assert int(inside.sum()) == both.record["paper"]["eap@budget"]["wrong"]


def test_sizes_of_perturbations_are_summed_up_over_all_rows(both):
    norms = both.record["paper"]["eap"]["norms"]
    l1 = sorted(4 * max(0, grey - 0.49) for grey in GREYS)
    assert norms["l1"]["max"] == pytest.approx(l1[-1], abs=1e-5)
    assert norms["l1"]["median"] == pytest.approx((l1[3] + l1[4]) / 2, abs=1e-5)
    assert norms["linf"]["max"] == pytest.approx(0.46, abs=1e-6)


class DeafToDark(Brightness):
    """Tells dark images nothing: no gradient."""

    def forward(self, x):
        return super().forward(x) * (x.flatten(1).mean(dim=1, keepdim=True) > 0.3)


def test_passes_and_rows_without_a_gradient_are_counted(both):
    paper = both.record["paper"]
    assert (paper["fgsm"]["gradient_passes"], paper["fgsm"]["zero_gradient"]) == (1.0, 0)
    assert (paper["pgm"]["gradient_passes"], paper["pgm"]["zero_gradient"]) == (5.0, 0)
    assert paper["eap"]["gradient_passes"] == 0
    assert "zero_gradient" not in paper["eap"], "a class that does not say"
    x = torch.tensor(GREYS).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    outcome = attack_rows(DeafToDark(), fgsm(), x, torch.zeros(8).long(), seed=0, batch_size=3)
    assert (outcome.gradient_passes, outcome.zero_gradient) == (1.0, 1)


def test_quantiles_are_over_rows_that_were_right_and_were_fooled(both):
    quantiles = both.record["paper"]["eap"]["quantiles"]
    l1 = np.array([4 * (grey - 0.49) for grey in GREYS if grey > 0.5])
    for q in ("0.1", "0.5", "0.9"):
        assert quantiles["l1"][q] == pytest.approx(np.quantile(l1, float(q)), abs=1e-5)
        assert quantiles["elastic_net"][q] == pytest.approx(np.quantile((l1 / 2) ** 2 + 0.01 * l1, float(q)), abs=1e-5)
    assert "quantiles" not in both.record["paper"]["fgsm"]


def test_quantiles_are_empty_where_nothing_was_fooled():
    record = measured({"paper": {"eap": darken(0.0)}}).record["paper"]
    assert record["eap"]["quantiles"] == {}
    assert record["eap"]["wrong"] == 2


def test_an_attack_that_is_the_same_at_both_strengths_runs_once():
    calls = []
    attacks = {
        "paper": {"fgsm": fgsm(), "eap": darken(), "pgm": pgm()},
        "check": {"fgsm": fgsm(), "eap": darken(), "pgm": pgm(nb_iter=6)},
    }
    outcome = measured(attacks, calls=calls)
    assert calls == ["fgsm", "eap", "pgm", "pgm (check)"]
    assert outcome.record["paper"]["fgsm"] == outcome.record["check"]["fgsm"]


def test_the_gallery_keeps_the_first_images_of_strength_paper(both):
    assert both.gallery["clean_predicted"].tolist() == [0, 0, 0]
    assert both.gallery["x_adv/fgsm"].shape == (3, 1, 2, 2)
    assert both.gallery["x_adv/pgm"][0, 0, 0, 0] == pytest.approx(0.75)
    assert both.gallery["predicted/eap"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("gallery", [0, 3, 8, 99])
@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_the_gallery_is_as_long_as_asked_for_or_as_there_are_rows(gallery, batch_size):
    kept = measured({"paper": {"fgsm": fgsm()}}, gallery=gallery, batch_size=batch_size).gallery
    assert {name: len(values) for name, values in kept.items()} == dict.fromkeys(kept, min(gallery, 8))


def test_no_attack_leaves_clean_errors_and_nothing_that_looks_robust():
    outcome = measured({"paper": {}, "check": {}})
    assert list(outcome.record["paper"]) == ["clean"]
    assert set(outcome.examples) == {"clean/test/wrong", "clean/attack/wrong"}


def test_an_attack_that_oversteps_its_budget_ends_the_evaluation():
    with pytest.raises(RuntimeError, match=r"attack cheat oversteps its budget: 0\.15.* > 0\.1 \(linf\)"):
        measured({"paper": {"cheat": build("cheat", own(Overstep, "linf", eps=0.1), {})}})


def test_an_l2_budget_is_held_in_l2():
    # 0.15 in each of four pixels is 0.3 in l2, and within 0.1 * 3.1
    with pytest.raises(RuntimeError, match=r"oversteps its budget: 0\.3.* > 0\.1 \(l2\)"):
        measured({"paper": {"cheat": build("cheat", own(Overstep, "l2", eps=0.1), {})}})
    inside = {"paper": {"cheat": build("cheat", own(Overstep, "l2", eps=0.1), {"by": 0.5})}}
    assert measured(inside).record["paper"]["cheat"]["norms"]["l2"]["max"] == pytest.approx(0.1, abs=1e-6)


def test_rounding_alone_is_no_overstep():
    for eps in (1 / 255, 0.1, 0.3, 1.0):
        measured({"paper": {"pgm": pgm(eps=eps, eps_iter=eps)}})


# --- a net and noise that matter -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    images = toy_images(11, 4)
    return ToyNet().train(), torch.from_numpy(images.x), torch.from_numpy(images.y)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("fgsm", {"eps": 0.05}),
        ("vap", {"eps": 1.0, "num_iters": 2}),
        ("eap", {"binary_search_steps": 3, "max_iterations": 5, "learning_rate": 0.1}),
        ("pgm", {"eps": 0.05, "nb_iter": 4}),
    ],
)
def test_the_batch_size_changes_no_result(name, params, toy):
    net, x, y = toy
    attack = build(name, spec(name), params)
    whole, *others = (
        attack_rows(net, attack, x, y, seed=0, batch_size=size, keep=len(x)) for size in (len(x), 1, 7, 64)
    )
    for other in others:
        assert np.abs(other.kept - whole.kept).max() < 1e-4
        assert np.array_equal(other.wrong, whole.wrong)
        assert other.norms["l2"] == pytest.approx(whole.norms["l2"], abs=1e-4)


def test_the_seed_decides_the_noise(toy):
    net, x, y = toy
    attack = build("pgm", spec("pgm"), {"eps": 0.05, "nb_iter": 1})
    one, again, other = (
        attack_rows(net, attack, x, y, seed=seed, batch_size=8, keep=len(x)).kept for seed in (0, 0, 1)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_evaluation_leaves_the_net_and_global_randomness_as_they_were(toy):
    net, x, y = toy
    net.bn.eval()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    attacks = {"paper": {name: build(name, spec(name), {}) for name in ("fgsm", "vap", "pgm", "torchattacks_pgd")}}
    evaluate(net, {"test": (x, y), "attack": (x, y)}, attacks, budgets={}, seed=0, batch_size=16, gallery=2)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert not net.bn.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_bytes_and_floats_are_the_same_images(toy):
    net, x, _ = toy
    assert torch.equal(predict(net, x, batch_size=4), predict(net, x.float() / 255, batch_size=33))
    assert predict(net, x[:0], batch_size=4).shape == (0,)
