"""The shard format: what lies in a split's folder, how it is written and how it is read.

    OUT/train/000003.tar      standard WebDataset USTAR: 000000456789.jpg [000000456789.cls]; fixed mtime, uid, gid and mode
    OUT/train/index.bin       one row of INDEX_DTYPE a sample, in manifest order
    OUT/train/manifest.json   the truth about both, written last: a folder without it does not exist for readers

A sample's id is its row in the index.  Keys are ordinals given before bad files were rejected, so they may have gaps.
A tar's own end mark is never trusted: a tar cut at a header ends silently in every tar reader.  Here sizes are checked when a set is
opened and a CRC-32 whenever a sample is read.
"""

import functools
import hashlib
import json
import math
import os
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

import mpp
from mpp.errors import BadSample, DataError, of_this_rank
from mpp.files import sync_path, write_atomically, write_stream

FORMAT, VERSION = "mpp-shards", 1
MANIFEST, INDEX = "manifest.json", "index.bin"
FIELDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # image format -> field name in the tar
MEAN_STD_IMAGES = 10_000  # mean and std come from the readable ones among a split's first so many keys
SHORT_SIDES = (1, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024, 2048, 4096)  # lower edges of the size histogram
BLOCK = tarfile.BLOCKSIZE  # 512 bytes: a header, and what everything is padded to
OPEN_FILES = 256  # shards a process keeps open at once
RETRY_SECONDS = (0.1, 0.4, 1.6)  # waits before a failed read is tried again

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # position in the manifest's list of shards
        ("offset", "<u8"),  # of the image's first byte in the shard
        ("size", "<u4"),  # bytes of the image
        ("crc32", "<u4"),  # of those bytes
        ("width", "<u4"),  # pixels, as decoded: after EXIF orientation
        ("height", "<u4"),
        ("label", "<i4"),  # class number, -1 for none
        ("key", "<u8"),  # the 12-digit ordinal
    ]
)


class Sample(NamedTuple):
    """One image on its way into a shard."""

    key: int
    field: str  # one of FIELDS' values
    data: bytes
    width: int  # pixels, as decoded
    height: int
    label: int = -1


