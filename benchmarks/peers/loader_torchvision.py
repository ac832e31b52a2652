"""torchvision's ImageFolder and transforms.v2 in the torch DataLoader.  Interface in loader_child.py.

    python loader_torchvision.py pil ...       decoded by Pillow, cropped as a Pillow image, then PILToTensor: the usual form
    python loader_torchvision.py tensor ...    decoded by torchvision.io.decode_jpeg, cropped as a uint8 tensor: its fastest form

What it does differently: no masks; no checksums; a bad image ends the run; the order changes with the number of workers and cannot be
resumed, so batches are dropped (torchdata's StatefulDataLoader would bring that back; it is another package and is not measured).
Workers are persistent and hold two batches ready each (the default).
"""

import sys
from collections.abc import Iterator

import torch
from loader_child import CROP, ImageSet, crop_tensor, decoded, main
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import read_file
from torchvision.transforms import InterpolationMode, v2

FORM = sys.argv.pop(1)


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    if FORM == "pil":
        crop = v2.RandomResizedCrop(images.side, **CROP, interpolation=InterpolationMode.BICUBIC, antialias=True)
        dataset = ImageFolder(images.folder / "files", v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]))
    else:
        dataset = ImageFolder(images.folder / "files", crop_tensor(images.side), loader=lambda path: decoded(read_file(path)))
    loader = DataLoader(dataset, images.batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    for _ in range(epochs):
        for pixels, _ in loader:
            yield pixels


if __name__ == "__main__":
    main(["torch", "torchvision", "pillow"], stream)
