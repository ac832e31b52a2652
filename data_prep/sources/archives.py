"""Zip and tar archives: listed from their headers, read in place at random, never extracted under a name they chose."""

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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mpp.errors import BadSample, DataError
from mpp.files import write_stream
from sources.base import Bar, Item, Source, check_size, first_folder, reason_to_ignore

BOMB_BYTES, BOMB_RATIO = 1 << 30, 200  # a stream that unpacks to more than both is no pile of images
CHUNK = 1 << 20
OPEN_FILES = 64  # of one source, in each worker
# What the standard library's parsers raise on damaged archives (found by fuzzing; tests/data_prep/test_hostile_archives.py repeats it).
DAMAGED_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError)
DAMAGED_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)
MAX_NAME_BYTES = 1 << 20  # of a member's name and attributes


class PlainReader:
    """Reads byte ranges of one file.  An item's place is (offset,)."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def read(self, item: Item) -> bytes:
        check_size(item)
        data = self.pread(item.size, item.place[0])
        if len(data) != item.size:
            raise DataError(
                f"{self.path}: ends inside {item.name} ({len(data)} of {item.size} bytes), so it was cut after it was listed; "
                "remove OUT and start again, and leave the source alone meanwhile"
            )
        return data

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)


class FilesReader:
    """Readers of the files of one folder; the OPEN_FILES used last are kept open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: OrderedDict[str, PlainReader] = OrderedDict()

    def of(self, name: str) -> PlainReader:
        if name not in self._open:
            if len(self._open) == OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[name] = PlainReader(self.folder / name)
        self._open.move_to_end(name)
        return self._open[name]

    def close(self) -> None:
        for reader in self._open.values():
            reader.close()


# ---------------------------------------------------------------- tar


@dataclass(frozen=True)
class Tar(Source):
    """An uncompressed tar.  Of its members the regular files with an image suffix are taken."""

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
    for parts, info in regular_files(tar_members(file, name), ignored):
        if reason := reason_to_ignore(parts):
            ignored[reason] += 1
        else:
            member = "/".join(parts)
            yield Item(member, info.size, (info.offset_data,), first_folder(member))


def irregular(info: tarfile.TarInfo) -> str:
    """Of a member: empty for a regular file, otherwise what it is."""
    if info.isreg():
        return "(sparse files)" if info.issparse() else ""
    return "(links)" if info.issym() or info.islnk() else "(devices and pipes)"


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


def tar_members(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Every member, as a stream.  Raises DataError where the tar does not end with its end mark.

    tarfile takes a damaged header for the end and says nothing; the true end is a block of zeros.
    """
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
        raise DataError(
            f"{name}: is cut short or damaged at byte {end} (no end mark); get it again, or unpack it yourself and give the folder"
        )


def regular_files(members: Iterable[tarfile.TarInfo], ignored: Counter) -> Iterator[tuple[list[str], tarfile.TarInfo]]:
    """Of a tar's members those that are plain files, each after the parts of its name; of the rest all but folders are counted."""
    for info in members:
        parts = [part for part in info.name.split("/") if part not in ("", ".")]
        if info.isdir() or not parts:
            continue
        if reason := irregular(info):
            ignored[reason] += 1
        else:
            yield parts, info


# ---------------------------------------------------------------- compressed tar


def _open_zstd(file: BinaryIO) -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError("reading .tar.zst needs the package zstandard: pip install zstandard") from None
    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)


def errors_of_packed() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ImportError:
        return EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error
    return EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError


PACKED: dict[str, Callable[[Any], Any]] = {"tar.gz": gzip.open, "tar.xz": lzma.open, "tar.zst": _open_zstd}
MAGIC = {b"\x1f\x8b": "tar.gz", b"\xfd7zXZ\0": "tar.xz", b"\x28\xb5\x2f\xfd": "tar.zst"}


@dataclass(frozen=True)
class PackedTar(Source):
    """A compressed tar: streamed once into an uncompressed one, because nothing inside can be reached at random."""

    path: Path
    kind: str

    def unpack(self, scratch: Path, bar: Bar) -> Tar:
        target = scratch / "source.tar"
        if not target.exists():
            unpack_stream(self.path, PACKED[self.kind], target, bar)
        return Tar(target, shown_as=self.path)


def unpack_stream(path: Path, opener: Callable[[Any], Any], target: Path, bar: Bar) -> None:
    """Decompress a file into `target`, which gets its name when it is whole.  Raises DataError for a damaged file and for a bomb."""
    packed_size, written = path.stat().st_size, 0
    with path.open("rb") as packed, bar("unpacking", packed_size) as progress:

        def chunks() -> Iterator[bytes]:
            nonlocal written
            done = 0
            with opener(packed) as plain:
                while chunk := plain.read(CHUNK):
                    written += len(chunk)
                    if written > max(BOMB_BYTES, BOMB_RATIO * packed_size):
                        raise DataError(
                            f"{path}: unpacks to more than {BOMB_RATIO} times its {packed_size} bytes, so it is no archive of images but "
                            "perhaps a decompression bomb; unpack it yourself, if you trust it, and give the folder"
                        )
                    yield chunk
                    progress.update(packed.tell() - done)
                    done = packed.tell()

        try:
            write_stream(target, chunks())
        except errors_of_packed() as error:
            raise DataError(f"{path}: is cut short or damaged ({error}); get it again") from error


# ---------------------------------------------------------------- zip


@dataclass(frozen=True)
class Zip(Source):
    """A zip archive.  Its central directory is held in memory while it is listed (about 0.6 kB a file)."""

    path: Path
    kind = "zip"

    def items(self, ignored: Counter) -> Iterator[Item]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except DAMAGED_ZIP as error:
            raise DataError(f"{self.path}: is cut short or damaged ({error}); get it again") from error
        for info in members:
            parts = [part for part in info.filename.split("/") if part not in ("", ".")]
            if not parts or info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                ignored["(links)"] += 1
            elif reason := reason_to_ignore(parts):
                ignored[reason] += 1
            elif info.flag_bits & 1:
                raise DataError(f"{self.path}: {info.filename} is encrypted; unpack the archive and give the folder")
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{self.path}: {info.filename} is compressed by method {info.compress_type}; unpack the archive and give the folder"
                )
            else:
                name = "/".join(parts)
                place = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
                yield Item(name, info.file_size, place, first_folder(name))

    def reader(self) -> "ZipReader":
        return ZipReader(self.path)


class ZipReader(PlainReader):
    """By hand, because zipfile would parse the whole directory again in every worker: gigabytes for a million files."""

    def read(self, item: Item) -> bytes:
        check_size(item)
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
