"""E26 to E30, E32: the evaluation behind the claim."""

import dataclasses
import hashlib

import pytest
import torch
from torch import nn

from amc_lightning.referee import Provenance, Status, ThreatModel, row_hashes
from amc_lightning.referee.case import Case
from amc_lightning.referee.trail import (
    artefacts,
    labels,
    selection,
    statistics,
    unbounded_attacks,
    unseen_attacks,
)
from amc_lightning.referee.unseen import radius_in
from tests.referee.conftest import EPS, SMALL, THREAT


def case_of(model, rows, *, threat=THREAT, **told):
    return Case(model, *rows, threat, SMALL, provenance=Provenance(**told))


def record(**strengths):
    return {
        "stages": [{"index": 1, "name": "fgsm", "evaluations": {"white_box": {"clean": {"error": 1.0}, **strengths}}}]
    }


class Mean(nn.Module):
    """Two classes by the mean of the image: nothing that leaves the mean as it is changes an answer."""

    def forward(self, x):
        bright = 40 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-bright, bright], 1)


# --- E26 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "like", "eps", "expected"),
    [("l1", "linf", 0.3, 14.7), ("linf", "l2", 2.1, 0.3), ("l1", "l2", 2.1, 14.7), ("linf", "linf", 0.3, 0.3),
     ("linf", "l2", 70.0, 1.0)],
)  # fmt: skip
def test_radii_go_with_each_other(norm, like, eps, expected):
    assert radius_in(norm, like=like, eps=eps, dim=784) == pytest.approx(expected)


def test_unseen_attacks_are_measured(sound, rows):
    found = unseen_attacks(case_of(sound, rows))
    errors = found.details["errors"]
    assert found.check == "E26"
    assert found.status in (Status.PASS, Status.WARN)
    assert found.details["n"] == SMALL.curve_rows
    assert list(errors) == [
        "rotation and shift", "Gaussian noise", "brightness", "contrast", "PGD, l2 0.2", "PGD, l1 0.4",
    ]  # fmt: skip
    assert found.number == max(errors.values())
    assert all(error >= found.details["clean"] for error in errors.values())


def test_harm_outside_the_claim_is_a_warning():
    """Brightness 0.2 turns every image of mean 0.4 or 0.6; the claim's 0.01 none."""
    means = torch.tensor([0.4, 0.6]).repeat(24)
    x = means.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    case = case_of(Mean(), (x, (means > 0.5).long()), threat=ThreatModel("linf", 0.01))
    found = unseen_attacks(case)
    assert found.status == Status.WARN
    assert found.details["errors"]["brightness"] == 100.0
    assert found.details["errors"]["rotation and shift"] == 0.0
    assert "brightness" in found.meaning
    assert "brightness" in found.advice


# --- E27 -------------------------------------------------------------------------------------------------------------


def test_an_unbounded_attack_is_reported_by_distance():
    """A mean of 0.6 is 0.1 from the boundary in l-inf, and 0.1 * 8 in l2; DeepFool oversteps by 2 %."""
    x = torch.full((16, 1, 8, 8), 0.6)
    found = unbounded_attacks(case_of(Mean(), (x, torch.ones(16, dtype=torch.int64))))
    assert (found.check, found.status) == ("E27", Status.PASS)
    assert found.number == pytest.approx(0.102, rel=1e-3)
    assert found.details["quantiles"]["l2"]["0.9"] == pytest.approx(0.816, rel=1e-3)
    assert (found.details["fooled"], found.details["right"], found.details["error_at_budget"]) == (16, 16, 0.0)


@pytest.mark.parametrize(
    ("members", "status"),
    [
        ({"eap": {"error": 5.0}}, Status.FAIL),
        ({"eap": {"error": 5.0, "quantiles": {}}}, Status.WARN),
        ({"eap": {"error": 5.0}, "eap@budget": {"error": 1.0}}, Status.WARN),
        ({"eap": {"error": 5.0, "quantiles": {}}, "eap@budget": {"error": 1.0}}, Status.PASS),
        ({"pgm": {"error": 5.0}, "worst": {"error": 6.0}}, Status.PASS),
    ],
)
def test_a_bare_success_rate_is_none(sound, rows, members, status):
    found = unbounded_attacks(case_of(sound, rows, record=record(paper=members)))
    assert found.status == status
    assert status != Status.FAIL or "1 fgsm under white_box, paper eap" in found.meaning


