"""One finished result on disk: a key, a record, data files, and checksums over all of it.

An entry is data: JSON and safetensors. Nothing in it is ever imported or executed, no path in it is followed, and what
is used is what was checked: a file is read once, compared with its checksum, and handed on as bytes.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from amc_lightning.errors import UserError
from amc_lightning.results import commit, sync_folder, versions

FORMAT = 1
"""Of entry.json; raised when older programs could not read a newer entry."""
SUMS = "SHA256SUMS"
RECORD = "entry.json"
REMOVE = "Remove that folder: the result is then computed again."
SHORT = 12
"""Digits of a key that people are shown."""
_LARGEST_RECORD = 64_000_000
"""Bytes of entry.json that are read at most: nothing of ours comes near, and a file from elsewhere may be anything."""
_NAME = re.compile(r"[a-z][a-z0-9_]*\.(json|safetensors)")
KEY = re.compile(r"[0-9a-f]{64}")
"""What a key, or any SHA-256, looks like."""

Recipe = Mapping[str, Any]
"""Everything that determines a result, as plain containers, and nothing else."""


def canonical(value: Any) -> Any:
    """Return plain containers in which equal settings are equal: 1 and 1.0, tuples and lists, fractions as text.

    Raises:
        TypeError: for what has no such form.
        ValueError: for numbers that are not finite.

    Example:
        >>> canonical({"eps": 1.0, "shares": (Fraction(1, 5),)})
        {'eps': 1, 'shares': ['1/5']}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} in a recipe")
        return int(value) if value.is_integer() else value
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): canonical(item) for name, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [canonical(item) for item in value]
    raise TypeError(f"{type(value).__name__} in a recipe")


def key_of(recipe: Recipe) -> str:
    """Return the key of a recipe: SHA-256 of its canonical JSON and the format of entries, 64 hexadecimal digits.

    Example:
        >>> key_of({"a": 1, "b": [2.0]}) == key_of({"b": (2,), "a": 1.0})
        True
    """
    # the format too: entries of two formats never meet under one key, so neither program takes the other's for damaged
    text = json.dumps([FORMAT, canonical(recipe)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished result.

    Attributes:
        key: its key.
        folder: where it lies.
        recipe: what determined it.
        facts: what is known of it: numbers, and where and how it came about.
        created: when it was published, ISO 8601 in UTC.
        files: its data files by name, as checked; empty where only the record was read.
        size: bytes of all its files.
        used: when it was last asked for, seconds since the epoch.
    """

    key: str
    folder: Path
    recipe: Recipe
    facts: Mapping[str, Any]
    created: str
    files: Mapping[str, bytes]
    size: int
    used: float

    def file(self, name: str) -> bytes:
        """Return a data file.

        Raises:
            UserError: if there is none of that name: the entry is sound, but nothing of ours.
        """
        if name not in self.files:
            raise UserError("store.root", str(self.folder), f"has no {name}", "a result of this program", REMOVE)
        return self.files[name]


class DamagedError(ValueError):
    """An entry is not what its key and its checksums say."""


def contents_of(recipe: Recipe, facts: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return all files of a new entry by name: record, data, and the checksums, for ``sha256sum -c`` too.

    Raises:
        ValueError: for a data file whose name a reader would refuse, or facts that are not finite.
    """
    for name in files:
        if name == RECORD or not _NAME.fullmatch(name):
            raise ValueError(f"{name} is no name of a data file")
    record = {
        "format": FORMAT,
        "key": key_of(recipe),
        "recipe": canonical(recipe),
        "facts": facts,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
    }
    contents = {RECORD: (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(), **files}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(contents.items()))
    return contents | {SUMS: sums.encode()}


def write_entry(folder: Path, contents: Mapping[str, bytes], *, durable: bool) -> None:
    """Write files; all are written before the first is waited for, which is faster.

    Args:
        folder: a new folder.
        contents: the files by name.
        durable: whether to wait until a power cut cannot take them back.
    """
    files = []
    try:
        for name, content in contents.items():
            file = (folder / name).open("xb")
            files.append(file)
            file.write(content)
            file.flush()
        for file in files if durable else ():
            os.fsync(file.fileno())
    finally:
        for file in files:
            file.close()
    if durable:
        sync_folder(folder)


def read_entry(folder: Path, key: str, *, data: bool = True) -> Entry:
    """Read an entry and check it: key, checksums, nothing but plain files of known names.

    Args:
        folder: the entry's folder.
        key: the key it must have.
        data: whether data files are read, or only looked at.

    Raises:
        DamagedError: naming the file and what is wrong with it.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedError("not a folder")
    sums = _sums(_plain_file(folder / SUMS, limit=_LARGEST_RECORD))
    if RECORD not in sums:
        raise DamagedError(f"{SUMS} does not name {RECORD}")
    size = 0
    files: dict[str, bytes] = {}
    for name, expected in sums.items():
        if not data and name != RECORD:
            size += _stat(folder / name).st_size
            continue
        content = _plain_file(folder / name, limit=_LARGEST_RECORD if name == RECORD else None)
        if hashlib.sha256(content).hexdigest() != expected:
            raise DamagedError(f"{name} has another checksum")
        size += len(content)
        files[name] = content
    try:
        record = json.loads(files.pop(RECORD))
        recipe, facts, created = record["recipe"], record["facts"], str(record["created"])
        sound = record["format"] == FORMAT and isinstance(recipe, dict) and isinstance(facts, dict)
        sound = sound and key_of(recipe) == key
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{RECORD} cannot be read ({type(error).__name__})") from error
    if not sound:
        raise DamagedError(f"{RECORD} is not the record of this key, or of another format than {FORMAT}")
    return Entry(key, folder, recipe, facts, created, files, size, _stat(folder / SUMS).st_mtime)


def _sums(content: bytes) -> dict[str, str]:
    sums = {}
    for line in content.decode("ascii", errors="replace").removesuffix("\n").split("\n"):
        checksum, _, name = line.partition("  ")
        if not KEY.fullmatch(checksum) or not _NAME.fullmatch(name):
            raise DamagedError(f"{SUMS} has a line that is no checksum of a plain file")
        sums[name] = checksum
    return sums


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.lstat()
    except OSError as error:
        raise DamagedError(f"{path.name} is missing") from error
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{path.name} is no plain file")
    return found


def _plain_file(path: Path, *, limit: int | None = None) -> bytes:
    size = _stat(path).st_size
    if limit is not None and size > limit:
        raise DamagedError(f"{path.name} has {size} bytes")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except PermissionError:
        raise  # nothing is wrong with the entry
    except OSError as error:  # removed meanwhile, or a bad sector
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
