"""Attacks with gradients on models of any kind: on those that pass none back, and once more where one got stuck."""

from typing import Any

import torch
from torch import Tensor

from amc_lightning.attacks import GuardedAttack, Norm
from amc_lightning.errors import UserError
from amc_lightning.referee.case import Case, lacks_gradient
from amc_lightning.seeding import generator

_HARDER: tuple[dict[str, Any], ...] = (
    {"rand_init": False},
    {"rand_init": False, "eps_iter": 0.1},
    {"restarts": 2},
)
"""What is tried where the usual attack got stuck: starts at the image, with small and with large steps (in radii), and
at two further points."""


def tried_harder(case: Case, fooled: Tensor, *, norm: Norm, eps: float) -> Tensor:
    """Attack the rows that are still standing from other starts and with other steps; remembered.

    An attack far outside the radius that a model was made for may stall although the model hides nothing.

    Args:
        case: what is examined.
        fooled: leading rows of the case that are fooled already, (N,) bool, on the CPU.
        norm: of the ball.
        eps: its radius.

    Returns:
        Rows that are fooled now, (N,) bool.
    """
    key = f"tried harder: {norm} {eps!r} on {len(fooled)} rows"
    if key not in case.memo:
        found = fooled.clone()
        for number, settings in enumerate(_HARDER):
            given = {key: value * eps if key == "eps_iter" else value for key, value in settings.items()}
            attack = case.attack(
                "pgd",
                norm=norm,
                eps=eps,
                **{"nb_iter": case.level.curve_steps, "restarts": 1, "compact": True, **given},
            )
            rng = generator(case.seed, "referee", "harder", number)
            for part in torch.split((~found).nonzero().squeeze(1), case.batch_size):
                found[part] = _fooled(case, attack, part, rng)
        case.memo[key] = found
    result: Tensor = case.memo[key]
    return result


def _fooled(case: Case, attack: GuardedAttack, rows: Tensor, rng: torch.Generator) -> Tensor:
    where = rows.to(case.x.device)
    x, y = case.x[where], case.y[where]
    try:
        x_adv = attack(case.model, x, y, generator=rng)
    except UserError as error:
        if not lacks_gradient(error):
            raise
        x_adv = x
    return case.judged(case.model, x, y, x_adv).wrong
