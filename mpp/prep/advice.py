"""Which config suits a set of images, and the command that trains on it: what every program that makes shards says last."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpp.base.text import sized
from mpp.data.batch_plan import default_streams
from mpp.data.order import Order
from mpp.data.shard_format import Manifest

FEW = 100_000  # images up to which a preset that fits itself to the set is advised (configs/small_*.yaml)
SIZES = ((32, 64), (96, 192))  # pixels to train at, for images whose usual short side is below the second number; 224 beyond
LARGE = "configs/mpp_b16.yaml"
MANY = 1_000_000  # images from which on it is said how they will be read
BATCH = 4096  # data.global_batch of LARGE
PROCESSES = (8, 64, 512)
SHARD_BYTES = 1e9  # of a large set's shards, about: few enough to be opened, small enough to be copied and checked
OFTEN = 4  # times fewer shards in reach from which on blocks are worth their weaker shuffle


def config_for(manifest: Manifest) -> str:
    if manifest.samples > FEW:
        return LARGE
    side = usual_side(manifest.short_sides)
    return f"configs/small_{next((size for size, below in SIZES if side < below), 224)}.yaml"


def usual_side(short_sides: Sequence[tuple[int, int]]) -> int:
    """Lower end of the bin that the median image lies in; short_sides: (at least so many pixels, images)."""
    half, seen = sum(images for _, images in short_sides) / 2, 0
    for side, images in sorted(short_sides):
        seen += images
        if seen >= half:
            return side
    return 0


def feeding_lines(manifest: Manifest) -> list[str]:
    """For people: of a large set, how many shards a process reads from, and what changes that; none of others."""
    if manifest.samples < MANY:
        return []
    sizes = np.array(manifest.shards.samples, np.int64)
    whole, image = int(sizes.max()), manifest.bytes / manifest.samples
    reach = lambda block: [Order(sizes, BATCH, default_streams(BATCH), 0, block).shards_in_reach(count) for count in PROCESSES]
    in_words = lambda shards: ", ".join(f"of {count}: {found:,}" for count, found in zip(PROCESSES, shards, strict=True))
    told = [
        f"feeding:  {len(sizes):,} shards of {whole:,} images, {sized(whole * image)}; in an epoch of data.global_batch={BATCH} a process reads "
        f"from at most so many of them, {in_words(reach(None))}"
    ]
    if any(wide >= OFTEN * narrow for wide, narrow in zip(reach(None), reach(whole), strict=True)):
        told.append(
            f"          data.block={whole} lets a step read from at most, {in_words(reach(whole))}: better for network and rotating disks; what is near in "
            "the set then stays near in the epoch, so make the set shuffled"
        )
    if len(sizes) > PROCESSES[-1] and whole * image < SHARD_BYTES / 4:
        told.append(
            f"          larger shards mean fewer files to open: --samples-per-shard {round(SHARD_BYTES / image, -3):.0f} makes them about 1 GB"
        )
    return told


def next_line(train: Path | str, manifest: Manifest, more: str = "") -> str:
    """For people; train: where the split is, a folder or a URL; more: further words of the command."""
    config = config_for(manifest)
    length = "" if config == LARGE else "  (budget=30min: as much as fits into that time)"
    return f"next:     deepspeed mpp/pretrain.py --config {config} {shlex.quote(f'data.shards={train}')}{more}{length}"
