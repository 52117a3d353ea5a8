"""The whole report: what AMC buys among the defences against several attacks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_lightning.field.anchors import published_grids
from amc_lightning.field.answer import QUESTION, answer, clean_sentence, sentences
from amc_lightning.field.best import believe_all
from amc_lightning.field.contrast import TOLERANCE, Contrast, contrasts
from amc_lightning.field.entrants import FAMILIES, Entrant, Reasons, entrants, of_family, others
from amc_lightning.field.plot import FIGURE, write_plot
from amc_lightning.field.published import read_published
from amc_lightning.field.tables import attack_grids, has_judge, paired_grid, summary_grid, write_tables
from amc_lightning.field.union import JUDGED
from amc_lightning.paper.document import Grid, markdown_text
from amc_lightning.paper.paired import RESAMPLES
from amc_lightning.paper.runs import Runs
from amc_lightning.results import write_whole

REPORT_FILE = "baselines.md"
_TITLE = "AMC among the defences against several attacks"


@dataclass(frozen=True)
class _Part:
    """What there is of one dataset."""

    dataset: str
    rows: list[Entrant]
    found: list[Contrast]
    grids: list[Grid]
    left_out: list[str]


def write_field_report(runs: Runs, folder: Path, *, reasons: Reasons = believe_all, resamples: int = RESAMPLES) -> Path:
    """Write the comparison of the cascades with every baseline that these runs hold: the same runs give the same bytes.

    Args:
        runs: what was run, as ``read_runs`` gives it.
        folder: where ``baselines.md``, ``tables/baselines`` (.md, .csv, .tex) and ``figures/baselines.png`` go.
        reasons: gives the decisive checks that a run fails, each with its reason; a row that fails one is never bold.
        resamples: of the bootstrap over images.

    Returns:
        Path of baselines.md, which links the rest.

    Raises:
        UserError: if a file of a run cannot be read.
        OSError: if a file cannot be written.
    """
    parts = [_part(runs, dataset, reasons, resamples) for dataset in runs.datasets]
    shown = [part for part in parts if part.rows]
    picture = None
    if shown:
        write_tables([grid for part in shown for grid in part.grids], folder / "tables")
        picture = write_plot([(part.dataset, part.rows) for part in shown], folder)
    text = _text(parts, reasons, has_picture=picture is not None)
    write_whole(folder / REPORT_FILE, text.encode())
    return folder / REPORT_FILE


def _part(runs: Runs, dataset: str, reasons: Reasons, resamples: int) -> _Part:
    systems = runs.of(dataset)
    rows = entrants(systems)
    found = list(_contrasts(rows, resamples))
    paired = paired_grid(dataset, found)
    grids = []
    if rows:
        grids = [summary_grid(dataset, rows, reasons), *attack_grids(dataset, rows, reasons)]
        grids += [paired] if paired is not None else []
        grids += published_grids(dataset, rows, read_published())
    return _Part(dataset, rows, found, grids, others(systems))


def _contrasts(rows: Sequence[Entrant], resamples: int) -> Iterator[Contrast]:
    """Yield every cascade against every baseline of its family: the union at each strength, then clean."""
    for cascade in (row for family in FAMILIES for row in of_family(rows, family, "cascade")):
        rivals = of_family(rows, cascade.place.family, "several", "single")
        for strength in JUDGED:
            if strength == "check" or has_judge([cascade]):
                yield from contrasts(cascade, rivals, "union", strength, resamples=resamples)
        yield from contrasts(cascade, rivals, "clean", resamples=resamples)


def _text(parts: Sequence[_Part], reasons: Reasons, *, has_picture: bool) -> str:
    blocks = [f"# {_TITLE}"]
    if not any(part.rows for part in parts):
        blocks.append("None of these runs is a row of this comparison.")
    else:
        links = [f"[{kind}](tables/baselines.{end})" for end, kind in (("md", "every table"), ("csv", "CSV"))]
        blocks.append(
            f"{', '.join([*links, '[LaTeX](tables/baselines.tex)'])}. Families: "
            f"{'; '.join(f'{name}: {words}' for name, words in FAMILIES.items())}. All are measured alike."
        )
    if has_picture:
        blocks.append(f"![Union error over norms against gradient passes]({FIGURE.as_posix()})")
    for part in parts:
        blocks += _dataset_text(part, reasons)
    return "\n\n".join(blocks) + "\n"


def _dataset_text(part: _Part, reasons: Reasons) -> Iterator[str]:
    yield f"## {part.dataset}"
    if part.rows:
        yield f"### {QUESTION}"
        yield (
            "union error: a row of the attack split counts as wrong if it is wrong clean or under any attack in the "
            f"three balls. At equal cost: gradient passes after M0 that differ by at most {100 * TOLERANCE:.0f} %."
        )
        yield from _answers(part, reasons)
        # Titles and notes as in the file of tables, without its heading.
        shown = [grid for grid in part.grids if grid.name == "baselines" or "published" in grid.name]
        yield markdown_text("", shown).partition("\n\n")[2].rstrip("\n")
    if part.left_out:
        yield f"No row of this comparison: {', '.join(part.left_out)}."


def _answers(part: _Part, reasons: Reasons) -> Iterator[str]:
    for family, words in FAMILIES.items():
        rows = of_family(part.rows, family)
        cascades = of_family(rows, family, "cascade")
        if rows and not cascades:
            yield f"**{family}** ({words}): no cascade was run, so the question has no answer here."
        for cascade in cascades:
            own = [one for one in part.found if one.cascade.system == cascade.system]
            order = f", {cascade.order}" if cascade.order else ""
            head = f"{family}: {cascade.place.label}{order}"
            if not own:
                yield f"**{head}**: no baseline of its family was run, so the question has no answer here."
            for strength in JUDGED:
                unions = [one for one in own if one.quantity == "union" and one.strength == strength]
                if unions:
                    yield f"**{head} (strength {strength})**: {answer(unions, reasons)}"
                    yield "\n".join(f"- {text}" for text in sentences(unions))
            if clean := clean_sentence([one for one in own if one.quantity == "clean"]):
                yield clean
