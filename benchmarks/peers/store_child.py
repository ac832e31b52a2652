"""A loader that reads from an object store, under measurement: this process takes its batches as a training would, and notes when they came.

    python store_PEER.py prepare SET                                stores the images of SET as this peer wants them, where the store serves them
    python store_PEER.py epoch SET STORE CACHE WORKERS STEP_MS      one epoch, a batch every STEP_MS at most (0: as fast as they come)
    python store_PEER.py epochs SET STORE CACHE WORKERS COUNT       when each epoch ended, for whoever watches the memory
    python store_PEER.py resume SET STORE CACHE WORKERS BATCHES     when the first batch after so many of an epoch came

SET is a folder made by ../store_set.py.  STORE: the address of ../../tests/object_store.py, or `-` for the files on the local disk.  CACHE: a folder
for what was downloaded, empty at first.  Each store_PEER.py brings a `stream` of whole batches, uint8 [B, 3, S, S]: decoded, cropped as
torchvision's RandomResizedCrop does and resized with an antialiased bicubic filter.  While a step is "trained" this process sleeps, as one does
that waits for a GPU.  The last line that begins with a brace is the result, as JSON.
"""

import gc
import json
import os
import resource
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

SHUFFLED = 1024  # samples among which an order is shuffled, where a peer lets one choose


@dataclass(frozen=True)
class StoredSet:
    """What a peer is asked to read."""

    folder: Path
    endpoint: str  # empty: the local disk
    cache: Path
    side: int  # pixels of a crop
    batch: int
    entries: int
    bucket: str

    @classmethod
    def read(cls, folder: str, endpoint: str = "-", cache: str = "") -> "StoredSet":
        known = json.loads((Path(folder) / "set.json").read_text())
        about = {name: known[name] for name in ("side", "batch", "entries", "bucket")}
        return cls(Path(folder), "" if endpoint == "-" else endpoint, Path(cache), **about)

    @property
    def served(self) -> Path:
        return self.folder / "served" / self.bucket

    @property
    def paths(self) -> list[Path]:
        return sorted((self.folder / "once").glob("*.jpg"))


# set, workers, epochs, the batch of the first epoch to begin with (0 unless the peer resumes) -> batches
Stream = Callable[[StoredSet, int, int, int], Iterator[torch.Tensor]]


def main(packages: list[str], stream: Stream, prepare: Callable[[StoredSet], None] | None = None, resumes: bool = False) -> None:
    """resumes: `stream` can begin at any batch; else those before it are fetched and dropped."""
    imported = time.monotonic()
    torch.set_num_threads(1)
    what, folder, *words = sys.argv[1:]
    result: dict = {}
    if what == "prepare":
        if prepare:
            prepare(StoredSet.read(folder))
    else:
        endpoint, cache, workers, number = words
        stored = StoredSet.read(folder, endpoint, cache)
        if stored.endpoint:
            lead_to(stored.endpoint)
        result = {"epoch": epoch, "epochs": epochs, "resume": resume}[what](stream, stored, int(workers), float(number), resumes)
    result |= {"imported": imported, "versions": {name: version(name) for name in packages}}
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # some loaders' threads go on


def lead_to(endpoint: str) -> None:
    """What boto3 and what builds on it look at."""
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "S3_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}


def epoch(stream: Stream, stored: StoredSet, workers: int, step_ms: float, resumes: bool) -> dict:
    """first: seconds from the moment a loader is asked for to its first batch; seconds: from there to the last; waited: of these, for batches."""
    before, asked = cpu_seconds(), time.monotonic()
    batches = stream(stored, workers, 1, 0)
    checked(next(batches), stored)
    first = time.monotonic()
    waits, images = [], 0
    time.sleep(step_ms / 1e3)
    while True:
        began = time.monotonic()
        batch = next(batches, None)
        waits.append(time.monotonic() - began)
        if batch is None:
            break
        images += len(checked(batch, stored))
        if step_ms:
            time.sleep(step_ms / 1e3)
        elif images + 3 * stored.batch >= stored.entries - stored.batch:
            spent = cpu_seconds() - before  # while the workers are there; of all but the last few batches
    end = time.monotonic() - waits.pop()
    if images < stored.entries - (2 + workers) * stored.batch:
        raise SystemExit(f"{images} images in an epoch of {stored.entries}")
    return {
        "first": first - asked,
        "seconds": end - first,
        "images": images,
        "waited": sum(waits),
        "longest_wait": max(waits),
        "cpu_seconds": None if step_ms else spent,  # since a loader was asked for
        **counts(stored),
    }


def epochs(stream: Stream, stored: StoredSet, workers: int, count: float, resumes: bool) -> dict:
    """When each epoch ended."""
    asked, ends, seen = time.monotonic(), [], 0
    for batch in stream(stored, workers, int(count), 0):
        seen += len(checked(batch, stored))
        if seen >= (len(ends) + 1) * (stored.entries - stored.batch * max(1, workers)):  # loaders leave out what fills no batch
            ends.append(time.monotonic())
    if len(ends) != count:
        raise SystemExit(f"{seen} images in {count:g} epochs of {stored.entries}")
    return {"asked": asked, "ends": ends, "images": seen, **counts(stored)}


def resume(stream: Stream, stored: StoredSet, workers: int, after: float, resumes: bool) -> dict:
    """Seconds from the moment a loader is asked for to the first batch after so many, and what the store had sent by then."""
    asked = time.monotonic()
    batches = stream(stored, workers, 1, int(after) if resumes else 0)
    for _ in range(0 if resumes else int(after)):
        next(batches)
    checked(next(batches), stored)
    return {"seconds": time.monotonic() - asked, **counts(stored)}


def counts(stored: StoredSet) -> dict:
    """What the store has been asked for, and the bytes that it has sent."""
    if not stored.endpoint:
        return {"requests": 0, "bytes": 0}
    with urllib.request.urlopen(f"{stored.endpoint}/-/") as answer:
        told = json.load(answer)
    return {"requests": sum(told["requests"].values()), "bytes": sum(told["sent"].values())}


def cpu_seconds() -> float:
    """User and system time of this process with its threads, of the processes below it, and of those that they have waited for."""
    gc.collect()
    own = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    below = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(used.ru_utime + used.ru_stime for used in own) + sum(
        used.user + used.system + used.children_user + used.children_system for used in below
    )


def checked(batch: torch.Tensor, stored: StoredSet) -> torch.Tensor:
    if batch.dtype != torch.uint8 or tuple(batch.shape) != (stored.batch, 3, stored.side, stored.side):
        raise SystemExit(f"a batch is {batch.dtype} {tuple(batch.shape)}")
    return batch
