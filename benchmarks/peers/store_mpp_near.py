"""mpp's own loader as in store_mpp.py, but shuffled within blocks as long as a shard: as little as litData's within its chunks."""

import json
from collections.abc import Iterator

import store_mpp
import torch
from store_child import StoredSet, main


def stream(stored: StoredSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    shards = json.loads((stored.served / "mpp" / "manifest.json").read_bytes())["shards"]
    return store_mpp.stream(stored, workers, epochs, first_batch, max(shard["samples"] for shard in shards))


if __name__ == "__main__":
    main(["mpp", "torch", "pillow"], stream, resumes=True)
