"""Which decisive checks a run fails, as far as its files tell, and what is set in bold then."""

import json

import pytest

from amc_lightning.errors import UserError
from amc_lightning.referee import Finding, Report, Status, ThreatModel
from amc_lightning.report import parse_results
from amc_lightning.report.bold import marks
from amc_lightning.report.decisive import decisive, end_radius
from tests.report.conftest import results, wilson

SIZES = {"fgsm": {"linf": 0.1}, "vap": {"l2": 5.0}, "pgm": {"linf": 0.3}}


def run(also=lambda raw: raw, **sizes):
    """A run of AMC whose attacks keep their budgets, and whose undefended model every row of is fooled."""
    raw = results(("fgsm", "pgm"), ("fgsm", "vap", "eap", "pgm"), (1, 28, 28))
    for stage in raw["stages"]:
        for strength in ("paper", "check"):
            for attack, norms in {**SIZES, **sizes}.items():
                stage["evaluations"]["white_box"][strength][attack]["norms"] = {
                    norm: {"median": size, "max": size} for norm, size in norms.items()
                }
    return also(raw) or raw


def rates(raw, stage=-1):
    return raw["stages"][stage]["evaluations"]["white_box"]


def found(raw, **given):
    return dict(decisive(parse_results(raw), **given))


def stronger(raw, wrong, n=200, attack="pgm", **parameters):
    """Add an attack of strength stronger."""
    rates(raw)["stronger"] = {attack: wilson(wrong, n)}
    raw["attacks"]["white_box"]["stronger"] = {attack: parameters}
    return raw


def test_a_run_without_a_fault_fails_nothing():
    assert found(run()) == {}


@pytest.mark.parametrize(
    ("attack", "norm", "size", "fails"),
    [
        ("pgm", "linf", 0.3 * (1 + 1e-6), False),
        ("pgm", "linf", 0.30000004172325134, False),  # as float32 has it
        ("pgm", "linf", 0.301, True),
        ("fgsm", "linf", 0.10000002384185791, False),
        ("fgsm", "linf", 0.2, True),
        ("vap", "l2", 5.000003, False),
        ("vap", "l2", 5.001, True),
        ("vap", "linf", 1.0, False),  # its radius is in l2
        ("eap", "linf", 1.0, False),  # it has none
    ],
)
def test_e4_a_perturbation_beyond_the_radius(attack, norm, size, fails):
    failed = found(run(**{attack: {norm: size}}))
    assert list(failed) == (["E4"] if fails else [])
    if fails:
        assert f"{attack} (paper) moved an image by {size:.6g} in" in failed["E4"]


@pytest.mark.parametrize("eps", [0.5, 0.6])
def test_e9_better_than_guessing_where_every_image_can_be_grey(eps):
    failed = found(stronger(run(), 100, eps=eps))
    assert list(failed) == ["E8", "E9"]  # 50 % wrong where guessing is wrong on 90 %
    assert failed["E9"] == (
        f"pgm (stronger) at l-inf {eps:g}, from where every image can be turned into the same grey one, leaves 50.0 % "
        "wrong (43.1-56.9), fewer than guessing (90.0 %)"
    )


@pytest.mark.parametrize(
    ("wrong", "parameters"),
    [
        (172, {"eps": 0.6}),  # 86 %, interval up to 90.1: may be chance
        (200, {"eps": 0.6}),
        (100, {"eps": 0.49}),
        (100, {"eps": 0.6, "norm": "l2"}),
        (100, {}),
        (100, {"eps": None}),
    ],
)
def test_e9_says_nothing_of_what_may_be_chance_or_is_not_on_record(wrong, parameters):
    assert found(stronger(run(), wrong, **parameters)) == {}


def test_e9_the_most_harmful_attack_of_a_radius_counts():
    raw = stronger(run(), 100, attack="fgsm", eps=0.6)
    rates(raw)["stronger"]["pgm"] = wilson(195, 200)
    raw["attacks"]["white_box"]["stronger"]["pgm"] = {"eps": 0.6}
    assert found(raw) == {}


def test_random_noise_has_to_reach_nothing():
    assert found(stronger(run(), 10, attack="noise", eps=0.6, norm="linf")) == {}


@pytest.mark.parametrize(
    ("norm", "eps", "fails"), [("l2", 14.0, True), ("l2", 13.9, False), ("l1", 392.0, True), ("l1", 391.0, False)]
)
def test_e8_the_largest_radius_in_any_norm(norm, eps, fails):
    """28 x 28 pixels: the grey image lies within 0.5 x 28 in l2, 0.5 x 784 in l1."""
    assert end_radius(norm, 784) == {"l2": 14.0, "l1": 392.0}[norm]
    failed = found(stronger(run(), 100, attack=f"pgd_{norm}", eps=eps))
    assert list(failed) == (["E8"] if fails else [])


