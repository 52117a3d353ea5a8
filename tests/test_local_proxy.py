"""Threat models with an interface, on whole runs: the proxies of defender and attacker, and what stays out of reach."""

import io
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load, load_file
from torchattacks import FGSM

from amc_lightning.build import evaluation_attacks, load_data, load_proxy_data, training_attacks
from amc_lightning.cascade import Cascade
from amc_lightning.data.images import Images, Source
from amc_lightning.entry import key_of
from amc_lightning.errors import StageStoppedError, UserError
from amc_lightning.measure import Measurement
from amc_lightning.measure_plan import MeasurementPlan
from amc_lightning.plan import PassCount
from amc_lightning.proxies import ANSWERS, Proxies
from amc_lightning.proxy import ProxyModule
from amc_lightning.proxy_recipe import evaluation_part, evaluation_spec, hardening_part, hardening_spec
from amc_lightning.rows import attack_rows, predict
from amc_lightning.run import run
from amc_lightning.seeding import generator
from amc_lightning.stage_recipe import stage_recipes
from amc_lightning.stages import stages_of
from amc_lightning.store import Store
from amc_lightning.threat import QueryBudgetError
from amc_lightning.train import StageTrainer
from amc_lightning.transfer import WEIGHTS
from tests.test_cascade import TOY, ToyNet, composed, toy_images

TOY_PROXY = (
    *TOY,
    "threat_model=black_box_label",
    "dataset.proxy.source={_target_: tests.test_local_proxy.toy_queries}",
    "dataset.proxy.limit=24",
    "proxy.architecture=toy",
    "+models.toy={_target_: tests.test_cascade.ToyNet, dropout: 0.0}",
    "proxy.epochs=3",
    "proxy.fine_tune_epochs=2",
    "proxy.batch_size=8",
    "cascade.order=[fgsm,pgm]",
    "evaluation.attacks=[fgsm]",
    "evaluation.gallery=2",
    "trainer.threads=1",
    "figures=false",
)
"""The toy of two stages with a local proxy: 24 images for queries."""


def toy_queries(root, *, trust_files, seed, count, target, class_names, device):
    """Images of the toy's kind, and among them four of the target's own, which are no business of a proxy."""
    own = toy_images(12, 1).take(np.arange(4))
    fresh = toy_images(30, 77)
    return Source(Images(np.concatenate([own.x, fresh.x]), np.concatenate([own.y, fresh.y])), None, class_names, True)


class Opaque(ToyNet):
    """A target whose gradient nobody may ask for: in eval mode it answers only where no gradient is recorded."""

    def forward(self, x):
        if not self.training and (torch.is_grad_enabled() or x.requires_grad):
            raise RuntimeError("somebody differentiates through the target")
        return super().forward(x)


class Trying(FGSM):
    """Ctrl-C as soon as a batch of the proxy's size is attacked."""

    def forward(self, images, labels):
        if len(images) <= 8:
            raise KeyboardInterrupt
        return super().forward(images, labels)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quiet():
    return Console(file=io.StringIO(), width=200)


class Parts:
    """A cascade with everything around it, as a run puts it together."""

    def __init__(self, folder, *overrides, store=None):
        self.config = composed(*TOY_PROXY, *overrides)
        self.data = load_data(self.config).prepare()
        device, console = torch.device("cpu"), quiet()
        self.store = store or Store(folder / "store")
        attacks = training_attacks(self.config)
        images = load_proxy_data(self.config, self.data, device).prepare()
        trainer = StageTrainer(self.config, self.data, attacks, device=device, console=console)
        self.proxies = Proxies(
            self.config, images, attacks, fitter=trainer.fitter, store=self.store, folder=folder, console=console
        )
        prints = {name: self.data.fingerprint_of(name) for name in ("train", "validation")}
        queries = images.fingerprint_of(hardening_part(self.config))
        self.recipes = stage_recipes(self.config, attacks, **prints, queries=queries)
        self.cascade = Cascade(trainer, self.recipes, store=self.store, folder=folder, proxies=self.proxies)
        self.plan = MeasurementPlan(
            self.config,
            self.data,
            evaluation_attacks(self.config),
            proxies=self.proxies,
            recipes=self.recipes,
            store=self.store,
            device=device,
        )
        self.measurement = Measurement(self.plan, console)

    def run(self):
        return [(record, self.measurement.measure(record)) for record in self.cascade.run()]


