"""What the machine allows: one core's rates over the bytes of a folder, in MB/s, as one JSON object.

    python benchmarks/limits.py ROOT SCRATCH

read: the files, from the page cache.  write: 64 MB at a time, flushed to the disk.  read_back: the same, dropped from the page cache first.
A copy of whole files that checks itself as make_shards.py does reads, takes a CRC-32, writes, reads back, takes a CRC-32 again and a
SHA-256: `copy` is what one core could do if these were its only work, one after the other.  `decode` is images/s: what the colour
statistics over the first 10,000 images cost each of them.
"""

import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpp.data.decode import open_image

CHUNK = 64 << 20
BYTES = 256 << 20
DECODED = 300


def main(root: Path, scratch: Path) -> None:
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    data: list[bytes] = []

    def read() -> None:
        total = 0
        for path in paths:
            data.append(path.read_bytes())
            total += len(data[-1])
            if total > BYTES:
                break

    seconds = {"read": clock(read)}
    total = sum(map(len, data))
    seconds["crc32"] = clock(lambda: [zlib.crc32(each) for each in data])
    digest = hashlib.sha256()
    seconds["sha256"] = clock(lambda: [digest.update(each) for each in data])
    rates = {name: total / 1e6 / taken for name, taken in seconds.items()}

    chunk = np.random.Generator(np.random.Philox(0)).bytes(CHUNK)
    file = os.open(scratch / "limits.tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:

        def write() -> None:
            for _ in range(BYTES // CHUNK):
                os.write(file, chunk)
                os.fsync(file)

        def read_back() -> None:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(file, 0, os.SEEK_SET)
            while os.read(file, 1 << 20):
                pass

        rates |= {"write": BYTES / 1e6 / clock(write), "read_back": BYTES / 1e6 / clock(read_back)}
    finally:
        os.close(file)
        (scratch / "limits.tmp").unlink()
    steps = ("read", "crc32", "write", "read_back", "crc32", "sha256")
    rates["copy"] = 1 / sum(1 / rates[step] for step in steps)
    rates["decode"] = DECODED / clock(lambda: [open_image(each).histogram() for each in data[:DECODED]])
    print(json.dumps({name: round(rate, 1) for name, rate in rates.items()}))


def clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
