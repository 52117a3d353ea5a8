"""The diagnosis as a whole: every planted defect is caught by the check that is meant for it, a sound model by none."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import nn

from amc_lightning import UserError
from amc_lightning.attacks import load
from amc_lightning.referee import Provenance, Status, ThreatModel, diagnose, row_hashes
from amc_lightning.referee.registry import CHECKS
from tests.referee.conftest import EPS, SMALL, THREAT

IDS = [check.id for check in CHECKS]


def report_on(model, rows, *only, **settings):
    return diagnose(model, *rows, THREAT, level=SMALL, only=only or None, **settings)


@pytest.fixture(scope="module")
def whole(sound, digits):
    """The whole diagnosis of the sound model, with a sound attack of its own, as its owner would ask for it."""
    train, labels, held_out, y = digits
    told = Provenance(
        trained_against=("pgm",),
        picked="last",
        trained_on=row_hashes(train),
        chosen_on=frozenset(),
        seeds=3,
    )
    return diagnose(
        sound,
        held_out[: SMALL.rows],
        y[: SMALL.rows],
        THREAT,
        level=SMALL,
        attacks={
            "pgd": lambda model, x, y: load("pgm", eps=EPS, nb_iter=20, eps_iter=None, keep_best=True)(model, x, y)
        },
        train=(train[:300], labels[:300]),
        provenance=told,
    )


def test_a_soundly_trained_model_fails_no_check(whole):
    assert whole.failed == []
    assert [finding.check for finding in whole.findings] == IDS


def test_every_finding_has_what_a_reader_needs(whole):
    for finding, check in zip(whole.findings, CHECKS, strict=True):
        assert finding.title == check.title
        assert finding.meaning.endswith(".")
        assert bool(finding.advice) == (finding.status in (Status.WARN, Status.FAIL)), finding
        json.dumps(finding.as_json())


def test_a_report_is_written_and_read(whole, tmp_path):
    page = whole.save(tmp_path)
    data = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [finding["check"] for finding in data["findings"]] == IDS
    assert data["failed"] == data["failed_decisive"] == []
    assert set(data["curves"]) == {"error_by_eps", "error_by_steps", "loss"}
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "error_by_eps.png", "error_by_steps.png", "loss.png",
    ]  # fmt: skip
    assert "E24" in page.read_text()
    assert "E24" in str(whole)


class In(nn.Module):
    """Something in front of a model."""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model = model
        self.before = before or (lambda x: x)
        self.after = after or (lambda logits: logits)

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def saturated(model):
    return In(model, after=lambda logits: 1e4 * logits)


def quantised(model):
    return In(model, before=lambda x: torch.round(4 * x) / 4)


def randomised(model):
    return In(model, before=lambda x: (x + 0.3 * torch.randn_like(x)).clamp(0, 1))


def detached(model):
    return In(model, before=lambda x: x.detach() + 1e-3 * x.flip(-1) - 1e-3 * x.flip(-1).detach())


class Slow(nn.Module):
    """The same answers, sixty passes later: a defence that only takes time."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.stack([self.model(x) for _ in range(60)]).mean(dim=0)


@pytest.mark.parametrize(
    ("plant", "check"),
    [(saturated, "E17"), (quantised, "E22"), (randomised, "E19"), (detached, "E17"), (Slow, "E21")],
)
def test_a_planted_defect_of_the_model_is_caught(plant, check, undefended, rows):
    assert report_on(plant(undefended), rows, check).failed == [check]
    assert report_on(undefended, rows, check).failed == []


def oversteps(model, x, y):
    return load("pgm", eps=1.1 * EPS, nb_iter=10, eps_iter=None)(model, x, y)


def does_nothing(model, x, y):
    return x


