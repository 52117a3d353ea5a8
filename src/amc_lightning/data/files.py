"""Find a dataset's files on disk, or download them: known checksums, mirrors in order, never a half-written file."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pooch

from amc_lightning.errors import UserError

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """One official file of a dataset.

    Args:
        name: its official name; what a download is saved as.
        urls: where it is, in the order to try.
        md5: checksum of the file as it is downloaded.
        payload_md5: checksum of its content once unpacked, where that is what readers check; else ``md5``.
        aliases: other names under which a user may have it, such as the one without ``.gz``.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    payload_md5: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundFile:
    """A file on disk, and whether its checksum was compared with the official one a moment ago, by the download."""

    path: Path
    just_verified: bool


def locate(root: Path, file: RemoteFile, folders: Sequence[str]) -> FoundFile | None:
    """Return the file if it is in ``root`` or one of its usual sub-folders, under any of its names."""
    for folder in (".", *folders):
        for name in (file.name, *file.aliases):
            path = root / folder / name
            if path.is_file():
                return FoundFile(path, just_verified=False)
    return None


def fetch(
    root: Path,
    files: Sequence[RemoteFile],
    *,
    dataset: str,
    folders: Sequence[str],
    licence: str,
    key: str = "dataset.root",
) -> list[FoundFile]:
    """Return where each file is, after downloading into ``root`` those that are nowhere.

    Args:
        root: where to look and where to save.
        files: what is needed.
        dataset: its name, for messages.
        folders: sub-folders of ``root`` in which the files may lie as well.
        licence: one line logged before a download.
        key: the setting that names ``root``, for messages.

    Raises:
        UserError: if a file is missing and cannot be had; names every missing file and where to get it.
    """
    found = [locate(root, file, folders) for file in files]
    missing = [file for file, place in zip(files, found, strict=True) if place is None]
    if missing:
        logger.warning("downloading %s into %s. %s", dataset, root, licence)
    fetched = {}
    for file in missing:
        reasons = []
        for url in file.urls:
            problem = _download(url, root, file)
            if problem is None:
                fetched[file.name] = FoundFile(root / file.name, just_verified=True)
                break
            reasons.append(f"{url}: {problem}")
            logger.info("could not download %s: %s", url, problem)
        else:
            rest = [other for other in missing if other.name not in fetched]
            raise UserError(
                key,
                str(root),
                f"lacks {', '.join(other.name for other in rest)}, and downloading failed ({'; '.join(reasons)})",
                "get " + ", ".join(" or ".join(other.urls) for other in rest),
                f"Put the files into {root}, or set {key} to the folder that holds them.",
            )
    return [place or fetched[file.name] for file, place in zip(files, found, strict=True)]


def is_official(found: FoundFile, content: bytes, file: RemoteFile) -> bool:
    """Return whether a file's (unpacked) content is the official one; hashes it only if the download has not."""
    return found.just_verified or md5(content) == (file.payload_md5 or file.md5)


def md5(content: bytes) -> str:
    """Return the MD5 sum: what the datasets' publishers give, against damage rather than malice."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def warn_unverified(dataset: str, paths: Sequence[Path]) -> None:
    """Log the one warning for files that differ from the official ones but are sound."""
    logger.warning(
        "%s: not the official files by checksum, but valid in structure, so used (the results say verified: false): %s",
        dataset,
        ", ".join(str(path) for path in paths),
    )


def _download(url: str, root: Path, file: RemoteFile) -> str | None:
    """Save one file, or say in a few words why not. pooch writes beside it and renames once the checksum agrees."""
    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_SECONDS)
    try:
        pooch.retrieve(url, f"md5:{file.md5}", fname=file.name, path=root, downloader=downloader)
    except OSError as error:  # what requests raises is one, too, with the URL in a long text
        text = str(error)
        return error.strerror or (text.split(" for url")[0] if " for url" in text else type(error).__name__)
    except ValueError:
        return "wrong checksum"
    return None
