"""CIFAR-10 and CIFAR-100 as the files of their official archives hold them, python or binary version: read by probes and by make_shards.py.

The python version holds pickles, and pickle.load calls whatever a pickle asks for.  So whoever reads has compared checksums first, with the
official ones or with the user's own, and even then a pickle gets stand-ins for the few names that numpy writes: every other name is refused.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mpp.base.errors import DataError

PIXELS = 3 * 32 * 32  # bytes of an image: all red, all green, all blue
CLASSES = {"cifar10": 10, "cifar100": 100}


class Layout(NamedTuple):
    """One official archive."""

    kind: str  # of CLASSES
    archive: str
    md5: str
    names: str  # the member with the class names
    batches: dict[str, str]  # member with images -> split
    names_key: str = ""  # in a pickle
    labels_key: str = ""
    header_bytes: int = 0  # before an image's pixels in the binary version; the last one is the class


_TEN = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
_HUNDRED = {"train": "train", "test": "test"}
LAYOUTS = {  # by the folder in the archive
    "cifar-10-batches-py": Layout(
        "cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "batches.meta", _TEN, "label_names", "labels"
    ),
    "cifar-100-python": Layout(
        "cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "meta", _HUNDRED, "fine_label_names", "fine_labels"
    ),
    "cifar-10-batches-bin": Layout(
        "cifar10",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "batches.meta.txt",
        {f"{batch}.bin": split for batch, split in _TEN.items()},
        header_bytes=1,
    ),
    "cifar-100-binary": Layout(
        "cifar100",
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "fine_label_names.txt",
        {f"{batch}.bin": split for batch, split in _HUNDRED.items()},
        header_bytes=2,
    ),
}


@dataclass(frozen=True)
class Cifar:
    """Reads the members of one official archive.  Raises DataError, naming `path` and the member, for another content."""

    path: Path
    layout: Layout
    open: Callable[[str], BinaryIO]  # a member

    def wrong(self, member: str, what: str) -> DataError:
        return DataError(f"{self.path}: {member} {what}, so it is not of the format of {self.layout.archive}; get it again")

    def class_names(self) -> list[str]:
        member, count = self.layout.names, CLASSES[self.layout.kind]
        if self.layout.header_bytes:
            with self.open(member) as file:
                names: Any = file.read().decode("ascii", "replace").split()
        else:
            names = self._unpickled(member).get(self.layout.names_key)
        right = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not right or not len(names) == len(set(names)) == count or "" in names:
            raise self.wrong(member, f"does not hold {count} class names")
        return names

    def images(self, member: str) -> tuple[np.ndarray, np.ndarray]:
        """(pixels, uint8 [n, 32, 32, 3] RGB; class numbers, uint8 [n]) of one batch."""
        planes, labels = self._binary(member) if self.layout.header_bytes else self._pickled(member)
        if labels.max() >= CLASSES[self.layout.kind]:
            raise self.wrong(member, f"holds the class number {labels.max()}")
        return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    def _binary(self, member: str) -> tuple[np.ndarray, np.ndarray]:
        header_bytes = self.layout.header_bytes
        row = header_bytes + PIXELS
        with self.open(member) as file:
            data = file.read()
        if len(data) % row:
            raise self.wrong(member, f"has {len(data)} bytes, no multiple of {row}")
        table = np.frombuffer(data, np.uint8).reshape(-1, row)
        return table[:, header_bytes:], table[:, header_bytes - 1]

    def _pickled(self, member: str) -> tuple[np.ndarray, np.ndarray]:
        batch = self._unpickled(member)
        data, labels = batch.get("data"), batch.get(self.layout.labels_key)
        pixels = getattr(data, "values", np.empty(0)) if isinstance(data, _Array) else np.empty(0)
        if not len(pixels) or pixels.shape != (len(pixels), PIXELS):
            raise self.wrong(member, f"has no array data of bytes, [images, {PIXELS}]")
        if (
            not isinstance(labels, list)
            or len(labels) != len(pixels)
            or not all(type(label) is int and 0 <= label < 256 for label in labels)
        ):
            raise self.wrong(member, f"has no list {self.layout.labels_key} with a class number for each of its {len(pixels)} images")
        return pixels, np.array(labels, np.uint8)

    def _unpickled(self, member: str) -> dict:
        try:
            with self.open(member) as file:
                content = ArrayUnpickler(file, encoding="latin1").load()  # Python 2 wrote the official ones
                behind = len(file.read())
        except ForbiddenError as error:
            raise DataError(f"{self.path}: {member}: {error}, which no batch of images needs: do not trust this archive") from error
        except DAMAGED as error:
            raise self.wrong(member, f"is no pickle of arrays ({type(error).__name__}: {error})") from error
        if not isinstance(content, dict):
            raise self.wrong(member, "holds no dictionary")
        if behind:
            raise self.wrong(member, f"holds {behind} bytes behind its pickle")
        return content


# ---------------------------------------------------------------- pickles of arrays of bytes

# What an unpickler raises for a damaged pickle, MemoryError included: a length may claim anything.
DAMAGED: tuple[type[Exception], ...] = (
    *(pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError),
    *(LookupError, MemoryError, TypeError, ValueError),
)


class ForbiddenError(Exception):
    """A pickle asked for something that arrays do not need."""


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old protocols; any other codec might be a program."""
    if encoding != "latin1":
        raise ForbiddenError(f"the pickle calls for the codec {encoding!r}")
    return text.encode("latin1")


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str, *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and the like: a byte has none


class _Array:
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
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise ForbiddenError(f"the pickle calls for {module}.{name}") from None
