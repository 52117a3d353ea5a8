"""claims.md: what became of each claim of the paper, and how to read it."""

from collections.abc import Iterator, Mapping, Sequence

from amc_lightning.paper.claim_finding import Checked, Finding, Part
from amc_lightning.paper.claim_list import Claim, Claims
from amc_lightning.paper.claim_reckoning import FEW
from amc_lightning.paper.points import points_text, signed
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.setting import setting_text
from amc_lightning.report.markdown_table import markdown_table

_MOST_PARTS = 4  # more than these are counted in a cell, and stand in the CSV file
_MOST_NAMES = 4
_HEAD = ("claim", "paper", "ours, paper's attacks", "ours, check")


def claims_text(runs: Runs, claims: Claims, checked: Mapping[str, Sequence[Checked]], resamples: int) -> str:
    """Return claims.md: a table of claims for each dataset, then the notes.

    Args:
        runs: all runs of the report.
        claims: the list.
        checked: what became of them, by dataset.
        resamples: of the bootstrap.
    """
    blocks = [
        "# What became of the paper's claims",
        "Each cell has the verdict, the number and its 95 % interval; how to read them stands below the tables. "
        "Every number: [claims.csv](claims.csv).",
    ]
    for dataset, every in checked.items():
        blocks += [
            f"## {dataset}",
            *_data(runs, dataset, every),
            setting_text(runs.of(dataset)),
            _table(dataset, every),
        ]
    blocks += ["## Notes", *_notes(claims, checked, resamples)]
    return "\n\n".join(blocks) + "\n"


def _table(dataset: str, every: Sequence[Checked]) -> str:
    rows = []
    for one in every:
        cells = [_claim(one.claim), _paper(one.claim, dataset)]
        if "" in one.findings:
            cells += [_cell(one.findings[""]), "the same: no attack in it"]
        else:
            cells += [_cell(one.findings[strength]) for strength in ("paper", "check")]
        rows.append(cells)
    return markdown_table(_HEAD, rows)


def _claim(claim: Claim) -> str:
    bound = ""
    if "tolerance" in claim.arguments:
        tolerance = claim.number("tolerance")
        bound = f" Tolerance: {tolerance:g} point{'' if tolerance == 1 else 's'}."
    return f"{claim.claim}{bound} ({claim.where})"


def _paper(claim: Claim, dataset: str) -> str:
    printed, own = claim.paper.get(dataset), claim.recomputed.get(dataset)
    lines = [] if printed is None else [f"{printed:g}"]
    lines += [] if own is None else [f"its tables: {own:g}"]
    return "<br>".join(lines) or "-"


def _cell(finding: Finding) -> str:
    if not finding.is_measured:
        some = list(finding.missing[:_MOST_NAMES])
        more = len(finding.missing) - len(some)
        return f"not measured: {', '.join([*some, *([f'{more} more'] if more else [])])}"
    first, *others = finding.parts
    lines = [f"**{finding.verdict}**"]
    if finding.rule == "any":
        for part in finding.parts:
            alone = f"{part.verdict}: " if others and part.verdict != "not marked" else ""
            lines.append(f"{part.name}, either way: {alone}{_number(finding, part)}")
            lines += [f"{one.name} {_number(finding, one)}" for one in part.beside]
    elif others:
        lines.append(f"least favourable of {len(finding.parts)}, {first.name}: {_number(finding, first)}")
        if len(finding.parts) <= _MOST_PARTS:
            lines += [f"{part.name}: {_number(finding, part)}" for part in others]
        elif first.verdict != "not marked":
            tally = {part.verdict for part in finding.parts}
            counts = [f"{sum(p.verdict == name for p in finding.parts)} {name}" for name in sorted(tally)]
            lines.append(f"each by itself: {', '.join(counts)}")
    else:
        lines.append(_number(finding, first))
    if first.in_sample is not None:
        lines.append(f"best chosen on the same images: {signed(first.in_sample)}")
    lines += [finding.words] if finding.words else []
    lines += [f"n = {finding.n:,}"] if finding.n else []
    return "<br>".join(lines)


def _number(finding: Finding, part: Part) -> str:
    return f"{part.interval.estimate:.2f}" if finding.unit == "ratio" else points_text(part.interval)