def read(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished toy of two stages under all three interfaces, and its results."""
    folder = tmp_path_factory.mktemp("finished")
    names = "[black_box_label,black_box_noisy_label,black_box_probabilities,white_box]"
    config = composed(*TOY_PROXY, f"evaluation.threat_models={names}", f"store.root={folder / 'store'}")
    run(config, folder / "run", console=quiet())
    return folder


# --- the target's gradients ------------------------------------------------------------------------------------------


def test_crafting_never_asks_for_the_targets_gradient(tmp_path):
    parts = Parts(tmp_path, "model._target_=tests.test_local_proxy.Opaque", "cascade.pick=best")
    stages = parts.cascade.run()
    parts.measurement.measure(next(stages))  # later stages are shown M0's examples too, made with M0's gradients
    assert [record.trained for record in stages] == [True, True]


def test_the_check_for_it_can_fail(tmp_path):
    config = composed(*TOY_PROXY, "threat_model=white_box", "model._target_=tests.test_local_proxy.Opaque")
    with pytest.raises(RuntimeError, match="somebody differentiates through the target"):
        run(config, tmp_path, console=quiet())


def test_the_weights_of_the_target_do_not_move_when_it_is_asked(tmp_path):
    parts = Parts(tmp_path)
    record = next(iter(parts.cascade.run()))
    before = {name: tensor.clone() for name, tensor in record.net.state_dict().items()}
    record.net.train()
    spec = evaluation_spec(parts.config, record.stage, "black_box_label", "toy")
    parts.proxies.obtain(parts.proxies.plan(spec, record.key), lambda: record.net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in record.net.state_dict().items())
    assert record.net.training, "it comes back in the mode it was in"


# --- the defender's proxies ------------------------------------------------------------------------------------------


def test_each_stage_is_crafted_on_a_proxy_of_the_target_as_it_was_before_it(tmp_path):
    parts = Parts(tmp_path)
    records = [record for record, _ in parts.run()]
    images, _ = parts.proxies.images.tensors("all", "cpu")
    for place in (1, 2):
        planned = parts.recipes[place].proxy
        assert planned.target == records[place - 1].key
        answers = load(parts.store.load(key_of(planned.answers)).file(ANSWERS))["answers"]
        assert torch.equal(answers, predict(records[place - 1].net, images, batch_size=512))
        assert parts.recipes[place].recipe["craft_on"] == planned.key


def test_a_proxy_goes_on_from_the_one_before_and_is_hardened_against_the_attacks_before(tmp_path):
    parts = Parts(tmp_path, "cascade.order=[fgsm,vap,pgm]")
    first, second, third = (planned.proxy for planned in parts.recipes[1:])
    assert first.recipe["parent"] is None
    assert (second.recipe["parent"], third.recipe["parent"]) == (first.key, second.key)
    assert "attacks" not in first.recipe
    assert [attack["name"] for attack in second.recipe["attacks"]] == ["fgsm"]
    assert {attack["name"]: float(attack["share"]) for attack in third.recipe["attacks"]} == {"fgsm": 0.2, "vap": 0.8}
    assert [planned.spec.epochs for planned in (first, second, third)] == [3, 2, 2]
    plain = Parts(tmp_path, "cascade.order=[fgsm,vap,pgm]", "proxy.adversarial=false")
    assert all("attacks" not in planned.proxy.recipe for planned in plain.recipes[1:])


def test_without_transfer_every_proxy_asks_m0(tmp_path):
    parts = Parts(tmp_path, "cascade.transfer=none")
    assert [planned.proxy.target for planned in parts.recipes[1:]] == [parts.recipes[0].key] * 2


def test_the_realised_mixing_is_the_same_on_a_proxy(tmp_path):
    records = [record for record, _ in Parts(tmp_path, "cascade.epochs=5").run()]
    # 36 images, 5 epochs; at stage 2 a fifth goes to fgsm, by largest remainder with a carry
    assert records[1].rows == {"fgsm": 180}
    assert records[2].rows == {"fgsm": 36, "pgm": 144}


def test_examples_of_a_stage_are_those_that_the_attack_makes_on_the_proxy(tmp_path):
    parts = Parts(tmp_path, "cascade.order=[fgsm]")
    list(parts.cascade.run())
    proxy = parts.proxies.find(parts.recipes[1].proxy)
    module = parts.cascade.trainer._module(ToyNet(), stages_of(parts.config)[1], 5, PassCount(), proxy.net)
    x, y = toy_images(4, 3).x, torch.zeros(12, dtype=torch.int64)
    images = torch.from_numpy(x).float() / 255
    adv = module.mixer(module._craft_on[0], images, y, step=0)
    alone = parts.cascade.trainer.attacks["fgsm"](proxy.net, images, proxy.net(images).argmax(1))
    assert torch.allclose(adv.x, alone)
    assert not [name for name, _ in module.named_parameters() if "craft" in name]


def test_at_p_is_the_first_stage_of_the_cascade(tmp_path):
    cascade = Parts(tmp_path, "cascade.order=[fgsm,vap]")
    alone = Parts(tmp_path, "defence=adversarial_training", "cascade.order=[fgsm]")
    assert alone.recipes[1].key == cascade.recipes[1].key


def test_a_white_box_run_has_no_proxy_and_the_keys_it_always_had(tmp_path):
    def keys(*overrides):
        config = composed(*TOY_PROXY, "threat_model=white_box", *overrides)
        data = load_data(config).prepare()
        prints = {name: data.fingerprint_of(name) for name in ("train", "validation")}
        return [planned.key for planned in stage_recipes(config, training_attacks(config), **prints)]

    plain = keys()
    for override in ("proxy.epochs=9", "proxy.adversarial=false", "dataset.proxy.limit=6", "proxy.halves=true"):
        assert keys(override) == plain
    assert keys("evaluation.threat_models=[white_box,black_box_label]") == plain


CHANGES = {
    "proxy.epochs=4": {1, 2},
    "proxy.batch_size=4": {1, 2},
    "proxy.peak_lr=0.01": {1, 2},
    "proxy.optimizer.momentum=0.8": {1, 2},
    "proxy.alpha=0.3": {2},
    "proxy.augment=false": {1, 2},
    "proxy.fine_tune_epochs=3": {2},
    "proxy.adversarial=false": {2},
    "proxy.halves=true": {1, 2},
    "models.toy.dropout=0.1": {1, 2},
    "dataset.proxy.limit=12": {1, 2},
    "threat_model=black_box_probabilities": {1, 2},
    "threat_model=black_box_noisy_label": {1, 2},
    "threat_model=white_box": {1, 2},
    "threat_model.budget=24": set(),
    "evaluation.proxies=[lenet]": set(),
    "evaluation.threat_models=[white_box]": set(),
    "evaluation.seed=4": set(),
    "cascade.craft_params=white_box": {1, 2},
}


@pytest.fixture(scope="module")
def plain_keys():
    return keys_of()


@cache
def toy_prints():
    data = load_data(composed(*TOY_PROXY)).prepare()
    return {name: data.fingerprint_of(name) for name in ("train", "validation")}


def keys_of(*overrides):
    config = composed(*TOY_PROXY, "attack_params.black_box.fgsm.eps=0.2", *overrides)
    queries = None
    if config.threat_model.interface is not None:
        images = load_proxy_data(config, load_data(config).prepare(), torch.device("cpu"))
        queries = images.fingerprint_of(hardening_part(config))
    return [planned.key for planned in stage_recipes(config, training_attacks(config), **toy_prints(), queries=queries)]


@pytest.mark.parametrize("override", CHANGES)
def test_what_changes_the_key_of_a_stage_that_is_crafted_on_a_proxy(override, plain_keys):
    found = keys_of(override)
    assert {place for place in range(3) if found[place] != plain_keys[place]} == CHANGES[override]


# --- two proxies -----------------------------------------------------------------------------------------------------


def test_the_attackers_proxy_is_another_one_than_the_defenders(tmp_path):
    parts = Parts(tmp_path, "cascade.order=[fgsm]")
    parts.run()
    hardening = parts.recipes[1].proxy
    (attacking,) = parts.plan.planned_proxies(stages_of(parts.config)[0], "black_box_label").values()
    # both learn from M0's answers, and yet
    assert hardening.answers == attacking.answers
    assert hardening.spec.seed != attacking.spec.seed
    one, other = (load(parts.store.load(planned.key).file(WEIGHTS)) for planned in (hardening, attacking))
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("weight") and "bn" not in name)


def test_halves_and_architectures_can_differ_too(tmp_path):
    parts = Parts(tmp_path, "proxy.halves=true", "evaluation.proxies=[lenet]")
    config = parts.config
    stage = stages_of(config)[1]
    mine, theirs = hardening_spec(config, stage), evaluation_spec(config, stage, "black_box_label", "lenet")
    assert (mine.part, theirs.part) == ("first", "second")
    assert (mine.architecture, theirs.architecture) == ("toy", "lenet")
    first, second = (parts.proxies.images.images(part).x for part in (hardening_part(config), evaluation_part(config)))
    assert len(first) + len(second) == 24
    assert not {image.tobytes() for image in first} & {image.tobytes() for image in second}


def test_noise_in_the_answers_is_another_for_each_proxy(tmp_path):
    parts = Parts(tmp_path, "threat_model=black_box_noisy_label", "threat_model.interface.flip=0.5")
    stage = stages_of(parts.config)[1]
    attacking = evaluation_spec(parts.config, stage, "black_box_noisy_label", "toy")
    seeds = {planned.proxy.spec.answers_seed for planned in parts.recipes[1:]} | {attacking.answers_seed}
    assert len(seeds) == 3


# --- the evaluation --------------------------------------------------------------------------------------------------


def test_every_interface_is_measured_on_a_proxy_of_its_own(finished):
    results = read(finished / "run")
    names = ["black_box_label", "black_box_noisy_label", "black_box_probabilities", "white_box"]
    assert results["threat_models"] == names
    assert results["threat_model"] == "black_box_label"
    assert results["interfaces"]["black_box_noisy_label"] == {
        "kind": "noisy_label", "settings": {"flip": 0.1}, "budget": None,
    }  # fmt: skip
    assert "white_box" not in results["interfaces"]
    keys = set()
    for stage in results["stages"]:
        assert list(stage["evaluations"]) == names
        for name in names[:3]:
            proxy = stage["evaluations"][name]["proxies"]["toy"]
            assert (proxy["images"], proxy["queries"], proxy["epochs"]) == (24, 24, 3)
            assert 0 <= proxy["agreement"]["share"] <= 100
            keys.add(proxy["key"])
        assert "proxies" not in stage["evaluations"]["white_box"]
    assert len(keys) == 9


def test_the_images_for_queries_are_none_of_the_targets_and_it_is_said_how_many_were(finished):
    found = read(finished / "run")["proxy_data"]
    assert found == {
        "source": "tests.test_local_proxy.toy_queries",
        "read": 94,
        "overlapping": 4,
        "repeated": 0,
        "kept": 24,
        "verified": True,
        "halves": False,
    }


def test_the_figures_are_those_of_attacks_on_the_proxy_shown_to_the_target(tmp_path):
    parts = Parts(tmp_path)
    (undefended, _), _, (record, measured) = parts.run()
    (planned,) = parts.plan.planned_proxies(record.stage, "black_box_label").values()
    proxy = parts.proxies.find(planned)
    fgsm = evaluation_attacks(parts.config)["black_box_label"]["paper"]["fgsm"]
    images, labels = parts.measurement.splits["attack"]
    x = images.float() / 255
    x_adv = fgsm(proxy.net, x, labels, generator=generator(0, "evaluation", "fgsm", "calls"))
    rate = measured.evaluations["black_box_label"]["paper"]["fgsm"]
    with torch.no_grad():
        assert rate["wrong"] == int((record.net(x_adv).argmax(1) != labels).sum())
        assert rate["proxy"]["wrong"] == int((proxy.net(x_adv).argmax(1) != labels).sum())
    plain = fgsm(undefended.net, x, labels)
    with torch.no_grad():
        moved = int((record.net(plain).argmax(1) != labels).sum())
    assert measured.evaluations["black_box_label"]["transfer"]["paper"]["fgsm"]["wrong"] == moved
    quality = measured.evaluations["black_box_label"]["proxies"]["toy"]
    test_images, test_labels = parts.measurement.splits["test"]
    own, theirs = (predict(net, test_images, batch_size=64) for net in (proxy.net, record.net))
    assert quality["clean"]["wrong"] == int((own != test_labels).sum())
    assert quality["agreement"]["agree"] == int((own == theirs).sum())


def test_the_undefended_model_has_no_transfer_from_itself(finished):
    stages = read(finished / "run")["stages"]
    assert stages[0]["evaluations"]["black_box_label"]["transfer"] is None
    assert set(stages[1]["evaluations"]["black_box_label"]["transfer"]) == {"paper", "check"}


def test_transfer_from_m0_is_the_same_under_every_interface(finished):
    evaluations = read(finished / "run")["stages"][2]["evaluations"]
    found = [evaluations[f"black_box_{name}"]["transfer"] for name in ("label", "noisy_label", "probabilities")]
    assert found[0] == found[1] == found[2]


WEAK = "+models.weak={_target_: tests.test_cascade.ToyNet, dropout: 0.9}"


def test_of_several_architectures_the_most_harmful_counts(tmp_path):
    base = ("cascade.order=[fgsm]", WEAK)
    two = Parts(tmp_path, *base, "evaluation.proxies=[toy,weak]")
    measured = [found.evaluations["black_box_label"] for _, found in two.run()]
    alone = {}
    for name in ("toy", "weak"):
        one = Parts(tmp_path, *base, f"evaluation.proxies=[{name}]", store=two.store)
        alone[name] = [found.evaluations["black_box_label"] for _, found in one.run()]
    for place, found in enumerate(measured):
        wrong = {name: alone[name][place]["paper"]["fgsm"]["wrong"] for name in alone}
        best = max(wrong, key=wrong.get)
        assert found["paper"]["fgsm"]["wrong"] == wrong[best]
        assert wrong[found["paper"]["fgsm"]["architecture"]] == wrong[best]
        assert set(found["proxies"]) == {"toy", "weak"}


def test_the_worst_case_is_over_the_examples_of_all_proxies_and_the_budget_counts_by_itself(tmp_path):
    base = (WEAK, "cascade.order=[fgsm]", "evaluation.attacks=[fgsm,eap]", "dataset.budget.eap=2.0")
    two = Parts(tmp_path, *base, "evaluation.proxies=[toy,weak]")
    (record, measured), *_ = two.run()
    found = measured.evaluations["black_box_label"]["paper"]
    images, labels = two.measurement.splits["attack"]
    wrong, inside = {}, {}
    for name, planned in two.plan.planned_proxies(record.stage, "black_box_label").items():
        proxy = two.proxies.find(planned).net
        for attack in evaluation_attacks(two.config)["black_box_label"]["paper"].values():
            outcome = attack_rows(record.net, attack, images, labels, seed=0, batch_size=512, craft_on=proxy)
            if attack.name == "eap":
                inside[name] = outcome.wrong & (outcome.norms["l1"] <= 2.0)
            else:
                wrong[name] = outcome.wrong
    clean = predict(record.net, images, batch_size=64).ne(labels).numpy()
    union = np.any([clean, *wrong.values(), *inside.values()], axis=0)
    assert found["worst"]["wrong"] == union.sum()
    assert found["eap@budget"]["wrong"] == max(rows.sum() for rows in inside.values())
    assert inside[found["eap@budget"]["architecture"]].sum() == found["eap@budget"]["wrong"]
    assert found["eap@budget"]["proxy"]["n"] == len(labels)


def test_examples_on_m0_are_crafted_once_for_all_models(tmp_path, monkeypatch):
    parts = Parts(tmp_path)
    made = []

    def counted(net, attack, *rest, **settings):
        made.append((id(net), attack.name, settings.get("craft_on") is None))
        return attack_rows(net, attack, *rest, **settings)

    monkeypatch.setattr("amc_lightning.measure.attack_rows", counted)
    stages = [record for record, _ in parts.run()]
    assert len(stages) == 3
    assert [name for _, name, own in made if own] == ["fgsm"], "once, on M0 itself, for two hardened models"


def test_the_defenders_proxy_is_reported_with_its_stage(finished):
    stages = read(finished / "run")["stages"]
    assert stages[0]["proxy"] is None
    for stage in stages[1:]:
        proxy = stage["proxy"]
        assert (proxy["architecture"], proxy["interface"], proxy["queries"]) == ("toy", "black_box_label", 24)
        assert proxy["clean"]["n"] == 30
        assert 0 <= proxy["agreement"]["share"] <= 100


def test_per_example_results_hold_every_threat_model(finished):
    with np.load(finished / "run" / "examples.npz") as examples:
        stages = read(finished / "run")["stages"]
        for name in ("black_box_noisy_label", "white_box"):
            wrong = examples[f"2/{name}/paper/fgsm/wrong"]
            assert wrong.sum() == stages[2]["evaluations"][name]["paper"]["fgsm"]["wrong"]
        first = stages[2]["evaluations"]["black_box_label"]["paper"]["fgsm"]
        assert examples["2/paper/fgsm/wrong"].sum() == first["wrong"]
        assert examples["2/paper/fgsm/proxy_wrong"].sum() == first["proxy"]["wrong"]


def test_only_the_ends_are_measured_if_that_is_asked_for(tmp_path):
    found = Parts(tmp_path, "evaluation.stages=ends").run()
    assert [bool(measured.evaluations) for _, measured in found] == [True, False, True]
    assert found[2][1].proxy["agreement"] is not None, "the stage before is asked all the same"


def test_a_check_on_a_proxy_keeps_the_best_point_and_does_not_stop_at_the_first(tmp_path):
    config = composed(*TOY_PROXY, "evaluation.threat_models=[black_box_label,white_box]", "evaluation.attacks=[pgm]")
    attacks = evaluation_attacks(config)
    assert attacks["black_box_label"]["check"]["pgm"].arguments["keep_best"] is True
    assert not attacks["black_box_label"]["check"]["pgm"].arguments.get("compact", False)
    assert attacks["white_box"]["check"]["pgm"].arguments["compact"] is True
    assert attacks["black_box_label"]["paper"]["pgm"].params["nb_iter"] == 20
    assert attacks["white_box"]["paper"]["pgm"].params["nb_iter"] == 15


def test_attack_rows_on_a_proxy_measures_the_net_and_leaves_both_as_they_were():
    net, proxy = ToyNet().train(), ToyNet().train()
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (net, proxy)]
    images = toy_images(5, 9)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    fgsm = evaluation_attacks(composed(*TOY_PROXY))["black_box_label"]["paper"]["fgsm"]
    outcome = attack_rows(net, fgsm, x, y, seed=0, batch_size=4, craft_on=proxy)
    itself = attack_rows(proxy, fgsm, x, y, seed=0, batch_size=4)
    assert np.array_equal(outcome.crafter_predicted, itself.predicted)
    assert itself.crafter_predicted is None
    assert all(model.training for model in (net, proxy))
    for model, state in zip((net, proxy), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# --- the store -------------------------------------------------------------------------------------------------------


def test_a_second_run_trains_and_asks_nothing(finished, tmp_path):
    before = set(Store(finished / "store").keys())
    names = "[black_box_label,black_box_noisy_label,black_box_probabilities,white_box]"
    config = composed(*TOY_PROXY, f"evaluation.threat_models={names}", f"store.root={finished / 'store'}")
    console = quiet()
    run(config, tmp_path / "again", console=console)
    assert set(Store(finished / "store").keys()) == before
    one, other = read(finished / "run"), read(tmp_path / "again")
    for old, new in zip(one["stages"], other["stages"], strict=True):
        assert new["from_store"]
        for name in old["evaluations"]:
            assert new["evaluations"][name]["paper"] == old["evaluations"][name]["paper"]
    assert not [line for line in console.file.getvalue().splitlines() if line.startswith(("proxy", "Plan"))]


def test_a_pruned_proxy_does_not_make_a_finished_stage_be_trained_again(tmp_path):
    parts = Parts(tmp_path)
    parts.run()
    parts.store.remove(parts.recipes[1].proxy.key)
    again = Parts(tmp_path, store=parts.store).run()
    assert [record.trained for record, _ in again] == [False] * 3
    assert again[1][1].proxy is None
    assert again[1][0].proxy["queries"] == 24


def test_a_proxy_in_the_middle_of_the_chain_is_made_again_where_a_later_one_needs_it(tmp_path):
    parts = Parts(tmp_path)
    parts.run()
    for key in (parts.recipes[1].proxy.key, parts.recipes[2].proxy.key, parts.recipes[2].key):
        parts.store.remove(key)
    weights = load_file(tmp_path / "stages" / "2_pgm" / WEIGHTS)
    again = Parts(tmp_path, store=parts.store).run()
    assert [record.trained for record, _ in again] == [False, False, True]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again[2][0].net.state_dict().items())


def test_the_same_seed_gives_the_same_bits(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (Parts(tmp_path / name).run() for name in ("a", "b"))
    for (mine, measured), (theirs, also) in zip(one, other, strict=True):
        assert all(torch.equal(mine.net.state_dict()[name], tensor) for name, tensor in theirs.net.state_dict().items())
        assert measured.evaluations["black_box_label"]["paper"] == also.evaluations["black_box_label"]["paper"]


# --- when it stops ---------------------------------------------------------------------------------------------------


def test_a_budget_that_cannot_reach_is_refused_before_anything_is_trained(tmp_path):
    config = composed(*TOY_PROXY, "threat_model.budget=23", f"store.root={tmp_path / 'store'}")
    with pytest.raises(
        UserError,
        match=r"threat_models\.black_box_label\.budget: 23 is fewer queries than the 24 images .*proxy\.limit=23",
    ):
        run(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_exhausted_budget_keeps_the_answers_and_a_larger_one_goes_on(tmp_path):
    parts = Parts(tmp_path, "cascade.order=[fgsm]")
    record = next(iter(parts.cascade.run()))
    (planned,) = parts.plan.planned_proxies(record.stage, "black_box_label").values()
    asked = []
    counting = record.net.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    little = replace(planned.spec, threat_model=replace(planned.spec.threat_model, budget=10))
    with pytest.raises(QueryBudgetError, match="10 queries are answered"):
        parts.proxies.obtain(replace(planned, spec=little), lambda: record.net)
    assert sum(asked) == 10
    proxy = parts.proxies.obtain(planned, lambda: record.net)
    assert sum(asked) == 24, "what was answered is not asked about again"
    assert proxy.queries == 24
    counting.remove()
    fresh = Parts(tmp_path, "cascade.order=[fgsm]", store=Store(tmp_path / "other"))
    again = fresh.proxies.obtain(planned, lambda: record.net)
    assert all(torch.equal(tensor, proxy.net.state_dict()[name]) for name, tensor in again.net.state_dict().items())


def test_damaged_answers_of_a_stopped_attempt_are_asked_for_again(tmp_path, caplog):
    parts = Parts(tmp_path, "cascade.order=[fgsm]")
    record = next(iter(parts.cascade.run()))
    (planned,) = parts.plan.planned_proxies(record.stage, "black_box_label").values()
    work = parts.store.work(key_of(planned.answers))
    work.mkdir(parents=True)
    (work / ANSWERS).write_bytes(b"abc")
    assert parts.proxies.obtain(planned, lambda: record.net).queries == 24
    assert "is damaged" in caplog.text


class Wide:
    """An interface that shows a class that there is not."""

    draws = False

    def answer(self, scores, numbers):
        return torch.full((len(scores),), 3)


class Odd(Wide):
    """An interface that shows numbers that are no classes."""

    def answer(self, scores, numbers):
        return torch.full((len(scores),), 0.5)


@pytest.mark.parametrize("kind", ["Wide", "Odd"])
def test_answers_that_no_proxy_can_learn_are_refused(kind, tmp_path):
    parts = Parts(tmp_path, f"threat_model.interface={{_target_: tests.test_local_proxy.{kind}}}")
    with pytest.raises(UserError, match=rf"threat_model\.interface: .*{kind}' gives answers of shape \(24,\)"):
        parts.run()


@pytest.mark.parametrize(
    "overrides",
    [
        ["defence=undefended", "evaluation.stages=ends"],
        ["cascade.transfer=none", "proxy.halves=true", "evaluation.limit=5"],
        ["cascade.pick=best", "cascade.epochs=2", "cascade.validate_every=1"],
        ["threat_model=white_box", "evaluation.threat_models=[black_box_probabilities]"],
        ["evaluation.attacks=[]"],
        ["schedule=official_code", "cascade.undefended_epochs=1", "cascade.epochs=1"],
    ],
    ids=" ".join,
)
def test_settings_that_meet_seldom_run_to_the_end(overrides, tmp_path):
    rest = [item for item in TOY_PROXY if item.partition("=")[0] not in {part.partition("=")[0] for part in overrides}]
    if "defence=undefended" in overrides:
        rest.remove("cascade.order=[fgsm,pgm]")
    config = composed(*rest, *overrides, f"store.root={tmp_path / 'store'}")
    console = quiet()
    run(config, tmp_path / "run", console=console)
    assert read(tmp_path / "run")["status"] == "finished"
    assert "Everything is in" in console.file.getvalue()
    assert (tmp_path / "run" / "report.md").is_file()


def test_weights_that_are_given_can_be_hardened_on_a_proxy(finished, tmp_path):
    given = finished / "run" / "stages" / "0_undefended" / WEIGHTS
    config = composed(*TOY_PROXY, f"cascade.start_from={given}", f"store.root={tmp_path / 'store'}")
    run(config, tmp_path / "run", console=quiet())
    first, other = read(finished / "run")["stages"], read(tmp_path / "run")["stages"]
    label = [stages[0]["evaluations"]["black_box_label"]["paper"]["fgsm"] for stages in (first, other)]
    assert label[0] == label[1], "the same model, whatever its key"


def test_settings_of_a_threat_model_reach_what_uses_it(tmp_path):
    measured = composed(
        *TOY_PROXY,
        "evaluation.threat_models=[black_box_noisy_label]",
        "+threat_models.black_box_noisy_label.interface.flip=0.2",
    )
    assert measured.threat_models["black_box_noisy_label"].interface["flip"] == 0.2
    assert measured.threat_models["black_box_noisy_label"].params == "black_box"
    own = composed(*TOY_PROXY, "+threat_models.black_box_label.budget=99")
    assert own.threat_model.budget == own.threat_models["black_box_label"].budget == 99
    with pytest.raises(UserError, match=r"threat_models\.black_box_noisy_label: .* is set, but nothing is hardened"):
        composed(*TOY_PROXY, "+threat_models.black_box_noisy_label.interface.flip=0.2")


def test_a_proxy_that_was_interrupted_goes_on_to_the_same_bits(tmp_path):
    order = ("cascade.order=[fgsm,pgm]", "threat_model=black_box_probabilities", "store.checkpoint_minutes=1e-9")
    whole = Parts(tmp_path, *order)
    whole.run()
    (tmp_path / "cut").mkdir()
    cut = Parts(tmp_path / "cut", *order)
    planned = cut.recipes[2].proxy
    stages = cut.cascade.run()
    records = [next(stages), next(stages)]
    steps = []
    real = ProxyModule.training_step

    def stopping(self, batch, batch_idx):
        steps.append(self.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProxyModule, "training_step", stopping)
        with pytest.raises(StageStoppedError, match=r"interrupted in proxy 2 pgm"):
            next(stages)
    again = Parts(tmp_path / "cut", *order, store=cut.store)
    with pytest.MonkeyPatch.context() as patch:
        went_on = []
        patch.setattr(
            ProxyModule, "training_step", lambda self, *rest: went_on.append(self.global_step) or real(self, *rest)
        )
        assert [record.trained for record in again.cascade.run()] == [False, False, True]
    assert 0 < went_on[0] < 6, "it did not begin anew"
    assert records[0].key == whole.recipes[0].key
    one, other = (load(parts.store.load(planned.key).file(WEIGHTS)) for parts in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ctrl_c_inside_a_proxy_says_so_and_the_finished_stages_stay(tmp_path):
    parts = Parts(
        tmp_path,
        "cascade.order=[trying,fgsm]",
        "+attacks.trying={_target_: tests.test_local_proxy.Trying, norm: linf, uses_labels: true, params: {eps: 0.1}}",
        "schedule.batch_size=18",
        "cascade.validate_rows=0",
    )
    stages = parts.cascade.run()
    assert [next(stages).stage.title, next(stages).stage.title] == ["0 undefended", "1 trying"]
    with pytest.raises(
        StageStoppedError, match=r"interrupted in proxy 2 fgsm; .*proxies/2_fgsm/last_good\.safetensors"
    ):
        next(stages)
    assert parts.store.has(parts.recipes[1].key)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["proxy.architecture=proxi_cnn"],
            r"proxy\.architecture: 'proxi_cnn' is not a known model; .*Did you mean proxy_cnn\?",
        ),
        (
            ["evaluation.proxies=[lenett]"],
            r"evaluation\.proxies: 'lenett' is not a known model; .*Did you mean lenet\?",
        ),
        (["evaluation.proxies=[]"], r"evaluation\.proxies: \[\] names none, or one twice"),
        (["evaluation.threat_models=[]"], r"evaluation\.threat_models: \[\] names none, or one twice"),
        (
            ["evaluation.threat_models=[white_bocks]"],
            r"'white_bocks' is not a known threat model; .*Did you mean white_box\?",
        ),
        (["threat_model.name=mine"], r"threat_model\.name: 'mine' is not a known threat model; known: black_box_label"),
        (["threat_model.name=white_box"], r"threat_model\.interface: .* is not what white_box means"),
        (["threat_model.budget=0"], r"threat_model\.budget: 0 is out of range"),
        (
            ["threat_model.params=grey_box"],
            r"threat_model\.params: 'grey_box' is not known; known: white_box, black_box",
        ),
        (["proxy.peak_lr=0"], r"proxy\.peak_lr: 0\.0 is out of range"),
        (["proxy.alpha=2"], r"proxy\.alpha: 2\.0 is out of range"),
        (["proxy.epochs=0"], r"proxy\.epochs: 0 is out of range"),
        (["proxy.batch_size=0"], r"proxy\.batch_size: 0 is out of range"),
        (["dataset.proxy.limit=1"], r"dataset\.proxy\.limit: 1 is out of range"),
        (["evaluation.stages=last"], r"evaluation\.stages: 'last' is not known; known: all, ends"),
        (["evaluation.params=grey"], r"evaluation\.params: 'grey' is not known"),
        (["+evaluation.check_black_box.pgn={eps: 1}"], r"evaluation\.check_black_box: 'pgn' is not known"),
        (["evaluation.check_black_box.pgm.nb_iter=0"], r"evaluation\.check_black_box\.pgm\.nb_iter: 0 is out of range"),
    ],
)
def test_settings_that_cannot_be_are_named_with_what_is_allowed(overrides, message):
    with pytest.raises(UserError, match=message):
        composed(*TOY_PROXY, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["threat_model.interface={_target_: nowhere.Label}"],
            r"threat_model.*interface.*nowhere\.Label.*cannot be imported",
        ),
        (["+threat_model.interface.flop=1"], r"threat_model.*interface: .*does not fit Label"),
        (
            ["dataset.proxy.source=null"],
            r"dataset\.proxy\.source: None is not set, but a threat model with an interface",
        ),
        (["dataset.proxy.source={_target_: tests.test_cascade.toy_source}"], r"dataset\.proxy\.source: .*does not fit"),
        (
            ["+models.wrong={_target_: torch.nn.Flatten}", "evaluation.proxies=[wrong]"],
            r"models\.wrong: 'Flatten' returns \(4, 64\)",
        ),
    ],
)
def test_what_only_a_run_can_find_is_found_before_training(overrides, message, tmp_path):
    config = composed(*TOY_PROXY, *overrides, f"store.root={tmp_path / 'store'}")
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["label", "noisy_label", "probabilities"])
def test_a_run_on_the_device_has_the_same_answers_and_counts(name, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = {}
    for accelerator in ("cpu", "gpu"):
        rest = [item for item in TOY_PROXY if not item.startswith(("threat_model=", "trainer.accelerator="))]
        config = composed(
            *rest,
            f"threat_model=black_box_{name}",
            f"trainer.accelerator={accelerator}",
            f"store.root={tmp_path / accelerator}",
        )
        run(config, tmp_path / f"run_{accelerator}", console=quiet())
        found[accelerator] = read(tmp_path / f"run_{accelerator}")
    assert [stage["key"] for stage in found["gpu"]["stages"]] == [stage["key"] for stage in found["cpu"]["stages"]]
    assert found["gpu"]["proxy_data"] == found["cpu"]["proxy_data"]
    assert [stage["rows"] for stage in found["gpu"]["stages"]] == [stage["rows"] for stage in found["cpu"]["stages"]]


def test_the_experiments_craft_and_measure_with_the_columns_they_should():
    config = composed("+experiment=svhn_local_proxy")
    assert config.threat_model.name == "black_box_label"
    assert config.cascade.craft_params == "black_box"
    assert config.evaluation.proxies == ["proxy_cnn"]
    cifar = composed("+experiment=cifar10_local_proxy")
    eap = training_attacks(cifar)["eap"].params
    assert (eap["binary_search_steps"], eap["max_iterations"]) == (2, 8), "18,000 passes a row cannot be trained with"
    eap = evaluation_attacks(cifar)["black_box_label"]["paper"]["eap"].params
    assert (eap["binary_search_steps"], eap["max_iterations"]) == (9, 1000)
