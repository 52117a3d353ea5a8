"""Typed access to one object of a JSON file, with messages that name the file and the place of a bad field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from amc_lightning.errors import UserError

RESULTS_FILE = "results.json"
DO = "Give the output folder of a run of amc_lightning, or run the experiment again."


@dataclass(frozen=True)
class Node:
    """One object of the JSON tree.

    Every method raises ``UserError`` where a field is missing or of another type.

    Args:
        raw: the object.
        place: its dotted place in the file, for messages; empty for the whole file.
        file: name of the file, for messages.
        do: what a message says to do.
    """

    raw: Mapping[str, object]
    place: str
    file: str = RESULTS_FILE
    do: str = DO

    def fail(self, key: str, allowed: str) -> NoReturn:
        """Raise the error for one field."""
        where = f"{self.file}: {self._at(key)}"
        problem = "is not what this field holds" if key in self.raw else "is missing"
        raise UserError(where, self.raw.get(key), problem, f"expected: {allowed}", self.do)

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.raw.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return self.fail(key, "a finite number")
        return value

    def optional_number(self, key: str) -> float | None:
        """Return a finite number, or None where the field is null or absent."""
        return None if self.raw.get(key) is None else self.number(key)

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.raw.get(key)
        return value if isinstance(value, str) else self.fail(key, "a text")

    def optional_text(self, key: str) -> str | None:
        """Return a text, or None where the field is null or absent."""
        return None if self.raw.get(key) is None else self.text(key)

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        """Return a text that is one of a few."""
        value = self.raw.get(key)
        return value if isinstance(value, str) and value in choices else self.fail(key, " or ".join(choices))

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self.raw.get(key)
        return value if isinstance(value, bool) else self.fail(key, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.raw.get(key)
        return tuple(str(entry) for entry in value) if isinstance(value, list) else self.fail(key, "a list of texts")

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of numbers."""
        value = self.raw.get(key)
        if not isinstance(value, list) or not all(isinstance(entry, int | float) for entry in value):
            return self.fail(key, "a list of numbers")
        return tuple(value)

    def counts(self) -> dict[str, int]:
        """Return all fields of this object as whole numbers."""
        return {key: int(self.number(key)) for key in self.raw}

    def child(self, key: str, *, optional: bool = False) -> "Node":
        """Return the object in a field; an empty one where it is optional and absent."""
        value = self.raw.get(key, {} if optional else None)
        if not isinstance(value, dict):
            return self.fail(key, "an object")
        return replace(self, raw=value, place=self._at(key))

    def optional_child(self, key: str) -> "Node | None":
        """Return the object in a field, or None where the field is null or absent."""
        return None if self.raw.get(key) is None else self.child(key)

    def children(self) -> dict[str, "Node"]:
        """Return all fields of this object, each an object."""
        return {key: self.child(key) for key in self.raw}

    def items(self, key: str) -> list["Node"]:
        """Return a list of objects."""
        value = self.raw.get(key)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            return self.fail(key, "a list of objects")
        return [replace(self, raw=entry, place=f"{self._at(key)}[{index}]") for index, entry in enumerate(value)]

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key
