"""webdataset over the very tars that mpp reads, by http from the same store, with its own cache.  Interface in store_child.py.

Tars shuffled and split between workers, samples through a buffer of 1000, bytes decoded by torchvision.io.decode_jpeg (faster than its usual
Pillow), batched in the worker.  Its cache takes a tar whole, by curl, when its turn has come: nothing is fetched ahead.  No checksums.  It cannot be
resumed, so batches are dropped.
"""

from collections.abc import Iterator

import torch
import webdataset as wds
from loader_child import crop_tensor, decoded
from store_child import StoredSet, main


def stream(stored: StoredSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    crop = crop_tensor(stored.side)
    names = sorted(path.name for path in (stored.served / "mpp").glob("*.tar"))
    where = f"{stored.endpoint}/{stored.bucket}" if stored.endpoint else str(stored.served)
    cache = {"cache_dir": str(stored.cache)} if stored.endpoint else {}
    dataset = (
        wds.WebDataset([f"{where}/mpp/{name}" for name in names], shardshuffle=len(names), empty_check=False, **cache)
        .shuffle(1000)
        .map(lambda sample: crop(decoded(torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8))))
        .batched(stored.batch, collation_fn=torch.stack, partial=False)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)
    for _ in range(epochs):
        yield from loader


if __name__ == "__main__":
    main(["webdataset", "torch", "torchvision"], stream)
