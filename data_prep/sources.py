"""Where raw images come from: a folder tree, a zip or a tar, listed by name and read in place.

Nothing is ever extracted under a name an archive chose, so a hostile name can do no harm: names are only labels.  Whatever is not taken is
counted in `Listing.ignored`.
"""

import errno
import gzip
import hashlib
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mpp.errors import BadSample, DataError

# JPEG, PNG and WebP are copied as they are; the others are converted without loss.  The content decides which, not the suffix.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
MAX_FILE_BYTES = 1 << 30  # beyond this it is no photograph, and a zip that claims it may be a bomb
PACKED: dict[str, Callable] = {"tar.gz": gzip.open, "tar.xz": lzma.open}
_KINDS = "give a folder of images, a .zip, .tar, .tar.gz or .tar.xz"


class Item(NamedTuple):
    """One file with an image suffix."""

    name: str  # "/" between the parts, relative to the source
    size: int  # bytes; -1 for a link that leads nowhere
    offset: int = 0  # in an archive: of the data (tar) or of the local header (zip)
    packed: int = 0  # zip: bytes as stored
    method: int = 0  # zip: 0 stored, 8 deflated
    crc: int = 0  # zip


@dataclass(frozen=True)
class Listing:
    items: list[Item]  # sorted by name
    ignored: Counter  # what was left out: suffix or reason -> files
    stamp: str  # changes when a file's name, size or time does


def kind_of(path: Path) -> str:
    """folder, zip, tar, tar.gz or tar.xz, by content.  Raises DataError for anything else."""
    if path.is_dir():
        return "folder"
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_KINDS}")
    with path.open("rb") as file:
        start = file.read(6)
    if start[:2] == b"\x1f\x8b":
        return "tar.gz"
    if start == b"\xfd7zXZ\0":
        return "tar.xz"
    if zipfile.is_zipfile(path):
        return "zip"
    if tarfile.is_tarfile(path):
        return "tar"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: is a single file; give the folder that holds the images: {path.parent}")
    raise DataError(f"{path}: is neither a folder nor a whole archive of a known kind; {_KINDS}")


