"""The files of Table 4 in a sweep's folder: Markdown for people, CSV with one number a row, LaTeX for a paper."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.columns import Column
from amc_lightning.report.record import Rate
from amc_lightning.report.table4 import System, Table4
from amc_lightning.report.table4_bold import table4_marks
from amc_lightning.report.table4_markdown import table4_text
from amc_lightning.report.table4_notes import notes
from amc_lightning.results import write_whole

TABLE_4 = "tables/table4.md"
_HEAD = (
    "dataset", "threat_model", "interface", "system", "job", "seed", "defence", "hardened_under", "order",
    "crafted_with", "training_images", "training_limit", "epochs", "hardening_proxy_images", "hardening_proxy_epochs",
    "attack_proxy_images", "attack_proxy_epochs", "minutes", "passes_per_image", "quantity", "source", "strength", "n",
    "percent", "low", "high", "architecture", "proxy_percent", "transfer_percent", "paper_percent",
)  # fmt: skip
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def write_table4(folder: Path, tables: Sequence[Table4]) -> list[Path]:
    """Write table4.md, .csv and .tex below a sweep's folder, each in one step.

    Args:
        folder: the sweep's folder.
        tables: what to write; nothing is written where there are none.

    Returns:
        Paths of the files.

    Raises:
        OSError: if a file cannot be written.
    """
    if not tables:
        return []
    texts = {".md": table4_text(tables), ".csv": table4_csv(tables), ".tex": table4_tex(tables)}
    paths = [(folder / TABLE_4).with_suffix(suffix) for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_whole(path, text.encode())
    return paths


def table4_csv(tables: Sequence[Table4]) -> str:
    """Return every number as a row of its own: errors in percent, then the agreement of each P''."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _HEAD, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for system in table.systems:
            head = _system(table, system)
            writer.writerows({**head, **numbers} for numbers in (*_errors(table, system), *_agreements(system)))
    return buffer.getvalue()


def table4_tex(tables: Sequence[Table4]) -> str:
    """Return one table environment for each dataset and threat model; it needs no package."""
    return "\n".join(line for table in tables for line in _tex(table)) + "\n"


def tex(text: str) -> str:
    r"""Return a text with everything that LaTeX would take for a command made harmless.

    Example:
        >>> tex("at_fgsm: 5 %")
        'at\\_fgsm: 5 \\%'
    """
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def _system(table: Table4, system: System) -> dict[str, str]:
    results = system.results
    hardened = system.stage.index > 0
    own = [stage.proxy for stage in system.stages if stage.proxy is not None]
    attackers = system.stage.evaluation.proxies.values()
    crafting, limit = results.crafting, results.dataset.limit
    return {
        "dataset": table.dataset,
        "threat_model": table.threat_model,
        "interface": proxy_wording.interface_text(table.interface),
        "system": system.name,
        "job": str(system.job),
        "seed": str(results.seed),
        "defence": results.defence if hardened else "undefended",
        "hardened_under": results.threat_model if hardened else "",
        "order": " ".join(results.order) if hardened else "",
        "crafted_with": crafting.column if hardened and crafting is not None else "",
        "training_images": str(results.dataset.counts.get("train", "")),
        "training_limit": "" if limit is None else str(limit),
        "epochs": " ".join(str(stage.epochs) for stage in system.stages),
        "hardening_proxy_images": " ".join(str(proxy.images) for proxy in own),
        "hardening_proxy_epochs": " ".join(str(proxy.epochs) for proxy in own),
        "attack_proxy_images": " ".join(str(proxy.images) for proxy in attackers),
        "attack_proxy_epochs": " ".join(str(proxy.epochs) for proxy in attackers),
        "minutes": f"{system.minutes:.3f}",
        "passes_per_image": f"{system.passes_per_image:.1f}",
    }


def _errors(table: Table4, system: System) -> Iterator[dict[str, str]]:
    for column in table.columns:
        rate, paper = column.rate(system.stage), table.paper(system, column)
        if rate is None:
            continue
        clean = column.group == "clean"
        moved = None if clean else system.stage.evaluation.transfer(column.strength).get(column.key)
        yield {
            "quantity": "error",
            "source": column.key,
            "strength": "" if clean else column.strength,
            "n": str(rate.n),
            "percent": f"{rate.error:.4f}",
            "low": f"{rate.low:.4f}",
            "high": f"{rate.high:.4f}",
            "architecture": rate.architecture,
            "proxy_percent": _percent(rate.proxy),
            "transfer_percent": _percent(moved),
            "paper_percent": "" if paper is None else str(paper),
        }


def _agreements(system: System) -> Iterator[dict[str, str]]:
    for name, proxy in system.stage.evaluation.proxies.items():
        if proxy.agreement is not None:
            agreement = proxy.agreement
            yield {
                "quantity": "agreement",
                "source": "proxy",
                "n": str(agreement.n),
                "percent": f"{agreement.share:.4f}",
                "low": f"{agreement.low:.4f}",
                "high": f"{agreement.high:.4f}",
                "architecture": name,
            }


def _percent(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.error:.4f}"


def _tex(table: Table4) -> Iterator[str]:
    title = f"Error rates (%) on {table.dataset} under {table.heading}, lower is better."
    said = " ".join(note.replace("**", "") for note in dict.fromkeys(notes(table)) if note)
    yield "\\begin{table}"
    yield "\\centering\\small\\setlength{\\tabcolsep}{3pt}"
    yield f"\\caption{{{tex(title)} {tex(said)}}}"
    yield f"\\begin{{tabular}}{{l{'c' * (len(table.columns) + 1)}}}"
    yield "\\hline"
    heads = [_stack([tex(part) for part in column.heading if part]) for column in table.columns]
    yield " & ".join(["system", *heads, _stack(["P''", "agrees"])]) + r" \\"
    yield "\\hline"
    bold = table4_marks(table).bold
    for row, system in enumerate(table.systems):
        cells = [
            _tex_cell(table, system, column, is_best=(row, place) in bold) for place, column in enumerate(table.columns)
        ]
        agreed = [proxy_wording.agreement_text(proxy.agreement) for proxy in system.stage.evaluation.proxies.values()]
        lines = [line for share, interval in agreed for line in (share, _small(interval)) if line]
        yield " & ".join([tex(system.name), *cells, _stack(lines or ["-"])]) + r" \\"
    yield "\\hline"
    yield "\\end{tabular}"
    yield "\\end{table}"


def _tex_cell(table: Table4, system: System, column: Column, *, is_best: bool) -> str:
    rate, paper = column.rate(system.stage), table.paper(system, column)
    if rate is None:
        return "-"
    error = wording.percent(rate.error)
    lines = [f"\\textbf{{{error}}}" if is_best else error, _small(wording.interval(rate))]
    lines += [] if rate.proxy is None else [_small(f"P'' {wording.percent(rate.proxy.error)}")]
    return _stack([*lines, *([] if paper is None else [f"\\textit{{paper {paper:g}}}"])])


def _stack(lines: Sequence[str]) -> str:
    joined = r" \\ ".join(lines)
    return joined if len(lines) == 1 else f"\\shortstack{{{joined}}}"


def _small(text: str) -> str:
    return f"{{\\scriptsize {text}}}" if text else ""
