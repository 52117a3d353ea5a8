"""A diagnosis: what all checks came to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc_lightning.referee.finding import DECISIVE, Finding, Status
from amc_lightning.referee.threat_model import ThreatModel
from amc_lightning.results import write_whole

FORMAT = 1
"""Version of the layout of diagnosis.json."""
DIAGNOSIS_FILE = "diagnosis.json"


@dataclass(frozen=True)
class Report:
    """What a diagnosis found.

    Attributes:
        model: name of the model's class, or what its owner calls it.
        threat_model: of the claim.
        level: ``quick`` or ``full``.
        rows: images examined.
        findings: one a check, in order.
        curves: what the plots show: ``error_by_eps``, ``error_by_steps``, ``loss``.
        seconds: that it took.
        seed: of everything random.
        facts: what else the JSON says of the model and the images.
    """

    model: str
    threat_model: ThreatModel
    level: str
    rows: int
    findings: Sequence[Finding]
    curves: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    seed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of one check, such as "E17"."""
        return next(finding for finding in self.findings if finding.check == check)

    def with_status(self, status: Status) -> list[Finding]:
        """Return the findings that ended so."""
        return [finding for finding in self.findings if finding.status == status]

    @property
    def failed(self) -> list[str]:
        """The checks that failed, such as ["E9", "E22"]."""
        return [finding.check for finding in self.with_status(Status.FAIL)]

    @property
    def failed_decisive(self) -> list[str]:
        """Those of them without which a number proves nothing."""
        return [check for check in self.failed if check in DECISIVE]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "format": FORMAT,
            "model": self.model,
            "threat_model": self.threat_model.as_json(),
            "level": self.level,
            "rows": self.rows,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "failed": self.failed,
            "failed_decisive": self.failed_decisive,
            "findings": [finding.as_json() for finding in self.findings],
            "curves": dict(self.curves),
            "facts": dict(self.facts),
        }

    def save(self, folder: Path) -> Path:
        """Write diagnosis.json, diagnosis.md and the plots below a folder, which is made.

        Returns:
            Path of diagnosis.md.
        """
        from amc_lightning.report.diagnosis import write_diagnosis

        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / DIAGNOSIS_FILE, json.dumps(self.as_json(), indent=1).encode())
        return write_diagnosis(folder)

    def __str__(self) -> str:
        """Return the checks as lines of text, one each."""
        from amc_lightning.report.diagnosis import diagnosis_text

        return diagnosis_text(self.as_json())
