"""Read what is on file of a run, as far as it is there and has the layout of results.json."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from amc_lightning.attacks import load
from amc_lightning.errors import UserError


class Evaluated(NamedTuple):
    """What one model of the record was measured with under one threat model.

    Attributes:
        title: stage and threat model, such as "1 fgsm under white_box".
        threat_model: its name.
        block: ``clean``, and by strength (``paper``, ``check``, ...) rates by attack.
    """

    title: str
    threat_model: str
    block: Mapping[str, Any]


def mapping_in(value: object) -> Mapping[str, Any]:
    """Return a part of a record that should be a mapping; an empty one where it is something else."""
    return value if isinstance(value, Mapping) else {}


def evaluations_of(record: Mapping[str, Any] | None) -> list[Evaluated]:
    """Return the evaluations of a record, in order; none where it has no such thing."""
    found = []
    stages = (record or {}).get("stages")
    for stage in stages if isinstance(stages, list) else []:
        evaluations = stage.get("evaluations") if isinstance(stage, Mapping) else None
        for name, block in evaluations.items() if isinstance(evaluations, Mapping) else ():
            if isinstance(block, Mapping):
                title = " ".join(str(stage[key]) for key in ("index", "name") if key in stage)
                found.append(Evaluated(f"{title} under {name}", str(name), block))
    return found


def strengths_of(evaluated: Evaluated) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the strengths of an evaluation and the rates of each, by attack."""
    for strength, members in evaluated.block.items():
        if strength not in ("clean", "proxies", "transfer") and isinstance(members, Mapping):
            yield strength, members


def strengths_set(record: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return the strengths that the record says were measured, by threat model, whatever came of them."""
    attacks = (record or {}).get("attacks")
    found = {
        str(name): [str(strength) for strength, members in strengths.items() if members]
        for name, strengths in (attacks.items() if isinstance(attacks, Mapping) else ())
        if isinstance(strengths, Mapping)
    }
    return {name: strengths for name, strengths in found.items() if strengths}


def rate_in(members: Mapping[str, Any], name: str) -> float | None:
    """Return an error rate in percent; None if there is none of that name."""
    rate = members.get(name)
    error = rate.get("error") if isinstance(rate, Mapping) else None
    return float(error) if isinstance(error, int | float) else None


def is_unbounded(name: str) -> bool:
    """Say whether an attack of that name is a search without a radius; one that is not known here is not."""
    try:
        return load(name).norm is None
    except UserError:
        return False
