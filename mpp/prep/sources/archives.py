"""Zip and tar archives: listed from their headers, read in place at random, never extracted under a name they chose.

The standard library reads them; what stands here beside it is what it passes over in silence: a cut tar, bytes behind an end mark, a
compressed stream or a directory, sizes and names that lie.
"""

import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from mpp.base.errors import BadSample, DataError
from mpp.data.class_folders import reason_to_ignore
from mpp.disk.files import write_stream
from mpp.prep.source import Item, Reader, Source, check_size, first_folder
from mpp.prep.sources.links import HARD, SYMBOLIC, Member, name_parts, with_links
from mpp.remote.urls import Bar

BOMB_BYTES, BOMB_RATIO = 1 << 30, 200  # a stream that unpacks to more than both is no pile of images
CHUNK = 1 << 20
PACKED_CHUNK = 1 << 12  # unpacked at once: of zstd at most a hundred megabytes come of it
OPEN_FILES = 64  # of one source, in each worker
# What the standard library's parsers raise on damaged archives (found by fuzzing; tests/prep/test_hostile_archives.py repeats it).
DAMAGED_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError)
UTF8_NAME = 0x800  # bit of a zip entry's flags
DAMAGED_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)
MAX_NAME_BYTES = 1 << 20  # of a member's name and attributes
ZIP_END_MAGIC, ZIP_END_BYTES = b"PK\5\6", 22
MAX_ZIP_END = ZIP_END_BYTES + (1 << 16)  # with its comment


class PlainReader(Reader):
    """Reads byte ranges of one file.  An item's place ends in its offset."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def read(self, item: Item) -> bytes:
        check_size(item, self.most_bytes)
        data = self.pread(item.size, item.place[-1])
        if len(data) != item.size:
            raise DataError(
                f"{self.path}: ends inside {item.name} ({len(data)} of {item.size} bytes), so it was cut after it was listed; "
                "remove OUT and start again, and leave the source alone meanwhile"
            )
        return data

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)


class FilesReader(Reader):
    """Reads from the files of one folder; the OPEN_FILES used last are kept open."""

    def __init__(self, folder: Path, file_of: Callable[[Item], str]):
        self._folder, self._file_of = folder, file_of
        self._open: OrderedDict[str, PlainReader] = OrderedDict()

    def read(self, item: Item) -> bytes:
        name = self._file_of(item)
        if name not in self._open:
            if len(self._open) == OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[name] = PlainReader(self._folder / name)
            self._open[name].most_bytes = self.most_bytes
        self._open.move_to_end(name)
        return self._open[name].read(item)

    def close(self) -> None:
        for reader in self._open.values():
            reader.close()


# ---------------------------------------------------------------- tar


@dataclass(frozen=True)
class Tar(Source):
    """An uncompressed tar.  Of its members the regular files with an image suffix are taken, and the links to such."""

    path: Path
    shown_as: Path | None = None  # in messages: the compressed archive it came from
    kind = "tar"

    def items(self, ignored: Counter) -> Iterator[Item]:
        with self.path.open("rb") as file:
            yield from tar_images(file, str(self.shown_as or self.path), ignored)

    def reader(self) -> PlainReader:
        return PlainReader(self.path)


class _Header(tarfile.TarInfo):
    """tarfile reads names of any length into memory; here a name that is no name ends the archive."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        extended = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.type in extended and self.size > MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a name of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def tar_images(file: BinaryIO, name: str, ignored: Counter) -> Iterator[Item]:
    """The members that may be images; an item's place is its offset in `file`.  Raises DataError as `tar_members` does."""
    for member in regular_files(file, name, ignored):
        if reason := reason_to_ignore(member.parts):
            ignored[reason] += 1
        else:
            yield Item(member.name, member.size, member.place, first_folder(member.name))


def irregular(info: tarfile.TarInfo) -> str:
    """Of a member: empty for a regular file, otherwise what it is."""
    if info.isreg():
        return "(sparse files)" if info.issparse() else ""
    if info.issym() or info.islnk():
        return "(links)"
    return "(devices and pipes)" if info.isdev() else "(members of another kind)"


