"""The paper's claims as data: claims.yaml, read and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from amc_lightning.errors import UserError
from amc_lightning.report.paper_table4 import ATTACKS
from amc_lightning.report.wording import WHITE_BOX

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
CLEAN = "clean"
"""Stands where an attack does, for the clean error on the test split."""

_FIELDS = {"id", "claim", "where", "kind", "arguments", "paper", "recomputed", "note"}
_NEEDED = ("id", "claim", "where", "kind", "arguments")
_DO = "Correct the file; claim_list.py says what each kind takes."


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and how it is checked.

    Args:
        id: its short name.
        claim: the sentence, in our words.
        where: where it stands in the paper.
        kind: of the check; a key of ``KINDS``.
        arguments: of that kind, checked.
        paper: the number that the paper prints for it, by dataset.
        recomputed: the same quantity from the paper's own tables, where that is another number or the only one.
        note: for the page, empty for none.
    """

    id: str
    claim: str
    where: str
    kind: str
    arguments: Mapping[str, object]
    paper: Mapping[str, float]
    recomputed: Mapping[str, float]
    note: str = ""

    def text(self, name: str) -> str:
        """Return an argument that is a text."""
        return str(self.arguments[name])

    def texts(self, name: str) -> tuple[str, ...]:
        """Return an argument that is a list of texts."""
        found = self.arguments[name]
        assert isinstance(found, list)
        return tuple(map(str, found))

    def number(self, name: str) -> float:
        """Return an argument that is a number."""
        found = self.arguments[name]
        assert isinstance(found, int | float)
        return float(found)

    def mapping(self, name: str) -> Mapping[str, str]:
        """Return an argument that maps texts to texts."""
        found = self.arguments[name]
        assert isinstance(found, dict)
        return {str(key): str(value) for key, value in found.items()}


@dataclass(frozen=True)
class Claims:
    """All claims, and the datasets on which they get a verdict."""

    marked: tuple[str, ...]
    every: tuple[Claim, ...]


@dataclass(frozen=True)
class _Kind:
    """What an argument has to be: a test and the words for it."""

    is_good: Callable[[object], bool]
    allowed: str


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


def _is_attacks(value: object) -> bool:
    return _is_names(value) and (value == [CLEAN] or set(value) <= set(ATTACKS))  # type: ignore[call-overload]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_hardened(value: object) -> bool:
    return isinstance(value, dict) and len(value) > 1 and all(attack in ATTACKS for attack in value.values())


def _one_of(*choices: str) -> _Kind:
    return _Kind(lambda value: value in choices, " or ".join(choices))


_NAME = _Kind(lambda value: isinstance(value, str) and bool(value), "a name")
_NAMES = _Kind(_is_names, "a list of names")
_ATTACKS = _Kind(_is_attacks, f"a list of attacks ({', '.join(ATTACKS)}), or [{CLEAN}]")
_TOLERANCE = _Kind(_is_number, "a number of points")

KINDS: Mapping[str, Mapping[str, _Kind]] = {
    "gain": {
        "system": _NAME,
        "rivals": _NAMES,
        "over": _one_of("best", "average"),
        "attacks": _ATTACKS,
        "threat_models": _NAMES,
    },
    "gain_in_every_column": {"system": _NAME, "rivals": _NAMES, "attacks": _ATTACKS, "threat_model": _NAME},
    "near": {
        "system": _NAME,
        "reference": _NAME,
        "attacks": _ATTACKS,
        "threat_model": _NAME,
        "tolerance": _TOLERANCE,
    },
    "no_spill": {
        "systems": _Kind(_is_hardened, "two systems or more, each with the attack it was hardened against"),
        "threat_model": _NAME,
        "tolerance": _TOLERANCE,
    },
    "every_stage": {"system": _NAME, "attacks": _ATTACKS, "threat_model": _NAME},
    "squeezing": {
        "system": _NAME,
        "attacks": _ATTACKS,
        "against": _one_of("seen", "stronger", "difference"),
    },
    "same_size": {"system": _NAME, "reference": _NAME},
    "cheaper": {"system": _NAME, "rivals": _NAMES},
}
"""The kinds of check, each with its arguments, all of which are needed; ``claim_kinds`` says what they reckon."""

