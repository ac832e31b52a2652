"""What bounds the loader on one core, and what setting up a large set takes.

    taskset -c 0 python benchmarks/loader_limits.py SHARDS ... [--size 224] [--rows 10_000_000]

For each set of JPEG shards, milliseconds of CPU an image, median of 3 passes over up to 300 images: Huffman decoding of the whole image
without any transform (one row at its end is asked for), the part that a training crop needs, the whole image, resizing, and part and resizing together.
Then, for so many samples in 10 thousand shards: the order of an epoch, a batch of 4,096 placed in it, and the set (empty tars) opened.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mpp.base.errors import run_program
from mpp.base.rng import CROP, Draws
from mpp.config.pretrain import DataConfig
from mpp.data import _jpeg
from mpp.data.augment import Augment
from mpp.data.crop import cut, resize
from mpp.data.order import Order
from mpp.data.shard_format import INDEX, INDEX_DTYPE, MANIFEST, IndexEntry, Manifest, manifest_pieces, sealed
from mpp.data.shard_table import ShardEntry, ShardTable
from mpp.data.shards import ShardSet
from mpp.disk.files import write_stream

SHARDS = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What bounds the loader.")
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for path in options.shards:
        pieces(ShardSet.open(path), options.size)
    large(options.rows)
    return 0


def pieces(shards: ShardSet, size: int) -> None:
    recipe, images = DataConfig(), []
    augment = Augment(size, recipe.crop_scale, recipe.crop_ratio, flip=True)
    for sample in range(min(300, len(shards))):
        width, height = shards.size_of(sample)
        data, box = shards.read(sample), augment.draw(Draws(0, CROP, 0, sample)).box(width, height)
        if _jpeg.header(data)[:2] == (width, height):  # as stored
            images.append((data, width, height, box, np.empty((box[3] - box[1], box[2] - box[0], 3), np.uint8)))
    row, whole = np.empty((1, 8, 3), np.uint8), [np.empty((height, width, 3), np.uint8) for _, width, height, _, _ in images]
    steps: dict[str, Callable] = {
        "Huffman": lambda n, data, width, height, box, out: _jpeg.region(data, 1, 0, height - 1, 8, 1, row),
        "part": lambda n, data, width, height, box, out: _jpeg.region(data, 1, box[0], box[1], out.shape[1], out.shape[0], out),
        "whole": lambda n, data, width, height, box, out: _jpeg.region(data, 1, 0, 0, width, height, whole[n]),
        "resizing": lambda n, data, width, height, box, out: resize(out, size),
        "part and resizing": lambda n, data, width, height, box, out: cut(data, width, height, [box], size),
    }
    print(f"{shards.path}: {len(images)} images, ms of CPU an image")
    for name, step in steps.items():
        seconds = []
        for _ in range(3):
            began = time.process_time()
            for n, image in enumerate(images):
                step(n, *image)
            seconds.append(time.process_time() - began)
        print(f"  {name:18} {1000 * statistics.median(seconds) / len(images):.3f}")


def large(rows: int) -> None:
    each = rows // SHARDS
    took: dict[str, list[float]] = {"order of an epoch, ms": [], "a batch placed, ms": [], "opened, ms": []}
    with tempfile.TemporaryDirectory() as folder:
        empty_set(Path(folder), each)
        for _ in range(3):
            began = time.perf_counter()
            order = Order(np.full(SHARDS, each), 4096, 1024, seed=0)
            order.sample_ids(order.places(0, 0, 4096 // 4))
            made = time.perf_counter()
            order.sample_ids(order.places(order.steps_per_epoch - 1, 0, 1))
            placed = time.perf_counter()
            ShardSet.open(folder)
            for name, seconds in zip(took, (made - began, placed - made, time.perf_counter() - placed), strict=True):
                took[name].append(1000 * seconds)
    print(f"{rows:,} samples in {SHARDS:,} shards")
    for name, milliseconds in took.items():
        print(f"  {name:22} {statistics.median(milliseconds):.1f}")


def empty_set(folder: Path, each: int, shards: int = SHARDS) -> None:
    """Tars of holes with a true index and manifest: opening looks at sizes and rows alone.  Written shard by shard, as 40 bytes a sample may be many."""
    rows = np.zeros(each, INDEX_DTYPE)
    rows["offset"] = np.arange(each) * 1024 + 512
    rows["size"], rows["width"], rows["height"], rows["label"] = 500, 32, 32, -1
    size, digest, table = -(-(each * 1024 + 1024) // 10_240) * 10_240, hashlib.sha256(), ShardTable()
    with (folder / INDEX).open("wb") as index:
        for number in range(shards):
            entry = ShardEntry(f"{number:06d}.tar", size, hashlib.sha256(b"%d" % number).hexdigest(), each)
            with (folder / entry.name).open("wb") as file:
                file.truncate(size)
            rows["shard"], rows["key"] = number, np.arange(number * each, (number + 1) * each)
            digest.update(rows.tobytes())
            index.write(rows.tobytes())
            table.extend([entry])
    write_empty_manifest(folder, table, digest.hexdigest())


def write_empty_manifest(folder: Path, table: ShardTable, index_sha256: str) -> None:
    samples = sum(table.samples)
    manifest = Manifest(
        split="train", samples=samples, bytes=sum(table.bytes), rejects=0, repeats=0, classes=[], mean=[0.5] * 3, std=[0.2] * 3,
        mean_std_images=1, short_sides=[(32, samples)], source={"name": "holes"}, mpp="0",
        index=IndexEntry(name=INDEX, bytes=samples * INDEX_DTYPE.itemsize, sha256=index_sha256), shards=table, check="",
    )  # fmt: skip
    write_stream(folder / MANIFEST, manifest_pieces(sealed(manifest)))


if __name__ == "__main__":
    run_program(main)