class Stretch(io.RawIOBase):
    """A byte range of an open file as a file of its own, such as a tar inside a tar.  The file's own position does not matter or move."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._handle, self._start, self._size, self._at = file.fileno(), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._handle, max(0, min(len(buffer), self._size - self._at)), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def tar_members(file: IO[bytes], name: str) -> Iterator[tarfile.TarInfo]:
    """Every member, as a stream, also those behind an end mark: tars joined by cat are read one after the other.

    Raises DataError where a tar does not end with its end mark, and where what follows the mark is neither zeros nor another tar.
    tarfile takes a damaged header for the end and says nothing; the true end is a block of zeros.
    """
    start = 0
    while True:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                for info in tar:
                    yield info
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every header, gigabytes for a large archive
                end = tar.offset
        except DAMAGED_TAR as error:
            raise DataError(f"{name}: is cut short or damaged ({error}); get it again") from error
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            if start and end == start:
                raise _more(file, name, start)
            raise DataError(
                f"{name}: is cut short or damaged at byte {end} (no end mark); get it again, or unpack it yourself and give the folder"
            )
        file.seek(end)
        while (chunk := file.read(CHUNK)) and not any(chunk):
            end += len(chunk)
        if not chunk:
            return
        start = end + len(chunk) - len(chunk.lstrip(b"\0"))
        if start % tarfile.BLOCKSIZE:  # a header begins with a name, so this is none
            raise _more(file, name, start)
        file.seek(start)


def _more(file: IO[bytes], name: str, start: int) -> DataError:
    """What to say of bytes behind the end mark."""
    file.seek(start)
    count = sum(map(len, iter(lambda: file.read(CHUNK), b"")))
    return DataError(
        f"{name}: {count} bytes from byte {start} on, behind its end mark, are no tar, so they would be lost; get it again, or cut it to its "
        f"first {start} bytes"
    )


def regular_files(file: BinaryIO, name: str, ignored: Counter) -> Iterator[Member]:
    """Of a tar's members those that are plain files or links to such; their place is the offset in `file`.  The rest, but for folders, is
    counted.  Raises DataError as `tar_members` does."""

    def members(odd: Counter) -> Iterator[Member]:
        for info in tar_members(file, name):
            parts = name_parts(info.name)
            if info.isdir() or not parts:
                continue
            if info.issym() or info.islnk():
                yield Member(parts, 0, (), HARD if info.islnk() else SYMBOLIC, info.linkname)
            elif reason := irregular(info):
                odd[reason] += 1
            else:
                yield Member(parts, info.size, (info.offset_data,))

    passes = 0

    def again() -> Iterator[Member]:
        nonlocal passes
        passes += 1
        at = file.tell() if passes > 1 else 0
        file.seek(0)
        yield from members(ignored if passes == 1 else Counter())
        file.seek(at)

    yield from with_links(again, name, ignored)


# ---------------------------------------------------------------- compressed tar


class Unpacked:
    """A file of compressed streams, one behind the other, read as one stream; zeros may lie between and behind them.

    The standard library's own readers pass over whatever follows the first stream and is no whole stream.
    """

    def __init__(self, file: BinaryIO, new: Callable[[], Any]):
        """new: gives a decompressor with `decompress`, `eof` and `unused_data`."""
        self._chunks, self._rest = _unpacked(file, new), b""

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end.  Raises DataError for bytes that belong to no stream, and `errors_of_packed`."""
        parts, count = [self._rest], len(self._rest)
        while count < size and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            count += len(chunk)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def _unpacked(file: BinaryIO, new: Callable[[], Any]) -> Generator[bytes, None, None]:
    waiting, first = file.read(PACKED_CHUNK), True
    while waiting:
        if not first:
            waiting = waiting.lstrip(b"\0")
            if not waiting:
                waiting = file.read(PACKED_CHUNK)
                continue
            start = file.tell() - len(waiting)
        stream = new()
        try:
            while not stream.eof:
                if not waiting:
                    raise EOFError("it ends inside a compressed stream")
                yield stream.decompress(waiting)
                waiting = b"" if stream.eof else file.read(PACKED_CHUNK)
        except errors_of_packed() as error:
            if first:
                raise
            file.seek(0, os.SEEK_END)
            raise DataError(
                f"{file.name}: {file.tell() - start} bytes from byte {start} on, behind a compressed stream, are none, or one that is cut or "
                f"damaged ({error}); get it again, or cut it to its first {start} bytes"
            ) from error
        waiting, first = stream.unused_data or file.read(PACKED_CHUNK), False


def _new_zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError("reading .tar.zst needs the package zstandard: pip install zstandard") from None
    return zstandard.ZstdDecompressor().decompressobj()


def errors_of_packed() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ImportError:
        return EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error
    return EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError


