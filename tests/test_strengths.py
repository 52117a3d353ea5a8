"""What is measured beside the paper's attacks and their check: stronger ones, own labels, a judge, squeezing."""

import json

import numpy as np
import pytest
import torch

from amc_lightning import load
from amc_lightning.build import evaluation_attacks, load_data, post_hoc_attacks
from amc_lightning.errors import UserError
from amc_lightning.measure_plan import MeasurementPlan
from amc_lightning.models import BitDepth, Squeezed
from amc_lightning.rows import attack_rows, clean_rows, predict
from amc_lightning.stage_recipe import stage_recipes
from amc_lightning.store import Store
from tests.test_cascade import TOY, composed
from tests.test_run import door, read

MORE = (
    *TOY, "trainer.threads=1", "cascade.order=[fgsm,pgm]", "evaluation.attacks=[fgsm,eap,pgm]", "evaluation.gallery=2",
    "dataset.budget.eap=4", "evaluation.stronger=true", "evaluation.label=predicted",
    "evaluation.squeezing=[bit_depth_1]",
    "evaluation.judge.attacks=[apgd_ce]", "evaluation.judge.rows=5", "+evaluation.judge.params.apgd_ce.eps=0.3",
    "figures=false",
)  # fmt: skip
POST_HOC, ADAPTIVE = "squeezed/bit_depth_1/post_hoc", "squeezed/bit_depth_1/adaptive"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy cascade of two stages with everything that can be measured."""
    folder = tmp_path_factory.mktemp("more")
    done = door(*MORE, f"hydra.run.dir={folder / 'run'}", f"store.root={folder / 'store'}")
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return read(folder / "run")


@pytest.fixture(scope="module")
def flags(folder):
    with np.load(folder / "run" / "examples.npz") as file:
        return dict(file)


def measured():
    """The configuration of the run and what it attacks, built again by hand."""
    config = composed(*MORE)
    data = load_data(config).prepare()
    attacks = evaluation_attacks(config)
    prints = {name: data.fingerprint_of(name) for name in ("train", "validation")}
    recipes = stage_recipes(config, {name: attacks["white_box"]["paper"][name] for name in ("fgsm", "pgm")}, **prints)
    device = torch.device("cpu")
    plan = MeasurementPlan(config, data, attacks, recipes=recipes, store=Store("nowhere"), device=device)
    return config, plan, attacks["white_box"]


def rows(net, attack, split, *, config, craft_on=None):
    return attack_rows(
        net, attack, *split, seed=config.evaluation.seed, batch_size=config.evaluation.batch_size, craft_on=craft_on
    )


# --- strengths -------------------------------------------------------------------------------------------------------


def test_stronger_is_table_1_with_what_its_column_doubles(results):
    attacks = results["attacks"]["white_box"]
    assert set(attacks["stronger"]) == {"eap", "pgm"}
    assert attacks["stronger"]["pgm"]["eps"] == 2 * attacks["paper"]["pgm"]["eps"]
    assert attacks["stronger"]["pgm"]["nb_iter"] == 2 * attacks["paper"]["pgm"]["nb_iter"]
    for name in ("binary_search_steps", "max_iterations"):
        assert attacks["stronger"]["eap"][name] == 2 * attacks["paper"]["eap"][name]
    for stage in results["stages"]:
        rates = stage["evaluations"]["white_box"]["stronger"]
        assert set(rates) == {"clean", "eap", "eap@budget", "pgm"}  # it is in no mean and in no worst case


def test_own_labels_add_a_mean_and_no_worst_case(results):
    for stage in results["stages"]:
        assert set(stage["evaluations"]["white_box"]["predicted"]) == {
            "clean", "fgsm", "eap", "eap@budget", "pgm", "mean",
        }  # fmt: skip


def test_own_labels_are_the_models_own(folder, flags):
    config, plan, attacks = measured()
    net = load(folder / "run")
    outcome = rows(net, attacks["predicted"]["fgsm"], plan.splits["attack"], config=config)
    assert attacks["predicted"]["fgsm"].label == "predicted"
    np.testing.assert_array_equal(flags["2/predicted/fgsm/wrong"], outcome.wrong)


def test_the_judge_is_asked_about_the_last_model_and_leading_rows_only(results):
    judged = ["judge" in stage["evaluations"]["white_box"] for stage in results["stages"]]
    rates = results["stages"][-1]["evaluations"]["white_box"]["judge"]
    assert judged == [False, False, True]
    assert {name: rate["n"] for name, rate in rates.items()} == {"clean": 5, "apgd_ce": 5, "worst": 5}


def test_the_judges_worst_case_holds_that_of_check(flags):
    wanted = flags["2/clean/attack/wrong"][:5] | flags["2/check/worst/wrong"][:5] | flags["2/judge/apgd_ce/wrong"]
    np.testing.assert_array_equal(flags["2/judge/worst/wrong"], wanted)


def test_a_judge_of_other_systems_is_not_asked(tmp_path):
    done = door(*MORE, "evaluation.judge.systems=[at_pgm]", "plan_only=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert "judge" not in evaluation_attacks(composed(*MORE, "evaluation.judge.systems=[at_pgm]"))["white_box"]


# --- per-example results ---------------------------------------------------------------------------------------------


def test_every_rate_can_be_counted_again(results, flags):
    """Means are means of the flags, everything else is a count of them."""
    counted = 0
    for stage in results["stages"]:
        for name, evaluation in stage["evaluations"].items():
            place = f"{stage['index']}/" + ("" if name == "white_box" else f"{name}/")
            assert evaluation["clean"]["wrong"] == flags[f"{place}clean/test/wrong"].sum()
            for strength in ("paper", "check", "stronger", "predicted", "judge"):
                for attack, rate in evaluation.get(strength, {}).items():
                    if attack == "clean":
                        found = flags[f"{place}clean/attack/wrong"][: rate["n"]]
                    elif attack == "mean":
                        names = [f"{place}{strength}/{one}/wrong" for one in ("fgsm", "eap", "pgm")]
                        found = np.mean([flags[one] for one in names], axis=0)
                    else:
                        found = flags[f"{place}{strength}/{attack}/wrong"]
                    assert (len(found), found.sum()) == (rate["n"], pytest.approx(rate["wrong"]))
                    counted += 1
    assert counted > 90


def test_passes_that_were_saved_are_on_record(results):
    for stage in results["stages"]:
        rate = stage["evaluations"]["white_box"]["check"]["pgm"]
        assert rate["most_passes"] == 40
        assert 0 <= rate["gradient_passes"] < 40  # rows that are wrong as they are leave at once


# --- feature squeezing -----------------------------------------------------------------------------------------------


def test_squeezed_models_are_measured_both_ways_at_both_ends(results):
    found = [[name for name in stage["evaluations"] if name.startswith("squeezed")] for stage in results["stages"]]
    assert found == [[POST_HOC, ADAPTIVE], [], [POST_HOC, ADAPTIVE]]
    assert results["squeezings"] == {
        name: {
            "name": "bit_depth_1",
            "settings": {"_target_": "amc_lightning.models.BitDepth", "bits": 1},
            "adaptive": name == ADAPTIVE,
        }
        for name in (POST_HOC, ADAPTIVE)
    }


@pytest.mark.parametrize("strength", ["paper", "check", "stronger"])
@pytest.mark.parametrize("attack", ["eap", "pgm"])
def test_post_hoc_is_the_bare_models_examples_squeezed(folder, flags, strength, attack):
    config, plan, _ = measured()
    net = load(folder / "run")
    squeezed = Squeezed(net, BitDepth(1)).eval()
    made_with = post_hoc_attacks(config)[strength][attack]
    outcome = rows(squeezed, made_with, plan.splits["attack"], config=config, craft_on=net)
    np.testing.assert_array_equal(flags[f"2/{POST_HOC}/{strength}/{attack}/wrong"], outcome.wrong)


@pytest.mark.parametrize("attack", ["eap", "pgm"])
def test_adaptive_is_an_attack_on_the_squeezed_model(folder, flags, attack):
    config, plan, attacks = measured()
    squeezed = Squeezed(load(folder / "run"), BitDepth(1)).eval()
    outcome = rows(squeezed, attacks["paper"][attack], plan.splits["attack"], config=config)
    np.testing.assert_array_equal(flags[f"2/{ADAPTIVE}/paper/{attack}/wrong"], outcome.wrong)
    clean = clean_rows(squeezed, *plan.splits["test"], batch_size=512)
    np.testing.assert_array_equal(flags[f"2/{ADAPTIVE}/clean/test/wrong"], clean.wrong)


def test_examples_that_are_squeezed_afterwards_are_not_the_first_that_fool():
    """Such a point lies just beyond the bare model's boundary, and would not get through the squeezing."""
    made_with = post_hoc_attacks(composed(*MORE))
    arguments = made_with["check"]["pgm"].arguments
    assert (arguments["compact"], arguments["keep_best"]) == (False, True)
    assert made_with["paper"]["pgm"] == evaluation_attacks(composed(*MORE))["white_box"]["paper"]["pgm"]
    assert post_hoc_attacks(composed(*TOY)) == {}


