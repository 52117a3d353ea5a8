"""What one check of a robustness claim came to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended."""

    PASS = "PASS"  # noqa: S105 - no password
    WARN = "WARN"
    FAIL = "FAIL"
    NOT_RUN = "NOT RUN"
    """Something was not there that the check needs; the sentence says what."""


@dataclass(frozen=True)
class Finding:
    """One check and what it came to.

    Attributes:
        check: its identifier, such as "E17".
        title: what is checked, a few words.
        status: how it ended.
        number: the figure that decided, such as a share of rows; None where nothing is counted.
        unit: of the number: "%", "pp" (percentage points), "rows", "eps" or "radii" (shares of the claim's radius), the
            norm of a distance, "" for none.
        meaning: one sentence on what was found and what it means.
        advice: one sentence on what to do; empty where there is nothing to do.
        details: further figures, plain JSON values.
    """

    check: str
    title: str
    status: Status
    meaning: str
    advice: str = ""
    number: float | None = None
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "status": self.status.value, "details": dict(self.details)}

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: E2 before E10."""
        return int(self.check[1:]), self.check


def ended(finding: Finding, status: Status, meaning: str, advice: str) -> Finding:
    """Return a finding with the same figures that ended otherwise."""
    return replace(finding, status=status, meaning=meaning, advice=advice)


DECISIVE = ("E4", "E8", "E9", "E24")
"""Checks without which a number proves nothing: a table prints none in bold whose run failed one of them."""
