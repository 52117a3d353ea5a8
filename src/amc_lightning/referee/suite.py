"""The attacks that checks compare with each other, each made once at the level's budget."""

from typing import Any

import torch
from torch import Tensor

from amc_lightning.errors import UserError
from amc_lightning.referee.case import Attempt, Case
from amc_lightning.seeding import generator

REFERENCE = "reference PGD"
"""Name of the attack that everything is compared with, ``case.attack("pgd")``, beside those that were given."""
TARGETED_CLASSES = 4
"""Classes that the targeted DLR loss needs, at least."""
DRAWS = 25
"""Draws of noise that are held in memory at once."""


def examined(case: Case) -> dict[str, Attempt]:
    """Return what is examined, by name: the reference attack, then the attacks of the claim itself."""
    return {REFERENCE: case.attempt(case.attack("pgd")), **{name: case.attempt_given(name) for name in case.given}}


def gradient_attacks(case: Case) -> dict[str, Attempt]:
    """Return PGD, APGD-CE and, from four classes on, targeted APGD."""
    found = {
        "pgd": case.attempt(case.attack("pgd")),
        "apgd_ce": case.attempt(case.attack("apgd_ce", nb_iter=case.level.apgd_steps)),
    }
    if case.num_classes >= TARGETED_CLASSES:
        found["apgd_t"] = case.attempt(case.attack("apgd_t", **_targeted(case)))
    return found


def minimal_norm(case: Case) -> Attempt:
    """Return FAB, which looks for the nearest wrong image, on ``level.curve_rows`` rows, as it is slow."""
    return case.attempt(case.attack("fab", **_targeted(case)), rows=case.level.curve_rows)


def square(case: Case) -> Attempt | None:
    """Return Square, which needs no gradient; None for images that it cannot tile (l2 and l1 only)."""
    try:
        return case.attempt(case.attack("square", n_queries=case.level.queries))
    except UserError as error:
        if error.key != "square":
            raise
        return None


def fooled_by_noise(case: Case) -> Tensor:
    """Return the rows that at least one of the level's random points in the ball fools, (N,) bool on the CPU."""
    if "fooled by noise" not in case.memo:
        fooled = torch.zeros(len(case.x), dtype=torch.bool)
        done = 0
        while done < case.level.noise_draws:
            draws = min(DRAWS, case.level.noise_draws - done)
            noise = case.attack("noise", restarts=draws)
            rng = generator(case.seed, "referee", "noise", done)
            for start in range(0, len(case.x), case.batch_size):
                cut = slice(start, start + case.batch_size)
                fooled[cut] |= noise.craft(case.model, case.x[cut], case.y[cut], generator=rng).fooled.cpu()
            done += draws
        case.memo["fooled by noise"] = fooled
    found: Tensor = case.memo["fooled by noise"]
    return found


def _targeted(case: Case) -> dict[str, Any]:
    return {"nb_iter": case.level.apgd_steps, "n_target_classes": case.level.target_classes}
