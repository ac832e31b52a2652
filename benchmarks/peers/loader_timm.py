"""timm's create_dataset and create_loader with its RandomResizedCropAndInterpolation.  Interface in loader_child.py.

use_prefetcher=True, as its users train on GPUs, since only then are batches uint8; what is measured is the loader inside the prefetcher,
which collates uint8 with timm's fast_collate.  (use_prefetcher=False normalises to float32 in the worker: more work, four times the bytes.)
What it does differently: no masks; no checksums; up to 50 bad images in a row are replaced by their neighbours, without a record; it cannot
be resumed, so batches are dropped.
"""

from collections.abc import Iterator

import torch
from loader_child import CROP, ImageSet, main
from timm.data import create_dataset, create_loader


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    loader = create_loader(
        create_dataset("", root=str(images.folder / "files")),
        input_size=(3, images.side, images.side),
        batch_size=images.batch,
        is_training=True,
        **CROP,
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=workers,
        use_prefetcher=True,
        device=torch.device("cpu"),
    ).loader
    for _ in range(epochs):
        for pixels, _ in loader:
            yield pixels


if __name__ == "__main__":
    main(["timm", "torch", "torchvision", "pillow"], stream)
