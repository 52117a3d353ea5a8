"""Check that examples made on another network do not beat the attack on the model itself."""

from typing import Any

import torch
from torch import Tensor, nn

from amc_lightning.metrics import wilson
from amc_lightning.referee.case import Attempt, Case
from amc_lightning.referee.evidence import percent
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.paired import compared
from amc_lightning.referee.reference import reference_net
from amc_lightning.seeding import derive, generator

MOST_EXTRA = 1.0
"""Percent of the rows that transfer may fool beyond the attack on the model itself, without being a failure."""
NOTICED = 0.5
"""Percent from which it is a warning, and which is tolerated in the test of significance."""
AGREES = 50.0
"""Percent of the clean rows on which a substitute answers as the model does, at least."""
BREAKS = 80.0
"""Percent of error that an attack reaches on the substitute it is made on, at least."""
HARMS = 5.0
"""Points by which examples have to harm their own substitute more than noise does, before others are asked: at a radius
that harms nothing they prove nothing."""


def transfer_does_not_win(case: Case) -> Finding:
    """Check that examples made on a substitute fool no rows that the attack on the model itself misses (E16).

    The substitute is the one given, or a small network trained for it. More than 1 % of the rows, and significantly
    more than 0.5 % (exact binomial test), fail; more than 0.5 % are a warning. A substitute that is no use proves
    nothing by its silence: it has to answer like the model on at least half of the clean rows (and more than chance),
    its own attack has to break it (80 % at the claim's radius, or at the one from which grey is within reach), and if
    its examples harm itself more than random corners of the ball do, by 5 points and significantly, they have to harm
    an undefended model more than these as well, where one was given. If one of these fails, the check fails where the
    substitute was given, for the claim may rest on it, and warns where it was trained here. The list (E16) names no
    tolerance: these shares are this project's.

    Reference:
        Carlini et al., 2019, https://arxiv.org/abs/1902.06705, section 4; Athalye et al., ICML 2018,
        https://arxiv.org/abs/1802.00420, section 3.1, sign 2.
    """
    substitute, was_given = case.substitute, case.substitute is not None
    if substitute is None:
        substitute = reference_net(case, seed=derive(case.seed, "substitute"))
    white = case.attempt(case.attack("pgd")).wrong | case.clean_wrong
    moved = case.attempt(case.attack("pgd"), on=substitute)
    pair = compared(moved.wrong, white)
    flaws, details = _flaws(case, substitute, moved)
    details = {
        "white box error": percent(white),
        "transfer error": moved.error,
        "rows beyond": pair.first_only,
        "rows": pair.n,
        "substitute": "given" if was_given else "trained here",
        **details,
    }
    beyond = f"Transfer fools {pair.first_only} of {pair.n} rows ({pair.extra:.1f} %) that the white-box attack misses"
    status, advice, meaning = Status.PASS, "", f"{beyond}, its error is {moved.error:.1f} %."
    if pair.exceeds(MOST_EXTRA, NOTICED):
        status = Status.FAIL
        meaning = f"{beyond}: the gradients of the model hide what a look-alike shows."
        advice = "Count these rows, and attack around what hides the gradient."
    elif flaws:
        status = Status.FAIL if was_given else Status.WARN
        meaning = f"The proxy is too weak to transfer ({'; '.join(flaws)}): its silence proves nothing."
        advice = "Give a substitute that is trained on the same task until it answers like the model."
    elif pair.extra > NOTICED:
        status, meaning = Status.WARN, f"{beyond}."
        advice = "Give the white-box attack more steps and restarts, and count the union."
    return Finding("E16", "transfer does not win", status, meaning, advice, pair.extra, "%", details)


def _flaws(case: Case, substitute: nn.Module, moved: Attempt) -> tuple[list[str], dict[str, Any]]:
    """Return what speaks against a substitute, and the figures."""
    answers = case.answers(substitute, case.x).argmax(1)
    agrees = answers == case.logits.argmax(1)
    agreement = percent(agrees)
    own = case.judged(substitute, case.x, case.y, moved.x_adv.to(case.x)).wrong
    details = {"agreement": agreement, "error of the substitute itself": percent(own)}
    flaws = []
    if agreement < AGREES or wilson(int(agrees.sum()), len(agrees))[0] <= 100 / case.num_classes:
        flaws.append(f"it answers as the model does on {agreement:.0f} % of the clean rows")
    if not _reaches(own):
        attack = case.attack(
            "pgd", eps=case.high_radius(case.threat.norm), nb_iter=case.level.curve_steps, compact=True
        )
        far = case.attempt(attack, model=substitute, rows=case.level.curve_rows)
        details["error of the substitute far out"] = far.error
        if not _reaches(far.wrong):
            flaws.append(f"its own attack brings it to {details['error of the substitute itself']:.0f} % error only")
    noisy = _corners(case)
    harms = compared(own, case.judged(substitute, case.x, case.y, noisy).wrong).leads_by(HARMS)
    if harms and case.undefended is not None:
        harmed = case.judged(case.undefended, case.x, case.y, moved.x_adv.to(case.x))
        corners = case.judged(case.undefended, case.x, case.y, noisy)
        details |= {"error of the undefended model": harmed.error, "error of it under noise": corners.error}
        if harmed.error <= corners.error < 100:
            flaws.append(
                f"an undefended model errs on {harmed.error:.0f} % of its examples, and on {corners.error:.0f} % under "
                "noise of that size"
            )
    return flaws, details


def _reaches(wrong: Tensor) -> bool:
    return bool(wilson(int(wrong.sum()), len(wrong))[1] >= BREAKS)


def _corners(case: Case) -> Tensor:
    """Return the images with noise of the claim's full size, the same for every pixel but for its sign."""
    signs = torch.randint(2, tuple(case.x.shape), generator=generator(case.seed, "referee", "corners")) * 2.0 - 1
    size = case.threat.eps / case.whole_box(case.threat.norm)
    return (case.x + size * signs.to(case.x)).clamp(0.0, 1.0)
