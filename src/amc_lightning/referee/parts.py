"""E22: parts without a true gradient, and what an attack finds that looks through them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.attacks.randomness import isolated_randomness
from amc_lightning.errors import UserError
from amc_lightning.models import Squeezed
from amc_lightning.referee.calls import parts_of
from amc_lightning.referee.case import Attempt, Case
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.gradients import margin
from amc_lightning.referee.paired import compared
from amc_lightning.referee.straight_through import straight_through
from amc_lightning.seeding import derive

TITLE = "parts without a gradient"
ALLOWED = 1.0
"""Percentage points by which another attack may beat the plain one."""
SUSPICION = 0.05
"""Largest p-value (exact McNemar test, one-sided) to warn at; to fail it has to be below ``paired.SIGNIFICANT``."""
TRACED_ROWS, COMPARED_ROWS = 4, 32
SAME = 1e-4
"""Relative difference up to which two gradients are the same."""
WAYS = {
    "straight_through": "the same attack through a straight-through stand-in",
    "without_part": "the same attack on the network without the part",
    "square": "Square, which needs no gradient,",
}


def parts(case: Case) -> Finding:
    """Return E22: whether an attack that looks through rounding, casts and detached branches finds more."""
    found = parts_of(case.model, case.x[:TRACED_ROWS])
    if not found:
        return Finding(
            "E22", TITLE, Status.PASS, "Every call of the forward pass has a gradient: nothing needs a stand-in."
        )  # fmt: skip
    named = ", ".join(sorted(found))
    none = torch.zeros(len(case.x), dtype=torch.bool)
    plain = _plain(case)
    wrong = {"plain": none | case.clean_wrong if plain is None else plain.wrong}
    for way, on in _stand_ins(case).items():
        if (attempt := _through(case, on)) is not None:
            wrong[way] = attempt.wrong
    if not any(compared(rows, wrong["plain"]).leads_by(ALLOWED) for rows in wrong.values()):
        wrong["square"] = case.attempt(case.attack("square", n_queries=case.level.queries)).wrong
    return _judged(named, found, wrong, passes=plain is not None)


def _judged(named: str, found: Mapping[str, int], wrong: Mapping[str, Tensor], *, passes: bool) -> Finding:
    plain = wrong["plain"]
    union = torch.stack([*wrong.values()]).any(0)
    extra = _percent(union & ~plain)
    details = {"parts": dict(found), **{key: _percent(rows) for key, rows in wrong.items()}, "union": _percent(union)}
    way = max(wrong, key=lambda key: int(wrong[key].sum()))
    pair = compared(wrong[way], plain)
    if pair.lead > ALLOWED and pair.p_value < SUSPICION:
        proven = pair.leads_by(ALLOWED)
        return Finding(
            "E22", TITLE, Status.FAIL if proven else Status.WARN,
            f"Its own gradient fools {_percent(plain):.1f} % of the images, {WAYS[way]} {_percent(wrong[way]):.1f} %: "
            f"what lacks a gradient ({named}) {'hides' if proven else 'may hide'} weakness.",
            "Give these parts a backward pass (BPDA, such as straight_through(model)), and count the strongest attack.",
            extra, "pp", details,
        )  # fmt: skip
    if not passes and len(wrong) == 1:
        return Finding(
            "E22", TITLE, Status.WARN, f"No gradient reaches the images ({named}), and no stand-in could be made.",
            "Give the parts a differentiable stand-in and attack through that.", extra, "pp", details,
        )  # fmt: skip
    ways = len(wrong) - 1
    looked = f"{ways} other way{'s' if ways != 1 else ''} to look through them found"
    return Finding(
        "E22", TITLE, Status.PASS,
        f"Some calls have no gradient of their own ({named}), but {looked} {extra:.1f} pp more than the model's own "
        f"gradient, which fools {_percent(plain):.1f} %."
        if ways
        else f"Some calls have no gradient of their own ({named}), but a straight-through stand-in has the same "
        "gradients as the model.",
        "", extra, "pp", details,
    )  # fmt: skip


def _plain(case: Case) -> Attempt | None:
    """Return what the model's own gradient finds; None if there is none."""
    try:
        return case.attempt(case.attack("pgd"))
    except UserError:
        return None  # no gradient passes: what stands before it failed for nothing else


def _through(case: Case, on: nn.Module) -> Attempt | None:
    try:
        return case.attempt(case.attack("pgd"), on=on)
    except (UserError, RuntimeError, TypeError, AttributeError):
        return None  # the stand-in does not work, which is no verdict on the model


def _stand_ins(case: Case) -> dict[str, nn.Module]:
    """Return models to craft on, by name; kept, since attempts are remembered by them."""
    if "stand_ins" not in case.memo:
        stand_ins: dict[str, nn.Module] = {}
        surrogate = straight_through(case.model)
        if not _same_gradient(case, surrogate):
            stand_ins["straight_through"] = surrogate
        if isinstance(case.model, Squeezed):
            stand_ins["without_part"] = case.model.net
        case.memo["stand_ins"] = stand_ins
    found: dict[str, nn.Module] = case.memo["stand_ins"]
    return found


def _same_gradient(case: Case, surrogate: nn.Module) -> bool:
    """Return whether a surrogate's gradients are the model's own, so that attacking it would be the same again."""
    x, y = case.x[:COMPARED_ROWS], case.y[:COMPARED_ROWS]
    seed = derive(case.seed, "referee", "parts") % 2**32
    both = []
    with guarded(case.model):
        for model in (case.model, surrogate):
            images = x.clone().requires_grad_()
            try:
                with isolated_randomness(seed, x.device):
                    loss = margin(model(images.clone()), y).sum()
                both.append(torch.autograd.grad(loss, images)[0].double())
            except (RuntimeError, TypeError, AttributeError):
                return model is surrogate and len(both) == 1  # without a gradient of its own there is something to do
    own, other = both
    return bool((own - other).norm() <= SAME * torch.maximum(own.norm(), other.norm()))


def _percent(rows: Tensor) -> float:
    return 100 * float(rows.double().mean())