def archive_stamp(path: Path) -> str:
    """Size and time of an archive: enough to notice that it was replaced."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def unpack(path: Path, kind: str, target: Path, tick: Callable[[int], object]) -> None:
    """Stream a compressed tar into an uncompressed one under its final name; `tick` gets the compressed bytes read so far.

    Raises DataError for a damaged archive.
    """
    part = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with path.open("rb") as packed, PACKED[kind](packed) as plain, part.open("wb") as file:
            while chunk := plain.read(1 << 20):
                file.write(chunk)
                tick(packed.tell())
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is cut short or damaged ({error}); get it again") from error
    finally:
        part.unlink(missing_ok=True)


def list_source(path: Path, kind: str, leave_out: Path) -> Listing:
    """Every file with an image suffix, sorted by name.

    kind: folder, zip or tar; leave_out: a folder not to descend into (the output may lie inside the source).
    Raises DataError for a damaged, encrypted or empty source.
    """
    ignored: Counter = Counter()
    if kind == "folder":
        items, stamp = _list_folder(path, leave_out, ignored)
    else:
        items, stamp = (_list_zip if kind == "zip" else _list_tar)(path, ignored), archive_stamp(path)
    by_name = {item.name: item for item in items}  # of a repeated name the last counts, as it would when extracting
    if len(by_name) < len(items):
        ignored["(repeated names)"] += len(items) - len(by_name)
    if not by_name:
        seen = f" among {ignored.total()} files ({describe(ignored)})" if ignored else ""
        raise DataError(f"{path}: holds no images{seen}; image suffixes are {' '.join(IMAGE_SUFFIXES)}")
    return Listing([by_name[name] for name in sorted(by_name)], ignored, stamp)


def describe(ignored: Counter) -> str:
    """ ".txt 12, (hidden) 3": the most frequent first."""
    kinds = [f"{kind} {count}" for kind, count in sorted(ignored.items(), key=lambda pair: (-pair[1], pair[0]))]
    return ", ".join(kinds[:8]) + (f", {len(kinds) - 8} more kinds" if len(kinds) > 8 else "")


def _reason_to_ignore(parts: Iterable[str]) -> str:
    """Empty for a file to take."""
    *folders, last = parts
    if ".." in folders or last == "..":
        return "(names with ..)"
    if last.startswith(".") or any(part.startswith(".") or part == "__MACOSX" for part in folders):
        return "(hidden)"
    suffix = os.path.splitext(last)[1].lower()  # noqa: PTH122 (names of archives are no paths of this machine)
    return "" if suffix in IMAGE_SUFFIXES else suffix or "(no suffix)"


def _list_folder(root: Path, leave_out: Path, ignored: Counter) -> tuple[list[Item], str]:
    """Follows links to files and folders, never round in a circle."""
    items = []
    digest = hashlib.sha256()

    def descend(folder: str, prefix: str, above: frozenset) -> None:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = prefix + entry.name
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                status = None  # a link that leads nowhere, or to itself
            if status and stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    ignored["(hidden folders)"] += 1
                elif identity in above:
                    ignored["(links in a circle)"] += 1
                elif Path(entry.path).resolve() != leave_out:
                    descend(entry.path, name + "/", above | {identity})
            elif reason := _reason_to_ignore([entry.name]):
                ignored[reason] += 1
            elif status and not stat.S_ISREG(status.st_mode):
                ignored["(devices and pipes)"] += 1
            else:
                size, when = (status.st_size, status.st_mtime_ns) if status else (-1, 0)
                items.append(Item(name, size))
                digest.update(f"{name}\0{size}\0{when}\n".encode(errors="surrogateescape"))

    top = root.stat()
    descend(str(root), "", frozenset({(top.st_dev, top.st_ino)}))
    return items, digest.hexdigest()


def _list_tar(path: Path, ignored: Counter) -> list[Item]:
    items = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                parts = [part for part in info.name.split("/") if part not in ("", ".")]
                if info.isdir() or not parts:
                    continue
                if not info.isreg() or info.issparse():
                    ignored["(sparse files)" if info.isreg() else "(links)" if info.issym() or info.islnk() else "(devices and pipes)"] += 1
                elif reason := _reason_to_ignore(parts):
                    ignored[reason] += 1
                else:
                    items.append(Item("/".join(parts), info.size, info.offset_data))
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every header, gigabytes for a large archive
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: is cut short or damaged ({error}); get it again") from error
    # tarfile takes a damaged header for the end and says nothing: the true end is a block of zeros.
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(
                f"{path}: is cut short or damaged at byte {end} (no end mark); get it again, or unpack it yourself and give the folder"
            )
    return items


def _list_zip(path: Path, ignored: Counter) -> list[Item]:
    items = []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                parts = [part for part in info.filename.split("/") if part not in ("", ".")]
                if info.is_dir() or not parts:
                    continue
                if stat.S_ISLNK(info.external_attr >> 16):
                    ignored["(links)"] += 1
                elif reason := _reason_to_ignore(parts):
                    ignored[reason] += 1
                elif info.flag_bits & 1:
                    raise DataError(f"{path}: {info.filename} is encrypted; unpack the archive and give the folder")
                elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError(
                        f"{path}: {info.filename} is compressed by method {info.compress_type}; unpack the archive and give the folder"
                    )
                else:
                    items.append(
                        Item("/".join(parts), info.file_size, info.header_offset, info.compress_size, info.compress_type, info.CRC)
                    )
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: is cut short or damaged ({error}); get it again") from error
    return items


class Reader:
    """Reads items of one source.  Each worker process makes its own; it keeps an archive open."""

    def __init__(self, path: Path, kind: str):
        """kind: folder, zip or tar."""
        self.path = path
        self.kind = kind
        self._archive = None if kind == "folder" else path.open("rb", buffering=0)

    def close(self) -> None:
        if self._archive:
            self._archive.close()

    def read(self, item: Item) -> bytes:
        """The file's bytes.  Raises BadSample for unusable content and DataError when the source is not the one that was listed."""
        if item.size < 0:
            raise BadSample("a link that leads nowhere")
        if not 0 < item.size <= MAX_FILE_BYTES:
            raise BadSample(f"{item.size} bytes" if item.size else "an empty file")
        if self.kind == "folder":
            data = (self.path / item.name).read_bytes()
        elif self.kind == "tar":
            data = self._pread(item.size, item.offset)
        else:
            data = self._read_zip(item)
        if len(data) != item.size:
            raise DataError(
                f"{self.path}: {item.name} has {len(data)} bytes, {item.size} when it was listed; leave the source alone and start again"
            )
        return data

    def _pread(self, size: int, offset: int) -> bytes:
        assert self._archive
        return os.pread(self._archive.fileno(), size, offset)

    def _read_zip(self, item: Item) -> bytes:
        """By hand, because zipfile would parse the whole directory again in every worker: gigabytes for a million files."""
        signature, name_bytes, extra_bytes = struct.unpack("<4s22xHH", self._pread(30, item.offset).ljust(30, b"\0"))
        if signature != b"PK\3\4":
            raise BadSample("damaged in the archive (no local header)")
        packed = self._pread(item.packed, item.offset + 30 + name_bytes + extra_bytes)
        try:
            data = zlib.decompressobj(-15).decompress(packed, item.size) if item.method else packed
        except zlib.error as error:
            raise BadSample(f"damaged in the archive ({error})") from error
        if zlib.crc32(data) != item.crc or len(data) != item.size:
            raise BadSample("damaged in the archive (wrong checksum)")
        return data
