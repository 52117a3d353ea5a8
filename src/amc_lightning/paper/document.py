"""One file of tables in three forms: Markdown for people, CSV with one number a row, LaTeX for a paper."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_lightning.paper.cells import Cell, Error, Fact
from amc_lightning.report.markdown_table import markdown_table
from amc_lightning.report.table4_file import tex
from amc_lightning.results import write_whole

CSV_HEAD = (
    "table", "dataset", "row", "system", "seeds", "quantity", "attack", "strength", "threat_model", "n", "percent",
    "low", "high", "sd", "paper_percent", "value",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        name: what stands in front of it.
        cells: one for each column.
    """

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """One table.

    Args:
        name: in the column "table" of the CSV file, such as "table3_ours".
        dataset: of which dataset.
        title: over it.
        head: the headings, that of the rows' names the first.
        rows: the rows.
        notes: what stands below it; sentences may repeat, and be empty.
    """

    name: str
    dataset: str
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[Error]:
        """All cells that are error rates."""
        return [cell for row in self.rows for cell in row.cells if isinstance(cell, Error)]

    @property
    def said(self) -> list[str]:
        """The notes, each once."""
        return [note for note in dict.fromkeys(self.notes) if note]


def write_document(folder: Path, name: str, title: str, grids: Sequence[Grid]) -> list[Path]:
    """Write a file's tables as Markdown, CSV and LaTeX, each in one step.

    Args:
        folder: where.
        name: of the files, without a suffix.
        title: of the whole; nothing is written where there are no tables.
        grids: the tables.

    Returns:
        Paths of the files.

    Raises:
        OSError: if a file cannot be written.
    """
    if not grids:
        return []
    texts = {".md": markdown_text(title, grids), ".csv": csv_text(grids), ".tex": tex_text(grids)}
    paths = [folder / f"{name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_whole(path, text.encode())
    return paths


def markdown_text(title: str, grids: Sequence[Grid]) -> str:
    """Return the tables as Markdown, each with its notes below it."""
    blocks = [f"# {title}"]
    for grid in grids:
        blocks.append(f"### {grid.title}")
        blocks.append(markdown_table(grid.head, ([row.name, *map(_markdown_cell, row.cells)] for row in grid.rows)))
        blocks += ["\n".join(f"- {note}" for note in grid.said)] if grid.said else []
    return "\n\n".join(blocks) + "\n"


def csv_text(grids: Sequence[Grid]) -> str:
    """Return every number as a row of its own; error rates in the column percent, all others in the column value."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_HEAD, restval="", lineterminator="\n")
    writer.writeheader()
    for grid in grids:
        for row in grid.rows:
            for cell in row.cells:
                head = {"table": grid.name, "dataset": grid.dataset, "row": row.name, "system": cell.system}
                numbers = _error_numbers(cell) if isinstance(cell, Error) else _fact_numbers(cell)
                if numbers:
                    writer.writerow(head | numbers)
    return buffer.getvalue()


def tex_text(grids: Sequence[Grid]) -> str:
    """Return one table environment for each table; it needs no package."""
    return "\n".join(line for grid in grids for line in _tex(grid)) + "\n"


def _markdown_cell(cell: Cell) -> str:
    main = f"**{cell.main}**" if isinstance(cell, Error) and cell.is_best else cell.main
    return "<br>".join(line for line in (main, *cell.small, cell.below) if line)


def _error_numbers(cell: Error) -> dict[str, str]:
    if not cell.rates and cell.paper is None:
        return {}
    numbers = {
        "seeds": " ".join(map(str, cell.rates)),
        "quantity": "error",
        "attack": cell.column.key,
        "strength": "" if cell.column.group == "clean" else cell.column.strength,
        "threat_model": cell.threat_model,
        "n": " ".join(str(n) for n in sorted({rate.n for rate in cell.rates.values()})),
        "percent": "" if cell.value is None else f"{cell.value:.4f}",
        "paper_percent": "" if cell.paper is None else str(cell.paper),
    }
    if cell.only is not None:
        numbers |= {"low": f"{cell.only.low:.4f}", "high": f"{cell.only.high:.4f}"}
    if cell.spread is not None:
        numbers["sd"] = f"{cell.spread.sd:.4f}"
    return numbers


def _fact_numbers(cell: Fact) -> dict[str, str]:
    # A p value may be tiny: six significant digits of it, four decimals of anything else, as of the error rates.
    if cell.value is None:
        return {}
    place = "percent" if cell.quantity == "error" else "value"
    return {
        **cell.details,
        "quantity": cell.quantity,
        place: f"{cell.value:{'.6g' if cell.quantity == 'p' else '.4f'}}",
    }


def _tex(grid: Grid) -> Iterator[str]:
    said = " ".join(note.replace("**", "").replace("`", "") for note in grid.said)
    yield "\\begin{table}"
    yield "\\centering\\small\\setlength{\\tabcolsep}{3pt}"
    yield f"\\caption{{{_tex_words(f'{grid.title}. {said}'.strip())}}}"
    yield f"\\begin{{tabular}}{{l{'c' * (len(grid.head) - 1)}}}"
    yield "\\hline"
    yield " & ".join(_stack([_tex_words(part) for part in head.split(" ", 1)]) for head in grid.head) + r" \\"
    yield "\\hline"
    for row in grid.rows:
        yield " & ".join([_tex_words(row.name), *map(_tex_cell, row.cells)]) + r" \\"
    yield "\\hline"
    yield "\\end{tabular}"
    yield "\\end{table}"


def _tex_cell(cell: Cell) -> str:
    small = [f"{{\\scriptsize {_tex_words(line)}}}" for line in cell.small]
    paper = [f"\\textit{{{_tex_words(cell.below)}}}"] if cell.below else []
    main = _tex_words(cell.main)
    main = f"\\textbf{{{main}}}" if isinstance(cell, Error) and cell.is_best else main
    return _stack([main, *small, *paper])


def _tex_words(text: str) -> str:
    return tex(text).replace("+-", r"$\pm$")


def _stack(lines: Sequence[str]) -> str:
    joined = r" \\ ".join(lines)
    return joined if len(lines) == 1 else f"\\shortstack{{{joined}}}"
