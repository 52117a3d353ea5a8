"""Whether attacks stay in their ball and box (E4), and return the best point that they have seen (E13)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.errors import UserError
from amc_lightning.referee.case import ORDERS, AttackFunction, Attempt, Case, lacks_gradient
from amc_lightning.referee.evidence import and_list
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.inference import is_random
from amc_lightning.referee.suite import REFERENCE, examined

SILENT_SHARE = 0.5
"""Percent of rows up to which a silent success is a doubt and no failure; the rule is 0."""


def budget_kept(case: Case) -> Finding:
    """E4: recompute norm, range and finiteness of every example of the reference attack and of each given one.

    FAIL if one row of one attack has a norm above eps (1 + 1e-6) plus float32's rounding of the pixels, leaves [0, 1],
    or is not finite.
    """
    title = "norm and box hold"
    eps, norm = case.threat.eps, case.threat.norm
    attacks: dict[str, Any] = {}
    broken, largest = [], 0.0
    for name, attempt in examined(case).items():
        bad = _broken(attempt, case)
        norms = attempt.distances[norm]
        reached = float(torch.where(norms.isfinite(), norms, 0.0).max())
        largest = max(largest, reached / eps)
        low, high = _range(attempt.x_adv)
        counts = {what: int(rows.sum()) for what, rows in bad.items()}
        attacks[name] = {"largest_norm": reached, "min": low, "max": high, **counts}
        broken += [f"{name} {what} in {int(rows.sum())} rows" for what, rows in bad.items() if bool(rows.any())]
    details = {"allowed": case.largest_norm / eps, "attacks": attacks}
    if broken:
        return Finding(
            "E4",
            title,
            Status.FAIL,
            f"{and_list(broken)}, so its numbers are not about the threat model ({case.threat}).",
            "Project onto the ball and clip to [0, 1] as the last step, then measure again.",
            largest,
            "eps",
            details,
        )
    return Finding(
        "E4",
        title,
        Status.PASS,
        f"Every example of {and_list(list(attacks))} is in the ball and the box: the largest norm is "
        f"{largest:.6f} of eps.",
        number=largest,
        unit="eps",
        details=details,
    )


def _broken(attempt: Attempt, case: Case) -> dict[str, Tensor]:
    pixels = attempt.x_adv.flatten(1)
    finite = pixels.isfinite().all(dim=1)
    return {
        "oversteps eps": (attempt.distances[case.threat.norm] > case.largest_norm) & finite,
        "leaves [0, 1]": ((pixels < 0) | (pixels > 1)).any(dim=1) & finite,
        "is not finite": ~finite,
    }


def _range(x_adv: Tensor) -> tuple[float | None, float | None]:
    known = x_adv[x_adv.isfinite()]
    return (float(known.min()), float(known.max())) if known.numel() else (None, None)


def best_kept(case: Case) -> Finding:
    """E13: compare what the reference attack and each given one return with the points that they tried on the way.

    Each attack is run once more (the reference attack on the level's ``curve_rows``) on a wrapper of the model that
    looks at every call with a whole batch: which rows are in the ball and the box and answered wrongly there. A row
    that is answered rightly as it is, was fooled on the path, and is not fooled by what is returned, is a silent
    success: it counts for the model, wrongly. The points are kept and asked about again at the end, so that a random
    answer on the path is not enough. Calls with part of a batch cannot be matched to rows, and are not looked at.

    The rule is 0. FAIL above 0.5 % of the rows (that is from the first row on, below 200), WARN below; for a model
    that answers differently each time, WARN at most.

    Reference:
        Pintor et al., Indicators of Attack Failure, NeurIPS 2022, https://arxiv.org/abs/2106.09947 (silent success).
    """
    title = "attacks return their best point"
    runs: dict[str, AttackFunction] = {REFERENCE: case.attack("pgd"), **case.given}
    details: dict[str, Any] = {}
    for name, run in runs.items():
        case.progress(f"{name} once more, watched")
        details[name] = _watched(case, run, case.level.curve_rows if name == REFERENCE else len(case.x))
    seen = {name: found for name, found in details.items() if found["matched_calls"]}
    blind = [name for name in details if name not in seen]
    worst = max(details, key=lambda name: int(details[name]["silent"]))
    count, n = details[worst]["silent"], details[worst]["rows"]
    share = 100 * count / n
    if count == 0 and set(case.given or [REFERENCE]) <= set(blind):
        return Finding(
            "E13",
            title,
            Status.NOT_RUN,
            f"{and_list(blind)} asked the model about no whole batch, so what was tried on the way is not known.",
            "Let the attack call the model that it is given, with all rows it got.",
            details=details,
        )
    if count == 0:
        unknown = f" ({and_list(blind)} could not be followed)" if blind else ""
        return Finding(
            "E13",
            title,
            Status.PASS,
            f"{and_list(list(seen))} returned a wrong image for every row that was fooled on the way{unknown}.",
            number=0.0,
            unit="rows",
            details=details,
        )
    random = is_random(case)
    return Finding(
        "E13",
        title,
        Status.FAIL if share > SILENT_SHARE and not random else Status.WARN,
        f"{worst} passed a point that fools the model in {count} of {n} rows and returned another that does not, so "
        f"its error is {share:.1f} pp too low{' (but the model answers differently each time)' if random else ''}.",
        "Keep the best point of the path (keep_best) instead of the last.",
        float(count),
        "rows",
        details,
    )


def _watched(case: Case, run: AttackFunction, rows: int) -> dict[str, int]:
    """Run an attack on leading rows of a watched model; count calls, and rows fooled on the way and at the end."""
    watch = _Watch(case.model, _in_ball(case))
    found = dict.fromkeys(("calls", "matched_calls", "fooled_on_path", "fooled", "silent", "mended"), 0)
    found["rows"] = len(case.x[:rows])
    for start in range(0, found["rows"], case.batch_size):
        cut = slice(start, min(start + case.batch_size, rows))
        x, y, clean = case.x[cut], case.y[cut], case.clean_wrong[cut]
        watch.begin(x, y)
        try:
            with guarded(watch):
                x_adv = run(watch, x.clone(), y.clone()).detach().to(x)
        except (UserError, RuntimeError) as error:
            if not lacks_gradient(error):
                raise
            x_adv = x
        end = case.judged(case.model, x, y, x_adv).wrong
        path = watch.seen.cpu() & case.judged(case.model, x, y, watch.point).wrong
        found["fooled_on_path"] += int((path & ~clean).sum())
        found["fooled"] += int((end & ~clean).sum())
        found["silent"] += int((path & ~end & ~clean).sum())
        found["mended"] += int((clean & ~end).sum())
    return {**found, "calls": watch.calls, "matched_calls": watch.matched}


def _in_ball(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    limit, order = case.largest_norm, ORDERS[case.threat.norm]

    def inside(point: Tensor, x: Tensor) -> Tensor:
        flat = point.flatten(1)
        size = torch.linalg.vector_norm((point.double() - x.double()).flatten(1), order, dim=1)
        within: Tensor = (size <= limit) & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)
        return within

    return inside


class _Watch(nn.Module):
    """A model that remembers, for each row of the batch that is attacked, a point in the ball that it got wrong."""

    x: Tensor
    y: Tensor
    point: Tensor
    seen: Tensor

    def __init__(self, model: nn.Module, inside: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.inside = inside
        self.calls = self.matched = 0
        self.training = False

    def begin(self, x: Tensor, y: Tensor) -> None:
        """Take up a batch, (B, C, H, W) and (B,)."""
        # Plain attributes: buffers the guard would put back.
        self.x, self.y, self.point = x, y, x.clone()
        self.seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        answer = self.model(x, *arguments, **keywords)
        self.calls += 1
        if isinstance(answer, Tensor) and answer.dim() == 2 and x.shape == self.x.shape:
            self.matched += 1
            with torch.no_grad():
                point = x.detach().to(self.x)
                new = self.inside(point, self.x) & (answer.argmax(dim=1) != self.y) & ~self.seen
                self.point[new] = point[new]
                self.seen |= new
        return answer
