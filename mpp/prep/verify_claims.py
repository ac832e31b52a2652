"""What a manifest says of its images, against its index and what was seen of them."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpp.data.shard_faults import ROWS, Fault
from mpp.data.shard_format import (
    MANIFEST,
    MEAN_STD_IMAGES,
    SHORT_SIDES,
    Manifest,
)
from mpp.data.shard_index import ShardIndex
from mpp.data.write_shards import mean_and_std, short_side_bins
from mpp.prep.source import FOREIGN
from mpp.prep.tiles import Cutting
from mpp.prep.verify_shard import Tally

TOLERANCE = 1e-4  # of mean and std: another build of a JPEG decoder may round a pixel otherwise


def is_foreign(manifest: Manifest) -> bool:
    return manifest.source.get("kind") == FOREIGN


def cutting_of(manifest: Manifest) -> Cutting | None:
    """How scans were cut into the images of the set; None where they were not."""
    tile, overlap = (manifest.source.get(name) for name in ("tile", "overlap"))
    if is_foreign(manifest) or not isinstance(tile, int) or not isinstance(overlap, int) or not 0 <= overlap < tile:
        return None
    return Cutting(tile, overlap)


def colour_limit(manifest: Manifest) -> int:
    """Which images mean and std are taken from: as `ShardCheck.colour_limit`."""
    told = manifest.source.get("colour_images") if is_foreign(manifest) else None
    return told if isinstance(told, int) else MEAN_STD_IMAGES


def claim_faults(folder: Path, manifest: Manifest, index: ShardIndex) -> Iterator[Fault]:
    """What the manifest says of the images and the index knows."""
    bins, early, limit = np.zeros(len(SHORT_SIDES), np.int64), 0, colour_limit(manifest)
    for first in range(0, len(index), ROWS):
        rows = np.asarray(index[first : first + ROWS])
        bins += short_side_bins(rows)
        early += int((rows["key"] < limit).sum())
    path = folder / MANIFEST
    found = [(low, count) for low, count in zip(SHORT_SIDES, bins.tolist(), strict=True) if count]
    if found != manifest.short_sides:
        yield Fault("manifest's claims", path, f"says short_sides {manifest.short_sides}, the index {found}")
    if is_foreign(manifest):
        early = sum(min(samples, limit) for samples in manifest.shards.samples)
    if early != manifest.mean_std_images and colours_are_told(manifest):
        said = f"says mean and std are of {manifest.mean_std_images} images, but the index has {early} such images"
        yield Fault("manifest's claims", path, said)
    gaps = int(index["key"][-1]) + 1 - len(index) if len(index) else 0
    if gaps > manifest.rejects + manifest.repeats:
        said = f"says {manifest.rejects} rejects and {manifest.repeats} repeats, the index lacks {gaps} keys"
        yield Fault("manifest's claims", path, said)


def colours_are_told(manifest: Manifest) -> bool:
    """Whether the index tells which images mean and std were taken from: not where tars from elsewhere held rejects, which it leaves out."""
    return not (is_foreign(manifest) and manifest.rejects)


def colour_faults(folder: Path, manifest: Manifest, seen: Tally) -> Iterator[Fault]:
    path = folder / MANIFEST
    if seen.colour_images != manifest.mean_std_images or not seen.colours.any():
        said = (
            f"says mean and std are of {manifest.mean_std_images} images, {seen.colour_images} could be decoded, so they were not compared"
        )
        yield Fault("manifest's claims", path, said)
        return
    for name, claimed, found in zip(("mean", "std"), (manifest.mean, manifest.std), mean_and_std(seen.colours), strict=True):
        if not all(math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE) for one, other in zip(claimed, found, strict=True)):
            yield Fault("manifest's claims", path, f"says {name} {claimed}, the images have {found}")
