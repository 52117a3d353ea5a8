"""Results that may exist already: each under a key that is a hash of everything that determines it.

Layout below the root::

    entries/<2 digits>/<key>/   entry.json, SHA256SUMS, data files; written aside, fsynced, renamed: whole or not there
    work/<key>/                 what an unfinished result has so far: checkpoints of a stage
    locks/<key>.lock            kernel locks, released by the death of whoever holds them
    damaged/                    entries that failed a check, set aside
    tmp/                        entries being written
"""

import errno
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from amc_lightning.entry import (
    KEY,
    RECORD,
    SHORT,
    SUMS,
    DamagedError,
    Entry,
    Recipe,
    contents_of,
    key_of,
    read_entry,
    write_entry,
)  # fmt: skip
from amc_lightning.errors import UserError
from amc_lightning.results import sync_folder

log = logging.getLogger(__name__)

_BEGINNING = re.compile(r"[0-9a-f]{1,64}")


class Store:
    """A folder of finished results.

    Args:
        root: the folder; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folder and see that it can be written.

        Raises:
            UserError: if it cannot.
        """
        try:
            for name in ("entries", "work", "locks", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / "tmp" / f"probe-{os.getpid()}-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                "store.root",
                str(self.root),
                f"cannot be written ({error.strerror or error})",
                "a folder that can be made and written",
                "Set store.root=DIR, or AMC_STORE in the environment.",
            ) from error

    # --- asking ------------------------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Say whether there is an entry, unchecked."""
        return (self._place(key) / RECORD).is_file()

    def obtain(
        self,
        recipe: Recipe,
        make: Callable[[Path], tuple[Mapping[str, Any], Mapping[str, bytes]]],
        *,
        on_wait: Callable[[str], None] = lambda holder: None,
        worth: float = 0.0,
    ) -> tuple[Entry, bool]:
        """Return the result of a recipe: the finished one, or one that is made now and published.

        Of several processes that ask at once one makes it, and the others wait.

        Args:
            recipe: what determines the result.
            make: given the result's work folder, returns facts and data files; called only if there is no entry.
            on_wait: told who holds the result's lock, before waiting for it.
            worth: seconds. What was made faster is published without waiting for the disk: whole for every process, but
                a power cut in the next seconds may damage it, which is then found, and it is made again.

        Returns:
            The entry, and whether it was made now.
        """
        key = key_of(recipe)
        if (entry := self.load(key)) is not None:
            return entry, False
        with self.lock(key, on_wait=on_wait):
            if (entry := self._load_or_set_aside(key)) is not None:
                return entry, False
            work = self.work(key)
            if any(path.is_symlink() for path in (work, *work.rglob("*"))):  # not ours: nothing is written through it
                self._throw_away(work)
            start = time.monotonic()
            facts, files = make(work)
            entry = self.publish(recipe, facts, files, durable=time.monotonic() - start >= worth)
            shutil.rmtree(work, ignore_errors=True)
            return entry, True

    def load(self, key: str) -> Entry | None:
        """Return an entry, checked whole; None if there is none or it is damaged, which ``obtain`` mends."""
        folder = self._place(key)
        if not os.path.lexists(folder):
            return None
        try:
            entry = read_entry(folder, key)
        except DamagedError:
            return None
        with suppress(OSError):  # the time of the last use, for pruning; a store may be there to be read only
            os.utime(folder / SUMS)
        return entry

    def _load_or_set_aside(self, key: str) -> Entry | None:
        """Return an entry, or make room for another one; only under the key's lock: nobody else publishes then."""
        folder = self._place(key)
        if (entry := self.load(key)) is None and os.path.lexists(folder):
            try:
                return read_entry(folder, key)
            except DamagedError as error:
                self._set_aside(folder, error)
        return entry

    def work(self, key: str) -> Path:
        """Return the folder for what an unfinished result has so far; it may not exist yet."""
        return self.root / "work" / key

    @contextmanager
    def lock(self, key: str, *, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
        """Hold the kernel lock of a key; the death of a process releases it.

        Raises:
            UserError: if the file system has no locks.
        """
        lock = self._lock(key)
        holder = Path(lock.lock_file).with_suffix(".holder")
        try:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                on_wait(_read_holder(holder))
                lock.acquire(poll_interval=0.2)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            raise UserError(
                "store.root",
                str(self.root),
                "is on a file system without locks",
                "one that has them (flock)",
                "Set store.root to a folder on another file system.",
            ) from error
        try:
            holder.unlink(missing_ok=True)  # of one that was killed; or a link, which would be followed
            with holder.open("x") as file:
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            with suppress(OSError):
                holder.unlink()
            _release(lock)

    def _lock(self, key: str) -> FileLock:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock", fallback_to_soft=False)  # a soft lock outlives its dead owner

    # --- publishing --------------------------------------------------------------------------------------------------

    def publish(
        self, recipe: Recipe, facts: Mapping[str, Any], files: Mapping[str, bytes], *, durable: bool = True
    ) -> Entry:
        """Write an entry whole: aside, fsynced unless it need not be ``durable``, then renamed into its place.

        If another process published the same key meanwhile, its entry stands and is returned.

        Raises:
            OSError: if the disk is full or cannot be written; nothing half-written stays.
        """
        key = key_of(recipe)
        place = self._place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = self.root / "tmp" / f"{key[:SHORT]}-{os.getpid()}-{secrets.token_hex(4)}"
        aside.mkdir(parents=True)
        try:
            write_entry(aside, contents_of(recipe, facts, files), durable=durable)
            while not _renamed(aside, place):
                if (other := self._load_or_set_aside(key)) is not None:  # published meanwhile, and sound
                    return other
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for folder in (place.parent, place.parent.parent) if durable else ():
            sync_folder(folder)
        return read_entry(place, key)

    def _set_aside(self, folder: Path, error: DamagedError) -> None:
        damaged = self.root / "damaged"
        place = damaged / f"{folder.name}-{secrets.token_hex(4)}"
        try:
            damaged.mkdir(exist_ok=True)
            folder.rename(place)
        except FileNotFoundError:  # another process has done it
            return
        except OSError as refused:
            raise UserError(
                "store.root",
                str(self.root),
                f"holds a damaged entry {folder.name} ({error}) that cannot be set aside ({refused.strerror})",
                "a folder that can be written",
                "Remove the entry, or set store.root to another folder.",
            ) from refused
        log.warning("store: entry %s is damaged (%s). It is set aside in %s and computed again.",
                    folder.name[:SHORT], error, place)  # fmt: skip

    def _place(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    # --- keeping house -----------------------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        """Return the keys of all entries, unchecked, sorted."""
        return sorted(path.name for path in (self.root / "entries").glob("*/*") if KEY.fullmatch(path.name))

    def find(self, beginning: str, *, setting: str = "store.keys") -> str:
        """Return the one key that begins so.

        Args:
            beginning: its first digits.
            setting: where they were given, for messages.

        Raises:
            UserError: if there is none, or more than one.
        """
        if not _BEGINNING.fullmatch(beginning):
            quoted = "['12e4']" if setting == "store.keys" else "'12e4'"
            raise UserError(
                setting,
                beginning,
                "is not the beginning of a key",
                "digits 0-9a-f",
                f'Put what looks like a number into quotes: "{setting}={quoted}".',
            )
        found = [key for key in self.keys() if key.startswith(beginning)]
        if len(found) == 1:
            return found[0]
        shown = ", ".join(key[: SHORT + 4] for key in found[:5])
        raise UserError(
            setting,
            beginning,
            "is the beginning of several keys" if found else "is the beginning of no key",
            f"these begin so: {shown}" if found else f"{len(self.keys())} keys are in {self.root}",
            "Give more digits." if found else "See task=store for the keys there are.",
        )

    def record(self, key: str) -> Entry:
        """Return an entry without its data files, of which the sizes alone are looked at.

        Raises:
            DamagedError: if its record is not sound.
        """
        return read_entry(self._place(key), key, data=False)

    def check(self, key: str) -> None:
        """Read an entry whole, and leave it as it is.

        Raises:
            DamagedError: if it is not sound.
        """
        read_entry(self._place(key), key)

    def remove(self, key: str) -> bool:
        """Remove an entry; False if it is in use now, and stays."""
        return self._remove(key, self._place(key))

    def remove_work(self, key: str) -> bool:
        """Remove what an unfinished result has so far; False if it is being worked on now, and stays."""
        return self._remove(key, self.work(key))

    def _remove(self, key: str, folder: Path) -> bool:
        lock = self._lock(key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        try:
            self._throw_away(folder)
        finally:
            _release(lock)
        return True

    def _throw_away(self, folder: Path) -> None:
        """Remove a folder, or a link in its place, at once for whoever looks."""
        gone = self.root / "tmp" / f"gone-{folder.name[:SHORT]}-{secrets.token_hex(4)}"
        gone.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rename(gone)
        if gone.is_symlink():
            gone.unlink()
        shutil.rmtree(gone, ignore_errors=True)


def _read_holder(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just begun, or just ended
        return "another process"


def _release(lock: FileLock) -> None:
    """Release a lock and remove its file: whoever waits for that very file sees it gone, and asks for a new one."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _renamed(aside: Path, place: Path) -> bool:
    """Rename a folder into its place; False if there is one already."""
    try:
        aside.rename(place)
    except OSError:
        if not place.exists():
            raise
        return False
    return True