def _data(runs: Runs, dataset: str, every: Sequence[Checked]) -> Iterator[str]:
    systems = runs.of(dataset)
    sizes: dict[int, list[str]] = {}
    limited = False
    for system, members in systems.items():
        for run in members:
            limited = limited or run.results.dataset.limit is not None
            names = sizes.setdefault(run.results.dataset.counts["train"], [])
            names += [] if system in names else [system]
    images = "; ".join(
        f"{size:,}" + (f" ({', '.join(names)})" if len(sizes) > 1 else "") for size, names in sorted(sizes.items())
    )
    cap = ", fewer than there are (dataset.limit): not the paper's setting" if limited else ""
    findings = [finding for one in every for finding in one.findings.values()]
    seeds = sorted({finding.seeds for finding in findings if finding.is_measured})
    rows = sorted({finding.n for finding in findings if finding.n})
    yield (
        f"Training images: {images}{cap}. Rows compared: {', '.join(f'{n:,}' for n in rows) or 'none'} "
        "(attack split; clean claims: test split)."
    )
    if not seeds:
        yield "No claim was measured."
    elif all(len(each) == 1 for each in seeds):
        which = ", ".join(str(each[0]) for each in seeds)
        yield (
            f"One seed ({which}): an interval covers the choice of images only, not that of seeds. Another seed may "
            "give another verdict."
        )
    else:
        texts = [" ".join(map(str, each)) for each in seeds]
        yield (
            f"Averaged over the seeds that all systems of a claim have: {'; or '.join(texts)}. An interval covers the "
            "choice of images, with these seeds given; it does not cover that of seeds."
        )


def _notes(claims: Claims, checked: Mapping[str, Sequence[Checked]], resamples: int) -> Iterator[str]:
    yield "\n".join(
        f"- {note}"
        for note in (
            "Numbers are points of error rate, rows of different models paired by example. In brackets: 95 % interval, "
            f"a percentile bootstrap over rows ({resamples:,} resamples). Numbers of size and cost are exact.",
            "The best rival of a column is chosen on one half of the rows (even, odd index) and compared on the other, "
            "both ways, and the two differences are averaged: a rival that is chosen on the rows that it is compared "
            "on looks better than it is. The interval is for these choices. best chosen on the same images: the "
            "paper's way, which favours the rivals; where a cell has several numbers, that of its first.",
            "holds: the interval lies wholly on the claimed side of 0 (or of the tolerance). fails: wholly on the "
            "other side. within noise: neither. A verdict is about the direction, not about the size that the paper "
            "prints.",
            f"Where fewer than {FEW} rows differ such an interval is too narrow, and an exact test has to agree: the "
            "sign test of the rows that differ, p < 0.05 (against a tolerance: Clopper and Pearson's bounds). It has "
            "to agree as well where rows differ by one step only, as of one attack and one seed; there it is "
            "McNemar's test, as in Table 3.",
            "A claim of several conditions holds where each holds by itself. It fails where one of them fails at an "
            "interval and a p value corrected for their number (Bonferroni). The number shown first is that of the "
            "condition that speaks most against the claim.",
            f"Verdicts are given on {', '.join(claims.marked)}. Others show numbers: not marked.",
            "paper's attacks: Table 1 as it is. check: a PGM of 40 steps that can reach its whole ball; and eap "
            "counts within its l1 radius only (eap@budget). Its search is unbounded: done right it fools nearly every "
            "model, so its bare error says little. Only check may be called robust.",
            "Squeezing: adaptive attacks go through the squeezing (BPDA); post hoc is the paper's way, attacks made "
            "without it and squeezed afterwards. either way: wrong under at least one of the two, as who knows of the "
            "squeezing can do either; the verdict is of this. With several squeezings the claim holds where one of "
            "them holds (corrected for their number), and fails where all fail. The stronger attacks exist in one "
            "form; under check, theirs differ only in eap within its radius.",
            "its tables: the same quantity from the paper's own tables, where its text prints another number or none.",
        )
    )
    named = [f"- {claim.claim} {claim.note}" for claim in claims.every if claim.note]
    yield "\n".join(["On single claims:", "", *named])
    slips = [
        f"- {claim.claim} {dataset}: printed {claim.paper[dataset]:g}, its tables give {claim.recomputed[dataset]:g}."
        for claim in claims.every
        for dataset in claim.paper
        if dataset in claim.recomputed and dataset in checked
    ]
    if slips:
        yield "\n".join(["Where the paper's arithmetic does not follow from its tables:", "", *slips])
