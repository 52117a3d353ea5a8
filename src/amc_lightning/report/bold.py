"""Which numbers of a table are set in bold: the best of each column, unless its run proves nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BOLD = (
    "In bold: the lowest error of a column, if the decisive checks (E4, E8, E9, E24) of its run hold as far as they "
    "are on record; whether it differs from the next is another question."
)


@dataclass(frozen=True)
class Marks:
    """Which cells are bold, as (row, column), and what is to be said of those that are not.

    Args:
        bold: the cells.
        notes: sentences on the best numbers that were refused.
    """

    bold: frozenset[tuple[int, int]]
    notes: tuple[str, ...]


def marks(
    rows: Sequence[str],
    heads: Sequence[str],
    values: Sequence[Sequence[float | None]],
    failed: Sequence[Mapping[str, str]],
) -> Marks:
    """Mark the lowest number of every column in which at least two rows have one.

    Rows that tie are all best, unless all of them tie. Where the best is refused no other takes its place.

    Args:
        rows: their names.
        heads: of the columns.
        values: error rates of each row, one for each column; None where there is none, or the row does not compete.
        failed: the decisive checks that each row's run fails, with the reasons.

    Example:
        >>> found = marks(["AT", "AMC"], ["pgm", "vap"], [[5.0, 3.0], [4.0, 4.0]], [{}, {"E9": "below chance"}])
        >>> found.bold
        frozenset({(0, 1)})
        >>> found.notes[1:]
        ('Not in bold: AMC (pgm) E9: below chance.',)
    """
    bold, refused = set(), dict[tuple[str, str], dict[int, list[str]]]()
    has_best = False
    for column, head in enumerate(heads):
        known = {row: value for row, line in enumerate(values) if (value := line[column]) is not None}
        if len(known) < 2 or max(known.values()) - min(known.values()) < 1e-9:
            continue
        has_best = True
        for row in (row for row, value in known.items() if value - min(known.values()) < 1e-9):
            if not failed[row]:
                bold.add((row, column))
            for why in failed[row].items():
                refused.setdefault(why, {}).setdefault(row, []).append(head)
    said = []
    for (check, reason), columns in refused.items():
        named = "; ".join(f"{rows[row]} ({', '.join(there)})" for row, there in columns.items())
        said.append(f"Not in bold: {named} {check}: {reason}.")
    return Marks(frozenset(bold), (BOLD, *said) if has_best else ())
