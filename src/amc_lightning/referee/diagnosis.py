"""Examine a claim of robustness: every check in turn, whatever the model does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.attacks.randomness import kept_torch_randomness
from amc_lightning.errors import NotFiniteError, UserError
from amc_lightning.referee.case import AttackFunction, Case
from amc_lightning.referee.finding import Finding, Status
from amc_lightning.referee.level import Level, level_of
from amc_lightning.referee.probabilities import as_logits
from amc_lightning.referee.provenance import Provenance
from amc_lightning.referee.registry import CHECKS, Check
from amc_lightning.referee.report import Report
from amc_lightning.referee.threat_model import ThreatModel


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    level: str | Level = "quick",
    attacks: Mapping[str, AttackFunction] | None = None,
    undefended: nn.Module | None = None,
    substitute: nn.Module | None = None,
    train: tuple[Tensor, Tensor] | None = None,
    provenance: Provenance | None = None,
    only: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
    so_far: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Examine whether a model's robustness is real.

    Args:
        model: from images (B, C, H, W) in [0, 1] to logits (B, K), K >= 2; any module, left as it was.
        x: held-out images, (N, C, H, W) float32 in [0, 1]. The first rows count where there are more than the level
            takes, so they should be mixed by class.
        y: true class indices, (N,) int64.
        threat_model: what the claim is made under.
        level: ``quick`` or ``full``, or a ``Level`` of your own.
        attacks: attacks that the claim rests on, by name: (model, x, y) to adversarial images. They are examined too.
        undefended: a model of the same task without a defence, on the same device; one is trained on ``train`` if it is
            left out.
        substitute: another model of the task that examples are transferred from; as ``undefended``.
        train: images and labels to train these on, like x and y; half of x and y if left out.
        provenance: what is known beside the model: what it was trained against, on which images it was chosen.
        only: checks to run, such as ["E9", "E22"]; all by default.
        batch_size: rows a call.
        seed: of everything random.
        progress: told what is being done.
        so_far: given the report on the checks that are done, after each of them.

    Returns:
        A report with one finding a check; ``print`` shows it, ``save`` writes JSON, text and plots.

    Raises:
        UserError: if images, labels or the model's answers do not fit each other, or a check does not exist.

    Example:
        >>> x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 2
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> report = diagnose(model, x, y, ThreatModel("linf", 0.1), only=["E19"])
        >>> report["E19"].status
        <Status.PASS: 'PASS'>
    """
    begun = time.perf_counter()
    size = level_of(level)
    chosen = _chosen(only)
    _check_rows(x, y)
    if train is not None:
        _check_rows(*train, names="train images, train labels")
    device = next((p.device for p in model.parameters()), x.device)
    examined, saw_probabilities = as_logits(model, x[:8].to(device), y[: size.rows])
    case = Case(
        model=examined,
        x=x[: size.rows].detach().to(device),
        y=y[: size.rows].to(device),
        threat=threat_model,
        level=size,
        given=attacks or {},
        undefended=undefended,
        substitute=substitute,
        train=train,
        provenance=provenance or Provenance(),
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        returns_probabilities=saw_probabilities,
    )
    findings: list[Finding] = []
    with _held(model, device):
        for check in sorted(chosen, key=lambda check: check.id in LOOKING_BACK):
            progress(f"{check.id} {check.title}")
            findings.append(_run(check, case))
            so_far(_report(model, case, findings, time.perf_counter() - begun))
    return _report(model, case, findings, time.perf_counter() - begun)


LOOKING_BACK = ("E2", "E5")
"""Checks of what all others did: they are made last, and reported in their place."""


def _report(model: nn.Module, case: Case, findings: Sequence[Finding], seconds: float) -> Report:
    return Report(
        model=type(model).__name__,
        threat_model=case.threat,
        level=case.level.name,
        rows=len(case.x),
        findings=sorted(findings, key=lambda finding: finding.order),
        curves=dict(case.curves),
        seconds=seconds,
        seed=case.seed,
        facts={
            "classes": case.num_classes,
            "clean_error": case.clean_error,
            "chance_error": case.chance,
            "shape": list(case.x.shape[1:]),
            "attacks": sorted(case.given),
        },
    )


def _run(check: Check, case: Case) -> Finding:
    try:
        return check.run(case)
    except NotFiniteError as error:
        return Finding(
            check.id,
            check.title,
            Status.FAIL,
            f"The check could not be made: {error}.",
            "Find out where the model makes NaN or infinity: no number measured on it means anything.",
        )


def _chosen(only: Sequence[str] | None) -> list[Check]:
    known = {check.id: check for check in CHECKS}
    for name in only or ():
        if name not in known:
            raise UserError("only", name, "is not a check", f"known: {', '.join(known)}", "Take one of these.")
    return [check for check in CHECKS if only is None or check.id in only]


def _check_rows(x: Tensor, y: Tensor, *, names: str = "x, y") -> None:
    fits = isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == 4 and y.shape == x.shape[:1] and len(x) > 1
    if not fits or x.dtype != torch.float32 or y.dtype != torch.int64:
        shown = [(tuple(v.shape), str(v.dtype)) if isinstance(v, Tensor) else type(v).__name__ for v in (x, y)]
        raise UserError(
            names,
            shown,
            "do not fit each other",
            "x (N, C, H, W) float32, y (N,) int64, N >= 2",
            "Convert them; uint8 images are divided by 255.",
        )
    if not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise UserError(
            names.partition(",")[0],
            f"{low:.3g} to {high:.3g}",
            "leaves the range of pixels",
            "allowed: [0, 1]",
            "Put the normalisation into the model, and give plain pixels.",
        )


@contextmanager
def _held(model: nn.Module, device: torch.device) -> Iterator[None]:
    with guarded(model), kept_torch_randomness(device):
        yield