# --- E28 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (None, Status.PASS),
        ({"attacks": {"white_box": {"paper": {"pgm": {}}, "predicted": {"pgm": {}}}}}, Status.PASS),
        ({"attacks": {"white_box": {"predicted": {"pgm": {}}}}}, Status.FAIL),
        (record(predicted={"pgm": {"error": 1.0}}), Status.FAIL),
        (record(predicted={"pgm": {"error": 1.0}}, check={"pgm": {"error": 1.0}}), Status.PASS),
    ],
)
def test_true_labels_count(sound, rows, told, status):
    found = labels(case_of(sound, rows, record=told))
    assert (found.check, found.status) == ("E28", status)


def test_predicted_labels_are_a_named_mode(sound, rows):
    case = case_of(sound, rows, threat=ThreatModel("linf", EPS, labels="predicted"))
    assert labels(case).status == Status.WARN


# --- E29 -------------------------------------------------------------------------------------------------------------


def test_few_images_and_seeds_are_a_warning(sound, rows):
    found = statistics(case_of(sound, rows, seeds=1))
    assert (found.check, found.status, found.number, found.unit) == ("E29", Status.WARN, 96, "rows")
    assert "96 images (fewer than 1,000) and 1 seed:" in found.meaning
    assert found.details["low"] < found.details["error"] < found.details["high"]


def test_enough_images_and_seeds_pass():
    x = torch.rand(1000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    case = case_of(Mean(), (x, (x.flatten(1).mean(1) > 0.5).long()), seeds=3)
    assert statistics(case).status == Status.PASS
    assert statistics(dataclasses.replace(case, provenance=Provenance(seeds=2))).status == Status.WARN


# --- E30 -------------------------------------------------------------------------------------------------------------


def test_test_data_used_for_choosing_is_found(sound, rows):
    found = selection(case_of(sound, rows, picked="best", chosen_on=row_hashes(rows[0])))
    assert (found.check, found.status, found.number) == ("E30", Status.FAIL, 96)
    assert "chosen on" in found.meaning


def test_test_data_trained_on_is_found(sound, digits, rows):
    both = torch.cat([digits[0], rows[0][:40]])
    found = selection(case_of(sound, rows, trained_on=row_hashes(both), chosen_on=row_hashes(digits[2][200:])))
    assert found.status == Status.FAIL
    assert (found.details["rows_trained_on"], found.details["rows_chosen_on"]) == (40, 0)


def test_images_of_their_own_pass(sound, digits, rows):
    told = {"picked": "best", "chosen_on": row_hashes(digits[2][200:]), "trained_on": row_hashes(digits[0])}
    found = selection(case_of(sound, rows, **told))
    assert (found.status, found.number) == (Status.PASS, 0)
    assert "nobody said" not in found.meaning
    half = selection(case_of(sound, rows, trained_on=row_hashes(digits[0])))
    assert half.meaning.endswith("trained on; on which it was chosen nobody said.")


@pytest.mark.parametrize(("copies", "status"), [(0, Status.PASS), (1, Status.WARN), (2, Status.FAIL)])
def test_a_copy_or_two_is_chance(copies, status):
    """Of 150 different rows 1 % is one and a half."""
    x = (torch.arange(150).view(-1, 1, 1, 1) / 255).expand(-1, 1, 2, 2).contiguous()
    case = case_of(Mean(), (x, torch.zeros(150, dtype=torch.int64)), trained_on=row_hashes(x[:copies]))
    found = selection(case)
    assert (found.status, found.number) == (status, copies)


def test_the_best_epoch_of_who_knows_what(sound, rows):
    assert selection(case_of(sound, rows, picked="best")).status == Status.WARN
    assert selection(case_of(sound, rows, picked="best", trained_on=frozenset())).status == Status.WARN
    assert selection(case_of(sound, rows)).status == Status.NOT_RUN


def test_bytes_and_their_floats_have_one_hash():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = hashlib.sha256(bytes(range(256))).hexdigest()
    assert row_hashes(pixels) == row_hashes(pixels.float() / 255) == {expected}


# --- E32 -------------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(sound, rows):
    found = artefacts(case_of(sound, rows))
    assert (found.check, found.status, found.number) == ("E32", Status.WARN, 2)
    assert "config and command are missing" in found.meaning
    assert "torch" in found.details["made"]["versions"]
    assert set(found.details["made"]) == {"seed", "versions", "weights", "examples"}
    again = artefacts(case_of(sound, rows))
    assert again.details["made"] == found.details["made"]


def test_all_there_passes(sound, rows):
    found = artefacts(case_of(sound, rows, artefacts={"config": "config.yaml", "command": "python claim.py"}))
    assert (found.status, found.number, found.advice) == (Status.PASS, 0, "")
    one = artefacts(case_of(sound, rows, artefacts={"config": "", "command": "python claim.py"}))
    assert one.details["missing"] == ["config"]