class ShardEntry(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    name: Annotated[str, Field(pattern=r"^[^/\\]+\.tar$")]
    bytes: NonNegativeInt
    sha256: str
    samples: NonNegativeInt


class IndexEntry(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    name: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    bytes: NonNegativeInt
    sha256: str


class Manifest(BaseModel):
    """manifest.json.  The same input and options give the same bytes on any machine: no times and no absolute paths."""

    model_config = ConfigDict(strict=True, frozen=True)
    format: Literal["mpp-shards"] = "mpp-shards"
    version: Literal[1] = 1
    split: str
    samples: NonNegativeInt
    bytes: NonNegativeInt  # of all shards
    rejects: NonNegativeInt  # files that were not readable images
    classes: list[str]  # empty when unlabelled
    mean: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]  # RGB, 0..1, over the pixels of `mean_std_images` images
    std: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
    mean_std_images: NonNegativeInt
    short_sides: list[tuple[int, int]]  # (at least so many pixels, images), non-empty bins only
    source: dict[str, Any]  # name, kind and options it was made with
    mpp: str  # version
    index: IndexEntry
    shards: list[ShardEntry]


# ---------------------------------------------------------------- writing


def write_shard(folder: Path, name: str, samples: Iterable[Sample]) -> tuple[dict, np.ndarray]:
    """Write samples to folder/name; return its manifest entry and its rows, INDEX_DTYPE [samples] with shard 0.

    The file gets its name only after it was flushed to the disk and read back whole.  No samples, no file: the entry then says 0.
    Raises DataError when what was read back is not what was written; OSError passes through.
    """
    rows = []
    fields: list[tuple[bytes, int, int]] = []  # header block, bytes, CRC-32
    end = 0
    part = folder / f".{name}.tmp-{os.getpid()}"
    try:
        with part.open("w+b") as file:
            for sample in samples:
                rows.append((0, end + BLOCK, len(sample.data), 0, sample.width, sample.height, sample.label, sample.key))
                for field, data in ((sample.field, sample.data), ("cls", b"%d" % sample.label))[: 1 + (sample.label >= 0)]:
                    info = tarfile.TarInfo(f"{sample.key:012d}.{field}")  # TarInfo's own mtime, uid and gid are 0, its mode 0644
                    info.size = len(data)
                    header = info.tobuf(tarfile.USTAR_FORMAT)
                    fields.append((header, len(data), zlib.crc32(data)))
                    for piece in (header, data, bytes(-len(data) % BLOCK)):
                        end += file.write(piece)
                # the image is the sample's first field
                rows[-1] = (*rows[-1][:3], fields[-1 - (sample.label >= 0)][2], *rows[-1][4:])
            if not rows:
                return {"name": name, "bytes": 0, "sha256": "", "samples": 0}, np.empty(0, INDEX_DTYPE)
            end += file.write(bytes(2 * BLOCK + -(end + 2 * BLOCK) % tarfile.RECORDSIZE))  # the end mark, padded as tar does
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # read back from the disk, not from the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digest = _read_back(file, fields, end, folder / name)
        part.rename(folder / name)
        sync_path(folder)
    finally:
        part.unlink(missing_ok=True)
    return {"name": name, "bytes": end, "sha256": digest, "samples": len(rows)}, np.array(rows, INDEX_DTYPE)


def _read_back(file: Any, fields: list[tuple[bytes, int, int]], size: int, final: Path) -> str:
    """sha256 of the file, after comparing every byte of it, by its CRC-32 where it is payload, with what was meant."""
    file.seek(0)
    digest = hashlib.sha256()

    def differs() -> bool:
        for header, length, crc in fields:
            whole = file.read(BLOCK + length + -length % BLOCK)
            digest.update(whole)
            view = memoryview(whole)
            if (
                view[:BLOCK] != header
                or zlib.crc32(view[BLOCK : BLOCK + length]) != crc
                or view[BLOCK + length :] != bytes(-length % BLOCK)
            ):
                return True
        end = file.read()
        digest.update(end)
        return end != bytes(len(end)) or file.tell() != size

    if differs():
        raise DataError(f"{final}: what was read back differs from what was written; check the disk, then run the same command again")
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    *,
    split: str,
    shards: Iterable[tuple[dict, np.ndarray]],
    classes: list[str],
    colours: np.ndarray,
    colour_images: int,
    rejects: int,
    source: dict,
) -> Manifest:
    """Write the index, then, last, the manifest.

    shards: what `write_shard` returned, in order; taken one at a time.  Empty shards are left out.
    colours: int64 [3, 256], how often each value occurs in each channel of `colour_images` decoded images.
    """
    entries: list[ShardEntry] = []
    digest = hashlib.sha256()
    bins = np.zeros(len(SHORT_SIDES) + 1, np.int64)

    def index() -> Iterator[bytes]:
        for entry, rows in shards:
            if entry["samples"]:
                rows = rows.copy()
                rows["shard"] = len(entries)
                entries.append(ShardEntry(**entry))
                bins[:] += np.bincount(np.digitize(np.minimum(rows["width"], rows["height"]), SHORT_SIDES), minlength=len(bins))
                data = rows.tobytes()
                digest.update(data)
                yield data

    write_stream(folder / INDEX, index())
    mean, std = mean_and_std(colours)
    samples = sum(entry.samples for entry in entries)
    manifest = Manifest(
        split=split,
        samples=samples,
        bytes=sum(entry.bytes for entry in entries),
        rejects=rejects,
        classes=classes,
        mean=mean,
        std=std,
        mean_std_images=colour_images,
        short_sides=[(low, count) for low, count in zip(SHORT_SIDES, bins[1:].tolist(), strict=True) if count],
        source=source,
        mpp=mpp.__version__,
        index=IndexEntry(name=INDEX, bytes=samples * INDEX_DTYPE.itemsize, sha256=digest.hexdigest()),
        shards=entries,
    )
    write_atomically(folder / MANIFEST, json.dumps(manifest.model_dump(), indent=1).encode() + b"\n")
    return manifest


def mean_and_std(colours: np.ndarray) -> tuple[list[float], list[float]]:
    """RGB mean and standard deviation in 0..1 from int64 [3, 256] counts, by exact integer sums: no order of adding can change them.

    Raises DataError when there are no pixels.
    """
    mean, std = [], []
    for counts in colours.tolist():
        pixels = sum(counts)
        if not pixels:
            raise DataError(
                f"none of the first {MEAN_STD_IMAGES} images is readable, so there is no mean colour; mend them and start again"
            )
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        mean.append(first / pixels / 255)
        std.append(math.sqrt((pixels * second - first * first) / pixels**2) / 255)
    return mean, std


