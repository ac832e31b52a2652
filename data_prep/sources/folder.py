"""A folder tree of images."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpp.errors import DataError
from sources.base import MAX_DEPTH, Item, Source, check_size, first_folder, reason_to_ignore


@dataclass(frozen=True)
class Folder(Source):
    """Follows links to files and folders, never round in a circle.  An image's label is the first folder of its name."""

    path: Path
    leave_out: Path | None = None  # a folder not to descend into (the output may lie inside the source)
    kind = "folder"

    def identity(self) -> str:
        return ""  # a folder's own time says nothing about the files below it

    def items(self, ignored: Counter) -> Iterator[Item]:
        top = self.path.stat()
        yield from self._descend(str(self.path), "", frozenset({(top.st_dev, top.st_ino)}), ignored)

    def _descend(self, folder: str, prefix: str, above: frozenset, ignored: Counter) -> Iterator[Item]:
        if len(above) > MAX_DEPTH:
            raise DataError(f"{self.path}: is more than {MAX_DEPTH} folders deep; give a folder further down")
        with os.scandir(folder) as entries:  # a stream: one folder may hold millions; open while those below it are listed
            for entry in entries:
                name = prefix + entry.name
                try:
                    status = entry.stat()
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
                    status = None  # a link that leads nowhere, or to itself
                if status and stat.S_ISDIR(status.st_mode):
                    identity = (status.st_dev, status.st_ino)
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        ignored["(hidden folders)"] += 1
                    elif identity in above:
                        ignored["(links in a circle)"] += 1
                    elif Path(entry.path).resolve() != self.leave_out:
                        yield from self._descend(entry.path, name + "/", above | {identity}, ignored)
                elif reason := reason_to_ignore([entry.name]):
                    ignored[reason] += 1
                elif status and not stat.S_ISREG(status.st_mode):
                    ignored["(devices and pipes)"] += 1
                else:
                    size, when = (status.st_size, status.st_mtime_ns) if status else (-1, 0)
                    yield Item(name, size, (when,), first_folder(name))

    def reader(self) -> "FolderReader":
        return FolderReader(self.path)


@dataclass(frozen=True)
class FolderReader:
    root: Path

    def read(self, item: Item) -> bytes:
        check_size(item)
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

    def close(self) -> None:
        pass
