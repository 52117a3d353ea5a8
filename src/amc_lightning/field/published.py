"""Published numbers of the baselines: published.yaml, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from amc_lightning.errors import UserError
from amc_lightning.field.entrants import PLACES
from amc_lightning.field.union import NORMS

PUBLISHED_FILE = Path(__file__).with_name("published.yaml")
QUANTITIES = ("clean", *NORMS, "union")
_TEXTS = ("source", "network", "attacks")
_DO = "Correct the file; published.py says what it takes."


@dataclass(frozen=True)
class Published:
    """One table of a paper.

    Args:
        source: where it stands.
        network: that was trained there, and how.
        attacks: that it was measured with.
        eps: radius of each ball by its norm, pixels in [0, 1].
        rows: images; None where that is not on record.
        errors: error rates in percent by system, then by quantity: "clean", a norm, "union".
    """

    source: str
    network: str
    attacks: str
    eps: Mapping[str, float]
    rows: int | None
    errors: Mapping[str, Mapping[str, float]]


def read_published(path: Path = PUBLISHED_FILE) -> dict[str, tuple[Published, ...]]:
    """Read and check the published numbers.

    Returns:
        The tables by dataset; accuracies of the file are turned into error rates.

    Raises:
        UserError: if the file is missing, is no YAML, or an entry lacks a field or has a wrong one.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError("published", str(path), f"cannot be read ({error})", "a YAML file", _DO) from None
    _check("published", raw, isinstance(raw, dict), "lists of tables by dataset")
    found = {}
    for dataset, tables in raw.items():
        _check(f"published.{dataset}", tables, isinstance(tables, list), "a list of tables")
        found[str(dataset)] = tuple(_table(entry, f"published.{dataset}[{i}]") for i, entry in enumerate(tables))
    return found


def _table(entry: object, place: str) -> Published:
    fields = {*_TEXTS, "eps", "rows", "accuracies"}
    if not isinstance(entry, dict) or set(entry) != fields:
        raise UserError(place, entry, "is no table", f"the keys {', '.join(sorted(fields))}", _DO)
    for name in _TEXTS:
        _check(f"{place}.{name}", entry[name], isinstance(entry[name], str) and bool(entry[name]), "a text")
    eps, rows, accuracies = entry["eps"], entry["rows"], entry["accuracies"]
    good = isinstance(eps, dict) and set(eps) == set(NORMS) and all(_is_number(value) for value in eps.values())
    _check(f"{place}.eps", eps, good, f"a radius for each of {', '.join(NORMS)}")
    _check(f"{place}.rows", rows, rows is None or (type(rows) is int and rows > 0), "a number of images, or null")
    _check(f"{place}.accuracies", accuracies, isinstance(accuracies, dict), "accuracies by system")
    errors = {}
    for system, numbers in accuracies.items():
        where = f"{place}.accuracies.{system}"
        _check(where, system, system in PLACES, f"known: {', '.join(PLACES)}")
        good = isinstance(numbers, dict) and set(numbers) <= set(QUANTITIES)
        _check(where, numbers, good, f"percent for some of {', '.join(QUANTITIES)}")
        for quantity, value in numbers.items():
            _check(f"{where}.{quantity}", value, _is_number(value) and 0 <= value <= 100, "a percentage")
        errors[system] = {quantity: 100.0 - float(value) for quantity, value in numbers.items()}
    radii = {norm: float(value) for norm, value in eps.items()}
    return Published(entry["source"], entry["network"], entry["attacks"], radii, rows, errors)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(place: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise UserError(place, value, "is not what stands here", f"expected: {allowed}", _DO)
