"""One shard against its rows in the index: some of its images, or every byte.

Tars are walked by hand: tarfile stops at an end mark, takes a damaged header for one, and never shows what fills up blocks, and that is where
things hide.
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpp.base.errors import BadSample, DataError
from mpp.data.decode import check_header, open_image
from mpp.data.shard_faults import UNREADABLE, Fault, most_pixels
from mpp.data.shard_format import (
    BLOCK,
    FIELDS,
    member_header,
)
from mpp.data.shard_index import Row
from mpp.data.shard_table import ShardEntry
from mpp.prep.indexing import read_in_place
from mpp.prep.prepare import Options
from mpp.prep.sources.webdataset import TarImage, WebDataset
from mpp.prep.tiles import Cutting, Tile
from mpp.prep.verify_places import Place
from mpp.prep.workers import Tick

PIECE = 1 << 20  # bytes read together of what belongs to no sample
KEPT = 20  # faults of a kind that are told one by one


class Tally:
    """What was found in a split or shard.  Faults: all counted, the first of each kind kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[Fault]] = {}
        self.images = 0  # looked at
        self.colours = np.zeros((3, 256), np.int64)  # of the images that mean and std are taken from
        self.colour_images = 0

    def add(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.counts[fault.kind] += 1 + fault.more
            kept = self.first.setdefault(fault.kind, [])
            if len(kept) < KEPT:
                kept.append(fault)

    def update(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        for kind, faults in other.first.items():
            kept = self.first.setdefault(kind, [])
            kept.extend(faults[: KEPT - len(kept)])
        self.images += other.images
        self.colours += other.colours
        self.colour_images += other.colour_images


class Cut(Exception):
    """The shard ends before it should."""


@dataclass
class ShardCheck:
    """The check of one shard.

    colour_limit: mean and std are taken from the images with a key below it; in a foreign shard, from so many first ones of each shard.
    """

    folder: Path
    entry: ShardEntry
    foreign: dict[str, Any] | None  # the manifest's `source` of a shard from elsewhere
    colour_limit: int
    max_pixels: int  # of an image
    cutting: Cutting | None  # of scans into the tiles that are here, where they are tiles
    tick: Tick
    seen: Tally  # its images and colours
    key: int | None = None  # of the image at which the check is

    def sampled(self, rows: np.ndarray, place: Place) -> Iterator[Fault]:
        """Header, CRC-32, format and size in pixels of the images of these rows, INDEX_DTYPE [n], and their labels."""
        try:
            with place.reader(self.entry.name) as (size, read):
                for row in map(Row._make, rows.tolist()):
                    yield from self._sample(size, read, row)
        except FileNotFoundError:
            return  # reported with the sizes
        except OSError as error:
            yield self._fault(UNREADABLE, f"cannot be read ({error.strerror})")

    def whole(self, rows: np.ndarray | None) -> Iterator[Fault]:
        """Every byte, against rows, INDEX_DTYPE [samples]; None where there is no index: then only the sha256 is told."""
        try:
            with (self.folder / self.entry.name).open("rb") as file:
                if hasattr(os, "posix_fadvise"):  # read from the disk, not from what the system remembers of it
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                stream = _Stream(file, self.tick)
                try:
                    if rows is not None:
                        yield from self._walk(stream, rows)
                except Cut:
                    said = f"ends at byte {stream.at}, {self.seen.images} of its {self.entry.samples} images came before that"
                    yield self._fault("cut", said, stream.at, self.key)
                stream.rest()
            if self.foreign is not None and rows is not None:
                yield from self._unlisted_images(frozenset(rows["offset"].tolist()))
        except FileNotFoundError:
            return  # reported with the sizes
        except OSError as error:
            yield self._fault(UNREADABLE, f"cannot be read ({error.strerror})")
            return
        if (found := stream.digest.hexdigest()) != self.entry.sha256:
            yield self._fault("shard sha256", f"sha256 is {found[:12]}…, the manifest says {self.entry.sha256[:12]}…")

    def _unlisted_images(self, listed: frozenset[int]) -> Iterator[Fault]:
        assert self.foreign is not None
        path = self.folder / self.entry.name
        try:
            for image in images_to_index(path, self.foreign, self.colour_limit):
                if image.offset not in listed:
                    said = f"holds the image {image.member!r} ({image.size} bytes) at byte {image.offset}, which the index does not list"
                    yield self._fault("unlisted image", said, image.offset)
        except DataError as error:
            yield self._fault("tar", str(error).removeprefix(f"{path}: "))

    def _sample(self, size: int, read: Callable[[int, int], bytes], row: Row) -> Iterator[Fault]:
        """size: of the shard in bytes; read: (size, offset) -> bytes of it."""
        start = row.offset - BLOCK
        if start < 0 or row.offset + row.size > self.entry.bytes:
            return  # a fault of the index, reported with its rows
        padded = BLOCK + _padded(row.size)
        data = read(padded + 2 * BLOCK, start)
        self.tick(row.size)
        header, payload, label = data[:BLOCK], data[BLOCK : BLOCK + row.size], data[padded:]
        if len(payload) < row.size:
            yield self._fault("cut", f"ends at byte {size}, before the end of this image", row.offset, row.key)
            return
        yield from self._image(header, payload, row, decode=False)
        if not self.foreign and row.label >= 0:
            yield from self._label_faults(label, start + padded, row)

    def _walk(self, stream: "_Stream", rows: np.ndarray) -> Iterator[Fault]:
        size = os.fstat(stream.file.fileno()).st_size
        most, offsets = max(size, self.entry.bytes), rows["offset"]
        for first in range(0, len(rows), 1024):  # Python's own numbers take more room than the index
            for number, row in enumerate(map(Row._make, rows[first : first + 1024].tolist()), start=first):
                self.key = row.key
                follows = int(offsets[number + 1]) - BLOCK if number + 1 < len(rows) else most
                if not stream.at <= row.offset - BLOCK < follows or row.offset + row.size > most:
                    yield self._fault("row out of place", f"the index says byte {row.offset}, where it cannot begin", row.offset, row.key)
                    continue
                yield from self._between(stream, row.offset - BLOCK)
                yield from self._member(stream, row, (number if self.foreign else row.key) < self.colour_limit)
                if not self.foreign and row.label >= 0:
                    if follows - stream.at < 2 * BLOCK:
                        yield self._fault("label", f"has no .cls, the index says class {row.label}", stream.at, row.key)
                    else:
                        yield from self._label_faults(stream.take(2 * BLOCK), stream.at - 2 * BLOCK, row)
                if self.cutting:
                    yield from self._place_faults(stream, row, follows - stream.at, self.cutting)
        if not self.foreign:
            end = stream.at
            yield from self._between(stream, size, end_mark=True)
            right = end + 2 * BLOCK + -(end + 2 * BLOCK) % tarfile.RECORDSIZE
            if size < right:
                raise Cut
            if size > right:
                yield self._fault("end mark", f"has {size} bytes; after its samples it should end at {right}", right)

    def _member(self, stream: "_Stream", row: Row, count_colours: bool) -> Iterator[Fault]:
        """Header, payload and padding of an image."""
        header, payload = stream.take(BLOCK), stream.take(row.size)
        yield from self._image(header, payload, row, count_colours=count_colours)
        padding = stream.take(_padded(row.size) - row.size)
        if not self.foreign and any(padding):
            place = stream.at - len(padding.lstrip(b"\0"))
            yield self._fault("padding", f"the bytes that fill up its last block are not zero (byte {place})", row.offset, row.key)

    def _image(self, header: bytes, payload: bytes, row: Row, *, decode: bool = True, count_colours: bool = False) -> Iterator[Fault]:
        self.seen.images += 1
        yield from self._header_faults(header, row)
        found = zlib.crc32(payload)
        if found != row.crc32:
            yield self._fault("CRC-32", f"CRC-32 is {found:08x}, the index says {row.crc32:08x}", row.offset, row.key)
            return
        try:
            image = open_image(payload, self.max_pixels) if decode else None
            width, height = image.size if image else check_header(payload, self.max_pixels)[1:]
        except BadSample as error:
            yield self._fault("image", f"cannot be decoded: {error}", row.offset, row.key)
            return
        if (width, height) != (row.width, row.height):
            said = f"has {width}x{height} pixels, the index says {row.width}x{row.height}"
            yield self._fault("size in pixels", said, row.offset, row.key)
        form = "JPEG" if payload[:2] == b"\xff\xd8" else "WEBP" if payload[:4] == b"RIFF" else "PNG"  # it has been decoded as one of them
        name = header[:100].rstrip(b"\0")
        if not self.foreign and not name.endswith(f".{FIELDS[form]}".encode()):
            yield self._fault("format", f"is a {form}, its name is {name.decode(errors='replace')!r}", row.offset, row.key)
        if image and count_colours:
            self.seen.colours += np.array(image.histogram()).reshape(3, 256)
            self.seen.colour_images += 1

    def _header_faults(self, header: bytes, row: Row) -> Iterator[Fault]:
        if not self.foreign and header in (member_header(row.key, field, row.size) for field in _likely_first(header)):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            yield self._fault("header", f"the tar header before it is damaged ({error})", row.offset - BLOCK, row.key)
            return
        said = []
        if not self.foreign and info.name not in (f"{row.key:012d}.{known}" for known in FIELDS.values()):
            said.append(f"the name {info.name!r}")
        if info.size != row.size:
            said.append(f"{info.size} bytes")
        if not info.isreg():
            said.append(f"a {_type(info)}")
        if not said and not self.foreign:
            said.append("an owner, time, mode or link that make_shards.py does not write")
        if said:
            claim = f"{' and '.join(said)}, the index says key {row.key:012d} and {row.size} bytes"
            yield self._fault("header", f"the tar header before it says {claim}", row.offset - BLOCK, row.key)

    def _label_faults(self, blocks: bytes, start: int, row: Row) -> Iterator[Fault]:
        """blocks: the two that hold the .cls member."""
        text = b"%d" % row.label
        if blocks[:BLOCK] != member_header(row.key, "cls", len(text)):
            said = f"no .cls of {len(text)} bytes with make_shards.py's header follows the image, the index says class {row.label}"
            yield self._fault("label", said, start, row.key)
        elif blocks[BLOCK:] != text.ljust(BLOCK, b"\0"):
            found = blocks[BLOCK : BLOCK + len(text)].decode(errors="replace")
            said = f"class {found}" if found != str(row.label) else "bytes after the number"
            yield self._fault("label", f".cls holds {said!r}, the index says class {row.label}", start + BLOCK, row.key)

    def _place_faults(self, stream: "_Stream", row: Row, room: int, cutting: Cutting) -> Iterator[Fault]:
        """The .json member that says where a tile was cut.  room: bytes before the next sample."""
        start, size = stream.at, 0
        header = stream.take(BLOCK) if room >= 2 * BLOCK else b""
        with suppress(tarfile.HeaderError):
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        if not 0 < size <= room - BLOCK or header != member_header(row.key, "json", size):
            yield self._fault("place", "no .json with make_shards.py's header says where this tile was cut", start, row.key)
            return
        data = stream.take(_padded(size))
        try:
            told = json.loads(data[:size])
            place = Tile(*(told[name] for name in Tile._fields))
            right = set(told) == {"scan", *Tile._fields} and data[size:] == bytes(len(data) - size) and cutting.can_be(place)
        except (ValueError, LookupError, TypeError):
            right = False
        if not right:
            said = f".json holds {data[:size].decode(errors='replace')!r}, which is no place of a tile of {cutting.tile}"
            yield self._fault("place", said, start + BLOCK, row.key)

    def _between(self, stream: "_Stream", until: int, *, end_mark: bool = False) -> Iterator[Fault]:
        """Read up to a place that should be the next (in a foreign shard: between two images, nothing is foretold)."""
        if self.foreign:
            stream.skip(until - stream.at)
            return
        while stream.at < until:
            at = stream.at
            block = stream.take(min(BLOCK, until - at))
            if not any(block):
                if not end_mark:
                    yield self._fault("unlisted bytes", f"an empty block lies between two samples at byte {at}", at)
                continue
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                yield self._fault("unlisted bytes", f"holds bytes from {at} on that belong to no sample", at)
                stream.skip(until - stream.at)
            else:
                said = f"holds {info.name!r} ({_type(info)}, {info.size} bytes) at byte {at}, which the index does not list"
                yield self._fault("unlisted member", said, at)
                stream.skip(min(_padded(max(info.size, 0)), until - stream.at))

    def _fault(self, kind: str, message: str, offset: int | None = None, key: int | None = None) -> Fault:
        return Fault(kind, self.folder / self.entry.name, message, self.entry.name, key, offset)


def images_to_index(path: Path, source: dict[str, Any], colour_limit: int) -> Iterator[TarImage]:
    """The images in a tar that index_shards.py would list; source: what a manifest notes of how it did.  Raises DataError for a damaged tar."""
    field = source.get("image_field")
    options = Options("decode" if source.get("check") == "decode" else "header", max_pixels=most_pixels(source))
    tar = WebDataset(path, field.lower().lstrip(".") if isinstance(field, str) else None)
    with path.open("rb") as file:
        for number, image in enumerate(tar.images(path, Counter())):
            read = partial(os.pread, file.fileno(), image.size, image.offset)
            try:
                read_in_place(image, read, options, Counter(), need_pixels=number < colour_limit)
            except BadSample:
                continue  # a reject
            yield image


class _Stream:
    """A file read once from its beginning to its end, hashed on the way."""

    def __init__(self, file: BinaryIO, tick: Tick):
        self.file, self.tick, self.at, self.digest = file, tick, 0, hashlib.sha256()

    def take(self, size: int) -> bytes:
        """Exactly so many bytes.  Raises Cut where there are fewer."""
        data = self.file.read(size)
        self.at += len(data)
        self.digest.update(data)
        self.tick(len(data))
        if len(data) < size:
            raise Cut
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, PIECE)))

    def rest(self) -> None:
        while data := self.file.read(PIECE):
            self.at += len(data)
            self.digest.update(data)
            self.tick(len(data))


def _likely_first(header: bytes) -> list[str]:
    """FIELDS' values, that of this header first: making a header takes time."""
    return sorted(FIELDS.values(), key=lambda field: f".{field}\0".encode() not in header[:100])


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _type(info: tarfile.TarInfo) -> str:
    kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.DIRTYPE: "folder", tarfile.XHDTYPE: "pax header"}
    kinds |= {tarfile.XGLTYPE: "global pax header", tarfile.GNUTYPE_LONGNAME: "long name", tarfile.GNUTYPE_LONGLINK: "long link"}
    return "file" if info.isreg() else kinds.get(info.type, f"member of type {info.type!r}")
