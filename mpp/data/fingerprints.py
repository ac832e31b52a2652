"""What images are, byte for byte: which of them are also in another set, and whether two sets hold the same, however they are stored and named.

An image's print is the CRC-32 and the size of its encoded bytes, as data_prep stores them (`Images.read`); of shards both stand in the index, and no image
is read.  That two different images have one print happens by chance with one in 4 billion pairs of equal size; that an image and its copy have two, never.
Labels, names and order do not count.
"""

import hashlib
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from mpp.data.images import Images, read_each
from mpp.disk.files import user_folder, write_atomically

KEPT_FROM = 10.0  # seconds of reading


def packed(crc32: np.ndarray, size: np.ndarray) -> np.ndarray:
    """uint64 [n]: a print in one number, the CRC-32 in its upper half.  crc32, size: unsigned [n]."""
    return (crc32.astype(np.uint64) << np.uint64(32)) | (size.astype(np.uint64) & np.uint64(0xFFFFFFFF))


def print_of(data: bytes) -> int:
    """Of one image's encoded bytes."""
    return zlib.crc32(data) << 32 | len(data) & 0xFFFFFFFF


def read_prints(images: Images) -> np.ndarray:
    """uint64 [n]: every image is read once, and none decoded.  Raises DataError for one that cannot be read.

    What took long is kept in the user's cache (XDG_CACHE_HOME, or ~/.cache) for as long as no file changes its size or time.
    """
    key = hashlib.sha256(f"{images.path.resolve()}\n{images.stamp}".encode(errors="surrogateescape")).hexdigest()
    place = user_folder("XDG_CACHE_HOME", "~/.cache") / "mpp" / "prints" / f"{key}.bin"
    with suppress(OSError):
        if len(kept := np.fromfile(place, dtype="<u8")) == len(images) + 1 and kept[-1] == print_of(kept[:-1].tobytes()):
            return kept[:-1].astype(np.uint64)
    began = time.monotonic()
    found = np.array(read_each(images, range(len(images)), print_of), dtype="<u8")
    if time.monotonic() - began > KEPT_FROM and place.is_absolute():
        with suppress(OSError):  # it is read again next time
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, found.tobytes() + np.array([print_of(found.tobytes())], dtype="<u8").tobytes())
    return found.astype(np.uint64)


def content_id(prints: np.ndarray) -> str:
    """sha256, hexadecimal, over all prints in ascending order: what a set holds, the same however it is sharded, ordered or named."""
    return hashlib.sha256(np.sort(prints).astype("<u8").tobytes()).hexdigest()


def overlap(prints: np.ndarray, others: Iterable[np.ndarray] | np.ndarray) -> np.ndarray:
    """bool [m]: which of the m images are, byte for byte, also in another set, or in any of several."""
    sets = [others] if isinstance(others, np.ndarray) else list(others)
    return np.isin(prints, np.concatenate([np.empty(0, np.uint64), *sets]))


def how_stored(images: Images) -> tuple:
    """What of data_prep's options gives images other bytes: the same image stored in two ways has two prints.  Of what data_prep has not made, its own bytes."""
    source = getattr(images, "manifest", {}).get("source", {})
    cut = (source.get(name) for name in ("tile", "overlap", "window"))
    return source.get("resize"), source.get("encode") or "keep", source.get("quality"), *cut
