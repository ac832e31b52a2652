"""CIFAR-10 and CIFAR-100 in their official archives, python or binary version: their arrays become one file of rows (rows.py).

The python version holds pickles, which can run any program when they are read.  So an archive's checksum is compared first, with the
official one or with the user's own, and even then the pickles may build nothing but arrays, lists, strings and numbers.

torchvision, through which probes read CIFAR, unpickles the official files alone, which it knows by their checksums: that is as safe, but it
reads neither the binary version nor an archive whose checksum is the user's.
"""

import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mpp.errors import DataError
from mpp.files import write_atomically, write_stream
from mpp.prep.source import Bar, Item, Source
from mpp.prep.sources.archives import PACKED, PackedTar, Stretch, errors_of_packed, tar_members
from mpp.prep.sources.array_pickle import DAMAGED, Array, ArrayUnpickler, ForbiddenError
from mpp.prep.sources.checksum import OFFICIAL, verify_once
from mpp.prep.sources.rows import RowsReader, packed, read_rows

PIXELS = 3 * 32 * 32  # bytes of an image: all red, all green, all blue
ROWS_AT_ONCE = 1000
MAX_MEMBER_BYTES = 1 << 28  # the largest official member has 155 MB
START_BYTES = 1 << 13  # of a tar, in which its first member is looked for; a header may claim any size
PPM_HEADER = b"P6 32 32 255\n"
ROWS = "cifar.rows"  # in the scratch folder


class Layout(NamedTuple):
    """One official archive."""

    kind: str
    archive: str
    md5: str
    names: str  # the member with the class names
    batches: dict[str, str]  # member with images -> split
    names_key: str = ""  # in a pickle
    labels_key: str = ""
    header_bytes: int = 0  # before an image's pixels in the binary version; the last one is the class


