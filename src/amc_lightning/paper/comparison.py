"""Paired comparisons of systems on the same images, seed by seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_lightning.paper.cells import Cell, Fact
from amc_lightning.paper.document import Grid, Row
from amc_lightning.paper.flags import Wrong
from amc_lightning.paper.paired import McNemar, chosen_on_the_other_half, mcnemar
from amc_lightning.paper.points import signed
from amc_lightning.paper.trained import NAMES, Model, same_rows
from amc_lightning.report.columns import Column


@dataclass(frozen=True)
class Pair:
    """What two models of one seed did in one column.

    Args:
        seed: of both.
        a: the first model's error, percent.
        b: the second model's error, percent.
        test: of their mistakes.
    """

    seed: int
    a: float
    b: float
    test: McNemar


@dataclass(frozen=True)
class Match:
    """A system against the best of several rivals in one column, with one seed.

    Args:
        pair: the system, and the rival that was chosen on the other half of the rows than it is compared on.
        chosen: the rivals chosen for the rows of even and of odd index; one where they are the same.
        best: the rival that is the best of all the rows that it is compared on: the paper's choice.
        best_error: its error with this seed, percent; None where it was not run with it.
    """

    pair: Pair
    chosen: tuple[str, ...]
    best: str
    best_error: float | None


def pairs(a: Sequence[Model], b: Sequence[Model], column: Column) -> Iterator[Pair]:
    """Yield the comparison of two systems in one column for every seed that both have, on the same images.

    Nothing is yielded of a seed in which one of them was not measured so, or not on the images of the other.
    """
    others = _flags(b, column)
    for seed, (model, mine) in _flags(a, column).items():
        if seed in others and _are_comparable(model, mine, *others[seed], column):
            yield _pair(seed, mine, others[seed][1])


def matches(system: Sequence[Model], rivals: Mapping[str, Sequence[Model]], column: Column) -> Iterator[Match]:
    """Yield a system's comparison with its best rival in one column for every seed, on the same images.

    Rivals are chosen over the seeds that they have in common with the system, by the mean of their errors.

    Args:
        system: its models, one a seed.
        rivals: models of the others by the name of their system.
        column: which rate; those whose rows were not kept have no comparison.
    """
    own = _flags(system, column)
    known: dict[str, dict[int, Wrong]] = {}
    for name, members in rivals.items():
        found = {
            seed: theirs
            for seed, (model, theirs) in _flags(members, column).items()
            if seed in own and _are_comparable(*own[seed], model, theirs, column)
        }
        known |= {name: found} if found else {}
    if not known:
        return
    names = list(known)
    shares: NDArray[np.float64] = np.array([np.mean([*known[name].values()], axis=0) for name in names])
    rows = chosen_on_the_other_half(shares)
    best = names[int(shares.mean(axis=1).argmin())]
    chosen = tuple(dict.fromkeys(names[row] for row in rows[:2]))
    for seed, (_, mine) in own.items():
        if all(seed in known[name] for name in chosen):
            theirs = np.choose(rows, [known[name].get(seed, mine) for name in names]).astype(np.bool_)
            error = 100 * float(known[best][seed].mean()) if seed in known[best] else None
            yield Match(_pair(seed, mine, theirs), chosen, best, error)


def match_grid(
    title: str,
    name: str,
    dataset: str,
    system: Sequence[Model],
    rivals: Mapping[str, Sequence[Model]],
    columns: Sequence[Column],
    *,
    kind: str,
) -> Grid | None:
    """Return the table of a system against its best rival in every column; None where nothing could be compared.

    Args:
        title: over it.
        name: of the grid.
        dataset: its name.
        system: AMC's models, one a seed, under one threat model.
        rivals: models of the others by system, under the same one.
        columns: the rates.
        kind: what the rivals are, such as "AT".
    """
    made = [_row(column, found, system[0]) for column in columns for found in matches(system, rivals, column)]
    if not made:
        return None
    head = (
        "column", "seed", f"best {kind}", "its error", "AMC", "difference", "n", "only AMC wrong",
        f"only {kind} wrong", "p", "chosen on the same images",
    )  # fmt: skip
    present = [NAMES[rival] for rival in rivals]
    said = (
        f"Exact two-sided McNemar test on the same images. difference: AMC less the best {kind}, points; below 0 AMC "
        "is the better one.",
        f"The best {kind} is another model in each column, as in the paper's comparison. One that is chosen on the "
        "images that it is tested on looks better than it is. Here it is chosen on one half of them (even, odd index) "
        "and compared on the other, both ways; two names where the halves choose differently. chosen on the same "
        "images: the paper's way, which favours the rival.",
        "p is not corrected for the number of columns, and is about these images and these trained models, not about "
        "other trainings.",
        f"Best of: {', '.join(present)}.",
    )
    return Grid(name, dataset, title, head, tuple(made), said)


def p_text(p: float) -> str:
    """Return a p value in short.

    Example:
        >>> p_text(0.25), p_text(0.01234), p_text(1e-9), p_text(1.0)
        ('0.25', '0.012', '<0.001', '1')
    """
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def _flags(found: Sequence[Model], column: Column) -> dict[int, tuple[Model, Wrong]]:
    """Return the rows that are wrong in a column by seed, of the models that were measured so and kept them."""
    every = {model.seed: (model, model.wrong(column)) for model in found if model.rate(column) is not None}
    return {seed: (model, wrong) for seed, (model, wrong) in every.items() if wrong is not None}


def _are_comparable(a: Model, one: Wrong, b: Model, other: Wrong, column: Column) -> bool:
    return one.shape == other.shape and same_rows(a.run, b.run, "test" if column.group == "clean" else "attack")


def _pair(seed: int, mine: Wrong, theirs: Wrong) -> Pair:
    return Pair(seed, 100 * float(mine.mean()), 100 * float(theirs.mean()), mcnemar(mine, theirs))


def _row(column: Column, found: Match, model: Model) -> Row:
    pair, test = found.pair, found.pair.test
    strength = "" if column.group == "clean" else column.strength
    details = {
        "attack": column.key, "strength": strength, "seeds": str(pair.seed), "threat_model": model.threat_model,
    }  # fmt: skip
    own, rival = model.run.system, "/".join(found.chosen)
    against, best_against = f"{own} - {rival}", f"{own} - {found.best}"
    difference = pair.a - pair.b
    same: Cell = Fact("-")
    if found.best_error is not None:
        paper = pair.a - found.best_error
        same = Fact(f"{NAMES[found.best]} {signed(paper)}", "difference_in_sample", paper, best_against, details)
    return Row(
        column.title if column.group != "attack" or column.strength == "check" else f"{column.title} paper",
        (
            Fact(str(pair.seed)),
            Fact(" / ".join(NAMES[name] for name in found.chosen)),
            Fact(f"{pair.b:.1f}", "error", pair.b, rival, details),
            Fact(f"{pair.a:.1f}", "error", pair.a, own, details),
            Fact(signed(difference), "difference", difference, against, details),
            Fact(str(test.n), "n", test.n, against, details),
            Fact(str(test.only_a), "only_amc_wrong", test.only_a, against, details),
            Fact(str(test.only_b), "only_at_wrong", test.only_b, against, details),
            Fact(p_text(test.p), "p", test.p, against, details),
            same,
        ),
    )
