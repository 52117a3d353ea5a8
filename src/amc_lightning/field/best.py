"""Which rows compete for the best number of a column, and which of them may not have it."""

from collections.abc import Mapping, Sequence

from amc_lightning.field.entrants import Entrant, Reasons
from amc_lightning.paper.bold import with_bold
from amc_lightning.paper.cells import Cell
from amc_lightning.paper.document import Row


def believe_all(run: object) -> Mapping[str, str]:
    """Return no reason against a run: the rule where no checks are given."""
    return {}


def with_best(
    rows: Sequence[tuple[Entrant, tuple[Cell, ...]]], head: Sequence[str], reasons: Reasons
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Set the lowest error rate of every column in bold, unless a decisive check of its run fails.

    Only hardened rows compete, and of these those that are better than guessing on clean images. Where the best is
    refused no other takes its place.

    Args:
        rows: the rows and their cells.
        head: the headings, that of the rows' names the first.
        reasons: gives the checks that a run fails.

    Returns:
        The rows, and sentences on what is bold and what was refused.
    """
    made = [Row(entrant.place.name, cells) for entrant, cells in rows]
    guessing = [entrant.place.name for entrant, _ in rows if entrant.is_guessing]
    aside = [*guessing, *(entrant.place.name for entrant, _ in rows if entrant.place.kind == "undefended")]
    done, said = with_bold(made, head, [entrant.reasons(reasons) for entrant, _ in rows], aside=aside)
    if guessing:
        said = (*said, f"Not in bold, as no better than guessing on clean images: {', '.join(guessing)}.")
    return done, said


def failed_text(failed: Mapping[str, str]) -> str:
    """Return the checks that failed with their reasons.

    Example:
        >>> failed_text({"E8": "58 % at eps 1"})
        'E8 (58 % at eps 1)'
    """
    return "; ".join(f"{check} ({why})" for check, why in failed.items())
