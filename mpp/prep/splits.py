"""What a program that looks at shards was given, and which of its samples stand for the whole."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import DataError
from mpp.data.shard_format import MANIFEST
from mpp.prep.fetching import listing_of
from mpp.remote.stores import Info
from mpp.remote.urls import Url


def splits_of(folder: Path) -> list[Path]:
    """The splits at a path; one that lost its manifest is still a split.  Raises DataError where there is none."""

    def holds_shards(path: Path) -> bool:
        return path.is_dir() and ((path / MANIFEST).exists() or any(path.glob("*.tar")))

    try:
        if holds_shards(folder):
            return [folder]
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give a split, such as OUT/train, or the OUT of make_shards.py")
        found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and holds_shards(path))
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror}; check that it can be read") from error
    if not found:
        raise DataError(f"{folder}: holds neither shards nor splits; give a split, such as OUT/train, or the OUT of make_shards.py")
    return found


def splits_in_store(url: Url) -> dict[Url, dict[str, Info]]:
    """The splits at a URL of a store, as `splits_of` has them, each with what lies there by name.  One listing.  Raises DataError where there is none."""
    found: dict[str, dict[str, Info]] = {}
    for name, info in listing_of(url):
        folder, _, base = name.rpartition("/")
        if "/" not in folder and not folder.startswith(".") and base not in (".", ".."):  # no names of files here
            found.setdefault(folder, {})[base] = info
    splits = {folder: objects for folder, objects in found.items() if MANIFEST in objects or any(name.endswith(".tar") for name in objects)}
    if "" in splits:
        return {Url(url.rstrip("/")): splits[""]}
    if not splits:
        raise DataError(
            f"{url}: holds neither shards nor splits; give a split, such as s3://bucket/out/train, or the OUT of make_shards.py"
        )
    return {url / folder: objects for folder, objects in sorted(splits.items())}


def spread(samples_per_shard: Sequence[int], budget: int, seed: int, *, with_edges: bool = False) -> list[int]:
    """Ids in increasing order, at most `budget` of them, one out of each of so many equal stretches.

    with_edges: the first and the last sample of every shard come first, where the budget has room for them all.
    """
    total = sum(samples_per_shard)
    if budget >= total:
        return list(range(total))
    edges: set[int] = set()
    if with_edges and 2 * len(samples_per_shard) <= budget:
        ends = list(itertools.accumulate(samples_per_shard))
        edges = {sample for count, end in zip(samples_per_shard, ends, strict=True) if count for sample in (end - count, end - 1)}
    stretches = budget - len(edges)
    chosen = set(edges)
    for stretch in range(stretches):
        first, end = stretch * total // stretches, (stretch + 1) * total // stretches
        digest = hashlib.blake2b(stretch.to_bytes(8, "little"), key=seed.to_bytes(8, "little"), digest_size=8).digest()
        chosen.add(first + int.from_bytes(digest, "little") % (end - first))
    return sorted(chosen)
