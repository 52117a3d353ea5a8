"""A soundly trained model and an undefended one, with sound attacks, fail none of the checks of attacks."""

from dataclasses import replace

import pytest

from amc_lightning.attacks import load
from amc_lightning.referee import QUICK, Status, ThreatModel
from amc_lightning.referee.bounds import best_kept, budget_kept
from amc_lightning.referee.case import PGD, Case
from amc_lightning.referee.strength import (
    diverse_attacks,
    gradients_beat_noise,
    gradients_beat_square,
    iterative_beats_single_step,
)
from amc_lightning.referee.validated import breaks_undefended
from tests.referee.conftest import EPS, SMALL, trained

CHECKS = (
    budget_kept,
    best_kept,
    iterative_beats_single_step,
    gradients_beat_noise,
    gradients_beat_square,
    diverse_attacks,
    breaks_undefended,
)


@pytest.mark.slow
@pytest.mark.parametrize("level", [SMALL, QUICK], ids=["small", "quick"])
@pytest.mark.parametrize(
    ("seed", "norm", "eps"), [(1, "linf", EPS), (2, "linf", 2 * EPS), (3, "l2", 0.6), (4, "l1", 3.0)]
)
def test_no_check_fails(digits, level, seed, norm, eps):
    step = load(PGD[norm], eps=eps, eps_iter=None, nb_iter=5)
    mine = load(PGD[norm], eps=eps, eps_iter=None, nb_iter=50, keep_best=True)
    models = trained(*digits[:2], attack=step, epochs=14, seed=seed), trained(*digits[:2], seed=seed)
    for model in models:
        rows = digits[2][: level.rows], digits[3][: level.rows]
        case = Case(model, *rows, ThreatModel(norm, eps), level, given={"mine": mine}, seed=seed)
        given = replace(case, undefended=models[1], memo={}, _attempts={})
        for one in (case, given):
            failed = [finding for finding in (check(one) for check in CHECKS) if finding.status is Status.FAIL]
            assert not failed
