"""EAP against foolbox's EAD in float64, image by image.

The definitions agree: both restart from the clean image in every search step, momentum is k / (k + 3), steps fall as
sqrt(1 - k / K), the threshold is beta, and the best wrong iterate is returned. They differ in two places. A row that
cannot be fooled comes back black from foolbox and clean from EAP. Early abort is decided for the whole batch there and
for each row here, so it is compared on batches of one row, and only as to what is found: foolbox looks at the loss of
the gradient step's point, and forgets the iterate at which it aborts.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from amc_lightning.attacks import load
from tests.parity.conftest import Case

pytestmark = pytest.mark.parity

ROWS = 48
SETTINGS: dict[str, dict[str, object]] = {
    "paper's MNIST": {"binary_search_steps": 5, "max_iterations": 8, "initial_const": 1e-3, "learning_rate": 0.1},
    "paper's SVHN": {"binary_search_steps": 1, "max_iterations": 5, "initial_const": 0.3, "learning_rate": 0.2},
    "from above": {"binary_search_steps": 5, "max_iterations": 8, "initial_const": 1.0, "learning_rate": 0.05},
    "longer": {"binary_search_steps": 9, "max_iterations": 40, "initial_const": 1e-3, "learning_rate": 0.02},
    "l1 rule": {
        "binary_search_steps": 5,
        "max_iterations": 20,
        "initial_const": 0.1,
        "learning_rate": 0.05,
        "decision_rule": "L1",
    },
    "confidence": {
        "binary_search_steps": 5,
        "max_iterations": 20,
        "initial_const": 0.1,
        "learning_rate": 0.05,
        "confidence": 0.5,
    },
    "large beta": {
        "binary_search_steps": 4,
        "max_iterations": 20,
        "initial_const": 1.0,
        "learning_rate": 0.05,
        "beta": 0.1,
    },
    "last step repeats the upper bound": {
        "binary_search_steps": 10,
        "max_iterations": 10,
        "initial_const": 1e-2,
        "learning_rate": 0.05,
    },
}
NAMES = {
    "max_iterations": "steps",
    "learning_rate": "initial_stepsize",
    "beta": "regularization",
}


def rival(foolbox: ModuleType, case: Case, settings: dict[str, object], *, abort_early: bool = False) -> Tensor:
    attack = foolbox.attacks.EADAttack(
        **{NAMES.get(name, name): value for name, value in settings.items()}, abort_early=abort_early
    )
    fmodel = foolbox.PyTorchModel(case.model, bounds=(0, 1))
    return attack.run(fmodel, case.x, foolbox.criteria.Misclassification(case.y))


def elastic(x_adv: Tensor, x: Tensor, beta: float = 0.01) -> Tensor:
    delta = (x_adv - x).flatten(1)
    return delta.square().sum(dim=1) + beta * delta.abs().sum(dim=1)


def some(case: Case) -> Case:
    """The first rows, the last of them labelled wrong: there is nothing to do for these."""
    y = case.y[:ROWS].clone()
    y[-3:] = (y[-3:] + 1) % 10
    exact = case.double()
    return Case(exact.model, exact.x[:ROWS], y)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_eap(settings: dict[str, object], case: Case, foolbox: ModuleType) -> None:
    exact = some(case)
    theirs = rival(foolbox, exact, settings)
    ours = load("eap", **settings)(exact.model, exact.x, exact.y)
    failed = ~theirs.flatten(1).any(dim=1)
    assert torch.equal(ours[failed], exact.x[failed])
    found = ~failed
    assert (ours != exact.x).flatten(1).any(dim=1)[found].any()
    beta = float(settings.get("beta", 0.01))
    torch.testing.assert_close(
        elastic(ours, exact.x, beta)[found], elastic(theirs, exact.x, beta)[found], rtol=1e-6, atol=1e-12
    )
    torch.testing.assert_close(ours[found], theirs[found], rtol=0, atol=1e-9)


def test_float32_finds_the_same_distances(case: Case, foolbox: ModuleType) -> None:
    settings = SETTINGS["longer"]
    exact = some(case)
    theirs = elastic(rival(foolbox, exact, settings), exact.x)
    ours = elastic(load("eap", **settings)(case.model, case.x[:ROWS], exact.y).double(), exact.x)
    ratio = (ours + 1e-9) / (theirs + 1e-9)
    assert abs(ratio.median() - 1) < 1e-4
    assert ((ratio - 1).abs() < 0.01).double().mean() > 0.9


def test_early_abort_row_by_row(foolbox: ModuleType, conv: Case) -> None:
    settings = {**SETTINGS["longer"], "max_iterations": 100}
    exact = some(conv)
    rows = [Case(exact.model, exact.x[i : i + 1], exact.y[i : i + 1]) for i in range(6)]
    theirs = torch.cat([elastic(rival(foolbox, row, settings, abort_early=True), row.x) for row in rows])
    full = torch.cat([elastic(load("eap", **settings)(row.model, row.x, row.y), row.x) for row in rows])
    attack = load("eap", **settings, abort_early=True)
    alone = torch.cat([elastic(attack(row.model, row.x, row.y), row.x) for row in rows])
    together = elastic(attack(exact.model, exact.x[:6], exact.y[:6]), exact.x[:6])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=0)
    assert (alone / full).median() < 1.1
    assert (alone / theirs).median() < 1.1
