"""Every claim of the paper put to the runs: claims.md and claims.csv."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from amc_lightning.paper.claim_costs import COST_KINDS
from amc_lightning.paper.claim_finding import Checked, Finding, Part
from amc_lightning.paper.claim_kinds import ROW_KINDS
from amc_lightning.paper.claim_list import CLEAN, Claim, Claims, read_claims
from amc_lightning.paper.claim_reckoning import reckon
from amc_lightning.paper.claims_csv import claims_csv
from amc_lightning.paper.claims_text import claims_text
from amc_lightning.paper.paired import RESAMPLES
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.trained import Systems
from amc_lightning.report.record import Strength
from amc_lightning.results import write_whole

STRENGTHS: tuple[Strength, ...] = ("paper", "check")


def check_claims(systems: Systems, dataset: str, claims: Claims, *, resamples: int = RESAMPLES) -> list[Checked]:
    """Put every claim to the runs on one dataset.

    Args:
        systems: the runs on it, by system.
        dataset: its name; only one that the list of claims names gets verdicts.
        claims: the list.
        resamples: of the bootstrap over rows.
    """
    is_marked = dataset in claims.marked
    return [Checked(claim, _mark(_findings(systems, claim, resamples), is_marked)) for claim in claims.every]


def write_claims(runs: Runs, folder: Path, *, resamples: int = RESAMPLES) -> list[Path]:
    """Write claims.md and claims.csv.

    Args:
        runs: all runs of the report.
        folder: where to.
        resamples: of the bootstrap over rows.

    Returns:
        The paths of the two files.

    Raises:
        UserError: if a run's examples.npz is missing or damaged.
    """
    claims = read_claims()
    checked = {
        dataset: check_claims(runs.of(dataset), dataset, claims, resamples=resamples) for dataset in runs.datasets
    }
    texts = {"claims.md": claims_text(runs, claims, checked, resamples), "claims.csv": claims_csv(checked)}
    paths = [Path(folder) / name for name in texts]
    for path in paths:
        write_whole(path, texts[path.name].encode())
    return paths


def _findings(systems: Systems, claim: Claim, resamples: int) -> dict[str, Finding]:
    if claim.kind in COST_KINDS:
        return {"": COST_KINDS[claim.kind](systems, claim)}
    if claim.arguments.get("attacks") == [CLEAN]:
        return {"": _finding(systems, claim, "paper", resamples)}
    return {strength: _finding(systems, claim, strength, resamples) for strength in STRENGTHS}


def _finding(systems: Systems, claim: Claim, strength: Strength, resamples: int) -> Finding:
    asked = ROW_KINDS[claim.kind](systems, claim, strength)
    return asked if isinstance(asked, Finding) else reckon(systems, asked, resamples=resamples)


def _mark(findings: Mapping[str, Finding], is_marked: bool) -> dict[str, Finding]:
    return {strength: found if is_marked else _unmarked(found) for strength, found in findings.items()}


def _unmarked(found: Finding) -> Finding:
    if not found.is_measured:
        return found
    return replace(found, parts=tuple(map(_unmarked_part, found.parts)), verdict="not marked")


def _unmarked_part(part: Part) -> Part:
    return replace(part, verdict="not marked", beside=tuple(map(_unmarked_part, part.beside)))
