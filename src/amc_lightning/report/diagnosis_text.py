"""What a diagnosis says in words: for the terminal, for ``print`` and for a page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from rich import box
from rich.table import Table
from rich.text import Text

from amc_lightning.report import wording
from amc_lightning.report.diagnosis_reading import DECISIVE, Check, Diagnosis, parse_diagnosis
from amc_lightning.report.markdown_table import markdown_table

WORST_CASE = "E5"
"""The check whose number is the error under the union of all attacks."""
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "NOT RUN": "dim"}
HEAD = ("check", "what is checked", "status", "number", "what was found", "what to do")


def diagnosis_text(data: Mapping[str, object]) -> str:
    """Return a diagnosis as plain text: the verdict, then a line for each check and one for what to do about it.

    Args:
        data: the content of diagnosis.json.

    Raises:
        UserError: if it is not that.
    """
    found = parse_diagnosis(data)
    status, figure = (max((len(text) for text in texts), default=0) for texts in _texts(found))
    lines = [verdict(found), what(found)]
    for check in found.checks:
        lines.append(
            f"{check.status:<{status}}  {check.id:<3}  {check.figure:>{figure}}  {check.title}: {check.meaning}"
        )
        lines += [f"{'':<{status}}  -> {check.advice}"] if check.is_bad and check.advice else []
    return "\n".join(lines)


def diagnosis_table(data: Mapping[str, object]) -> Table:
    """Return a diagnosis as a table for a terminal, one row a check; it needs no colour, and wraps where it is narrow.

    Args:
        data: the content of diagnosis.json.

    Raises:
        UserError: if it is not that.
    """
    found = parse_diagnosis(data)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title=Text(f"{found.model}: {found.threat_model} ({found.level})", style="bold"),
        title_justify="left",
        caption=Text.assemble((verdict(found), "bold not italic"), (f" {what(found)}", "not italic")),
        caption_justify="left",
    )
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("what was found", ratio=1, overflow="fold")
    for check in found.checks:
        said = Text.assemble((f"{check.title}: ", "bold"), check.meaning)
        if check.is_bad and check.advice:
            said.append(f"\n-> {check.advice}")
        table.add_row(check.id, Text(check.status, style=COLOURS[check.status]), check.figure, said)
    return table


def diagnosis_markdown(found: Diagnosis, figures: Mapping[str, str]) -> str:
    """Return diagnosis.md.

    Args:
        found: what it says.
        figures: titles of the pictures there are, by their path relative to it.
    """
    blocks = [f"# Diagnosis of {found.model}: {found.threat_model}", f"**{verdict(found)}**", what(found)]
    rows = (
        [check.id, check.title, _marked(check), check.figure, check.meaning, check.advice if check.is_bad else ""]
        for check in found.checks
    )
    if found.checks:
        blocks += ["## Checks", markdown_table(HEAD, rows)]
    blocks.append(
        "PASS: the check holds. WARN: doubt, or something that good practice asks for is missing. FAIL: the claim "
        "cannot stand, or the evaluation is broken. NOT RUN: what the check needs was not given. "
        f"Decisive: {', '.join(DECISIVE)}; where one fails, a number proves nothing."
    )
    blocks += ["## Curves"] if figures else []
    blocks += [f"![{title}]({PurePosixPath(path)})" for path, title in figures.items()]
    return "\n\n".join(blocks) + "\n"


def verdict(found: Diagnosis) -> str:
    """Return the outcome in one or two sentences.

    For example: ``2 of 5 checks FAIL (E9, E22), E9 among them decisive: no number of this model's robustness may be
    believed until that is settled. 1 WARN (E10).``
    """
    failed, warned, skipped = (found.with_status(status) for status in ("FAIL", "WARN", "NOT RUN"))
    ran = len(found.checks) - len(skipped)
    if not ran:
        return "No check was run: nothing is known of this claim."
    rest = f"{len(warned)} WARN ({', '.join(warned)})." if warned else "None WARNs."
    of = f"of {ran} {'check' if ran == 1 else 'checks'}"
    if not failed:
        doubt = "" if warned else " That no check objects is no proof of robustness."
        return f"None {of} FAILs. {rest}{doubt}"
    decisive = [check for check in failed if check in DECISIVE]
    first = f"{len(failed)} {of} FAIL{'' if len(failed) > 1 else 'S'} ({', '.join(failed)})"
    if decisive:
        among = "" if decisive == failed else f" {', '.join(decisive)} among them"
        first += f",{among} decisive: no number of this model's robustness may be believed until that is settled."
    else:
        first += ", none of them decisive: the claim cannot stand as it is."
    return f"{first} {rest}"


def what(found: Diagnosis) -> str:
    """Say what was examined, and how much of it."""
    rates = []
    if found.clean_error is not None:
        rates.append(f"Clean error {wording.percent(found.clean_error)} %")
    worst = next((check.number for check in found.checks if check.id == WORST_CASE), None)
    if worst is not None:
        rates.append(f"{'w' if rates else 'W'}orst case {wording.percent(worst)} %")
    if found.chance is not None:
        rates.append(f"{'g' if rates else 'G'}uessing {wording.percent(found.chance)} %")
    skipped = found.with_status("NOT RUN")
    return " ".join(
        [
            f"{found.rows:,} images, level {found.level}, seed {found.seed}, {found.seconds:.0f} s.",
            *([f"{', '.join(rates)}."] if rates else []),
            *([f"Not run: {', '.join(skipped)}."] if skipped else []),
        ]
    )


def _texts(found: Diagnosis) -> Iterator[Sequence[str]]:
    yield [check.status for check in found.checks]
    yield [check.figure for check in found.checks]


def _marked(check: Check) -> str:
    return f"**{check.status}**" if check.is_bad else check.status