# ---------------------------------------------------------------- reading


class _ShardFile:
    """A read-only descriptor that is closed with its last user, so that dropping it from a cache is safe in any thread."""

    def __init__(self, path: str, _process: int):
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes: fewer only at the end of the file."""
        data = os.pread(self.handle, size, offset)
        while len(data) < size and (more := os.pread(self.handle, size - len(data), offset + len(data))):
            data += more
        return data


class ShardSet:
    """An opened split: random access to its samples by id.  Safe to fork and to pickle; several threads may read."""

    def __init__(self, path: Path, manifest: dict, manifest_hash: str):
        """Takes a manifest as checked by `open`, which is the way in."""
        self.path = path
        self.manifest = manifest
        self.manifest_hash = manifest_hash  # sha256 of manifest.json's bytes, hexadecimal
        self.classes: list[str] = manifest["classes"]
        self.samples_per_shard: list[int] = [entry["samples"] for entry in manifest["shards"]]
        self.mean: list[float] = manifest["mean"]  # RGB, 0..1
        self.std: list[float] = [max(value, 1 / 255) for value in manifest["std"]]  # a constant channel must not divide by zero
        self.index: np.memmap = np.memmap(path / manifest["index"]["name"], INDEX_DTYPE, mode="r", shape=(manifest["samples"],))
        self.labels: np.ndarray = np.ascontiguousarray(self.index["label"], dtype=np.int32)  # [samples], -1 for none
        self.labelled = bool((self.labels >= 0).all())
        self._rows = np.asarray(self.index)  # the same memory without memmap's cost at every access
        self._paths = [str(path / entry["name"]) for entry in manifest["shards"]]
        self._file = functools.lru_cache(OPEN_FILES)(_ShardFile)

    @classmethod
    def open(cls, path: str | os.PathLike) -> "ShardSet":
        """Open a split's folder, such as OUT/train, and check it: the manifest, the index's hash and rows, every shard's size.

        Raises DataError, one line, for anything missing, changed, cut or of another format.
        """
        folder = Path(path)
        manifest, manifest_hash = _read_manifest(folder)
        try:
            _check_files(folder, manifest)
            shard_set = cls(folder, manifest.model_dump(), manifest_hash)
        except OSError as error:
            raise of_this_rank(DataError(f"{folder}: cannot read the shards: {error}; check the disk or mount and try again")) from error
        _check_rows(shard_set)
        return shard_set

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.manifest_hash)

    def __len__(self) -> int:
        return len(self.index)

    def where(self, sample: int) -> str:
        """A sample's place, for messages: "train/000003.tar: 000000001234 (offset 51712)"."""
        row = self._rows[sample]
        return f"{self.path.name}/{self.manifest['shards'][row['shard']]['name']}: {row['key']:012d} (offset {row['offset']})"

    def read(self, sample: int) -> bytes:
        """The image's bytes as stored.

        Raises BadSample when the shard ends early or the CRC-32 is wrong, and DataError when the system still reports an error
        after RETRY_SECONDS: a lost disk is no bad sample.
        """
        row = self._rows[sample]
        size, offset = int(row["size"]), int(row["offset"])
        for wait in (*RETRY_SECONDS, None):
            try:
                data = self._file(self._paths[row["shard"]], os.getpid()).pread(size, offset)  # by process: a fork opens its own
                break
            except OSError as error:
                self._file.cache_clear()  # a stale handle stays stale
                if wait is None:
                    raise of_this_rank(
                        DataError(
                            f"{self.where(sample)}: {error}, after {len(RETRY_SECONDS)} retries; check the disk or mount, then resume"
                        )
                    ) from error
                time.sleep(wait)
        if len(data) != size:
            raise BadSample(f"the shard ends after {len(data)} of the image's {size} bytes")
        if (crc := zlib.crc32(data)) != row["crc32"]:
            raise BadSample(f"CRC-32 is {crc:08x}, the index says {int(row['crc32']):08x}")
        return data

    def verify_sha256(self, shard: int) -> None:
        """Read one whole shard.  Raises DataError when its sha256 is not the manifest's."""
        entry = self.manifest["shards"][shard]
        with (self.path / entry["name"]).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry["sha256"]:
            raise DataError(f"{self.path / entry['name']}: sha256 is {found[:12]}…, the manifest says {entry['sha256'][:12]}…; {_REMAKE}")


_REMAKE = "copy the split again or make it again with python data_prep/make_shards.py (index_shards.py for tars from elsewhere)"


