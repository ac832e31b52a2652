"""CIFAR-10 and CIFAR-100 in their official archives, or in others of the same format whose checksum the user gave: checked before anything is
unpacked, then read by mpp/data/cifar.py into one file of rows (rows.py)."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mpp.base.errors import DataError
from mpp.data import cifar
from mpp.data.cifar import LAYOUTS, Layout
from mpp.disk.files import write_atomically, write_stream
from mpp.prep.source import Item, Source
from mpp.prep.sources.archives import PACKED, PackedTar, Stretch, errors_of_packed, tar_members
from mpp.prep.sources.checksum import OFFICIAL, verify_once
from mpp.prep.sources.rows import RowsReader, packed, read_rows
from mpp.remote.urls import Bar

MAX_MEMBER_BYTES = 1 << 28  # the largest official member has 155 MB
START_BYTES = 1 << 13  # of a tar, in which its first member is looked for; a header may claim any size
PPM_HEADER = b"P6 32 32 255\n"
ROWS, ABOUT = (
    "cifar.rows",
    "cifar.json",
)  # in the scratch folder: the images; class names, and how many members belong to no official archive
BESIDE = ("readme.html", "file.txt~", "coarse_label_names.txt")  # what else the official archives hold


def folder_inside(path: Path, packing: str) -> str:
    """The first folder of a compressed tar's first member; empty where there is none to be read."""
    unreadable: tuple[type[Exception], ...] = (tarfile.TarError, *errors_of_packed())
    try:
        with path.open("rb") as packed, PACKED[packing](packed) as plain:
            start = io.BytesIO(plain.read(START_BYTES))
        with tarfile.open(fileobj=start, mode="r:") as tar:
            first = tar.next()
    except unreadable:
        return ""  # whoever unpacks it says what is wrong
    return first.name.removeprefix("./").partition("/")[0] if first else ""


@dataclass(frozen=True)
class Cifar(Source):
    path: Path
    kind: str
    packing: str  # of PACKED
    folder: str  # of LAYOUTS
    checksum: str | None = None  # None: the official one
    scratch: Path | None = None  # with ROWS and ABOUT

    def unpack(self, scratch: Path, bar: Bar) -> "Cifar":
        layout, own = LAYOUTS[self.folder], None if self.checksum == OFFICIAL else self.checksum
        remedy = (
            "get the file again, or mend --checksum"
            if own
            else f"get {layout.archive} again, or give --checksum HEX (md5 or sha256) for another archive that you trust"
        )
        verify_once(self.path, own or layout.md5, remedy, scratch, bar)
        if not (scratch / ABOUT).exists():
            tar = PackedTar(self.path, self.packing).unpack(scratch, bar)
            with tar.path.open("rb") as file:
                places, others = find_members(file, self.path, self.folder, layout)
                archive = cifar.Cifar(self.path, layout, lambda member: io.BufferedReader(Stretch(file, *places[member]), 1 << 20))
                classes = archive.class_names()
                write_stream(scratch / ROWS, rows(archive, classes))
            write_atomically(scratch / ABOUT, json.dumps([classes, others]).encode())  # last
            tar.path.unlink()
        return replace(self, scratch=scratch)

    def items(self, ignored: Counter) -> Iterator[Item]:
        assert self.scratch
        if others := json.loads((self.scratch / ABOUT).read_bytes())[1]:
            ignored["(files beside the batches)"] += others
        splits = {batch.removesuffix(".bin"): split for batch, split in LAYOUTS[self.folder].batches.items()}
        for row in read_rows(self.scratch / ROWS):
            yield Item(row.path, row.size, (row.offset,), row.label, splits[row.path.partition("/")[0]])

    def reader(self) -> RowsReader:
        assert self.scratch
        return RowsReader(self.scratch, lambda item: ROWS)

    def class_names(self, labels: Collection[str]) -> list[str]:
        assert self.scratch
        return json.loads((self.scratch / ABOUT).read_bytes())[0]


def find_members(file: BinaryIO, path: Path, folder: str, layout: Layout) -> tuple[dict[str, tuple[int, int]], int]:
    """(name in the folder -> offset, bytes; how many members belong to no official archive).  Raises DataError where one is not there."""
    places: dict[str, tuple[int, int]] = {}
    others = 0
    needed = (layout.names, *layout.batches)
    for info in tar_members(file, str(path)):
        within, _, member = info.name.removeprefix("./").rpartition("/")
        if within == folder and info.isreg() and not info.issparse():
            places[member] = (info.offset_data, info.size)
        elif not info.isdir():
            others += 1
    for member in needed:
        if member not in places:
            raise DataError(f"{path}: holds no file {folder}/{member}, so it is not the whole of {layout.archive}; get it again")
        if not 0 < places[member][1] <= MAX_MEMBER_BYTES:
            raise DataError(f"{path}: {member} has {places[member][1]} bytes, so it is not of the format of {layout.archive}; get it again")
    return places, others + len(set(places) - {*needed, *BESIDE})


def rows(archive: cifar.Cifar, classes: list[str]) -> Iterator[bytes]:
    """All images, as PPM files."""
    for member in archive.layout.batches:
        for number, (image, label) in enumerate(zip(*archive.images(member), strict=True)):
            yield packed(PPM_HEADER + image.tobytes(), classes[label], f"{member.removesuffix('.bin')}/{number:05d}")
