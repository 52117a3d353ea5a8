"""claims.csv: one number a row."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from amc_lightning.paper.claim_finding import Checked, Finding, Part

HEAD = (
    "dataset", "claim", "strength", "part", "unit", "estimate", "low", "high", "in_sample", "verdict", "paper",
    "paper_recomputed", "seeds", "n", "missing",
)  # fmt: skip
HEADLINE = "headline"
"""In the column "part": the row that carries the verdict of the claim.

In the column "in_sample" is the estimate where the best rival is chosen on the rows that it is compared on.
"""


def claims_csv(checked: Mapping[str, Sequence[Checked]]) -> str:
    """Return the file: for every claim, dataset and strength the headline with the verdict, then its parts, if any."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEAD)
    for dataset, every in checked.items():
        for one in every:
            for strength, finding in one.findings.items():
                writer.writerows(_rows(dataset, one, strength, finding))
    return buffer.getvalue()


def _rows(dataset: str, one: Checked, strength: str, finding: Finding) -> Iterator[list[str]]:
    head = [dataset, one.claim.id, strength]
    seeds = " ".join(map(str, finding.seeds))
    rows = str(finding.n) if finding.n else ""
    paper = [_number(values.get(dataset)) for values in (one.claim.paper, one.claim.recomputed)]
    if not finding.is_measured:
        empty = [HEADLINE, finding.unit, "", "", "", "", finding.verdict]
        yield [*head, *empty, *paper, seeds, rows, "; ".join(finding.missing)]
        return
    numbers = _numbers(finding.parts[0])
    yield [*head, HEADLINE, finding.unit, *numbers, finding.verdict, *paper, seeds, rows, ""]
    for part in finding.parts if len(finding.parts) > 1 or finding.parts[0].beside else ():
        yield [*head, part.name, finding.unit, *_numbers(part), part.verdict, "", "", seeds, rows, ""]
        for beside in part.beside:
            name = f"{part.name} {beside.name}"
            yield [*head, name, finding.unit, *_numbers(beside), beside.verdict, "", "", seeds, rows, ""]


def _numbers(part: Part) -> list[str]:
    found = part.interval
    return [_number(value) for value in (found.estimate, found.low, found.high, part.in_sample)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 4) + 0.0:g}"
