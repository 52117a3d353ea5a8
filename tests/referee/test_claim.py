"""E1, E2, E3, E5: the claim itself."""

import pytest
import torch
from torch import nn

from amc_lightning.referee import Provenance, Status, ThreatModel
from amc_lightning.referee.case import Case
from amc_lightning.referee.claim import clean_error, same_object, stated_threat_model, worst_case
from amc_lightning.referee.pipeline import pipeline_hash
from amc_lightning.referee.probabilities import LogProbabilities
from tests.referee.conftest import EPS, SMALL, THREAT, network


def case_of(model, rows, *, threat=THREAT, **more):
    return Case(model, *rows, threat, SMALL, **more)


def dots(*values):
    """Images of one pixel; ``Threshold`` answers 1 above a half."""
    return torch.tensor(values).view(-1, 1, 1, 1)


class Threshold(nn.Module):
    """Two classes of one pixel: bright and dark."""

    def forward(self, x):
        bright = x.flatten(1).sum(1) - 0.5
        return torch.stack([-bright, bright], 1)


def rate(error):
    return {"n": 10, "wrong": error / 10, "error": error}


def record(**strengths):
    block = {"clean": rate(0.0), **strengths}
    return {"stages": [{"index": 1, "name": "fgsm", "evaluations": {"white_box": block}}]}


# --- E1 --------------------------------------------------------------------------------------------------------------


def test_a_threat_model_is_stated_in_a_sentence(undefended, rows):
    found = stated_threat_model(case_of(undefended, rows))
    assert (found.check, found.status) == ("E1", Status.PASS)
    assert "l-inf radius 0.1 in pixel units of [0, 1]" in found.meaning
    assert found.details["eps"] == EPS
    assert found.details["box"] == [0.0, 1.0]


@pytest.mark.parametrize(("queries", "status"), [(None, Status.WARN), (500, Status.PASS)])
def test_a_black_box_says_how_many_queries(undefended, rows, queries, status):
    threat = ThreatModel("linf", EPS, knowledge="black_box", queries=queries)
    assert stated_threat_model(case_of(undefended, rows, threat=threat)).status == status


# --- E2 --------------------------------------------------------------------------------------------------------------


def test_the_hash_is_over_weights_buffers_and_structure():
    def batch_norm():
        return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = batch_norm()
    same = batch_norm()
    same.load_state_dict(net.state_dict())
    assert pipeline_hash(same) == pipeline_hash(net) == pipeline_hash(LogProbabilities(net))
    same[1].running_mean[0] += 1
    assert pipeline_hash(same) != pipeline_hash(net)
    assert pipeline_hash(nn.Sequential(*net, nn.ReLU())) != pipeline_hash(net)
    assert pipeline_hash(nn.Sequential(nn.Flatten(), nn.ReLU())) != pipeline_hash(
        nn.Sequential(nn.Flatten(), nn.GELU())
    )


def test_the_deployed_object_is_named(sound, rows):
    case = case_of(sound, rows, provenance=Provenance(pipeline=pipeline_hash(sound)))
    case.attempt(case.attack("pgd"))
    found = same_object(case)
    assert (found.check, found.status, found.advice) == ("E2", Status.PASS, "")


def test_nobody_named_it(sound, rows):
    found = same_object(case_of(sound, rows))
    assert found.status == Status.WARN
    assert found.details["pipeline"] == pipeline_hash(sound)


def test_another_object_was_attacked(sound, rows):
    deployed = nn.Sequential(nn.AvgPool2d(1), sound)
    found = same_object(case_of(sound, rows, provenance=Provenance(pipeline=pipeline_hash(deployed))))
    assert found.status == Status.FAIL
    assert "another object" in found.meaning


def test_a_model_that_changed_meanwhile_is_noticed(rows):
    net = network()
    case = case_of(net, rows)
    with torch.no_grad():
        net[0].bias.add_(1)
    found = same_object(case)
    assert found.status == Status.FAIL
    assert "changed while it was examined" in found.meaning


# --- E3 --------------------------------------------------------------------------------------------------------------


def test_the_clean_error_has_its_interval():
    case = case_of(Threshold(), (dots(0.9, 0.1, 0.9, 0.1, *[0.9] * 16), torch.tensor([1, 0, 0, 0, *[1] * 16])))
    found = clean_error(case)
    assert (found.check, found.status, found.number, found.unit) == ("E3", Status.PASS, 5.0, "%")
    assert found.details["low"] < 5.0 < found.details["high"]


def test_a_model_that_guesses_has_nothing_to_lose(rows):
    images, classes = rows
    found = clean_error(case_of(network(3), (images, classes)))
    assert found.status == Status.WARN
    assert "guessing" in found.meaning


