"""Which numbers of Table 4 are set in bold: the best of each column, unless its run proves nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from amc_lightning.report.bold import Marks, marks
from amc_lightning.report.decisive import decisive
from amc_lightning.report.record import Results
from amc_lightning.report.table4 import System, Table4


def table4_marks(table: Table4) -> Marks:
    """Return which cells of a table are bold, by the places of row and column in it, and what is said of the others."""
    values = [
        [None if (rate := column.rate(system.stage)) is None else rate.error for column in table.columns]
        for system in table.systems
    ]
    failed = [system_failures(table, system) for system in table.systems]
    return marks([system.name for system in table.systems], [column.title for column in table.columns], values, failed)


def system_failures(table: Table4, system: System) -> Mapping[str, str]:
    """Return the decisive checks that a row fails under the table's threat model, with the reasons.

    A diagnosis in its run folder is not asked: it is of a white box.
    """
    return decisive(_of(system), undefended=_undefended(table, system))


def _of(system: System) -> Results:
    return replace(system.results, order=(), stages=(system.stage,))


def _undefended(table: Table4, system: System) -> Iterator[Results]:
    yield system.results
    alike = [other for other in table.systems if other.kind == "undefended"]
    yield from map(_of, sorted(alike, key=lambda other: other.results.seed != system.results.seed))
