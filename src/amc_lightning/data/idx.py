"""Read the idx format of MNIST, gzipped or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amc_lightning.errors import UserError


def unpack(path: Path) -> bytes:
    """Return the payload of an idx file: its bytes, unzipped where they begin like a gzip file.

    Raises:
        UserError: if the gzip stream is cut short or damaged.
    """
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            str(path),
            f"{len(content)} bytes",
            f"are not a whole gzip file ({error})",
            "the file is cut short or damaged",
            "Delete it and get it again.",
        ) from error


def parse(payload: bytes, path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of an idx payload.

    Args:
        payload: 2 zero bytes, type 8 (unsigned byte), the number of axes, their sizes (big-endian), then the values.
        path: the file it came from, for messages.
        dimensions: axes it must have: 3 for images, 1 for labels.

    Raises:
        UserError: if the header is another one, or the length is not what the header says.

    Example:
        >>> parse(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), Path("labels"), dimensions=1).tolist()
        [7, 9]
    """
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    if payload[:4] != magic or len(payload) < start:
        raise UserError(
            str(path),
            payload[:4].hex(),
            "is not how this file must begin",
            f"an idx file of bytes with {dimensions} axes begins with {magic.hex()}",
            "Delete it and get the official file.",
        )
    shape = struct.unpack(f">{dimensions}I", payload[4:start])
    expected = start + math.prod(shape)
    if len(payload) != expected:
        raise UserError(
            str(path),
            f"{len(payload)} bytes",
            "is not the length that its header tells",
            f"{shape} takes {expected} bytes",
            "The file is cut short or damaged: delete it and get it again.",
        )
    return np.frombuffer(payload, np.uint8, offset=start).reshape(shape)
