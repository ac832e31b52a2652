"""The loop that a user writes around webdataset.ShardWriter: list, shuffle, read, perhaps shrink with Pillow, write.

    python webdataset_loop.py make ROOT OUT WORKERS PER_SHARD RESIZE      RESIZE 0: copy
    python webdataset_loop.py verify OUT WORKERS
    python webdataset_loop.py describe OUT
    python webdataset_loop.py versions

With several workers each process takes every N-th file and writes shards of its own.  Nothing is checked or flushed to the disk.
`verify` reads every sample with webdataset: there is nothing to compare it with.
"""

import io
import json
import multiprocessing
import os
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import PIL
import webdataset
from describe import describe
from PIL import Image


def make(root: str, out: str, workers: str, per_shard: str, resize: str) -> None:
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]  # noqa: PTH118 (what a user would write)
    random.Random(0).shuffle(paths)
    Path(out).mkdir(parents=True, exist_ok=True)
    in_processes(write, [(paths[worker :: int(workers)], out, worker, int(per_shard), int(resize)) for worker in range(int(workers))])


def in_processes(work, arguments: list[tuple]) -> None:
    if len(arguments) == 1:
        work(*arguments[0])
        return
    processes = [multiprocessing.Process(target=work, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)


def write(paths: list[str], out: str, worker: int, per_shard: int, resize: int) -> None:
    with webdataset.ShardWriter(f"{out}/{worker}-%06d.tar", maxcount=per_shard, maxsize=1e12, verbose=0) as writer:
        for number, path in enumerate(paths):
            data = Path(path).read_bytes()
            writer.write({"__key__": f"{worker}{number:011d}", "jpg": shrink(data, resize) if resize else data})


def shrink(data: bytes, side: int) -> bytes:
    """Short sides above `side` shrunk to it: bicubic, antialiased, JPEG quality 95 with 4:2:0."""
    image = Image.open(io.BytesIO(data))
    if min(image.size) <= side:
        return data
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    buffer = io.BytesIO()
    image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    return buffer.getvalue()


def verify(out: str, workers: str) -> None:
    shards = sorted(map(str, Path(out).glob("*.tar")))
    in_processes(read, [(shards[worker :: int(workers)],) for worker in range(int(workers))])


def read(shards: list[str]) -> None:
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        len(sample["jpg"])


def stored(out: str, suffix: str = ".jpg") -> Iterator[bytes]:
    for shard in sorted(Path(out).rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(suffix):
                    file = tar.extractfile(member)
                    assert file
                    yield file.read()


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "versions":
        print(json.dumps({"webdataset": webdataset.__version__, "pillow": PIL.__version__}))
    elif what == "describe":
        print(json.dumps(describe(stored(*words))))
    else:
        {"make": make, "verify": verify}[what](*words)