def returns_too_early(model, x, y):
    """Plain PGD that returns its first step, though it went on."""
    point, first = x, None
    for _ in range(10):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
        point = (point.detach() + 0.02 * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        first = point if first is None else first
    model(point)
    return first


@pytest.mark.parametrize(
    ("attack", "check"), [(oversteps, "E4"), (does_nothing, "E24"), (does_nothing, "E14"), (returns_too_early, "E13")]
)
def test_a_planted_defect_of_an_attack_is_caught(attack, check, undefended, rows):
    assert report_on(undefended, rows, check, attacks={"mine": attack}, undefended=undefended).failed == [check]


def test_robustness_above_chance_at_half_the_range_is_called_impossible(undefended, rows):
    """Rounding hides the gradient, so that PGD at eps 0.5 leaves more rows right than the grey image can."""
    report = report_on(quantised(undefended), rows, "E8", "E9")
    assert report.failed == report.failed_decisive == ["E8", "E9"]


def test_a_proxy_too_weak_to_transfer_is_no_witness(sound, rows):
    assert report_on(sound, rows, "E16", substitute=nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).failed == ["E16"]


def test_images_that_something_was_chosen_on_are_found(sound, rows):
    told = Provenance(picked="best", chosen_on=row_hashes(rows[0][:40]))
    report = report_on(sound, rows, "E30", provenance=told)
    assert report.failed == ["E30"]
    assert report["E30"].number == 40


def test_probabilities_are_examined_too(sound, rows):
    report = report_on(In(sound, after=lambda logits: logits.softmax(1)), rows, "E20", "E6")
    assert report["E20"].status == Status.WARN
    assert report["E6"].status != Status.FAIL


def test_a_model_without_any_gradient_gets_a_whole_report(undefended, sound, rows):
    def bytes_of(x):
        return (255 * x).detach().to(torch.uint8).float() / 255

    few = replace(SMALL, rows=48, curve_rows=24, steps=10, curve_steps=10, apgd_steps=5, queries=100)
    given = {"undefended": undefended, "substitute": sound}
    report = diagnose(In(undefended, before=bytes_of), *rows, THREAT, level=few, **given)
    assert [finding.check for finding in report.findings] == IDS
    assert {"E17", "E22"} <= set(report.failed)


def test_the_model_and_the_random_state_are_left_as_they_were(undefended, rows):
    undefended.train()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in undefended.state_dict().items()}
    report_on(undefended, rows, "E2", "E6", "E19", "E21")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in undefended.state_dict().items())
    assert undefended.training
    undefended.eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), "x: .* leaves the range of pixels"),
        (lambda x, y: (x, y.float()), "do not fit each other"),
        (lambda x, y: (x, y + 20), "with labels up to"),
        (lambda x, y: (x[:, :, :5], y), "cannot take images of shape"),
    ],
)
def test_wrong_images_are_refused_in_one_line(change, message, undefended, rows):
    with pytest.raises(UserError, match=message):
        report_on(undefended, change(*rows))


def test_one_label_too_large_is_noticed_wherever_it_stands(undefended, rows):
    y = rows[1].clone()
    y[-1] = 10
    with pytest.raises(UserError, match="with labels up to 10"):
        report_on(undefended, (rows[0], y), "E3")


def test_training_images_are_checked_too(undefended, rows, digits):
    with pytest.raises(UserError, match=r"train images: .* leaves the range of pixels"):
        report_on(undefended, rows, "E3", train=(255 * digits[0], digits[1]))


def test_wrong_settings_are_refused(undefended, rows):
    with pytest.raises(UserError, match="level: 'long' is not known; known: quick, full"):
        diagnose(undefended, *rows, THREAT, level="long")
    with pytest.raises(UserError, match="only: 'E99' is not a check"):
        report_on(undefended, rows, "E99")
    with pytest.raises(UserError, match=r"threat_model\.eps: 8 is no radius"):
        ThreatModel("linf", 8)
    with pytest.raises(UserError, match=r"threat_model\.norm: 'l3' is not known"):
        ThreatModel("l3", 1.0)