DEFAULTS: Mapping[str, Mapping[str, object]] = {"near": {"threat_model": WHITE_BOX}}
"""What an argument is where it is not given."""


def read_claims(path: Path = CLAIMS_FILE) -> Claims:
    """Read and check the list of claims.

    Raises:
        UserError: if the file is missing, is no YAML, or an entry lacks a field or has a wrong one.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError("claims", str(path), f"cannot be read ({error})", "a YAML file of claims", _DO) from None
    if not isinstance(raw, dict) or set(raw) != {"marked", "claims"} or not isinstance(raw["claims"], list):
        raise UserError("claims", str(path), "is no list of claims", "the keys marked and claims", _DO)
    _check("marked", raw["marked"], _NAMES)
    claims = tuple(_claim(entry, f"claims[{index}]") for index, entry in enumerate(raw["claims"]))
    for index, claim in enumerate(claims):
        if claim.id in [other.id for other in claims[:index]]:
            raise UserError(f"claims[{index}].id", claim.id, "stands there twice", "one claim for each id", _DO)
    return Claims(tuple(raw["marked"]), claims)


def _claim(entry: object, place: str) -> Claim:
    if not isinstance(entry, dict):
        raise UserError(place, entry, "is no claim", f"the keys {', '.join(_NEEDED)}", _DO)
    named = entry.get("id")
    place = f"claims.{named}" if isinstance(named, str) and named else place
    for name in _NEEDED:
        if name not in entry:
            raise UserError(f"{place}.{name}", None, "is missing", f"needed: {', '.join(_NEEDED)}", _DO)
    for name in set(entry) - _FIELDS:
        raise UserError(f"{place}.{name}", entry[name], "is not a field", f"known: {', '.join(sorted(_FIELDS))}", _DO)
    for name in ("id", "claim", "where", *(["note"] if "note" in entry else [])):
        _check(f"{place}.{name}", entry[name], _Kind(_NAME.is_good, "a text"))
    kind, arguments = entry["kind"], entry["arguments"]
    if kind not in KINDS:
        raise UserError(f"{place}.kind", kind, "is not a kind of check", f"known: {', '.join(KINDS)}", _DO)
    wanted = KINDS[kind]
    arguments = {**DEFAULTS.get(kind, {}), **arguments} if isinstance(arguments, dict) else arguments
    if not isinstance(arguments, dict) or set(arguments) != set(wanted):
        given = sorted(map(str, arguments)) if isinstance(arguments, dict) else arguments
        raise UserError(f"{place}.arguments", given, f"are not those of {kind}", f"needed: {', '.join(wanted)}", _DO)
    for name, rule in wanted.items():
        _check(f"{place}.arguments.{name}", arguments[name], rule)
    numbers = {name: entry.get(name, {}) for name in ("paper", "recomputed")}
    for name, values in numbers.items():
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise UserError(f"{place}.{name}", values, "is no table", "a number for each dataset", _DO)
        for dataset, value in values.items():
            _check(f"{place}.{name}.{dataset}", value, _Kind(_is_number, "a number"))
    return Claim(
        id=entry["id"],
        claim=entry["claim"],
        where=entry["where"],
        kind=kind,
        arguments=arguments,
        paper={dataset: float(value) for dataset, value in numbers["paper"].items()},
        recomputed={dataset: float(value) for dataset, value in numbers["recomputed"].items()},
        note=entry.get("note", ""),
    )


def _check(place: str, value: object, rule: _Kind) -> None:
    if not rule.is_good(value):
        raise UserError(place, value, "is not what stands here", f"expected: {rule.allowed}", _DO)
