"""A folder tree of images."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpp.base.errors import DataError
from mpp.data.class_folders import walk
from mpp.prep.source import Item, Reader, Source, check_size, first_folder


@dataclass(frozen=True)
class Folder(Source):
    """Follows links to files and folders, never round in a circle.  An image's label is the first folder of its name."""

    path: Path
    leave_out: Path | None = None  # a folder not to descend into (the output may lie inside the source)
    kind = "folder"

    def identity(self) -> str:
        return ""  # a folder's own time says nothing about the files below it

    def items(self, ignored: Counter) -> Iterator[Item]:
        for found in walk(self.path, ignored, self.leave_out):
            yield Item(found.name, found.size, (found.changed_ns,), first_folder(found.name))

    def reader(self) -> "FolderReader":
        return FolderReader(self.path)


@dataclass
class FolderReader(Reader):
    root: Path

    def read(self, item: Item) -> bytes:
        check_size(item, self.most_bytes)
        path = self.root / item.name
        try:
            opened = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise DataError(f"{path}: has vanished since it was listed; put it back, or remove OUT and start again") from None
        with opened as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (item.size, item.place[0]):
                raise DataError(
                    f"{path}: has changed since it was listed ({item.size} bytes then, {status.st_size} now); "
                    "remove OUT and start again, and leave the source alone meanwhile"
                )
            return file.readall()
