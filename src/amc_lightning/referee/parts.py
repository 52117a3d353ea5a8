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
from amc_lightning.referee.evidence import percent, union
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.gradients import margin
from amc_lightning.referee.paired import compared
from amc_lightning.referee.straight_through import straight_through
from amc_lightning.referee.suite import square
from amc_lightning.seeding import derive

TITLE = "parts without a gradient"
ALLOWED = 1.0
"""Percentage points by which another attack may beat the plain one."""
SUSPICION = 0.05
"""Largest p-value (exact McNemar test, one-sided) to warn at; to fail it has to be below ``evidence.SIGNIFICANT``."""
TRACED_ROWS, COMPARED_ROWS = 4, 32
SAME = 1e-4
"""Relative difference up to which two gradients are the same."""
WAYS = {
    "straight_through": "the same attack through a straight-through stand-in",
    "without_part": "the same attack on the network without the part",
    "square": "Square, which needs no gradient,",
}


def parts(case: Case) -> Finding:
    """Return E22: whether an attack that looks through rounding, casts and detached branches finds more.

    Stand-ins are made for the parts that the forward pass calls: a straight-through one where its gradients differ from
    the model's own, and, for this package's ``Squeezed``, the network without the squeezer. Where none of them leads,
    Square is asked too. FAIL if one fools more rows than the model's own gradient by over 1 percentage point and
    significantly (McNemar, exact, 1 %); WARN at 5 %, and where no gradient passes and no other way could be tried.

    Reference:
        Athalye et al., ICML 2018, https://arxiv.org/abs/1802.00420, section 4.1 (BPDA).
    """
    found = parts_of(case.model, case.x[:TRACED_ROWS])
    if not found:
        return Finding(
            "E22", TITLE, Status.PASS, "Every call of the forward pass has a gradient: nothing needs a stand-in."
        )  # fmt: skip
    named = ", ".join(sorted(found))
    stand_ins, passes = _stand_ins(case)
    wrong = {"plain": case.attempt(case.attack("pgd")).wrong}
    for way, on in stand_ins.items():
        if (attempt := _through(case, on)) is not None:
            wrong[way] = attempt.wrong
    leads = any(compared(rows, wrong["plain"]).leads_by(ALLOWED) for rows in wrong.values())
    if not leads and (random_search := square(case)) is not None:
        wrong["square"] = random_search.wrong
    return _judged(named, found, wrong, passes=passes)


def _judged(named: str, found: Mapping[str, int], wrong: Mapping[str, Tensor], *, passes: bool) -> Finding:
    plain = wrong["plain"]
    whole = union([*wrong.values()])
    extra = percent(whole & ~plain)
    details = {"parts": dict(found), **{key: percent(rows) for key, rows in wrong.items()}, "union": percent(whole)}
    way = max(wrong, key=lambda key: int(wrong[key].sum()))
    pair = compared(wrong[way], plain)
    if pair.lead > ALLOWED and pair.p_value < SUSPICION:
        proven = pair.leads_by(ALLOWED)
        return Finding(
            "E22", TITLE, Status.FAIL if proven else Status.WARN,
            f"Its own gradient fools {percent(plain):.1f} % of the images, {WAYS[way]} {percent(wrong[way]):.1f} %: "
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
        f"gradient, which fools {percent(plain):.1f} %."
        if ways
        else f"Some calls have no gradient of their own ({named}), but a straight-through stand-in has the same "
        "gradients as the model.",
        "", extra, "pp", details,
    )  # fmt: skip


def _through(case: Case, on: nn.Module) -> Attempt | None:
    try:
        return case.attempt(case.attack("pgd"), on=on)
    except (UserError, RuntimeError, TypeError, AttributeError):
        return None  # the stand-in does not work, which is no verdict on the model


def _stand_ins(case: Case) -> tuple[dict[str, nn.Module], bool]:
    """Return models to craft on, by name, and whether the model has a gradient of its own.

    Kept, since attempts are remembered by them.
    """
    if "stand_ins" not in case.memo:
        stand_ins: dict[str, nn.Module] = {}
        surrogate = straight_through(case.model)
        own, other = _gradient(case, case.model), _gradient(case, surrogate)
        if other is not None and not (own is not None and _are_same(own, other)):
            stand_ins["straight_through"] = surrogate
        if isinstance(case.model, Squeezed):
            stand_ins["without_part"] = case.model.net
        case.memo["stand_ins"] = stand_ins, own is not None
    found: tuple[dict[str, nn.Module], bool] = case.memo["stand_ins"]
    return found


def _gradient(case: Case, model: nn.Module) -> Tensor | None:
    """Return the margin's gradient at a few images, (B, C, H, W) float64; None if none comes back."""
    x, y = case.x[:COMPARED_ROWS], case.y[:COMPARED_ROWS]
    images = x.clone().requires_grad_()
    try:
        with guarded(case.model), isolated_randomness(derive(case.seed, "referee", "parts") % 2**32, x.device):
            return torch.autograd.grad(margin(model(images.clone()), y).sum(), images)[0].double()
    except (RuntimeError, TypeError, AttributeError):
        return None  # nothing connects the two, or the stand-in does not work


def _are_same(own: Tensor, other: Tensor) -> bool:
    """Return whether two gradients are the same, so that an attack on the second would be the same again."""
    return bool((own - other).norm() <= SAME * torch.maximum(own.norm(), other.norm()))