PACKED: dict[str, Callable[[Any], Any]] = {
    "tar.gz": lambda file: Unpacked(file, lambda: zlib.decompressobj(wbits=31)),
    "tar.xz": lambda file: Unpacked(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    "tar.zst": lambda file: Unpacked(file, _new_zstd),
}
MAGIC = {b"\x1f\x8b": "tar.gz", b"\xfd7zXZ\0": "tar.xz", b"\x28\xb5\x2f\xfd": "tar.zst"}


@dataclass(frozen=True)
class PackedTar(Source):
    """A compressed tar: streamed once into an uncompressed one, because nothing inside can be reached at random."""

    path: Path
    kind: str

    def unpack(self, scratch: Path, bar: Bar) -> Tar:
        target = scratch / "source.tar"
        if not target.exists():
            try:
                write_stream(target, self._chunks(bar))
            except errors_of_packed() as error:
                raise DataError(f"{self.path}: is cut short or damaged ({error}); get it again") from error
        return Tar(target, shown_as=self.path)

    def _chunks(self, bar: Bar) -> Iterator[bytes]:
        """The tar.  Raises DataError for a bomb."""
        packed_size, written, done = self.path.stat().st_size, 0, 0
        with self.path.open("rb") as packed, bar("unpacking", packed_size) as progress, PACKED[self.kind](packed) as plain:
            while chunk := plain.read(CHUNK):
                written += len(chunk)
                if written > max(BOMB_BYTES, BOMB_RATIO * packed_size):
                    raise DataError(
                        f"{self.path}: unpacks to more than {BOMB_RATIO} times its {packed_size} bytes, so it is no archive of images but "
                        "perhaps a decompression bomb; unpack it yourself, if you trust it, and give the folder"
                    )
                yield chunk
                progress.update(packed.tell() - done)
                done = packed.tell()


# ---------------------------------------------------------------- zip


@dataclass(frozen=True)
class Zip(Source):
    """A zip archive.  Its central directory is held in memory while it is listed (about 0.6 kB a file)."""

    path: Path
    kind = "zip"

    def items(self, ignored: Counter) -> Iterator[Item]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = [_named(info) for info in archive.infolist()]
        except DAMAGED_ZIP as error:
            raise DataError(f"{self.path}: is cut short or damaged ({error}); get it again") from error
        refuse_more_in_zip(self.path, entries)
        entries = [info for info in entries if name_parts(info.filename) and not info.is_dir()]
        for member in with_links(lambda: map(self._member, entries), str(self.path), ignored):
            if reason := reason_to_ignore(member.parts):
                ignored[reason] += 1
            else:
                yield Item(member.name, member.size, member.place, first_folder(member.name))

    def _member(self, info: zipfile.ZipInfo) -> Member:
        parts, link = name_parts(info.filename), stat.S_ISLNK(info.external_attr >> 16)
        place = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
        if not link and reason_to_ignore(parts):
            return Member(parts, info.file_size, place)
        if info.flag_bits & 1:
            raise DataError(f"{self.path}: {info.filename} is encrypted; unpack the archive and give the folder")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{self.path}: {info.filename} is compressed by method {info.compress_type}; unpack the archive and give the folder"
            )
        if not link:
            return Member(parts, info.file_size, place)
        reader, target = self.reader(), b""
        try:
            if info.file_size <= MAX_NAME_BYTES:
                target = reader.read(Item(info.filename, info.file_size, place))
        except BadSample:
            pass  # it leads nowhere then
        finally:
            reader.close()
        return Member(parts, 0, (), SYMBOLIC, os.fsdecode(target) or "/")

    def reader(self) -> "ZipReader":
        return ZipReader(self.path)


def _named(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """By the name that was meant: zip and others on Linux and macOS write UTF-8 without the mark for it, which zipfile reads as DOS's letters."""
    if not info.flag_bits & UTF8_NAME and not info.filename.isascii():
        with suppress(UnicodeError):  # no UTF-8: DOS's letters then
            info.filename = info.filename.encode("cp437").decode()
    return info


def refuse_more_in_zip(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raises DataError where a zip holds more than its directory at its end lists: two that were joined, or entries that it does not count."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - MAX_ZIP_END))
        tail = file.read()
    at = tail.rfind(ZIP_END_MAGIC)
    count, comment = struct.unpack("<10xH8xH", tail[at : at + ZIP_END_BYTES])
    behind = tail[at + ZIP_END_BYTES + comment :].lstrip(b"\0")
    before = min((info.header_offset for info in entries if 0 <= info.header_offset < size), default=0)  # others are rejects
    remedy = "get it again, or unpack it yourself and give the folder"
    if count not in (len(entries) % (1 << 16), (1 << 16) - 1):
        raise DataError(f"{path}: its directory says {count} entries and lists {len(entries)}, so it is damaged; {remedy}")
    for where, bytes_ in (("before its first entry", before), ("behind its end", len(behind))):
        if bytes_:
            raise DataError(
                f"{path}: {bytes_} bytes {where} are not in its directory, perhaps another zip joined to it, so they would be lost; {remedy}"
            )


class ZipReader(PlainReader):
    """By hand, because zipfile would parse the whole directory again in every worker: gigabytes for a million files."""

    def read(self, item: Item) -> bytes:
        check_size(item, self.most_bytes)
        offset, packed_size, method, crc = item.place
        if not 0 <= offset <= offset + packed_size <= self.size:
            raise BadSample("damaged in the archive (it would lie outside)")
        signature, name_bytes, extra_bytes = struct.unpack("<4s22xHH", self.pread(30, offset).ljust(30, b"\0"))
        if signature != b"PK\3\4":
            raise BadSample("damaged in the archive (no local header)")
        packed = self.pread(packed_size, offset + 30 + name_bytes + extra_bytes)
        try:
            data = zlib.decompressobj(-15).decompress(packed, item.size) if method else packed
        except zlib.error as error:
            raise BadSample(f"damaged in the archive ({error})") from error
        if zlib.crc32(data) != crc or len(data) != item.size:
            raise BadSample("damaged in the archive (wrong checksum)")
        return data