def test_a_record_without_the_clean_error_is_named(sound, rows):
    bare = {"stages": [{"index": 1, "name": "fgsm", "evaluations": {"white_box": {"paper": {"pgm": rate(10.0)}}}}]}
    found = clean_error(case_of(sound, rows, provenance=Provenance(record=bare)))
    assert found.status == Status.WARN
    assert "1 fgsm under white_box" in found.meaning
    assert clean_error(case_of(sound, rows, provenance=Provenance(record=record()))).status == Status.PASS


# --- E5 --------------------------------------------------------------------------------------------------------------


def brighter(model, x, y):
    return (x + 0.1).clamp(0, 1)


def darker(model, x, y):
    return (x - 0.1).clamp(0, 1)


def far(model, x, y):
    return (x < 0.5).float()


def test_a_row_is_robust_only_under_all():
    """Of 0.45, 0.55, 0.9, 0.1: brighter turns the first, darker the second; the third is wrong as it is."""
    case = case_of(
        Threshold(), (dots(0.45, 0.55, 0.9, 0.1), torch.tensor([0, 1, 0, 0])),
        given={"brighter": brighter, "darker": darker, "far": far},
    )  # fmt: skip
    found = worst_case(case)
    single = found.details["single"]
    assert found.number == 75.0
    assert single["brighter (given)"] == single["darker (given)"] == 50.0
    assert single["far (given)"] == 0.0  # wrong answers outside the ball do not count
    assert found.details["clean"] == 25.0


def test_attempts_on_other_models_or_fewer_rows_do_not_count(sound, undefended, rows):
    case = case_of(sound, rows)
    case.attempt(case.attack("pgd"), model=undefended)
    case.attempt(case.attack("pgd"), rows=10)
    assert case.attempts_at_claim() == []
    case.attempt(case.attack("pgd", eps=2 * EPS))  # steps of 2.5 * eps / 20 from the start: most rows end outside
    ((name, attempt),) = case.attempts_at_claim()
    assert name == "pgm"
    assert int(attempt.wrong.sum()) <= int(case.inside_claim(attempt).sum())


def test_an_honest_quote_passes(sound, rows):
    honest = worst_case(case_of(sound, rows)).number
    case = case_of(
        sound, rows, provenance=Provenance(claimed_error=honest, record=record(paper={"worst": rate(honest)}))
    )  # fmt: skip
    assert worst_case(case).status == Status.PASS


def test_a_claim_below_what_was_found_cannot_stand(undefended, rows):
    found = worst_case(case_of(undefended, rows, provenance=Provenance(claimed_error=10.0)))
    assert (found.check, found.status) == ("E5", Status.FAIL)
    assert "quotes an error of 10.0 %" in found.meaning


def test_a_claim_about_a_weaker_adversary_may_quote_less(undefended, rows):
    threat = ThreatModel("linf", EPS, knowledge="black_box", queries=100)
    found = worst_case(case_of(undefended, rows, threat=threat, provenance=Provenance(claimed_error=10.0)))
    assert found.status == Status.WARN
    assert "for its adversary" in found.meaning


def test_random_points_of_the_ball_count_too():
    case = case_of(Threshold(), (dots(0.45, 0.9), torch.tensor([0, 1])))
    case.memo["fooled by noise"] = torch.tensor([False, True])
    found = worst_case(case)
    assert found.number == 100.0  # the first by PGD, the second by noise
    assert found.details["single"]["random points"] == 50.0


@pytest.mark.parametrize(
    ("strengths", "status"),
    [
        ({"paper": {"pgm": rate(20.0), "mean": rate(15.0)}}, Status.WARN),
        ({"paper": {"pgm": rate(20.0)}}, Status.WARN),
        ({"paper": {"mean": rate(15.0), "worst": rate(99.0)}}, Status.PASS),
        ({"paper": {"worst": rate(15.0)}, "check": {"worst": rate(99.0)}}, Status.PASS),
    ],
)
def test_a_mean_or_a_single_attack_misleads(undefended, rows, strengths, status):
    assert worst_case(case_of(undefended, rows, provenance=Provenance(record=record(**strengths)))).status == status


@pytest.mark.parametrize("strange", [{}, {"stages": 3}, {"stages": [None, {"evaluations": []}]}, {"attacks": "pgm"}])
def test_a_record_of_another_layout_is_no_obstacle(sound, rows, strange):
    case = case_of(sound, rows, provenance=Provenance(record=strange))
    assert worst_case(case).status == clean_error(case).status == Status.PASS
