"""A diagnosis as typed values: diagnosis.json, which the referee writes, and nothing else."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amc_lightning.errors import UserError
from amc_lightning.report.node import Node

DIAGNOSIS_FILE = "diagnosis.json"
FORMAT = 1
STATUSES = ("PASS", "WARN", "FAIL", "NOT RUN")
DECISIVE = ("E4", "E8", "E9", "E24")
"""Checks without which a number proves nothing; the referee's list."""
_DO = "Diagnose the model again: task=diagnose, or amc_lightning.diagnose(...).save(folder)."
_NORMS = {"linf": "l-inf", "l2": "l2", "l1": "l1"}


@dataclass(frozen=True)
class Check:
    """What one check came to: its identifier such as "E17", title, status, figure with unit, sentence, and advice."""

    id: str
    title: str
    status: str
    meaning: str
    advice: str
    number: float | None
    unit: str

    @property
    def is_bad(self) -> bool:
        """Whether there is something to do about it."""
        return self.status in ("WARN", "FAIL")

    @property
    def figure(self) -> str:
        """The number with its unit; a dash where there is none."""
        return "-" if self.number is None else f"{_short(self.number, self.unit)} {self.unit}".strip()


@dataclass(frozen=True)
class Diagnosis:
    """The whole of diagnosis.json.

    ``threat_model`` is in words, ``norm`` and ``eps`` are those of the claim; ``clean_error`` and ``chance`` are in
    percent, None where they are not on record. ``curves`` hold lists of equal length by name: ``error_by_eps`` with
    eps, error, low, high, ``error_by_steps`` with steps, error, ``loss`` with steps, median, low, high; ``images`` is
    how many images each curve is of, where that is on record.
    """

    model: str
    threat_model: str
    norm: str
    eps: float
    level: str
    rows: int
    seed: int
    seconds: float
    checks: tuple[Check, ...]
    clean_error: float | None = None
    chance: float | None = None
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)

    def with_status(self, status: str) -> list[str]:
        """Return the identifiers of the checks that ended so."""
        return [check.id for check in self.checks if check.status == status]


CURVES: Mapping[str, tuple[str, ...]] = {
    "error_by_eps": ("eps", "error", "low", "high"),
    "error_by_steps": ("steps", "error"),
    "loss": ("steps", "median", "low", "high"),
}


def read_diagnosis(folder: Path) -> Diagnosis:
    """Read and check diagnosis.json of a folder.

    Raises:
        UserError: if the file is missing, is not complete JSON, has another format number, or lacks or misspells a
            field.
    """
    path = Path(folder) / DIAGNOSIS_FILE
    allowed = f"a whole file of format {FORMAT} is read"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(DIAGNOSIS_FILE, str(path), "does not exist", "a diagnosis writes it", _DO) from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(DIAGNOSIS_FILE, str(path), f"is not complete JSON ({error})", allowed, _DO) from None
    if not isinstance(raw, dict):
        raise UserError(DIAGNOSIS_FILE, str(path), f"holds a {type(raw).__name__}, not an object", allowed, _DO)
    return parse_diagnosis(raw)


def parse_diagnosis(raw: Mapping[str, object]) -> Diagnosis:
    """Check a diagnosis.json that is already in memory; see ``read_diagnosis``.

    Raises:
        UserError: if the format number is another, or a field is missing or of a wrong type.
    """
    node = Node(raw, "", DIAGNOSIS_FILE, _DO)
    number = raw.get("format")
    if isinstance(number, bool) or number != FORMAT:
        where, problem = f"{DIAGNOSIS_FILE}: format", "is not a format that this version reads"
        raise UserError(where, number, problem, f"known: {FORMAT}", "Use the version that wrote the file.")
    claim, facts = node.child("threat_model"), node.child("facts", optional=True)
    norm, eps = claim.one_of("norm", tuple(_NORMS)), claim.number("eps")
    curves = node.child("curves", optional=True)
    known = [name for name in CURVES if name in curves.raw]
    return Diagnosis(
        model=node.text("model"),
        threat_model=f"{claim.text('knowledge').replace('_', ' ')}, {_NORMS[norm]} {eps:.4g}",
        norm=norm,
        eps=eps,
        level=node.text("level"),
        rows=int(node.number("rows")),
        seed=int(node.number("seed")),
        seconds=node.number("seconds"),
        checks=tuple(map(_check, node.items("findings"))),
        clean_error=_finite(facts.raw.get("clean_error")),
        chance=_finite(facts.raw.get("chance_error")),
        curves={name: _curve(curves.child(name), CURVES[name]) for name in known},
        images={name: int(n) for name in known if (n := _finite(curves.child(name).raw.get("n"))) is not None},
    )


def _check(node: Node) -> Check:
    return Check(
        id=node.text("check"),
        title=node.text("title"),
        status=node.one_of("status", STATUSES),
        meaning=" ".join(node.text("meaning").split()),
        advice=" ".join((node.optional_text("advice") or "").split()),
        number=_finite(node.raw.get("number")),
        unit=node.optional_text("unit") or "",
    )


def _curve(node: Node, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the lists of a curve, without the points at which one of them is no finite number."""
    lists: list[list[float | None]] = []
    for name in names:
        values = node.raw.get(name)
        if not isinstance(values, list) or len(values) != len(lists[0] if lists else values):
            node.fail(name, f"a list of numbers, as long as {names[0]}")
        lists.append(list(map(_finite, values)))
    points = [[value for value in point if value is not None] for point in zip(*lists, strict=True)]
    whole = [point for point in points if len(point) == len(names)]
    return {name: [point[place] for point in whole] for place, name in enumerate(names)}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _short(value: float, unit: str) -> str:
    """Return a figure as short as its unit allows.

    Example:
        >>> _short(12.345, "%"), _short(0.0312, "pp"), _short(1204.0, "rows"), _short(-1e-12, "%"), _short(2.5e-7, "")
        ('12.3', '0.031', '1,204', '0.0', '2.5e-07')
    """
    if unit in ("%", "pp"):
        return f"{value:.2g}" if 1e-9 < abs(value) < 0.95 else f"{round(value, 1) + 0.0:,.1f}"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.3g}"
