"""MosaicML Streaming: an MDS set of the same JPEG bytes, StreamingDataset and StreamingDataLoader.  Interface in loader_child.py.

Bytes are decoded by torchvision.io.decode_jpeg, which is faster than the Pillow of its own "jpeg" encoding, and cropped as uint8 tensors.
What it does differently: no masks; no checksums (its default); its own format.  Read in place, without a remote store.
It resumes by the state that its dataset gives for a number of samples.
"""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from loader_child import ImageSet, crop_tensor, decoded, main
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


class Images(StreamingDataset):
    def __init__(self, images: ImageSet):
        clean_stale_shared_memory()
        super().__init__(local=str(images.folder / "mds"), shuffle=True, batch_size=images.batch)
        self.crop = crop_tensor(images.side)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.crop(decoded(torch.frombuffer(bytearray(super().__getitem__(index)["jpg"]), dtype=torch.uint8)))


def prepare(images: ImageSet) -> None:
    """Shards of the unique images; the copies are the same shards under further names."""
    folder = images.folder / "mds"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}) as writer:
        for path in images.unique_paths:
            writer.write({"jpg": path.read_bytes()})
    index = json.loads((folder / "index.json").read_text())
    once = index["shards"]
    index["shards"] = []
    for copy in range(images.copies):
        for shard in once:
            name = f"shard.{len(index['shards']):05d}.mds"
            if copy:
                (folder / name).hardlink_to(folder / shard["raw_data"]["basename"])
            index["shards"].append(shard | {"raw_data": shard["raw_data"] | {"basename": name}})
    (folder / "index.json").write_text(json.dumps(index))


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    dataset = Images(images)
    loader = StreamingDataLoader(dataset, batch_size=images.batch, num_workers=workers, drop_last=True, persistent_workers=True)
    if first_batch:
        loader.load_state_dict(dataset.state_dict(first_batch * images.batch, True) | {"epoch": 0})  # -1 before the first has begun
    for _ in range(epochs):
        yield from loader


if __name__ == "__main__":
    main(["mosaicml-streaming", "torch", "torchvision"], stream, prepare, resumes=True)