_TEN = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
_HUNDRED = {"train": "train", "test": "test"}
LAYOUTS = {
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
BESIDE = ("readme.html", "file.txt~", "coarse_label_names.txt")  # what else the official archives hold
CLASSES = {"cifar10": 10, "cifar100": 100}


def folder_inside(path: Path, packing: str) -> str:
    """The first folder of a compressed tar's first member; empty where there is none to be read."""
    try:
        with path.open("rb") as packed, PACKED[packing](packed) as plain:
            start = io.BytesIO(plain.read(START_BYTES))
        with tarfile.open(fileobj=start, mode="r:") as tar:
            first = tar.next()
    except errors_of_packed():
        return ""  # whoever unpacks it says what is wrong
    except tarfile.TarError:
        return ""
    return first.name.removeprefix("./").partition("/")[0] if first else ""


@dataclass(frozen=True)
class Cifar(Source):
    """An official archive, or one of the same format whose checksum the user gave."""

    path: Path
    kind: str
    packing: str  # of PACKED
    folder: str  # of LAYOUTS
    checksum: str | None = None

    @classmethod
    def open(cls, path: Path, packing: str, folder: str, checksum: str | None) -> "Cifar":
        return cls(path, LAYOUTS[folder].kind, packing, folder, None if checksum == OFFICIAL else checksum)

    def unpack(self, scratch: Path, bar: Bar) -> "CifarRows":
        layout = LAYOUTS[self.folder]
        remedy = (
            "get the file again, or mend --checksum"
            if self.checksum
            else f"get {layout.archive} again, or give --checksum HEX (md5 or sha256) for another archive that you trust"
        )
        verify_once(self.path, self.checksum or layout.md5, remedy, scratch, bar)
        rows, about = scratch / ROWS, scratch / "cifar.json"  # the second is written last
        if not about.exists():
            tar = PackedTar(self.path, self.packing).unpack(scratch, bar)
            with tar.path.open("rb") as file:
                batches = Batches(file, self.path, self.folder)
                classes = batches.class_names()
                write_stream(rows, batches.rows(classes))
            others = batches.others + len(set(batches.places) - {*layout.batches, layout.names, *BESIDE})
            write_atomically(about, json.dumps([classes, others]).encode())
            tar.path.unlink()
        classes, others = json.loads(about.read_bytes())
        return CifarRows(self.path, self.kind, scratch, self.folder, tuple(classes), others)


@dataclass(frozen=True)
class CifarRows(Source):
    """The same, as a file of rows."""

    path: Path
    kind: str
    scratch: Path
    folder: str  # of LAYOUTS
    classes: tuple[str, ...]
    others: int = 0  # members that belong to no official archive

    def items(self, ignored: Counter) -> Iterator[Item]:
        if self.others:
            ignored["(files beside the batches)"] += self.others
        splits = {batch.removesuffix(".bin"): split for batch, split in LAYOUTS[self.folder].batches.items()}
        for row in read_rows(self.scratch / ROWS):
            yield Item(row.path, row.size, (row.offset,), row.label, splits[row.path.partition("/")[0]])

    def reader(self) -> RowsReader:
        return RowsReader(self.scratch, lambda item: ROWS)

    def class_names(self, labels: Collection[str]) -> list[str]:
        return list(self.classes)


class Batches:
    """The members of an unpacked archive."""

    def __init__(self, file: BinaryIO, path: Path, folder: str):
        self.file, self.path, self.layout = file, path, LAYOUTS[folder]
        self.places: dict[str, tuple[int, int]] = {}  # member -> offset, bytes
        self.others = 0  # members that are no files of its folder
        for info in tar_members(file, str(path)):
            within, _, member = info.name.removeprefix("./").rpartition("/")
            if within == folder and info.isreg() and not info.issparse():
                self.places[member] = (info.offset_data, info.size)
            elif not info.isdir():
                self.others += 1
        for member in (self.layout.names, *self.layout.batches):
            if member not in self.places:
                raise DataError(f"{path}: holds no file {folder}/{member}, so it is not the whole of {self.layout.archive}; get it again")
            if not 0 < self.places[member][1] <= MAX_MEMBER_BYTES:
                raise self.wrong(member, f"has {self.places[member][1]} bytes")

    def wrong(self, member: str, what: str) -> DataError:
        return DataError(f"{self.path}: {member} {what}, so it is not of the format of {self.layout.archive}; get it again")

    def open(self, member: str) -> io.BufferedReader:
        return io.BufferedReader(Stretch(self.file, *self.places[member]), 1 << 20)

    def class_names(self) -> list[str]:
        member, count = self.layout.names, CLASSES[self.layout.kind]
        if self.layout.header_bytes:
            names: Any = self.open(member).read().decode("ascii", "replace").split()
        else:
            names = self.unpickled(member).get(self.layout.names_key)
        right = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not right or not len(names) == len(set(names)) == count or "" in names:
            raise self.wrong(member, f"does not hold {count} class names")
        return names

    def rows(self, classes: list[str]) -> Iterator[bytes]:
        """All images, as PPM files."""
        for member in self.layout.batches:
            numbers = itertools.count()
            for labels, pixels in self.binary(member) if self.layout.header_bytes else self.pickled(member):
                if labels.max() >= len(classes):
                    raise self.wrong(member, f"holds the class number {labels.max()}")
                for label, planes in zip(labels.tolist(), pixels, strict=True):
                    image = PPM_HEADER + planes.reshape(3, PIXELS // 3).T.tobytes()
                    yield packed(image, classes[label], f"{member.removesuffix('.bin')}/{next(numbers):05d}")

    def binary(self, member: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        header_bytes = self.layout.header_bytes
        row = header_bytes + PIXELS
        if self.places[member][1] % row:
            raise self.wrong(member, f"has {self.places[member][1]} bytes, no multiple of {row}")
        with self.open(member) as file:
            while data := file.read(row * ROWS_AT_ONCE):
                table = np.frombuffer(data, np.uint8).reshape(-1, row)
                yield table[:, header_bytes - 1], table[:, header_bytes:]

    def pickled(self, member: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batch = self.unpickled(member)
        data, labels = batch.get("data"), batch.get(self.layout.labels_key)
        pixels = getattr(data, "values", np.empty(0)) if isinstance(data, Array) else np.empty(0)
        if not len(pixels) or pixels.shape != (len(pixels), PIXELS):
            raise self.wrong(member, f"has no array data of bytes, [images, {PIXELS}]")
        if not (
            isinstance(labels, list) and len(labels) == len(pixels) and all(type(label) is int and 0 <= label < 256 for label in labels)
        ):
            raise self.wrong(member, f"has no list {self.layout.labels_key} with a class number for each of its {len(pixels)} images")
        for at in range(0, len(pixels), ROWS_AT_ONCE):
            yield np.array(labels[at : at + ROWS_AT_ONCE], np.uint8), pixels[at : at + ROWS_AT_ONCE]

    def unpickled(self, member: str) -> dict:
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
