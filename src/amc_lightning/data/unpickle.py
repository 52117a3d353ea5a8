"""Read a pickle of arrays and plain containers, and nothing else.

A pickle is a program: loading one runs whatever function it names. This reader looks every name up in a short fixed
list instead of importing it, so that a hostile file can at worst be refused.
"""

import io
import pickle

import numpy as np

from amc_lightning.errors import UserError


class _Latin1:
    """``_codecs.encode`` for the one codec that numpy's own pickles use; without state that a pickle could change."""

    __slots__ = ()

    def __call__(self, text: str, codec: str) -> bytes:
        """Return the bytes of a text."""
        if codec != "latin1":
            raise pickle.UnpicklingError(f"the codec {codec!r} is not one that arrays are pickled with")
        return text.encode("latin1")


# Taken from what numpy writes, not imported by name: numpy.core is deprecated and numpy._core private.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _Latin1(),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}
# What the interpreter of a damaged pickle may raise, besides its own error.
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _ArraysOnly(pickle.Unpickler):
    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._name = name

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise UserError(
                self._name,
                f"{module}.{name}",
                "is named in this pickle and was not loaded, because it could run any program",
                "only numpy arrays and plain containers are read",
                "Do not use this file; get the official one.",
            )
        return _ADMITTED[module, name]


def load_arrays(content: bytes, name: str) -> object:
    """Return what a pickle holds, if that is arrays, numbers, texts, bytes, lists, tuples and dictionaries.

    Byte strings of Python 2, as in the official CIFAR-10 files, are returned as ``bytes``.

    Args:
        content: the pickle.
        name: the file it came from, for messages.

    Raises:
        UserError: if the pickle names anything else, or is damaged.

    Example:
        >>> load_arrays(pickle.dumps({"data": [1, 2]}), "x.pkl")
        {'data': [1, 2]}
    """
    try:
        return _ArraysOnly(content, name).load()
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(
            name,
            f"{len(content)} bytes",
            f"are not a whole pickle of arrays ({type(error).__name__}: {error})",
            "the file is cut short or damaged",
            "Delete it and get it again.",
        ) from error
