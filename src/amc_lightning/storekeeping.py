"""``task=store``: see what the store holds, why two keys differ, whether it is sound, and make room."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amc_lightning.entry import SHORT, DamagedError, Entry
from amc_lightning.errors import UserError
from amc_lightning.store import Store

DAY = 86_400.0
WRITING = 3600.0
"""Seconds for which an entry may be in writing: what lies in tmp/ longer was left by a process that died."""


@dataclass(frozen=True)
class Difference:
    """One setting in which two recipes differ.

    Attributes:
        setting: its dotted name; "parent > ..." where it is a setting of what they start from.
        one: its value in the first.
        other: its value in the second.
    """

    setting: str
    one: object
    other: object


MISSING = "(not there)"


def keep_store(
    store: Store,
    console: Console,
    *,
    action: str,
    keys: Sequence[str],
    unused_days: float | None,
    max_mb: float | None,
    dry_run: bool,
) -> int:
    """Do what ``store.action`` says, and return the exit status: 1 if something is damaged.

    Args:
        store: the store.
        console: where to print.
        action: ``list``, ``explain``, ``verify`` or ``prune``.
        keys: ``explain``: two keys or their first digits; ``verify``: those to read, all if there are none.
        unused_days: ``prune``: what was not asked for in so many days goes.
        max_mb: ``prune``: what was not asked for longest goes, until so many MB are left.
        dry_run: ``prune``: only say what would go.

    Raises:
        UserError: for keys that are not there, or settings that do not fit the action.
    """
    if not store.root.is_dir():
        raise UserError(
            "store.root",
            str(store.root),
            "does not exist",
            "the folder of a store",
            "Set store.root=DIR, or AMC_STORE.",
        )
    if action == "list":
        return _list(store, console)
    if action == "explain":
        return _explain(store, console, keys)
    if action == "verify":
        return _verify(store, console, [store.find(key) for key in keys] or store.keys())
    return _prune(store, console, unused_days=unused_days, max_mb=max_mb, dry_run=dry_run)


# --- list ------------------------------------------------------------------------------------------------------------


def _list(store: Store, console: Console) -> int:
    entries, damaged = _records(store)
    outcomes = [entry for entry in entries if entry.recipe.get("kind") == "outcome"]
    stages = {entry.key: entry for entry in entries if entry.recipe.get("kind") in ("stage", "given")}
    measured = Counter(str(entry.recipe.get("model")) for entry in outcomes)
    paths = sorted(_path_of(entry, stages) for entry in stages.values())
    console.print(f"{len(stages)} stages in {store.root}", soft_wrap=True, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("key", "stage", "dataset"):
        table.add_column(column, no_wrap=column != "dataset")
    for column in ("seed", "minutes", "measured", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for path in paths:
        name, key = path[-1]
        entry = stages[key]
        minutes = _at(entry.facts, "minutes")
        table.add_row(
            key[:SHORT],
            escape("  " * (len(path) - 1) + name),
            escape(str(_at(entry.facts, "config", "dataset", "name"))),
            escape(str(_at(entry.recipe, "seed"))),
            f"{minutes:.1f}" if isinstance(minutes, int | float) else "",
            str(measured[key]),
            f"{entry.size / 1e6:.1f}",
            time.strftime("%Y-%m-%d", time.localtime(entry.used)),
        )
    console.print(table)
    total = sum(entry.size for entry in entries)
    proxies = sum(entry.recipe.get("kind") == "proxy" for entry in entries)
    counted = f"{len(outcomes)} measurements" + (f", {proxies} proxies" if proxies else "")
    console.print(
        f"{counted}, {total / 1e6:.1f} MB in all; {_unfinished(store)} unfinished",
        highlight=False,
    )
    return _complain(console, damaged)


def _at(value: object, *names: str) -> object:
    """Return what lies that deep in an entry, which may be of other versions or of others; "" if nothing does."""
    for name in names:
        value = value.get(name, "") if isinstance(value, Mapping) else ""
    return value


def _path_of(entry: Entry, stages: Mapping[str, Entry]) -> tuple[tuple[str, str], ...]:
    """Return names and keys of the stages that a stage comes from, and its own, from the undefended one on."""
    recipe = entry.recipe
    name = "given weights" if recipe["kind"] == "given" else str(recipe.get("attack") or "undefended")
    parent = recipe.get("parent")
    if not isinstance(parent, str):
        return ((name, entry.key),)
    before = _path_of(stages[parent], stages) if parent in stages else ((f"(removed: {parent[:SHORT]})", parent),)
    return (*before, (name, entry.key))


def _unfinished(store: Store) -> int:
    return sum(1 for _ in _work_folders(store))


def _work_folders(store: Store) -> Iterator[Path]:
    folder = store.root / "work"
    return (
        (path for path in sorted(folder.iterdir()) if path.is_dir() or path.is_symlink())
        if folder.is_dir()
        else iter(())
    )


def _records(store: Store) -> tuple[list[Entry], dict[str, DamagedError]]:
    keys, entries, damaged = store.keys(), [], {}
    for key in keys:
        try:
            entries.append(store.record(key))
        except DamagedError as error:
            damaged[key] = error
    return entries, damaged


def _complain(console: Console, damaged: Mapping[str, DamagedError]) -> int:
    for key, error in damaged.items():
        console.print(f"damaged: {key[:SHORT]} ({error}); it is set aside and computed again when it is asked for",
                      soft_wrap=True, highlight=False, markup=False)  # fmt: skip
    return 1 if damaged else 0


# --- explain ---------------------------------------------------------------------------------------------------------


def _explain(store: Store, console: Console, keys: Sequence[str]) -> int:
    if len(keys) != 2:
        raise UserError(
            "store.keys", list(keys), f"has {len(keys)} keys", "two, to be compared", "Write 'store.keys=[3f2a,77b0]'."
        )
    one, other = (_sound(store, store.find(key)) for key in keys)
    found = list(differences(store, one, other))
    if not found:
        console.print("They are the same entry.")
        return 0
    table = Table(title="What they differ in", title_justify="left", box=None, pad_edge=False)
    for column in ("setting", one.key[:SHORT], other.key[:SHORT]):
        table.add_column(column, overflow="fold")
    for difference in found:
        table.add_row(*map(escape, (difference.setting, _shown(difference.one), _shown(difference.other))))
    console.print(table)
    return 0


_KEYS = ("parent", "model", "craft_on", "answers")
"""Where a recipe holds the key of another entry."""


def differences(store: Store, one: Entry, other: Entry) -> Iterator[Difference]:
    """Yield the settings in which two recipes differ; of what they start from, its settings in place of its key."""
    yield from _differences(store, one.recipe, other.recipe, "")


def _differences(store: Store, one: Mapping[str, Any], other: Mapping[str, Any], prefix: str) -> Iterator[Difference]:
    for name in sorted({*one, *other}):
        first, second = one.get(name, MISSING), other.get(name, MISSING)
        if json.dumps(first) == json.dumps(second):  # as keys have it: true is not 1
            continue
        if name in _KEYS and isinstance(first, str) and isinstance(second, str):
            if {first, second} <= set(store.keys()):
                above, below = (_sound(store, key).recipe for key in (first, second))
                yield from _differences(store, above, below, f"{prefix}{name} > ")
                continue
        elif isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _differences(store, first, second, f"{prefix}{name}.")
            continue
        elif isinstance(first, list) and isinstance(second, list):
            these, those = ({str(place): item for place, item in enumerate(a, start=1)} for a in (first, second))
            yield from _differences(store, these, those, f"{prefix}{name}.")
            continue
        yield Difference(f"{prefix}{name}", first, second)


def _shown(value: object) -> str:
    if isinstance(value, Mapping) and "name" in value:  # an attack
        return str(value["name"])
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        return ", ".join(str(item["name"]) for item in value)
    text = str(value)
    return text[:SHORT] if len(text) == 64 and value != MISSING else text


def _sound(store: Store, key: str) -> Entry:
    try:
        return store.record(key)
    except DamagedError as error:
        raise UserError(
            "store.keys", key[:SHORT], f"is damaged ({error})", "a sound entry", "See store.action=verify."
        ) from error


# --- verify and prune ------------------------------------------------------------------------------------------------


def _verify(store: Store, console: Console, keys: Sequence[str]) -> int:
    damaged = {}
    for key in keys:
        try:
            store.check(key)
        except DamagedError as error:
            damaged[key] = error
    console.print(f"{len(keys) - len(damaged)} of {len(keys)} entries are sound", highlight=False)
    return _complain(console, damaged)


def _prune(store: Store, console: Console, *, unused_days: float | None, max_mb: float | None, dry_run: bool) -> int:
    if unused_days is None and max_mb is None:
        raise UserError(
            "store.unused_days",
            None,
            "is not set, nor is store.max_mb",
            "at least one of them",
            "Say what may go: store.unused_days=30 or store.max_mb=500.",
        )
    entries, damaged = _records(store)
    now = time.time()
    total = sum(entry.size for entry in entries)
    gone = freed = 0
    for entry in sorted(entries, key=lambda entry: entry.used):
        old = unused_days is not None and now - entry.used > unused_days * DAY
        large = max_mb is not None and total - freed > max_mb * 1e6
        if (old or large) and (dry_run or store.remove(entry.key)):
            gone, freed = gone + 1, freed + entry.size
    before = now - (unused_days or 0) * DAY
    stale = []
    if unused_days is not None:
        work = [path for path in _work_folders(store) if _newest(path) < before]
        stale = [path for path in work if dry_run or store.remove_work(path.name)]
        rest = [path for path in (store.root / "damaged").glob("*") if _newest(path) < before]
        rest += [path for path in (store.root / "tmp").glob("*") if _newest(path) < min(before, now - WRITING)]
        for path in () if dry_run else rest:
            _remove(path)
        stale += rest
    verb = "would go" if dry_run else "removed"
    console.print(
        f"{verb}: {gone} of {len(entries)} entries, {freed / 1e6:.1f} of {total / 1e6:.1f} MB, {len(stale)} "
        "folders of unfinished or damaged ones",
        highlight=False,
    )
    return _complain(console, damaged)


def _newest(folder: Path) -> float:
    """Return when anything below a folder was last written, seconds since the epoch; now, if that is just happening."""
    if folder.is_symlink():
        return folder.lstat().st_mtime
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