def _reopen(path: Path, manifest_hash: str) -> ShardSet:
    """Unpickle: the sender has checked the files, so only a changed manifest is looked for."""
    manifest, found = _read_manifest(path)
    if found != manifest_hash:
        raise DataError(f"{path / MANIFEST}: changed while the program was running; start it again")
    return ShardSet(path, manifest.model_dump(), manifest_hash)


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest, complete and of this format, and the sha256 of its bytes."""
    make = "make it with python data_prep/make_shards.py SOURCE OUT (or index_shards.py FOLDER for WebDataset tars from elsewhere)"
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists():
            raise DataError(f"{folder}: no such folder of shards; {make}") from None
        if not folder.is_dir():
            raise DataError(f"{folder}: is a file; give the folder that holds {MANIFEST}") from None
        if (folder / "train" / MANIFEST).exists():
            raise DataError(f"{folder}: holds splits, not shards; did you mean {folder / 'train'}?") from None
        raise DataError(f"{folder}: has no {MANIFEST}, so it is no finished set of shards; {make}") from None
    except OSError as error:
        raise of_this_rank(DataError(f"{folder / MANIFEST}: {error.strerror}; check the disk, mount and permissions")) from error
    try:
        content = json.loads(data)
        kind = (content.get("format"), content.get("version"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: is not a JSON object ({error}); {_REMAKE}") from error
    if kind != (FORMAT, VERSION):
        raise DataError(
            f"{folder / MANIFEST}: is of format {kind[0]!r} version {kind[1]!r}, this mpp reads {FORMAT!r} version {VERSION}; {_REMAKE}"
        )
    try:
        return Manifest.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{folder / MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {_REMAKE}") from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Sizes of everything, the index's hash, the totals."""
    for what, total, parts in (
        ("samples", manifest.samples, [entry.samples for entry in manifest.shards]),
        ("bytes", manifest.bytes, [entry.bytes for entry in manifest.shards]),
        ("index bytes", manifest.index.bytes, [manifest.samples * INDEX_DTYPE.itemsize]),
    ):
        if sum(parts) != total:
            raise DataError(f"{folder / MANIFEST}: says {total} {what}, but its parts add up to {sum(parts)}, so it was edited; {_REMAKE}")
    if not manifest.samples:
        raise DataError(f"{folder / MANIFEST}: holds no samples; {_REMAKE}")
    if len({entry.name for entry in manifest.shards}) != len(manifest.shards):
        raise DataError(f"{folder / MANIFEST}: names a shard twice, so it was edited; {_REMAKE}")
    entries: list[IndexEntry | ShardEntry] = [manifest.index, *manifest.shards]
    for entry in entries:
        try:
            size = (folder / entry.name).stat().st_size
        except FileNotFoundError:
            raise DataError(f"{folder / entry.name}: is missing, the manifest lists it; {_REMAKE}") from None
        if size != entry.bytes:
            raise DataError(f"{folder / entry.name}: has {size} bytes, the manifest says {entry.bytes}: cut or changed; {_REMAKE}")
    with (folder / manifest.index.name).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest.index.sha256:
        raise DataError(
            f"{folder / manifest.index.name}: sha256 is {found[:12]}…, the manifest says {manifest.index.sha256[:12]}…; {_REMAKE}"
        )


def _check_rows(shards: ShardSet) -> None:
    """Every row of the index lies in the shard and the class list it names, and each shard has as many rows as the manifest says."""
    index, where = shards.index, shards.path / shards.manifest["index"]["name"]
    expected = np.repeat(np.arange(len(shards.samples_per_shard)), shards.samples_per_shard)
    if not np.array_equal(index["shard"], expected):
        raise DataError(f"{where}: its rows are not those of the manifest's shards; {_REMAKE}")
    shard_bytes = np.array([entry["bytes"] for entry in shards.manifest["shards"]], np.uint64)
    size = index["size"].astype(np.uint64)
    outside = (index["offset"] > shard_bytes[expected]) | (size > shard_bytes[expected] - index["offset"])
    if outside.any():
        raise DataError(f"{where}: row {int(outside.argmax())} points outside its shard; {_REMAKE}")
    if shards.labels.min() < -1 or shards.labels.max() >= len(shards.classes):
        raise DataError(f"{where}: holds labels {shards.labels.min()}..{shards.labels.max()} for {len(shards.classes)} classes; {_REMAKE}")
