"""What memory the listing and the shuffle of make_shards.py need: a made-up source of N images, no files.

    python benchmarks/listing.py 10_000_000 [FOLDER]

Prints {"items": N, "seconds": ..., "peak_mb": ..., "order_mb": ...}; peak_mb is the largest resident size of the process (VmHWM;
getrusage would count the process that started this one), interpreter and libraries included; order_mb lies in FOLDER, which by default is
the system's for temporary files.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpp.prep.shuffle import shuffle
from mpp.prep.source import Item, Source


@dataclass(frozen=True)
class MadeUp(Source):
    """Names and sizes like those of a large folder: 1,000 classes."""

    count: int
    kind = "made up"

    def items(self, ignored: Counter) -> Iterator[Item]:
        for number in range(self.count):
            label = f"n{number % 1000:08d}"
            yield Item(f"{label}/{label}_{number}.JPEG", 100_000 + number % 9973, (1_700_000_000_000_000_000 + number,), label)


def main(count: int, folder: str | None) -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        listed = shuffle(MadeUp(count), 0, Path(scratch), lambda: None)
        order_bytes = sum(path.stat().st_size for path in Path(scratch).iterdir())
    assert listed.counts["train"] == count
    result = {
        "items": count,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": round(peak_bytes() / 1e6, 1),
        "order_mb": round(order_bytes / 1e6, 1),
    }
    print(json.dumps(result))


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
