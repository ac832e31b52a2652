"""Which samples stand for a whole set: spread evenly over it, chosen by a seed."""

import hashlib
import itertools
from collections.abc import Sequence


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