def test_the_worst_case_of_the_adaptive_attack_holds_both_ways(flags):
    budget = [flags[f"2/{ADAPTIVE}/check/{name}/wrong"] for name in ("fgsm", "eap@budget", "pgm")]
    wanted = np.any(
        [flags[f"2/{ADAPTIVE}/clean/attack/wrong"], flags[f"2/{POST_HOC}/check/worst/wrong"], *budget], axis=0
    )
    np.testing.assert_array_equal(flags[f"2/{ADAPTIVE}/check/worst/wrong"], wanted)


def test_the_weights_of_a_squeezed_model_are_those_of_the_bare_one(folder):
    net = load(folder / "run")
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(Squeezed(net, BitDepth(1))(x), net(x.round()))
    assert predict(net, x, batch_size=4).shape == (4,)


def test_without_a_white_box_nothing_is_squeezed():
    config, plan, _ = measured()
    black_box = MeasurementPlan(
        config, plan.data, {"black_box_label": {"paper": {}, "check": {}}}, squeezers={"bit_depth_1": BitDepth(1)},
        recipes=plan.recipes, store=plan.store, device=plan.device,
    )  # fmt: skip
    assert list(black_box.threats) == ["black_box_label"]


def test_no_picture_shows_the_one_without_the_other(folder):
    done = door(*MORE, "figures=true", f"hydra.run.dir={folder / 'drawn'}", f"store.root={folder / 'store'}")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (folder / "drawn" / "figures").iterdir()) == [
        "error_rates.png", "examples.png", "training_curves.png",
    ]  # fmt: skip
    said = " ".join(done.out.split())
    assert said.index("squeezed afterwards, as in the paper") < said.index("Attacks go through it")
    assert "pgm (stronger, eps 0.6): from eps 0.5 on a grey image" in said


