"""The whole report on some runs: the paper's tables, its Figure 1, and what became of its claims."""

import os
from pathlib import Path

from amc_lightning.paper.claims import write_claims
from amc_lightning.paper.figure1 import write_figure1
from amc_lightning.paper.forgetting import forgetting_text, write_forgetting
from amc_lightning.paper.runs import Runs
from amc_lightning.paper.squeezing_verdict import squeezing_text
from amc_lightning.paper.tables import write_tables
from amc_lightning.report.sweep_comparison import LEAST_SEEDS
from amc_lightning.results import write_whole

REPORT_FILE = "tables.md"
_TITLES = {
    "table2": "Table 2: clean error of every model",
    "table3": "Table 3: white-box attacks",
    "table4": "Table 4: black-box attacks",
    "table4_summary": "Table 4 over the seeds, and AMC with a local proxy against the best AT[P]",
    "table5": "Table 5: AMC with feature squeezing",
    "table6": "Table 6: an attack that was left out of training",
    "ablations": "Ablations: no transfer, reverse order, no replay",
}


def write_paper_report(runs: Runs, folder: Path) -> Path:
    """Write everything that the paper shows and that these runs measured: the same runs give the same bytes.

    Args:
        runs: what was run, as ``read_runs`` gives it.
        folder: where ``tables.md``, ``tables/``, ``figures/`` and ``claims.md`` go.

    Returns:
        Path of tables.md, which links the rest.

    Raises:
        UserError: if a file of a run cannot be read.
        OSError: if a file cannot be written.
    """
    written = [*write_tables(runs, folder), *write_claims(runs, folder)]
    written += [path for path in (write_figure1(runs, folder), write_forgetting(runs, folder)) if path is not None]
    text = report_text(runs, {Path(os.path.relpath(path, folder)).as_posix() for path in written})
    write_whole(folder / REPORT_FILE, text.encode())
    return folder / REPORT_FILE


def report_text(runs: Runs, files: set[str]) -> str:
    """Return tables.md.

    Args:
        runs: what was run.
        files: the files there are, relative to it.
    """
    blocks = ["# The paper's tables, beside the paper's own numbers", *_what(runs)]
    lines = []
    for stem, title in _TITLES.items():
        if f"tables/{stem}.md" in files:
            others = [f"[{kind}](tables/{stem}.{end})" for end, kind in (("csv", "CSV"), ("tex", "LaTeX"))]
            lines.append(f"- [{title}](tables/{stem}.md) ({', '.join(others)})")
    if "claims.md" in files:
        lines.append("- [What became of the paper's claims](claims.md) ([CSV](claims.csv))")
    blocks.append("\n".join(lines) if lines else "None of these runs is a row of one of the paper's tables.")
    for name, text in (
        ("figures/table3.png", "Error rates under white-box attacks, beside the paper's"),
        ("figures/table4.png", "Error rates under black-box attacks, beside the paper's"),
        ("figures/figure1.png", "Figure 1: examples that fool the undefended model"),
        ("figures/forgetting.png", "Forgetting: error under every attack by stage, with and without replay"),
    ):
        if name in files:
            blocks.append(f"![{text}]({name})")
    if squeezed := squeezing_text(runs):
        blocks += ["## Feature squeezing: is the gain real?", squeezed]
    if forgotten := forgetting_text(runs):
        blocks += ["## Forgetting", forgotten]
    return "\n\n".join(blocks) + "\n"


def _what(runs: Runs) -> list[str]:
    found = []
    for dataset in runs.datasets:
        systems, seeds = runs.of(dataset), runs.seeds(dataset)
        few = f"; fewer than {LEAST_SEEDS} seeds say next to nothing about a spread" if len(seeds) < LEAST_SEEDS else ""
        found.append(
            f"{dataset}: {len(systems)} systems ({', '.join(systems)}); "
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}{few}."
        )
    return found
