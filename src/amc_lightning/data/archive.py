"""Read a dataset's files from the folder that its archive unpacks to, or from the archive where it lies."""

import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_lightning.errors import UserError


@dataclass(frozen=True)
class Member:
    """A file and its content; the path of one in an archive begins with the archive's."""

    path: Path
    content: bytes


def read_folder(root: Path, folder: str, names: Iterable[str], *, places: Sequence[str]) -> dict[str, Member] | None:
    """Return the files by name, from the first folder that holds all of them, or ``None``.

    Args:
        root: where to look.
        folder: what the archive unpacks to; the files may also lie where that would.
        names: the files.
        places: sub-folders of ``root`` in which to look as well.
    """
    wanted = list(names)
    for place in (".", *places):
        for path in (root / place, root / place / folder):
            if all((path / name).is_file() for name in wanted):
                return {name: Member(path / name, (path / name).read_bytes()) for name in wanted}
    return None


def read_archive(path: Path, folder: str, names: Iterable[str], *, largest: int) -> dict[str, Member]:
    """Return the files by name, from a .tar.gz file that is unpacked in memory, as far as is needed.

    Args:
        path: the archive.
        folder: the folder in it.
        names: the files.
        largest: files of so many bytes are not read.

    Raises:
        UserError: if the archive is damaged, or lacks a file.
    """
    wanted = list(names)
    found: dict[str, Member] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                place, _, name = entry.name.removeprefix("./").partition("/")
                if place == folder and name in wanted and entry.isreg() and entry.size < largest:
                    stream = archive.extractfile(entry)
                    assert stream is not None  # it is a regular file
                    found[name] = Member(path / entry.name, stream.read())
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            str(path),
            f"{path.stat().st_size} bytes",
            f"are not a whole .tar.gz file ({error})",
            "the file is cut short or damaged",
            "Delete it and get it again.",
        ) from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            str(path),
            missing,
            f"are not in the archive's folder {folder}/",
            f"the official archive holds {', '.join(wanted)}",
            "Delete it and get it again.",
        )
    return found
