"""MosaicML Streaming: an MDS set of the same JPEG bytes, from the store through its own cache.  Interface in store_child.py.

Bytes are decoded by torchvision.io.decode_jpeg and cropped as uint8 tensors.  Shards of 9 MB, its default algorithm of shuffling, within blocks of
1024 samples as mpp here (its default, 262,144, would want every shard of this set before the first batch); the rest as it comes: each loader
process downloads up to 8 batches ahead, one shard after the other.  Checksums are off (its default).  It resumes by the state of its dataset.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import torch
from loader_child import crop_tensor, decoded
from store_child import SHUFFLED, StoredSet, main
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

SHARD_BYTES = 9_000_000


class Images(StreamingDataset):
    def __init__(self, stored: StoredSet):
        clean_stale_shared_memory()
        where = (
            {"remote": f"s3://{stored.bucket}/mds", "local": str(stored.cache)}
            if stored.endpoint
            else {"local": str(stored.served / "mds")}
        )
        super().__init__(**where, shuffle=True, shuffle_block_size=SHUFFLED, batch_size=stored.batch)
        self.crop = crop_tensor(stored.side)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.crop(decoded(torch.frombuffer(bytearray(super().__getitem__(index)["jpg"]), dtype=torch.uint8)))


def prepare(stored: StoredSet) -> None:
    folder = stored.served / "mds"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=SHARD_BYTES) as writer:
        for path in stored.paths:
            writer.write({"jpg": path.read_bytes()})


def stream(stored: StoredSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    dataset = Images(stored)
    loader = StreamingDataLoader(dataset, batch_size=stored.batch, num_workers=workers, drop_last=True, persistent_workers=True)
    if first_batch:
        loader.load_state_dict(dataset.state_dict(first_batch * stored.batch, True) | {"epoch": 0})  # -1 before the first has begun
    for _ in range(epochs):
        yield from loader


if __name__ == "__main__":
    main(["mosaicml-streaming", "torch", "torchvision"], stream, prepare, resumes=True)
