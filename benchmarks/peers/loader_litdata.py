"""litData: optimize() of the same JPEG bytes, StreamingDataset and StreamingDataLoader.  Interface in loader_child.py.

Bytes are decoded by torchvision.io.decode_jpeg, as its own JPEG field does, and cropped as uint8 tensors.
What it does differently: no masks; no checksums; its own chunk format.  Read in place, without its cache of remote chunks.
It resumes by the state that its dataset gives for a number of samples.
"""

import os
from collections.abc import Iterator
from typing import Any

os.environ["DO_NOT_TRACK"] = "1"

import json
import shutil

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from loader_child import ImageSet, crop_tensor, decoded, main

PER_CHUNK = 2048


class Images(StreamingDataset):
    def __init__(self, images: ImageSet):
        super().__init__(str(images.folder / "litdata"), shuffle=True, drop_last=True)
        self.crop = crop_tensor(images.side)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.crop(decoded(torch.frombuffer(bytearray(super().__getitem__(index)["jpg"]), dtype=torch.uint8)))


def sample(path: str) -> dict:
    with open(path, "rb") as file:  # noqa: PTH123
        return {"jpg": file.read()}


def prepare(images: ImageSet) -> None:
    """Chunks of the unique images; the copies are the same chunks under further names."""
    folder = images.folder / "litdata"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    paths = [str(path) for path in images.unique_paths]
    optimize(sample, paths, str(folder), num_workers=1, chunk_size=PER_CHUNK, reorder_files=False, start_method="fork", verbose=False)
    index = json.loads((folder / "index.json").read_text())
    once = index["chunks"]
    index["chunks"] = []
    for copy in range(images.copies):
        for chunk in once:
            name = f"chunk-{copy}-{len(index['chunks'])}.bin" if copy else chunk["filename"]
            if copy:
                (folder / name).hardlink_to(folder / chunk["filename"])
            index["chunks"].append(chunk | {"filename": name})
    (folder / "index.json").write_text(json.dumps(index))


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    dataset = Images(images)
    loader = StreamingDataLoader(dataset, batch_size=images.batch, num_workers=workers, drop_last=True, persistent_workers=True)
    if first_batch:
        samples = first_batch * images.batch
        state = dataset.state_dict(samples, workers, images.batch) | {"current_epoch": 1}
        loader.load_state_dict(
            {"dataset": state, "current_epoch": 1, "num_samples_yielded": samples, "latest_worker_idx": (first_batch - 1) % workers}
        )
    for _ in range(epochs):
        yield from loader


if __name__ == "__main__":
    main(["litdata", "torch", "torchvision"], stream, prepare, resumes=True)
