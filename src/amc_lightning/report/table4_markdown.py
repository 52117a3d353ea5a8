"""The paper's Table 4 in Markdown: an overview over the interfaces, and every attack under each of them."""

from collections.abc import Container, Iterator, Sequence

from amc_lightning.report import proxy_wording, wording
from amc_lightning.report.columns import Column
from amc_lightning.report.markdown_table import markdown_table, short_rate
from amc_lightning.report.record import Rate
from amc_lightning.report.table4 import System, Table4
from amc_lightning.report.table4_bold import table4_marks
from amc_lightning.report.table4_notes import notes


def table4_text(tables: Sequence[Table4]) -> str:
    """Return table4.md: the overview, then one table for each dataset and threat model."""
    blocks = ["# Table 4: error rates (%) under black-box attacks, lower is better", *overview(tables)]
    for table in tables:
        blocks += details(table)
    return "\n\n".join(blocks) + "\n"


def section(tables: Sequence[Table4], place: str) -> Iterator[str]:
    """Yield the section of a sweep's summary: the overview, and every attack for the paper's interface.

    Args:
        tables: what there is, at least one.
        place: path of table4.md, relative to the summary.
    """
    yield "## Black-box (Table 4)"
    yield from overview(tables)
    for dataset in dict.fromkeys(table.dataset for table in tables):
        mine = [table for table in tables if table.dataset == dataset]
        for table in [table for table in mine if table.interface.kind == "label"] or mine[:1]:
            yield from details(table)
    stem = place.removesuffix(".md")
    yield f"Every interface: [{place}]({place}); as data: [CSV]({stem}.csv), [LaTeX]({stem}.tex)."


def overview(tables: Sequence[Table4]) -> Iterator[str]:
    """Yield one table for each dataset: systems by threat models, with mean and worst case, and how good P'' was."""
    for dataset in dict.fromkeys(table.dataset for table in tables):
        mine = [table for table in tables if table.dataset == dataset]
        yield f"### {dataset}: all interfaces, strength check"
        head = ["system", "clean"]
        head += [f"{short(table)}: {part}" for table in mine for part in ("mean", "worst", "P'' agrees")]
        rows = []
        for systems in by_system(mine):
            first = next(system for system in systems if system is not None)
            cells = [first.name, short_rate(first.stage.evaluation.clean)]
            for system in systems:
                cells += map(short_rate, summaries(system))
                cells.append("-" if system is None else proxy_wording.agreements(system.stage))
            rows.append([*cells, f"{first.minutes:.1f}", f"{first.passes_per_image:,.0f}"])
        yield markdown_table([*head, "minutes", "passes per image"], rows)
    yield (
        f"In brackets: the {wording.INTERVAL}. P'' agrees: {proxy_wording.AGREEMENT}, percent. Minutes and passes: of "
        "the training of all stages, minutes of the proxies P' included. Passes of crafting on a proxy are passes of "
        "its network, not of the model's, and those that trained P' are not counted: by this number a row hardened on "
        "proxies does not compare with one hardened on the model itself."
    )


def details(table: Table4) -> Iterator[str]:
    """Yield one table: systems by attacks, each error with its interval, that of P'' itself, and the paper's."""
    yield f"### {table.dataset}: {table.heading}, every attack"
    yield proxy_wording.attacker(table.interface, [system.stage for system in table.systems])
    head = ["system", *(column.title for column in table.columns), "P'' agrees"]
    bold = table4_marks(table).bold
    yield markdown_table(head, (_row(table, row, bold) for row in range(len(table.systems))))
    yield "\n".join(f"- {note}" for note in dict.fromkeys(notes(table)) if note)


def short(table: Table4) -> str:
    """Return the name of a threat model without what all of them have in common."""
    return table.heading.removeprefix("black_box_")


def by_system(tables: Sequence[Table4]) -> list[list[System | None]]:
    """Return the systems of several tables, one line for each name and one place in it for each table."""
    names = dict.fromkeys(system.name for table in tables for system in table.systems)
    return [[next((s for s in table.systems if s.name == name), None) for table in tables] for name in names]


def summaries(system: System | None) -> tuple[Rate | None, Rate | None]:
    """Return mean and worst case at strength check; None where no attack was evaluated."""
    rates = {} if system is None else system.stage.evaluation.check
    return rates.get("mean"), rates.get("worst")


def _row(table: Table4, row: int, bold: Container[tuple[int, int]]) -> list[str]:
    system = table.systems[row]
    agreed = [proxy_wording.agreement_text(proxy.agreement) for proxy in system.stage.evaluation.proxies.values()]
    lines = [line for pair in agreed for line in pair if line]
    cells = [_cell(table, system, column, is_best=(row, place) in bold) for place, column in enumerate(table.columns)]
    return [system.name, *cells, "<br>".join(lines) or "-"]


def _cell(table: Table4, system: System, column: Column, *, is_best: bool) -> str:
    rate, paper = column.rate(system.stage), table.paper(system, column)
    if rate is None:
        return "-"
    error = wording.percent(rate.error)
    lines = [f"**{error}**" if is_best else error, wording.interval(rate)]
    lines += [] if rate.proxy is None else [f"P'' {wording.percent(rate.proxy.error)}"]
    moved = system.stage.evaluation.transfer(column.strength).get(column.key) if column.group == "attack" else None
    lines += [] if moved is None else [f"M0 {wording.percent(moved.error)}"]
    return "<br>".join([*lines, *([] if paper is None else [f"paper {paper:g}"])])
