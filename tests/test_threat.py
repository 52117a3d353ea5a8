"""Predictive interfaces: what an adversary is told, what it costs, and what it can never reach."""

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binom, chisquare
from torch import nn

from amc_lightning.config import CONF_DIR, instantiate
from amc_lightning.errors import UserError
from amc_lightning.threat import (
    QUERY_BATCH,
    Label,
    NoisyLabel,
    PredictiveInterface,
    Probabilities,
    QueryBudgetError,
    gather,
)

ZEROS = np.zeros((1, 2))


class Counter:
    """A target far away: answers batches by the mean of each image, and counts its calls."""

    def __init__(self, classes=10, fails_at=None):
        self.classes = classes
        self.rows = []
        self.fails_at = fails_at

    def __call__(self, x):
        if self.fails_at is not None and len(self.rows) == self.fails_at:
            self.fails_at = None
            raise ConnectionError("the service does not answer")
        self.rows.append(len(x))
        place = (x.flatten(1).mean(1) * self.classes).long().clamp(0, self.classes - 1)
        return 4.0 * nn.functional.one_hot(place, self.classes).float()


def images(n, seed=0):
    """(n, 1, 4, 4) uint8, each of one grey."""
    grey = torch.randint(0, 256, (n, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
    return grey.expand(n, 1, 4, 4).contiguous().to(torch.uint8)


# --- kinds of answers ------------------------------------------------------------------------------------------------


def test_a_label_is_the_likeliest_class_of_logits_probabilities_or_labels():
    x = images(5).float() / 255
    scores = torch.tensor([[0.1, 0.7, 0.2]]).repeat(5, 1)
    for says, said in (("logits", scores.log()), ("probabilities", scores), ("labels", torch.full((5,), 1))):
        answers = PredictiveInterface(lambda x, said=said: said, Label(), says=says)(x)
        assert (answers.dtype, answers.tolist()) == (torch.int64, [1] * 5)


@pytest.mark.parametrize("flip", [0.05, 0.1, 0.5])
def test_the_share_of_flipped_labels_lies_within_an_exact_binomial_bound(flip):
    n, x = 20_000, images(20_000)
    told = gather(PredictiveInterface(Counter(), NoisyLabel(flip), seed=3), x)
    true = gather(PredictiveInterface(Counter(), Label()), x)
    low, high = binom.ppf([5e-5, 1 - 5e-5], n, flip)
    assert low <= int((told != true).sum()) <= high
    # and each other class is as likely as the next
    moved = ((told - true) % 10)[told != true]
    assert moved.min() == 1
    assert chisquare(np.bincount(moved, minlength=10)[1:]).pvalue > 1e-4


def test_a_flip_of_0_never_and_of_1_always_changes_the_class():
    x = images(500)
    true = gather(PredictiveInterface(Counter(), Label()), x)
    assert torch.equal(gather(PredictiveInterface(Counter(), NoisyLabel(0)), x), true)
    assert not (gather(PredictiveInterface(Counter(), NoisyLabel(1)), x) == true).any()


def test_noise_depends_on_the_seed_and_the_number_of_the_query_alone():
    x = images(1000)
    whole = gather(PredictiveInterface(Counter(), NoisyLabel(0.5), seed=1), x)
    piecewise = PredictiveInterface(Counter(), NoisyLabel(0.5), seed=1)
    assert torch.equal(torch.cat([piecewise(part.float() / 255) for part in x.split(7)]), whole)
    assert not torch.equal(gather(PredictiveInterface(Counter(), NoisyLabel(0.5), seed=2), x), whole)


def test_noise_on_a_target_that_says_labels_only_needs_the_number_of_classes():
    x = images(200).float() / 255
    target = lambda x: torch.ones(len(x), dtype=torch.int64)  # noqa: E731
    with pytest.raises(UserError, match=r"threat_model\.interface\.num_classes: None is not set"):
        PredictiveInterface(target, NoisyLabel(0.5), says="labels")(x)
    told = PredictiveInterface(target, NoisyLabel(0.5, num_classes=3), says="labels")(x)
    assert set(told.tolist()) == {0, 1, 2}


def test_probabilities_are_whole_unless_they_are_rounded_or_cut():
    scores = torch.tensor([[0.004, 0.306, 0.69], [0.25, 0.25, 0.5]])
    assert torch.equal(Probabilities().answer(scores, ZEROS), scores)
    assert torch.allclose(
        Probabilities(decimals=2).answer(scores, ZEROS), torch.tensor([[0, 0.31, 0.69], [0.25, 0.25, 0.5]])
    )
    assert torch.equal(Probabilities(decimals=0).answer(scores, ZEROS), torch.tensor([[0.0, 0, 1], [0, 0, 0]]))
    assert torch.equal(Probabilities(top=1).answer(scores, ZEROS), torch.tensor([[0, 0, 0.69], [0, 0, 0.5]]))


def test_of_tied_classes_no_more_are_shown_than_asked_for():
    shown = Probabilities(top=2).answer(torch.full((1, 4), 0.25), ZEROS)
    assert int((shown > 0).sum()) == 2
    assert torch.equal(Probabilities(top=9).answer(torch.full((1, 4), 0.25), ZEROS), torch.full((1, 4), 0.25))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyLabel(1.5), r"threat_model\.interface\.flip: 1\.5 is out of range; allowed: \[0, 1\]"),
        (lambda: Probabilities(decimals=-1), r"interface\.decimals: -1 is out of range; allowed: a whole number >= 0"),
        (lambda: Probabilities(top=0), r"interface\.top: 0 is out of range; allowed: a whole number >= 1"),
        (lambda: Probabilities(top=True), r"interface\.top: True is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("said", "says", "message"),
    [
        (torch.zeros(3, 10), "logits", r"is no answer to 2 images; logits are \(B, K\)"),
        (torch.zeros(2), "logits", r"is no answer to 2 images"),
        (torch.zeros(2, 10), "labels", r"labels are \(B,\) whole numbers"),
        (torch.zeros(2), "labels", r"labels are \(B,\) whole numbers"),
        (torch.zeros(2, 10, dtype=torch.int64), "probabilities", r"floating-point"),
        (None, "logits", r"target: 'NoneType \(\)' is no answer"),
        (torch.full((2, 10), float("nan")), "logits", r"target: 'logits' are not all finite"),
    ],
)
def test_a_target_that_answers_something_else_is_named(said, says, message):
    interface = PredictiveInterface(lambda x: said, Label(), says=says)
    with pytest.raises(UserError, match=message):
        interface(images(2).float() / 255)
    assert interface.queries == 0


def test_probabilities_of_a_target_that_says_labels_are_refused():
    with pytest.raises(UserError, match="has nothing to show, as the target says labels only"):
        PredictiveInterface(lambda x: torch.zeros(2, dtype=torch.int64), Probabilities(), says="labels")(
            images(2).float()
        )


# --- what cannot be reached ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Label(), NoisyLabel(0.1), Probabilities()])
def test_no_gradient_passes_through_an_interface(kind):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = (images(4).float() / 255).requires_grad_()
    answers = PredictiveInterface(net, kind)(x)
    assert not answers.requires_grad
    assert answers.grad_fn is None
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_images_of_the_caller_are_not_handed_out_to_be_written_to():
    x = images(3).float() / 255
    before = x.clone()

    def target(batch):
        batch.zero_()
        return torch.zeros(len(batch), 3)

    PredictiveInterface(target, Label())(x)
    assert torch.equal(x, before)


def test_no_attribute_of_an_interface_leads_to_the_target_or_its_weights():
    net = nn.Linear(16, 3)
    interface = PredictiveInterface(nn.Sequential(nn.Flatten(), net), Label())
    assert set(vars(interface)) == {"kind", "budget", "queries", "key", "_ask"}
    assert not any(isinstance(value, nn.Module | torch.Tensor) for value in vars(interface).values())
    assert not any(isinstance(value, nn.Module | torch.Tensor) for value in vars(interface.kind).values())


# --- counting and budgets --------------------------------------------------------------------------------------------


def test_every_image_counts_as_a_query():
    interface = PredictiveInterface(Counter(), Label())
    gather(interface, images(700))
    interface(images(3).float() / 255)
    assert interface.queries == 703
    assert interface.left is None


def test_a_budget_that_reaches_is_no_hindrance():
    interface = PredictiveInterface(Counter(), Label(), budget=700)
    assert len(gather(interface, images(700))) == 700
    assert interface.left == 0


def test_an_exhausted_budget_says_so_and_loses_no_answer():
    x, kept = images(700), []
    target = Counter()
    with pytest.raises(
        QueryBudgetError,
        match=r"threat_model\.budget: 600 is used up: 600 queries are answered, and 100 more are asked; "
        r"the answers so far are kept\. Raise the budget, or ask less \(dataset\.proxy\.limit\)\.",
    ):
        gather(PredictiveInterface(target, Label(), budget=600), x, keep=kept.append)
    assert sum(target.rows) == 600, "what is within the budget is asked, and nothing beyond"
    (answers,) = kept
    more = PredictiveInterface(target, Label(), budget=700, asked=len(answers))
    whole = gather(more, x, known=answers)
    assert torch.equal(whole, gather(PredictiveInterface(Counter(), Label()), x))
    assert sum(target.rows) == 700, "nothing was asked twice"
    assert more.queries == 700


def test_noise_goes_on_where_it_stopped():
    x, kept = images(700), []
    with pytest.raises(QueryBudgetError):
        gather(PredictiveInterface(Counter(), NoisyLabel(0.5), seed=4, budget=301), x, keep=kept.append)
    rest = gather(PredictiveInterface(Counter(), NoisyLabel(0.5), seed=4, asked=301), x, known=kept[0])
    assert torch.equal(rest, gather(PredictiveInterface(Counter(), NoisyLabel(0.5), seed=4), x))


def test_a_target_that_fails_keeps_its_error_and_what_it_answered_before():
    x, kept = images(3 * QUERY_BATCH), []
    interface = PredictiveInterface(Counter(fails_at=2), Label())
    with pytest.raises(ConnectionError, match="does not answer"):
        gather(interface, x, keep=kept.append)
    assert len(kept[0]) == interface.queries == 2 * QUERY_BATCH
    assert torch.equal(gather(interface, x, known=kept[0])[: len(kept[0])], kept[0])


def test_nothing_is_kept_aside_where_nothing_stopped():
    kept = []
    gather(PredictiveInterface(Counter(), Label()), images(5), keep=kept.append)
    assert kept == []


# --- the group threat_model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CONF_DIR / "threat_model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_threat_model_of_the_group_holds_to_the_contract(path):
    spec = yaml.safe_load(path.read_text())
    assert spec["name"] == path.stem
    assert spec["params"] in ("white_box", "black_box")
    if spec["interface"] is None:
        assert path.stem == "white_box"
        return
    kind = instantiate(spec["interface"], key="threat_model.interface")
    x = images(600)
    answers = gather(PredictiveInterface(Counter(), kind, budget=spec["budget"]), x)
    assert answers.shape in ((600,), (600, 10))
    assert answers.dtype == (torch.int64 if answers.ndim == 1 else torch.float32)
    assert answers.min() >= 0
    assert answers.max() <= (9 if answers.ndim == 1 else 1)
    assert not answers.requires_grad
    again = gather(PredictiveInterface(Counter(), kind), x)
    assert torch.equal(again, answers), "the same seed, the same answers"
    if not kind.draws:
        assert torch.equal(gather(PredictiveInterface(Counter(), kind, seed=9), x), answers)