def test_e24_an_undefended_model_that_the_attacks_do_not_break():
    raw = run()
    rates(raw, 0)["check"]["worst"] = wilson(100, 140)
    assert found(raw) == {
        "E24": "the attacks leave the undefended model too good: 71.4 % wrong in the worst case at strength check "
        "(63.5-78.3), where 95 % are asked for"
    }
    rates(raw, 0)["check"]["worst"] = wilson(131, 140)  # 93.6 %, interval 88.2-96.6: may be 95
    assert found(raw) == {}


@pytest.mark.parametrize("what", ["not measured", "given weights", "no worst case"])
def test_e24_without_an_undefended_model_nothing_is_said(what):
    raw = run()
    rates(raw, 0)["check"]["worst"] = wilson(70, 140)
    if what == "not measured":
        raw["stages"][0]["evaluations"] = {}
    elif what == "given weights":
        raw["stages"][0]["steps"] = 0
    else:
        del rates(raw, 0)["check"]["worst"]
    assert found(raw) == {}


def test_e24_the_undefended_model_of_another_run_counts_if_it_was_attacked_in_the_same_way():
    raw, other = run(), run()
    raw["stages"][0]["evaluations"] = {}
    rates(other, 0)["check"]["worst"] = wilson(70, 140)
    assert list(found(raw, undefended=[parse_results(other)])) == ["E24"]
    other["attacks"]["white_box"]["check"]["pgm"]["nb_iter"] = 7
    assert found(raw, undefended=[parse_results(other)]) == {}
    other = {**run(), "dataset": {**raw["dataset"], "fingerprint": "sha256:other"}}
    rates(other, 0)["check"]["worst"] = wilson(70, 140)
    assert found(raw, undefended=[parse_results(other)]) == {}


def test_a_run_whose_last_model_was_not_measured_says_nothing_of_it():
    raw = stronger(run(), 100, eps=0.6)
    raw["stages"].append({**raw["stages"][-1], "index": 3, "evaluations": {}})
    assert found(raw) == {}


def diagnosed(folder, *checks):
    Report(
        model="LeNet",
        threat_model=ThreatModel("linf", 0.3),
        level="quick",
        rows=8,
        findings=[Finding(check, "title", Status(status), "It is so.") for check, status in checks],
    ).save(folder)


def test_a_diagnosis_counts_too(tmp_path):
    assert found(run(), folder=tmp_path) == {}
    diagnosed(tmp_path, ("E8", "FAIL"), ("E9", "WARN"), ("E22", "FAIL"))
    assert found(run(), folder=tmp_path) == {"E8": "diagnosed: It is so"}


def test_a_squeezed_model_has_a_diagnosis_of_its_own(tmp_path):
    raw = run()
    for stage in raw["stages"]:
        stage["evaluations"]["squeezed/bits/adaptive"] = stage["evaluations"]["white_box"]
    raw["threat_models"].append("squeezed/bits/adaptive")
    raw["attacks"]["squeezed/bits/adaptive"] = raw["attacks"]["white_box"]
    raw["squeezings"] = {"squeezed/bits/adaptive": {"name": "bits", "settings": {}, "adaptive": True}}
    diagnosed(tmp_path, ("E8", "FAIL"))
    diagnosed(tmp_path / "diagnoses" / "bits", ("E9", "FAIL"))
    known = parse_results(raw)
    assert list(decisive(known, folder=tmp_path)) == ["E8"]
    assert list(decisive(known.under("squeezed/bits/adaptive"), folder=tmp_path)) == ["E9"]


def test_a_damaged_diagnosis_is_named(tmp_path):
    (tmp_path / "diagnosis.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match=r"diagnosis\.json"):
        found(run(), folder=tmp_path)


# --- Bold ------------------------------------------------------------------------------------------------------------


def test_the_best_of_each_column_is_bold_unless_its_run_proves_nothing():
    known = marks(
        ["a", "b", "c"],
        ["first", "second", "tie", "all tie", "alone"],
        [[1.0, 5.0, 2.0, 4.0, 1.0], [2.0, 4.0, 2.0, 4.0, None], [3.0, 3.0, 6.0, 4.0, None]],
        [{}, {}, {"E8": "too good", "E9": "impossible"}],
    )
    assert known.bold == {(0, 0), (0, 2), (1, 2)}
    assert known.notes[1:] == ("Not in bold: c (second) E8: too good.", "Not in bold: c (second) E9: impossible.")


def test_rows_that_fail_for_the_same_reason_share_a_note():
    failed = {"E24": "weak"}
    known = marks(["a", "b"], ["first", "second"], [[1.0, 5.0], [2.0, 4.0]], [failed, failed])
    assert not known.bold
    assert known.notes[1:] == ("Not in bold: a (first); b (second) E24: weak.",)


def test_one_row_alone_is_not_the_best():
    assert marks(["a"], ["first"], [[1.0]], [{}]).notes == ()
