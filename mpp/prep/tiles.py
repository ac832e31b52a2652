"""Large scans -> tiles of one size: a source of images that is cut out of another one before anything is shuffled.

Each scan is read and decoded once, by one worker, and its tiles are kept in OUT/.work (as much disk as they have bytes) for the time of the
run: there a tile is a single pread, so they are shuffled, numbered, divided and checked like any other images.

* Tile (row, column) begins at (row x stride, column x stride) pixels of the upright scan, stride = tile - overlap; the last of each row and
  column is moved back to the scan's rim.  So every pixel is covered and every tile is full.
* Tiles of a JPEG are JPEGs (one is encoded anew), those of anything else PNGs: pixels as they are stored, without loss.
* A scan that cannot be read, or is smaller than a tile, stays in the listing as a reject: it is counted and told like other rejects.

    OUT/.work/scans/           the listing of the scans, in shuffled order, and so independent of the machine
    OUT/.work/tiles/HASH/      000003.rows: tiles of a stretch of that order; HASH: of all that they depend on
    a row: length of the head (4 bytes, little-endian), head (JSON), the tile

HEAD is [bytes, scan, label, split, group, row, column, x, y], [-1, scan, label, split, group, reason] of a reject, and in the last row
{counts}.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mpp.base.errors import BadSample
from mpp.data.class_folders import CONVERTED
from mpp.data.decode import FORMATS, check_header
from mpp.disk.files import TEMPORARY, write_stream
from mpp.prep.holdout import Grouping
from mpp.prep.prepare import Options, encoded, storable
from mpp.prep.shuffle import Listed, read_order
from mpp.prep.source import Around, Item, Source
from mpp.prep.sources.archives import FilesReader
from mpp.prep.workers import Tick, run_jobs
from mpp.remote.retries import shown
from mpp.remote.urls import MAX_FILE_BYTES

FOLDER = "tiles"  # in the scratch folder
FILES = 1024  # of a split's tiles, about; fewer where there are fewer scans
BYTES_A_PIXEL = 8  # of a scan's file, at most: four channels of 16 bits


class Tile(NamedTuple):
    row: int
    column: int
    x: int  # pixels of the upright scan, from the left
    y: int  # from the top


@dataclass(frozen=True)
class Cutting:
    """How scans are cut."""

    tile: int  # pixels a side
    overlap: int  # pixels that neighbours share, less than `tile`; at the right and lower rim more

    def starts(self, length: int) -> list[int]:
        """Where the tiles begin along a side of at least `tile` pixels."""
        return [*range(0, length - self.tile, self.tile - self.overlap), length - self.tile]

    def can_be(self, tile: Tile) -> bool:
        """Whether a scan of some size has this tile: only the last of a row or column is moved back, by less than a stride."""
        stride = self.tile - self.overlap
        return all(number * stride >= start > (number - 1) * stride for number, start in ((tile.row, tile.y), (tile.column, tile.x)))

    def tiles(self, width: int, height: int) -> Iterator[Tile]:
        """Row by row.  Raises BadSample for a scan that is smaller than a tile."""
        if min(width, height) < self.tile:
            raise BadSample(f"{width}x{height} is smaller than a tile of {self.tile}; give a smaller --tile")
        for row, y in enumerate(self.starts(height)):
            for column, x in enumerate(self.starts(width)):
                yield Tile(row, column, x, y)


@dataclass(frozen=True)
class Tiles(Around):
    """The tiles of another source's images.  A tile's label and split are its scan's, its group is its scan or what that scan shows."""

    folder: Path  # of the rows

    def items(self, ignored: Counter) -> Iterator[Item]:
        for path in sorted(self.folder.glob("*.rows")):
            for head, offset in _heads(path):
                if isinstance(head, list):
                    size, scan, label, split, group, *place = head
                    if size < 0:
                        yield Item(scan, size, tuple(place), label, split, group)
                    else:
                        tile = Tile(*place)
                        yield Item(f"{scan}/r{tile.row}c{tile.column}", size, (path.name, *tile, offset), label, split, group)

    def reader(self) -> "TileReader":
        return TileReader(self.folder, lambda item: item.place[0])

    def told(self, item: Item) -> bytes:
        _, *place, _ = item.place
        return json.dumps({"scan": shown(item.name.rpartition("/")[0])} | Tile(*place)._asdict()).encode()


class TileReader(FilesReader):
    """An item's place is its file, its place in the scan and its offset; the reason where the scan is a reject."""

    def read(self, item: Item) -> bytes:
        if item.size < 0:
            raise BadSample(item.place[0])
        return super().read(item)


# ---------------------------------------------------------------- cutting


