"""The shard format: what lies in a split's folder.

    OUT/train/000003.tar      standard WebDataset USTAR: 000000456789.jpg [000000456789.cls]; fixed mtime, uid, gid and mode
    OUT/train/index.bin       one row of INDEX_DTYPE a sample, in manifest order
    OUT/train/manifest.json   the truth about both, written last: a folder without it does not exist for readers

A sample's id is its row in the index.  Keys are ordinals given before bad files were rejected, so they may have gaps.
Written by write_shards.py, read by shards.py; shard_faults.py says what may be wrong with it.
"""

import json
import tarfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mpp.errors import DataError, of_this_rank

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


class ShardEntry(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+\.[tT][aA][rR]$")]
    bytes: Count
    sha256: str
    samples: Count


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
    short_sides: list[tuple[int, int]]  # (at least so many pixels, images), non-empty bins only
    source: dict[str, Any]  # name, kind and options it was made with
    mpp: str  # version
    index: IndexEntry
    shards: list[ShardEntry]
    check: str  # `seal_of` all the rest: a changed manifest is noticed, though nothing else vouches for it


def manifest_bytes(manifest: Manifest) -> bytes:
    """manifest.json, as it is written."""
    return json.dumps(manifest.model_dump(), indent=1).encode() + b"\n"


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """A split's manifest, complete and of this format, and its bytes.  Raises DataError; what it claims is not yet checked."""
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
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / MANIFEST}: is not a JSON object ({error}); {REMAKE}") from error
    if kind != (FORMAT, VERSION):
        raise DataError(
            f"{folder / MANIFEST}: is of format {kind[0]!r} version {kind[1]!r}, this mpp reads {FORMAT!r} version {VERSION}; {REMAKE}"
        )
    try:
        return Manifest.model_validate_json(data), data
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{folder / MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {REMAKE}") from error


def member_header(key: int, field: str, size: int) -> bytes:
    """A member's 512 bytes in our own shards.  TarInfo's own mtime, uid and gid are 0, its mode 0644."""
    info = tarfile.TarInfo(f"{key:012d}.{field}")
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)
