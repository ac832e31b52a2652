"""litData: optimize() of the same JPEG bytes, from the store through its own cache.  Interface in store_child.py.

Bytes are decoded by torchvision.io.decode_jpeg and cropped as uint8 tensors.  Chunks of 9 MB in shuffled order, samples shuffled within a chunk
(that is its way: an order mixed less than mpp's here); the rest as it comes: each loader process downloads two chunks ahead.
It resumes by the state that its dataset gives for a number of samples.  Its client is told that http is allowed, which it has no option for.
"""

import os
from collections.abc import Iterator
from typing import Any

os.environ["DO_NOT_TRACK"] = "1"

import shutil

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming import downloader
from loader_child import crop_tensor, decoded
from store_child import StoredSet, main

downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
CHUNK_BYTES = 9_000_000
CACHE = "10GB"  # more than the set; its default leaves 50 GB of the disk free


class Images(StreamingDataset):
    def __init__(self, stored: StoredSet):
        where = f"s3://{stored.bucket}/litdata" if stored.endpoint else str(stored.served / "litdata")
        cache = {"cache_dir": str(stored.cache), "max_cache_size": CACHE} if stored.endpoint else {}
        super().__init__(where, shuffle=True, drop_last=True, **cache)
        self.crop = crop_tensor(stored.side)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.crop(decoded(torch.frombuffer(bytearray(super().__getitem__(index)["jpg"]), dtype=torch.uint8)))


def sample(path: str) -> dict:
    with open(path, "rb") as file:  # noqa: PTH123
        return {"jpg": file.read()}


def prepare(stored: StoredSet) -> None:
    folder = stored.served / "litdata"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    paths = [str(path) for path in stored.paths]
    optimize(sample, paths, str(folder), num_workers=1, chunk_bytes=CHUNK_BYTES, reorder_files=False, start_method="fork", verbose=False)


def stream(stored: StoredSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    dataset = Images(stored)
    loader = StreamingDataLoader(dataset, batch_size=stored.batch, num_workers=workers, drop_last=True, persistent_workers=True)
    if first_batch:
        samples = first_batch * stored.batch
        state = dataset.state_dict(samples, workers, stored.batch) | {"current_epoch": 1}
        loader.load_state_dict(
            {"dataset": state, "current_epoch": 1, "num_samples_yielded": samples, "latest_worker_idx": (first_batch - 1) % workers}
        )
    for _ in range(epochs):
        yield from loader


if __name__ == "__main__":
    main(["litdata", "torch", "torchvision"], stream, prepare, resumes=True)
