"""The referee: is a model's robustness real? ``diagnose`` runs the checks that make a claim honest."""

from amc_lightning.referee.diagnosis import diagnose
from amc_lightning.referee.finding import DECISIVE, Finding, Status
from amc_lightning.referee.level import FULL, LEVELS, QUICK, Level
from amc_lightning.referee.pipeline import pipeline_hash
from amc_lightning.referee.provenance import Provenance, row_hashes
from amc_lightning.referee.report import DIAGNOSIS_FILE, Report
from amc_lightning.referee.threat_model import ThreatModel

__all__ = [
    "DECISIVE",
    "DIAGNOSIS_FILE",
    "FULL",
    "LEVELS",
    "QUICK",
    "Finding",
    "Level",
    "Provenance",
    "Report",
    "Status",
    "ThreatModel",
    "diagnose",
    "pipeline_hash",
    "row_hashes",
]