def test_the_report_says_what_each_number_is(folder):
    text = (folder / "run" / "report.md").read_text()
    assert "squeezed afterwards" in text
    assert "Attacks go through it" in text
    assert text.index(POST_HOC) < text.index(ADAPTIVE)
    for heading in ("fgsm own label", "pgm stronger", "apgd_ce judge"):
        assert heading in text


def test_a_second_run_measures_nothing_again(folder, monkeypatch):
    monkeypatch.setattr("amc_lightning.evaluate.attack_rows", None)
    done = door(*MORE, f"hydra.run.dir={folder / 'again'}", f"store.root={folder / 'store'}")
    assert done.status == 0, done.err
    assert (folder / "again" / "examples.npz").read_bytes() == (folder / "run" / "examples.npz").read_bytes()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.squeezing=[bit_depth_2]"], r"evaluation\.squeezing: 'bit_depth_2' is not a known squeezing.*Did"),
        (["evaluation.squeezing=[bit_depth_1,bit_depth_1]"], r"evaluation\.squeezing: .* names one twice"),
        (["evaluation.label=own"], r"evaluation\.label: 'own' is not known; known: true, predicted"),
        (["evaluation.judge.attacks=[autoatack]"], r"evaluation\.judge\.attacks: 'autoatack' is not a known attack"),
        (["evaluation.judge.rows=0"], r"evaluation\.judge\.rows: 0 is out of range"),
        (["evaluation.stronger=true", "~attack_params.stronger"], r"evaluation\.stronger: .* nothing to measure with"),
        (["evaluation.judge.systems=[amc]"], r"evaluation\.judge\.systems: 'amc' is not a known system"),
        (["+squeezings.mine={_target_: x}"], r"squeezings\.mine: .* nothing is squeezed so"),
        (["evaluation.judge.attacks=[cw]"], r"dataset\.budget: \['cw'\] is not set"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        composed(*overrides)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("{_target_: amc_lightning.models.BitDepth, bits: 0}", "bits must be a whole number from 1 to 16, not 0"),
        ("{_target_: amc_lightning.models.BitDepth, bit: 1}", "does not fit BitDepth"),
        ("{_target_: torch.nn.Flatten}", "does not return images"),
        ("{_target_: torch.nn.Linear, in_features: 5, out_features: 5}", "cannot take images of shape (1, 8, 8)"),
        ("{_target_: builtins.dict}", "is not a Module"),
    ],
)
def test_a_squeezer_that_is_none_is_refused_before_training(tmp_path, layer, message):
    done = door(
        *TOY, "trainer.threads=1", "evaluation.squeezing=[mine]", f"+squeezings.mine={layer}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.status == 2
    assert "squeezings.mine" in done.message
    assert message in done.message
    assert not list((tmp_path / "run").glob("stages/*"))


@pytest.mark.parametrize("value", ["true", "True"])
def test_true_labels_can_be_asked_for_on_the_command_line(value):
    config = composed(f"evaluation.label={value}", f"cascade.label={value}")
    assert (config.evaluation.label, config.cascade.label) == ("true", "true")


def test_json_is_plain(folder):
    assert "NaN" not in json.dumps(read(folder / "run"), allow_nan=False)