@dataclass(frozen=True)
class Work:
    """What all jobs share."""

    source: Source
    orders: Path  # the folder with the scans' orders
    folder: Path  # of the rows
    options: Options
    cutting: Cutting
    grouping: Grouping | None


@dataclass(frozen=True)
class Job:
    """A stretch of a split's scans."""

    name: str  # of the file of rows
    split: str
    at: int
    count: int


def folder_of(scratch: Path, wanted: dict, scans: Listed) -> Path:
    """Where the tiles of these scans are kept.  wanted: all that the command asks for."""
    key = json.dumps([wanted, scans.stamp, scans.levels]).encode()
    return scratch / FOLDER / hashlib.sha256(key).hexdigest()[:16]


def cut_all(work: Work, scans: Listed, workers: int, tick: Tick) -> None:
    """Cut the scans of which there are no tiles yet."""
    for other in work.folder.parent.glob("*"):
        if other != work.folder:  # of scans that have changed since
            shutil.rmtree(other)
    work.folder.mkdir(parents=True, exist_ok=True)
    for leftover in work.folder.glob(TEMPORARY):
        leftover.unlink()
    jobs = list(_jobs(scans))
    missing = [job for job in jobs if not (work.folder / job.name).exists()]
    tick(sum(job.count for job in jobs) - sum(job.count for job in missing))
    for _ in run_jobs(partial(cut, work), missing, workers, tick):
        pass


def counts_of(folder: Path) -> Counter:
    """What the jobs counted: scans, tiles, rejected, and what `storable` counts."""
    counts: Counter = Counter()
    for path in sorted(folder.glob("*.rows")):
        for head, _ in _heads(path):
            if isinstance(head, dict):
                counts.update(head)
    return counts


def _jobs(scans: Listed) -> Iterator[Job]:
    number = 0
    for split, count in sorted(scans.counts.items()):
        together = max(1, count // FILES)
        for at in range(0, count, together):
            yield Job(f"{number:06d}.rows", split, at, min(together, count - at))
            number += 1


def cut(work: Work, job: Job, tick: Tick) -> None:
    """Cut one stretch of scans, holding one of them at a time."""
    counts: Counter = Counter(scans=0, tiles=0, rejected=0)
    reader = work.source.reader()
    reader.most_bytes = max(MAX_FILE_BYTES, BYTES_A_PIXEL * work.options.max_pixels)

    def rows() -> Iterator[bytes]:
        for item in read_order(work.orders, job.split, job.at, job.count):
            group = work.grouping.of(item) if work.grouping else item.name
            told = [item.name, item.label, item.split, group]
            try:
                tiles = tiles_of(reader.read(item), work.options, work.cutting, counts)
                first = next(tiles)  # whatever is the matter with a scan shows before its first tile
            except BadSample as error:
                counts["rejected"] += 1
                yield _row([-1, *told, str(error)])
            else:
                counts["scans"] += 1
                for tile, data in chain([first], tiles):
                    counts["tiles"] += 1
                    yield _row([len(data), *told, *tile], data)
            tick(1)
        yield _row(dict(counts))

    try:
        write_stream(work.folder / job.name, rows())
    finally:
        reader.close()


def tiles_of(data: bytes, options: Options, cutting: Cutting, counts: Counter) -> Iterator[tuple[Tile, bytes]]:
    """(place, encoded tile), row by row, of one scan's file.  Raises BadSample, before the first tile."""
    form, width, height = check_header(data, options.max_pixels, FORMATS + CONVERTED)
    next(cutting.tiles(width, height))  # is it large enough?
    drawn = storable(data, options, counts)
    lossy = form == "JPEG" and options.encode == "keep" and not options.resize
    clear: dict[Any, Any] = {"transparency": drawn.info["transparency"]} if "transparency" in drawn.info else {}
    for tile in cutting.tiles(*drawn.size):
        image = drawn.crop((tile.x, tile.y, tile.x + cutting.tile, tile.y + cutting.tile))
        image.info = clear  # no profile, text or orientation of the scan: its pixels are upright already
        yield tile, encoded(_opaque(image), "JPEG", options.quality) if lossy else encoded(image, "PNG")


def _opaque(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else image.convert("RGB")


def _row(head: list[Any] | dict[str, int], data: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return len(text).to_bytes(4, "little") + text + data


def _heads(path: Path) -> Iterator[tuple[list[Any] | dict[str, int], int]]:
    """(head, offset of what follows it) of every row."""
    with path.open("rb") as file:
        while length := file.read(4):
            head = json.loads(file.read(int.from_bytes(length, "little")))
            yield head, file.tell()
            if isinstance(head, list) and head[0] > 0:
                file.seek(head[0], os.SEEK_CUR)
