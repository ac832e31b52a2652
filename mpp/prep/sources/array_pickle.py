"""Pickles of arrays of bytes, read without running anything that they name.

pickle.load calls whatever a pickle asks for, with whatever arguments.  Here a pickle gets stand-ins for the few names that numpy writes,
and every other name is refused.
"""

import pickle
from typing import Any

import numpy as np

# What an unpickler raises for a damaged pickle, MemoryError included: a length may claim anything.
DAMAGED: tuple[type[Exception], ...] = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class ForbiddenError(Exception):
    """A pickle asked for something that arrays do not need."""


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old protocols; any other codec might be a program."""
    if encoding != "latin1":
        raise ForbiddenError(f"the pickle calls for the codec {encoding!r}")
    return text.encode("latin1")


class Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str, *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and the like: a byte has none


class Array:
    """Stands in for numpy's array and its maker, whose own ways of reading a state were not made for a hostile one."""

    values: np.ndarray

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        if dtype.code not in ("u1", "uint8"):
            raise ValueError(f"an array of {dtype.code!r} and not of bytes")
        raw = data if isinstance(data, bytes) else data.encode("latin1")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")


class ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of bytes, lists, dictionaries, strings and numbers, and refuses everything else by name, before it is imported."""

    ALLOWED = {  # noqa: RUF012 (never changed)
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise ForbiddenError(f"the pickle calls for {module}.{name}") from None
