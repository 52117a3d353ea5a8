"""Verdicts on rows made by hand, and the list of claims itself."""

import copy
import csv
import io
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml

from amc_lightning.errors import UserError
from amc_lightning.paper.claim_costs import COST_KINDS
from amc_lightning.paper.claim_finding import Side
from amc_lightning.paper.claim_kinds import ROW_KINDS
from amc_lightning.paper.claim_list import CLAIMS_FILE, KINDS, read_claims
from amc_lightning.paper.claims import check_claims, write_claims
from amc_lightning.paper.claims_text import claims_text
from amc_lightning.paper.flags import Flags
from amc_lightning.paper.paired import Interval, mcnemar
from amc_lightning.paper.runs import Runs
from amc_lightning.report.record import Squeezing
from tests.paper.claims_fixture import (
    ADAPTIVE,
    ATTACKS,
    CLAIMS,
    POST_HOC,
    N,
    adversarial,
    findings,
    keys,
    make_run,
    stage,
    wrong,
)

AT = {f"at_{name}": {**dict.fromkeys(ATTACKS, 500), name: 300, "clean": 40} for name in ATTACKS}
AMC = "amc_target_hardened"
RAW = yaml.safe_load(CLAIMS_FILE.read_text())


def amc(folder, errors, **kwargs):
    m0 = keys(0, {**dict.fromkeys(ATTACKS, 900), "clean": 20})
    return make_run(folder, AMC, {**m0, **keys(1, errors)}, **kwargs)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("above", "low", "high", "verdict"),
    [
        (True, 0.1, 2.0, "holds"),
        (True, -2.0, -0.1, "fails"),
        (True, -0.1, 0.1, "within noise"),
        (True, 0.0, 1.0, "within noise"),
        (False, 0.1, 2.0, "fails"),
        (False, -2.0, -0.1, "holds"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(above, low, high, verdict):
    assert Side(above).verdict(Interval(0.0, low, high)) == verdict


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_five_equal_models_are_within_noise(tmp_path, seeds):
    """AMC and four AT of the same error, independent: of many draws a few only get a verdict, and it is either."""
    draws, n, found = 100, 200, Counter()
    systems = [*AT, AMC]
    runs = [make_run(tmp_path, system, {}, seed=seed) for system in systems for seed in seeds]
    rng = np.random.default_rng(2)
    for _ in range(draws):
        for run in runs:
            rows = {f"1/paper/{attack}/wrong": rng.random(n) < 0.3 for attack in ATTACKS}
            run.__dict__["flags"] = Flags(run.results, {**rows, "labels/attack": np.zeros(n)})
        found[findings(runs, "white_box_gain", resamples=400)["paper"].verdict] += 1
    assert found["holds"] + found["fails"] <= draws // 10
    assert found["fails"] <= draws // 20 + 2


def few(folder, rows):
    """AMC is wrong on 300 rows as the best AT is, but right on a few of them under FGSM."""
    own = keys(1, dict.fromkeys(ATTACKS, 300))
    for strength in ("paper", "check"):
        own[f"1/{strength}/fgsm/wrong"] = wrong(300 - rows)
    return [*adversarial(folder, AT), make_run(folder, AMC, {**keys(0, dict.fromkeys(ATTACKS, 900)), **own})]


@pytest.mark.parametrize(("rows", "verdict"), [(4, "within noise"), (5, "within noise"), (6, "holds")])
def test_four_rows_of_one_side_are_not_enough(tmp_path, rows, verdict):
    """The percentile interval of four rows of one side lies above 0; the sign test says 0.125. Of six it says 0.031."""
    found = findings(few(tmp_path, rows), "white_box_gain")["paper"]
    assert found.parts[0].interval.low > 0
    assert found.verdict == verdict


def test_a_verdict_of_one_column_is_never_against_mcnemar(tmp_path):
    """Rows that only AMC, only AT got wrong: a verdict needs McNemar's p < 0.05, that of the claim p < 0.05 / 4."""
    runs = few(tmp_path, 0)
    for only_amc, only_at in ((10, 1), (9, 2), (60, 40), (60, 41), (59, 41), (61, 40), (12, 0)):
        mine = wrong(300 - only_at)
        mine[300 : 300 + only_amc] = True
        arrays = {**keys(1, dict.fromkeys(ATTACKS, 300)), "1/paper/vap/wrong": mine}
        runs[-1] = make_run(tmp_path / f"{only_amc}-{only_at}", AMC, arrays)
        found = findings(runs, "every_column", resamples=4000)["paper"]
        (vap,) = [part for part in found.parts if part.name == "vap"]
        p = mcnemar(mine, wrong(300)).p
        assert vap.verdict == ("fails" if p < 0.05 else "within noise"), (only_amc, only_at, p)
        assert (found.verdict == "fails") == (p < 0.05 / 4)


@pytest.mark.parametrize(("n", "verdict"), [(2000, "holds"), (140, "within noise")])
def test_no_row_that_differs_is_near_where_there_are_enough_of_them(tmp_path, n, verdict):
    """Of 140 rows none differs: up to 3 in 100 might. A sign test would say nothing of either."""
    rows = {f"{stage}/clean/test/wrong": np.zeros(n, dtype=bool) for stage in (0, 1)}
    run = make_run(tmp_path, AMC, rows, labels={"labels/test": np.zeros(n)})
    assert findings([run], "clean_near_undefended")[""].verdict == verdict


@pytest.mark.parametrize(("own", "verdict"), [(200, "holds"), (400, "fails"), (300, "within noise")])
def test_gain_over_the_best_rival_of_each_column(tmp_path, own, verdict):
    """Every AT has 30 % under its own attack, which is the best of each column, and 50 % under the others."""
    runs = [*adversarial(tmp_path, AT), amc(tmp_path, dict.fromkeys(ATTACKS, own))]
    found = findings(runs, "white_box_gain")
    for strength in ("paper", "check"):
        assert found[strength].verdict == verdict
        assert found[strength].parts[0].interval.estimate == pytest.approx((300 - own) / 10)
        assert found[strength].parts[0].in_sample == pytest.approx((300 - own) / 10)
        assert (found[strength].n, found[strength].seeds) == (N, (0,))


def test_every_column_holds_only_where_each_does(tmp_path):
    errors = {"fgsm": 200, "eap": 200, "pgm": 200, "vap": 299}
    runs = [*adversarial(tmp_path, AT), amc(tmp_path, errors)]
    found = findings(runs, "every_column")["paper"]
    assert found.verdict == "within noise"  # vap is better by one row only
    assert found.parts[0].name == "vap"
    assert {part.name: part.verdict for part in found.parts} == {
        "vap": "within noise", "fgsm": "holds", "eap": "holds", "pgm": "holds",
    }  # fmt: skip
    assert findings(runs, "white_box_gain")["paper"].verdict == "holds"


def test_every_column_fails_where_one_does(tmp_path):
    runs = [*adversarial(tmp_path, AT), amc(tmp_path, {"fgsm": 200, "eap": 200, "pgm": 200, "vap": 400})]
    found = findings(runs, "every_column")["paper"]
    assert found.verdict == "fails"
    assert found.parts[0].interval.estimate == pytest.approx(-10.0)


def test_one_of_several_conditions_fails_at_the_widened_interval_only(tmp_path):
    """Rows that differ 15 to 5: beyond 95 %, not beyond the 98.75 % that four conditions ask for."""
    rivals = adversarial(tmp_path, AT)
    m0 = keys(0, dict.fromkeys(ATTACKS, 900))
    own = keys(1, {"fgsm": 200, "eap": 200, "pgm": 200})
    differs = np.zeros(N, dtype=bool)
    differs[5:315] = True  # misses 5 of the rival's 300, has 15 more
    own |= {f"1/{strength}/vap/wrong": differs for strength in ("paper", "check")}
    found = findings([*rivals, make_run(tmp_path, AMC, {**m0, **own})], "every_column")["paper"]
    assert found.parts[0].verdict == "fails"
    assert found.parts[0].interval.estimate == pytest.approx(-1.0)
    assert found.verdict == "within noise"


def test_what_is_missing_is_named(tmp_path):
    runs = [run for run in adversarial(tmp_path, AT) if run.system != "at_pgm"]
    found = findings([*runs, amc(tmp_path, dict.fromkeys(ATTACKS, 200))], "white_box_gain")["paper"]
    assert (found.verdict, found.missing, found.parts) == ("not measured", ("at_pgm",), ())


def test_a_missing_attack_is_named(tmp_path):
    runs = [*adversarial(tmp_path, AT), amc(tmp_path, {"fgsm": 200, "eap": 200, "pgm": 200})]
    found = findings(runs, "white_box_gain")["check"]
    assert found.missing == (f"{AMC} (white_box, check/vap)",)


def test_digits_are_not_marked(tmp_path):
    runs = [
        *adversarial(tmp_path, AT, dataset="digits"),
        amc(tmp_path, dict.fromkeys(ATTACKS, 200), dataset="digits"),
    ]
    for name in ("white_box_gain", "every_column"):
        found = findings(runs, name)["paper"]
        assert found.verdict == "not marked"
        assert found.parts[0].interval.estimate == pytest.approx(10.0)
        assert {part.verdict for part in found.parts} == {"not marked"}
    assert findings(runs, "order")["paper"].verdict == "not measured"


def test_seeds_are_averaged_by_row(tmp_path):
    """AMC's gain is 20 points with seed 0 and none with seed 1: 10 on average, the interval of the averaged rows."""
    runs = []
    for seed, own in ((0, 100), (1, 300)):
        runs += adversarial(tmp_path, AT, seed=seed)
        runs.append(amc(tmp_path, dict.fromkeys(ATTACKS, own), seed=seed))
    found = findings(runs, "white_box_gain")["paper"]
    assert found.seeds == (0, 1)
    assert found.parts[0].interval.estimate == pytest.approx(10.0)
    # 200 of 1,000 rows differ, by one half each
    half = 196 * np.sqrt(0.2 * 0.25 - 0.1**2) / np.sqrt(N)
    assert found.parts[0].interval.high - found.parts[0].interval.low == pytest.approx(2 * half, rel=0.1)


def test_only_seeds_that_all_systems_have_count(tmp_path):
    runs = [*adversarial(tmp_path, AT, seed=1)]
    runs += [amc(tmp_path, dict.fromkeys(ATTACKS, own), seed=seed) for seed, own in ((0, 100), (1, 300))]
    found = findings(runs, "white_box_gain")["paper"]
    assert (found.seeds, found.parts[0].interval.estimate) == ((1,), pytest.approx(0.0))
    other = findings([runs[-2], *adversarial(tmp_path / "other", AT, seed=3)], "white_box_gain")["paper"]
    assert other.missing == ("a seed that all of them were run with",)


def test_the_best_rival_is_chosen_on_the_other_half(tmp_path):
    """AT(fgsm) is wrong on 200 odd rows, AT(eap) on 199 even ones: each half picks the one that is bad on the other."""
    runs = [run for run in adversarial(tmp_path, AT) if run.system not in ("at_fgsm", "at_eap")]
    for system, first, count in (("at_fgsm", 1, 200), ("at_eap", 0, 199)):
        rows = wrong(0)
        rows[first : 2 * count : 2] = True
        runs.append(make_run(tmp_path / "own", system, {f"1/paper/{attack}/wrong": rows for attack in ATTACKS}))
    found = findings([*runs, amc(tmp_path, dict.fromkeys(ATTACKS, 100))], "white_box_gain")["paper"]
    assert found.parts[0].interval.estimate == pytest.approx(39.9 - 10.0)
    assert found.parts[0].in_sample == pytest.approx(19.9 - 10.0)


@pytest.mark.parametrize(
    "other",
    [
        {"labels": {"labels/attack": (np.arange(N) + 1) % 10}},
        {"labels": {}},
        {"fingerprint": "sha256:other"},
    ],
)
def test_other_rows_are_not_compared(tmp_path, other):
    """Other labels, none on record, or another dataset."""
    runs = [*adversarial(tmp_path, AT), amc(tmp_path, dict.fromkeys(ATTACKS, 200), **other)]
    assert findings(runs, "white_box_gain")["paper"].missing == ("the same rows for all of them",)


def test_check_counts_eap_within_its_radius(tmp_path):
    """AMC is fooled by eap on 800 rows, on 100 of them within the radius."""
    own = keys(1, {**dict.fromkeys(ATTACKS, 300), "eap": 800})
    sizes = np.where(np.arange(N) < 100, 9.0, 11.0).astype(np.float32)
    own |= {f"1/{strength}/eap/l1": sizes for strength in ("paper", "check")}
    m0 = keys(0, dict.fromkeys(ATTACKS, 900))
    runs = [*adversarial(tmp_path, AT), make_run(tmp_path, AMC, {**m0, **own})]
    found = findings(runs, "every_column")
    by_strength = {s: {part.name: part.interval.estimate for part in found[s].parts} for s in found}
    assert by_strength["paper"]["eap"] == pytest.approx(-50.0)
    assert by_strength["check"]["eap@budget"] == pytest.approx(20.0)
    recorded = own | {"1/check/eap@budget/wrong": wrong(150)}  # newer runs keep it, and that is what counts
    runs[-1] = make_run(tmp_path / "newer", AMC, {**m0, **recorded})
    newer = {part.name: part.interval.estimate for part in findings(runs, "every_column")["check"].parts}
    assert newer["eap@budget"] == pytest.approx(15.0)


# --- the other kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "verdict"), [(25, "holds"), (80, "fails"), (40, "within noise")])
def test_near_is_within_the_tolerance(tmp_path, own, verdict):
    """M0 has 1 % clean, the tolerance is 1 point."""
    found = findings([amc(tmp_path, {"clean": own})], "clean_near_undefended")
    assert list(found) == [""]
    assert found[""].verdict == verdict
    assert found[""].parts[0].interval.estimate == pytest.approx((own - 20) / 20)


def test_near_is_under_the_threat_model_that_it_names(tmp_path):
    """Its primary threat model is a black box, where both have 10 %; in a white box AMC has 40, AT 20."""
    models = ("black_box_label", "white_box")
    runs = []
    for system, count in (("amc_without_fgsm", 400), ("at_fgsm", 200)):
        arrays = {**keys(1, {"fgsm": 100}), **keys(1, {"fgsm": count}, threat_model="white_box")}
        runs.append(make_run(tmp_path, system, arrays, threat_models=models))
    found = findings(runs, "unseen_near")["paper"]
    assert found.parts[0].interval.estimate == pytest.approx(20.0)
    only = [make_run(tmp_path / "b", run.system, keys(1, {"fgsm": 100}), threat_models=models[:1]) for run in runs]
    assert findings(only, "unseen_near")["paper"].verdict == "not measured"


def test_the_undefended_model_is_its_own_run_where_there_is_one(tmp_path):
    alone = make_run(tmp_path, "undefended", keys(0, {"clean": 45}), order=())
    found = findings([alone, amc(tmp_path, {"clean": 60})], "clean_near_undefended")[""]
    assert found.parts[0].interval.estimate == pytest.approx(0.75)


def test_m0_is_looked_for_where_it_was_measured(tmp_path):
    """The first run has M0 too, but measured under a black box only."""
    other = make_run(tmp_path, "at_fgsm_proxy", keys(0, {"fgsm": 700}), threat_models=("black_box_label",))
    m0 = keys(0, {"fgsm": 900})
    run = make_run(tmp_path, "amc_without_fgsm", {**m0, **keys(1, {"fgsm": 100})})
    found = findings([other, run], "unseen_undefended")["paper"]
    assert found.parts[0].interval.estimate == pytest.approx(80.0)


def test_no_spill_fails_where_one_pair_gains(tmp_path):
    none = {f"at_{name}": {**dict.fromkeys(ATTACKS, 900), name: 100} for name in ATTACKS}
    found = findings(adversarial(tmp_path, none), "no_spill")["paper"]
    assert (found.verdict, len(found.parts)) == ("holds", 12)
    one = {**none, "at_pgm": {**none["at_pgm"], "fgsm": 500}}
    found = findings(adversarial(tmp_path / "one", one), "no_spill")["paper"]
    assert (found.verdict, found.parts[0].name) == ("fails", "at_pgm under fgsm")
    assert found.parts[0].interval.estimate == pytest.approx(40.0)


def test_three_interfaces_must_all_hold(tmp_path):
    models = ("black_box_label", "black_box_noisy_label", "black_box_probabilities")

    def arrays(counts):
        first, *others = counts
        found = keys(1, dict.fromkeys(ATTACKS, first))
        for model, count in zip(models[1:], others, strict=True):
            found |= keys(1, dict.fromkeys(ATTACKS, count), threat_model=model)
        return found

    rivals = [
        make_run(tmp_path, f"at_{name}_proxy", arrays((200 + 100 * i, 300, 300)), threat_models=models)
        for i, name in enumerate(ATTACKS)
    ]
    own = make_run(tmp_path, "amc_local_proxy", arrays((250, 200, 200)), threat_models=models)
    found = findings([*rivals, own], "three_interfaces")["check"]
    estimates = {part.name: part.interval.estimate for part in found.parts}
    assert estimates == pytest.approx(dict(zip(models, (10.0, 10.0, 10.0), strict=True)))  # over the average rival
    assert found.verdict == "holds"
    assert findings([*rivals, own], "black_box_gain")["paper"].parts[0].interval.estimate == pytest.approx(-5.0)
    worse = make_run(tmp_path / "worse", "amc_local_proxy", arrays((250, 200, 400)), threat_models=models)
    found = findings([*rivals, worse], "three_interfaces")["check"]
    assert (found.verdict, found.parts[0].name) == ("fails", "black_box_probabilities")


def test_every_stage_has_to_be_better(tmp_path):
    counts = (900, 500, 300, 400)
    arrays = {}
    for index, count in enumerate(counts):
        arrays |= keys(index, dict.fromkeys(ATTACKS, count))
    run = make_run(tmp_path, AMC, arrays, order=("fgsm", "vap", "eap"))
    found = findings([run], "every_stage")["paper"]
    assert found.verdict == "fails"
    assert [(part.name, round(part.interval.estimate)) for part in found.parts] == [
        ("2 vap to 3 eap", -10), ("1 fgsm to 2 vap", 20), ("M0 to 1 fgsm", 40),
    ]  # fmt: skip


SQUEEZINGS = {
    ADAPTIVE: Squeezing("bit_depth_1", {}, True),
    POST_HOC: Squeezing("bit_depth_1", {}, False),
    "squeezed/median_2/adaptive": Squeezing("median_2", {}, True),
    "squeezed/median_2/post_hoc": Squeezing("median_2", {}, False),
}


ONE = {name: found for name, found in SQUEEZINGS.items() if found.name == "bit_depth_1"}


def squeezed(folder, adaptive, post_hoc, squeezings=ONE, *, post_hoc_start=0, median=0):
    """AMC is fooled on 400 rows of 1,000 on average by eap and pgm, on 900 by the stronger ones."""
    strengths = ("paper", "check", "stronger")
    arrays = keys(1, {"eap": 500, "pgm": 300}, strengths=("paper", "check"))
    arrays |= keys(1, {"eap": 900, "pgm": 900}, strengths=("stronger",))
    medians = [(name, median, 0) for name, found in SQUEEZINGS.items() if found.name == "median_2"]
    for threat_model, count, start in ((ADAPTIVE, adaptive, 0), (POST_HOC, post_hoc, post_hoc_start), *medians):
        errors = {"eap": count, "pgm": count}
        arrays |= keys(1, errors, threat_model=threat_model, strengths=strengths, start=start)
    return make_run(folder, AMC, arrays, squeezings=squeezings)


def numbers(part):
    """The estimates of a squeezing: either way, then each by itself."""
    return {"": part.interval.estimate, **{one.name: one.interval.estimate for one in part.beside}}


def test_squeezing_is_judged_either_way_and_shown_both_ways(tmp_path):
    runs = [squeezed(tmp_path, 500, 100)]
    found = findings(runs, "squeezing_seen")["paper"]
    (part,) = found.parts
    assert (part.name, found.verdict, found.words) == ("bit_depth_1", "fails", "")
    assert numbers(part) == pytest.approx({"": -10.0, "adaptive": -10.0, "post hoc": 30.0})
    stronger = findings(runs, "squeezing_stronger")["paper"]
    assert numbers(stronger.parts[0]) == pytest.approx({"": 40.0, "adaptive": 40.0, "post hoc": 80.0})
    assert stronger.verdict == "holds"
    more = findings(runs, "squeezing_mostly_stronger")["check"]
    assert numbers(more.parts[0]) == pytest.approx({"": 50.0, "adaptive": 50.0, "post hoc": 50.0})


def test_a_row_that_only_the_examples_squeezed_afterwards_fool_counts(tmp_path):
    """Adaptive fools rows 0 to 99, post hoc 300 to 599: each lowers the 40 % of AMC, either way is as bad as AMC."""
    run = squeezed(tmp_path, 100, 300, post_hoc_start=300)
    found = findings([run], "squeezing_seen")["paper"]
    assert numbers(found.parts[0]) == pytest.approx({"": 0.0, "adaptive": 30.0, "post hoc": 10.0})
    assert [one.verdict for one in found.parts[0].beside] == ["holds", "holds"]
    assert found.verdict == "within noise"
    assert found.words == (
        "bit_depth_1: under paper/eap, paper/pgm adaptive is below post hoc: the adaptive attack did not do its best "
        "there."
    )


def test_every_squeezing_has_its_part_and_one_is_enough(tmp_path):
    """bit_depth_1 makes it worse, median_2 better."""
    run = squeezed(tmp_path, 500, 100, SQUEEZINGS, median=200)
    found = findings([run], "squeezing_seen")["paper"]
    assert [(part.name, part.verdict) for part in found.parts] == [("median_2", "holds"), ("bit_depth_1", "fails")]
    assert (found.verdict, found.rule) == ("holds", "any")
    text = claims_of(run)
    assert "**holds**<br>median_2, either way: holds: +20.0 (" in text
    assert "<br>bit_depth_1, either way: fails: -10.0 (" in text
    assert findings([squeezed(tmp_path / "b", 500, 100, SQUEEZINGS, median=600)], "squeezing_seen")[
        "paper"
    ].verdict == ("fails")


def claims_of(run):
    every = Runs((run,))
    (dataset,) = every.datasets
    return claims_text(every, CLAIMS, {dataset: check_claims(every.of(dataset), dataset, CLAIMS, resamples=200)}, 200)


def test_a_squeezing_without_its_adaptive_attack_is_not_measured(tmp_path):
    run = squeezed(tmp_path, 500, 100, {POST_HOC: SQUEEZINGS[POST_HOC]})
    found = findings([run], "squeezing_seen")["paper"]
    assert (found.verdict, found.parts) == ("not measured", ())


def test_the_cost_is_that_of_four_trainings_from_scratch(tmp_path):
    rivals = [
        make_run(tmp_path, f"at_{name}", {}, stages=(stage(0, "undefended"), stage(1, name, passes=20.0)))
        for name in ATTACKS
    ]
    order = ("fgsm", "vap", "eap", "pgm")
    stages = (stage(0, "undefended"), *(stage(i, name, passes=24.0) for i, name in enumerate(order, 1)))
    own = make_run(tmp_path, AMC, {}, stages=stages, order=order)
    found = findings([*rivals, own], "faster")[""]
    assert (found.verdict, found.unit) == ("holds", "ratio")
    assert [(part.name, part.interval.estimate) for part in found.parts] == [
        ("M0 counted for AMC too", pytest.approx(106 / 120)), ("on top of a trained M0", pytest.approx(96 / 120)),
    ]  # fmt: skip
    assert found.words == (
        "96 passes (4.0 minutes), with M0 106 (5.0), against 120 (8.0 minutes); largely by construction: 1 epoch in "
        "each stage of both"
    )
    dear = (stages[0], *(replace(one, passes_per_image=29.0) for one in stages[1:]))
    found = findings([*rivals, make_run(tmp_path / "dear", AMC, {}, stages=dear, order=order)], "faster")[""]
    assert [part.verdict for part in found.parts] == ["fails", "holds"]  # 126 and 116 of 120
    assert found.verdict == "fails"


@pytest.mark.parametrize(("own", "verdict"), [(61_706, "holds"), (123_412, "fails"), (None, "not measured")])
def test_one_network_of_the_same_size(tmp_path, own, verdict):
    alone = make_run(tmp_path, "undefended", {}, order=(), weights=61_706)
    found = findings([alone, make_run(tmp_path, AMC, {}, weights=own)], "no_overhead")[""]
    assert found.verdict == verdict
    assert ("by construction" in found.words) == (own is not None)


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_page_and_its_numbers(tmp_path):
    runs = [*adversarial(tmp_path, AT), amc(tmp_path, {**dict.fromkeys(ATTACKS, 200), "clean": 25}, limit=20_000)]
    paths = write_claims(Runs(tuple(runs)), tmp_path / "out", resamples=1000)
    assert [path.name for path in paths] == ["claims.md", "claims.csv"]
    text = paths[0].read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| Attacked in a white box, AMC is better")]
    assert "6.225<br>its tables: 6.275" in line
    assert re.search(
        r"\*\*holds\*\*<br>\+10\.0 \(\+\S+ to \+\S+\)<br>best chosen on the same images: \+10\.0<br>n = 1,000", line
    )
    assert "| AT | 20,000 | 1 | 1 | - | - | - | paper |" in text
    assert "a percentile bootstrap over rows (1,000 resamples)" in text
    assert "One seed (0): an interval covers the choice of images only" in text
    assert "Training images: 20,000, fewer than there are (dataset.limit)" in text
    assert "not measured: amc_reverse" in text
    assert "printed 6.225, its tables give 6.275" in text
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert {row["claim"] for row in rows} == {claim.id for claim in read_claims().every}
    (row,) = [r for r in rows if (r["claim"], r["strength"]) == ("white_box_gain", "paper")]
    assert (row["estimate"], row["verdict"], row["paper"], row["paper_recomputed"]) == ("10", "holds", "6.225", "6.275")
    assert row["in_sample"] == "10"
    assert float(row["low"]) < 10 < float(row["high"])


def test_the_same_runs_give_the_same_bytes(tmp_path):
    runs = Runs((*adversarial(tmp_path, AT), amc(tmp_path, dict.fromkeys(ATTACKS, 200))))
    first, second = (
        [path.read_bytes() for path in write_claims(runs, tmp_path / name, resamples=300)] for name in "ab"
    )
    assert first == second


def test_seeds_stand_on_the_page(tmp_path):
    runs = []
    for seed in (0, 1, 2):
        runs += [*adversarial(tmp_path, AT, seed=seed), amc(tmp_path, dict.fromkeys(ATTACKS, 200), seed=seed)]
    text = write_claims(Runs(tuple(runs)), tmp_path / "out", resamples=300)[0].read_text()
    assert "Averaged over the seeds that all systems of a claim have: 0 1 2." in text
    assert "One seed" not in text


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_has_the_paper_s_numbers():
    claims = {claim.id: claim for claim in read_claims().every}
    assert claims["white_box_gain"].paper == {"mnist": 6.225, "svhn": 5.075, "cifar10": 2.65}
    assert claims["black_box_gain"].paper == {"mnist": 0.45, "svhn": 6.25, "cifar10": 2.7}
    assert claims["squeezing_seen"].paper == {"mnist": 2.65, "svhn": 8.9, "cifar10": 8.8}
    assert claims["squeezing_stronger"].paper == {"mnist": 68.9, "svhn": 56.25, "cifar10": 58.2}
    assert claims["white_box_gain"].recomputed == {"mnist": 6.275, "svhn": 4.825}
    assert claims["black_box_gain"].recomputed == {"cifar10": 3.125}
    assert read_claims().marked == ("mnist", "svhn", "cifar10")


def test_every_kind_is_used_and_reckoned():
    assert {claim.kind for claim in read_claims().every} == set(KINDS) == set(ROW_KINDS) | set(COST_KINDS)


def change(entry, **kwargs):
    return {**entry, **kwargs}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: {k: v for k, v in c.items() if k != "where"}, r"claims\.white_box_gain\.where: None is missing"),
        (
            lambda c: change(c, kind="gains"),
            r"claims\.white_box_gain\.kind: 'gains' is not a kind of check; known: ",
        ),
        (lambda c: change(c, numbers={}), r"claims\.white_box_gain\.numbers: \{\} is not a field; known: arguments"),
        (lambda c: change(c, paper={"mnist": "6"}), r"claims\.white_box_gain\.paper\.mnist: '6' is not what stands"),
        (lambda c: change(c, paper=[1]), r"claims\.white_box_gain\.paper: \[1\] is no table"),
        (lambda c: change(c, arguments={}), r"arguments: \[\] are not those of gain; needed: system, rivals, over"),
        (
            lambda c: change(c, arguments=change(c["arguments"], over="worst")),
            r"claims\.white_box_gain\.arguments\.over: 'worst' .* expected: best or average",
        ),
        (
            lambda c: change(c, arguments=change(c["arguments"], attacks=["pgd"])),
            r"arguments\.attacks: \['pgd'\] .* expected: a list of attacks \(fgsm, eap, pgm, vap\), or \[clean\]",
        ),
        (lambda c: "text", r"claims\[0\]: 'text' is no claim"),
    ],
)
def test_a_bad_entry_is_one_clear_message(tmp_path, edit, message):
    raw = copy.deepcopy(RAW)
    raw["claims"][0] = edit(raw["claims"][0])
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=message):
        read_claims(path)


def test_an_id_stands_once(tmp_path):
    raw = copy.deepcopy(RAW)
    raw["claims"].append(raw["claims"][3])
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="'three_interfaces' stands there twice"):
        read_claims(path)


@pytest.mark.parametrize("text", ["[", "- a", "claims: {}\nmarked: [mnist]"])
def test_a_file_that_is_no_list_of_claims(tmp_path, text):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"cannot be read|is no list of claims"):
        read_claims(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_claims(tmp_path / "absent.yaml")
