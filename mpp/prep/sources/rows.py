"""Images of a source that cannot be read at random, copied once to a file of rows in the scratch folder: there a read is a single pread.

a row: length of the head (4 bytes, little-endian), head (JSON: bytes of the image, label, path, perhaps group), the image
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mpp.base.errors import BadSample
from mpp.prep.source import Item
from mpp.prep.sources.archives import FilesReader


class Row(NamedTuple):
    size: int  # bytes of the image; -1 where there are none
    offset: int
    label: str
    path: str
    group: str = ""


def packed(data: bytes | None, label: str, path: str, *group: str) -> bytes:
    head = json.dumps([-1 if data is None else len(data), label, path, *group]).encode()
    return len(head).to_bytes(4, "little") + head + (data or b"")


def read_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        while length := file.read(4):
            size, *told = json.loads(file.read(int.from_bytes(length, "little")))
            yield Row(size, file.tell(), *told)
            file.seek(max(size, 0), os.SEEK_CUR)


class RowsReader(FilesReader):
    """An item's place ends in its offset, or in its path where the row has no bytes."""

    def read(self, item: Item) -> bytes:
        if item.size < 0:
            raise BadSample(f"the row has no bytes, only the path {item.place[-1]}" if item.place[-1] else "the row has no bytes")
        return super().read(item)
