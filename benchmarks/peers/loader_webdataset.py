"""webdataset's own pipeline over the very shards that mpp reads.  Interface in loader_child.py.

Its usual form: tars shuffled and split between workers, samples through a buffer of 1000, Pillow, batched in the worker.
What it does differently: no masks; no checksums; a cut tar ends early without a word; samples are read in the tar's order.  It cannot be
resumed, so batches are dropped.
"""

from collections.abc import Iterator

import torch
import webdataset as wds
from loader_child import CROP, ImageSet, main
from torchvision.transforms import InterpolationMode, v2


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    crop = v2.RandomResizedCrop(images.side, **CROP, interpolation=InterpolationMode.BICUBIC, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    shards = sorted(map(str, (images.folder / "shards").glob("*.tar")))
    dataset = (
        wds.WebDataset(shards, shardshuffle=100, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .map(lambda sample: transform(sample["jpg"]))
        .batched(images.batch, collation_fn=torch.stack, partial=False)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)
    for _ in range(epochs):
        yield from loader


if __name__ == "__main__":
    main(["webdataset", "torch", "torchvision", "pillow"], stream)
