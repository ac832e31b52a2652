"""Which config suits a set of images, and the command that trains on it: what every program that makes shards says last."""

from collections.abc import Sequence
from pathlib import Path

from mpp.data.shard_format import Manifest, read_manifest

FEW = 100_000  # images up to which a preset that fits itself to the set is advised (configs/small_*.yaml)
SIZES = ((32, 64), (96, 192))  # pixels to train at, for images whose usual short side is below the second number; 224 beyond
LARGE = "configs/mpp_b16.yaml"


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


def next_line(train: Path, more: str = "") -> str:
    """For people; more: further words of the command.  Raises DataError where `train` is no split."""
    config = config_for(read_manifest(train)[0])
    length = "" if config == LARGE else "  (budget=30min: as much as fits into that time)"
    return f"next:     deepspeed mpp/pretrain.py --config {config} data.shards={train}{more}{length}"
