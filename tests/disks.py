"""Small disks that fill up or cannot be written: a real tmpfs, or where nobody may mount one, a pretended one."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WAYS = (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount"))
"""Words before a command that give it a mount namespace of its own: for root, and for others where that is allowed."""
MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"'


class Disk:
    """A disk below a folder, for the process that fills it.

    Args:
        place: the folder.
        mounted: whether a tmpfs is mounted there; if not, limits and refusals of this process stand for it.
    """

    def __init__(self, place: Path, *, mounted: bool) -> None:
        self.place = place
        self.mounted = mounted
        self.full = os.strerror(errno.ENOSPC if mounted else errno.EFBIG)
        """What the system says when it is full."""

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes free."""
        if not self.mounted:
            _limit_files(leave or 2048)
            return
        status = os.statvfs(self.place)
        with (self.place / "filler").open("wb") as file:
            file.write(b"x" * max(0, status.f_bavail * status.f_frsize - leave))

    def free(self) -> None:
        """Undo ``fill``."""
        if self.mounted:
            (self.place / "filler").unlink()
        else:
            _limit_files(resource.RLIM_INFINITY)

    def make_read_only(self) -> None:
        """Refuse whatever writes, from now on until the process ends."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)
            return
        for name in ("mkdir", "rename", "utime", "unlink", "rmdir"):
            setattr(os, name, self._refusing(getattr(os, name)))
        Path.touch = self._refusing(Path.touch)  # type: ignore[method-assign]

    def _refusing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Path, *arguments: Any, **keywords: Any) -> Any:
            if Path(path).is_relative_to(self.place):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *arguments, **keywords)

        return refuse


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@cache
def _way() -> tuple[str, ...] | None:
    for words in WAYS:
        with tempfile.TemporaryDirectory() as place:
            command = [*words, "bash", "-c", MOUNT, "bash", "1m", place, "true"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=30, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return words
    return None


KINDS = ("mounted", "pretended") if _way() else ("pretended",)
"""Kinds of disk that this machine can give a program; the last one it always can."""


def on_small_disk(kind: str, place: Path, program: str, *, size: str) -> dict[str, Any]:
    """Run a program that finds its ``disk``, and return the JSON object that it prints last."""
    begin = f"from pathlib import Path; from tests.disks import Disk; disk = Disk(Path({str(place)!r}), mounted="
    command = [sys.executable, "-c", f"{begin}{kind == 'mounted'})\n{program}"]
    if kind == "mounted":
        words = _way()
        assert words is not None
        command = [*words, "bash", "-c", MOUNT, "bash", size, str(place), *command]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@contextmanager
def small_disk(place: Path, *, size: str) -> Iterator[Disk]:
    """Mount a disk for this process, whose imports another one would pay for again; where that is refused, pretend."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield Disk(place, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        else:
            _limit_files(resource.RLIM_INFINITY)
