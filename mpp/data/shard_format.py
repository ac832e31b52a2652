"""The shard format: what lies in a split's folder.

    OUT/train/000003.tar      standard WebDataset USTAR: 000000456789.jpg [000000456789.cls]; fixed mtime, uid, gid and mode
    OUT/train/index.bin       one row of INDEX_DTYPE a sample, in manifest order
    OUT/train/manifest.json   the truth about both, written last: a folder without it does not exist for readers

A sample's id is its row in the index.  Keys are ordinals given before bad files were rejected, so they may have gaps.
Written by write_shards.py, read by shards.py; shard_faults.py says what may be wrong with it.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict, ValidationError

from mpp.base.errors import DataError, of_this_rank
from mpp.data.shard_table import ShardTable, parsed

FORMAT, VERSION = "mpp-shards", 1
MANIFEST, INDEX = "manifest.json", "index.bin"
FIELDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # image format -> field name in the tar
MEAN_STD_IMAGES = 10_000  # mean and std come from the readable ones among a split's first so many keys
SHORT_SIDES = (1, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024, 2048, 4096)  # lower edges of the size histogram
BLOCK = tarfile.BLOCKSIZE  # 512 bytes: a header, and what everything is padded to
REMAKE = "copy the split again or make it again with python data_prep/make_shards.py (index_shards.py for tars from elsewhere)"

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


Count = Annotated[int, Field(ge=0, lt=2**63)]


class IndexEntry(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
    bytes: Count
    sha256: str


class Manifest(BaseModel):
    """manifest.json.  The same input and options give the same bytes on any machine: no times and no absolute paths."""

    model_config = ConfigDict(strict=True, frozen=True)
    format: Literal["mpp-shards"] = "mpp-shards"
    version: Literal[1] = 1
    split: str
    samples: Count
    bytes: Count  # of all shards
    rejects: Count  # files that were not readable images
    repeats: Count  # images left out because they were byte for byte another's
    classes: list[str]  # empty when unlabelled
    mean: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]  # RGB, 0..1, over the pixels of `mean_std_images` images
    std: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
    mean_std_images: Count
    short_sides: list[Annotated[tuple[int, int], Strict(False)]]  # a list in JSON; (at least so many pixels, images), non-empty bins only
    source: dict[str, Any]  # name, kind and options it was made with
    mpp: str  # version
    index: IndexEntry
    shards: ShardTable
    check: str  # `check_of` all the rest: a changed manifest is noticed, though nothing else vouches for it


def manifest_pieces(manifest: Manifest) -> Iterator[bytes]:
    """manifest.json, as it is written: json.dumps of all of it with indent=1, without an object for each shard."""
    before, empty, after = json.dumps(_without_shards(manifest), indent=1).partition('\n "shards": []')
    entry = '  {\n   "name": %(name)s,\n   "bytes": %(bytes)d,\n   "sha256": "%(sha256)s",\n   "samples": %(samples)d\n  }'
    yield before.encode()
    if manifest.shards:
        yield b'\n "shards": [\n'
        yield from (piece.encode() for piece in manifest.shards.pieces(entry, ",\n"))
        yield b"\n ]"
    else:
        yield empty.encode()
    yield after.encode() + b"\n"


def digest_of(manifest: Manifest) -> str:
    """sha256 of manifest.json, as it is written, hexadecimal."""
    digest = hashlib.sha256()
    for piece in manifest_pieces(manifest):
        digest.update(piece)
    return digest.hexdigest()


def check_of(manifest: Manifest) -> str:
    """What `check` must be: `seal_of` all the rest, without an object for each shard."""
    content = {key: value for key, value in _without_shards(manifest).items() if key != "check"}
    # Nothing before the list's place, by their keys, can hold these letters: quotes inside of strings have a backslash before them.
    before, _, after = json.dumps(content, sort_keys=True, separators=(",", ":")).partition('"shards":[')
    digest = hashlib.sha256(before.encode() + b'"shards":[')
    for piece in manifest.shards.pieces('{"bytes":%(bytes)d,"name":%(name)s,"samples":%(samples)d,"sha256":"%(sha256)s"}', ","):
        digest.update(piece.encode())
    digest.update(after.encode())
    return digest.hexdigest()


def _without_shards(manifest: Manifest) -> dict[str, Any]:
    told = manifest.model_dump(exclude={"shards"})
    return {name: told.get(name, []) for name in Manifest.model_fields}


def sealed(manifest: Manifest) -> Manifest:
    """With its `check`."""
    return manifest.model_copy(update={"check": check_of(manifest)})


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """A split's manifest, complete and of this format, and the sha256 of its bytes.  Raises DataError; what it claims is not yet checked."""
    make = "make it with python data_prep/make_shards.py SOURCE OUT (or index_shards.py FOLDER for WebDataset tars from elsewhere)"
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists():
            raise DataError(f"{folder}: no such folder of shards; give one that is there, or {make}") from None
        if not folder.is_dir():
            raise DataError(f"{folder}: is a file; give the folder that holds {MANIFEST}") from None
        if (folder / "train" / MANIFEST).exists():
            raise DataError(f"{folder}: holds splits, not shards; did you mean {folder / 'train'}?") from None
        raise DataError(f"{folder}: has no {MANIFEST}, so it is no finished set of shards; {make}") from None
    except OSError as error:
        raise of_this_rank(DataError(f"{folder / MANIFEST}: {error.strerror}; check the disk, mount and permissions")) from error
    digest = hashlib.sha256(data).hexdigest()
    text = _text(data, folder / MANIFEST)
    del data  # of a million shards 157 MB
    return _manifest(text, folder / MANIFEST), digest


def manifest_in(data: bytes, where: object) -> Manifest:
    """As `read_manifest`, of its bytes; where: they are from, for messages."""
    return _manifest(_text(data, where), where)


def _text(data: bytes, where: object) -> str:
    try:
        return data.decode()
    except ValueError as error:
        raise DataError(f"{where}: is not a JSON object ({error}); {REMAKE}") from error


def _manifest(text: str, where: object) -> Manifest:
    failed = None
    try:
        try:
            content = parsed(text)
        except ValidationError as error:  # perhaps of another version, which says more
            content, failed = json.loads(text), error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not a JSON object ({error}); {REMAKE}") from error
    if (kind := (content.get("format"), content.get("version"))) != (FORMAT, VERSION):
        raise DataError(f"{where}: is of format {kind[0]!r} version {kind[1]!r}, this mpp reads {FORMAT!r} version {VERSION}; {REMAKE}")
    try:
        if failed:
            raise failed
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {REMAKE}") from error


def member_header(key: int, field: str, size: int) -> bytes:
    """A member's 512 bytes in our own shards.  TarInfo's own mtime, uid and gid are 0, its mode 0644."""
    info = tarfile.TarInfo(f"{key:012d}.{field}")
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)
