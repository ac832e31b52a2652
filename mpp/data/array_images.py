"""torchvision's data sets that are arrays in memory, as labelled images."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
from PIL import Image

from mpp.base.errors import DataError
from mpp.data.cifar import CLASSES, LAYOUTS, Cifar
from mpp.data.decode import png
from mpp.data.fingerprints import read_prints
from mpp.data.images import ReadInPlace
from mpp.disk.locks import lock_folder

SplitName = Literal["train", "test"]

# name -> torchvision's class, and how it is asked for a split
ARRAYS: dict[str, tuple[str, dict[SplitName, dict[str, Any]]]] = {
    **{
        name: (kind, {"train": {"train": True}, "test": {"train": False}})
        for name, kind in {
            "cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST",
        }.items()
    },
    **{name: (kind, {"train": {"split": "train"}, "test": {"split": "test"}}) for name, kind in {"svhn": "SVHN", "stl10": "STL10"}.items()},
}  # fmt: skip
ROOT = "data"
HALF_HOUR = 1800.0


def is_array(source: str) -> bool:
    """Whether it names one of torchvision's data sets, cifar10 or cifar10:ROOT, and no folder."""
    return source.partition(":")[0] in ARRAYS and not Path(source).is_dir()


def read_cifar(known: Any, root: Path, split: SplitName, download: bool = True) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Class names, pixels and labels as ArrayImages has them; known: torchvision's class, which knows the checksums, but would unpickle whatever a
    file holds.  Raises RuntimeError where the files are not whole, and may not be downloaded."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    folder = root / known.base_folder
    checksums = [*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])]
    if not all(check_integrity(folder / file, md5) for file, md5 in checksums):
        if not download:
            raise RuntimeError("not whole")  # as torchvision's own sets do
        download_and_extract_archive(known.url, root, filename=known.filename, md5=known.tgz_md5)
    layout = LAYOUTS[known.base_folder]
    files = Cifar(folder, layout, lambda member: (folder / member).open("rb"))
    pixels, labels = zip(*(files.images(batch) for batch, where in layout.batches.items() if where == split), strict=True)
    return files.class_names(), np.ascontiguousarray(np.concatenate(pixels)), np.concatenate(labels).astype(np.int32)


@contextmanager
def _only_one(name: str, root: Path) -> Iterator[None]:
    """Of several processes one downloads."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:
        lock_folder(lock, f"{name}: another process has been downloading to {root} for half an hour; stop it", seconds=HALF_HOUR)
        yield


@dataclass(eq=False)
class ArrayImages(ReadInPlace):
    """One of torchvision's data sets that is an array in memory."""

    path: Path
    classes: list[str]
    pixels: np.ndarray  # uint8 [n, H, W, 3] or, grey, [n, H, W]
    labels: np.ndarray  # int32 [n]

    labelled = True
    remedy = "copy or make the split again"

    @classmethod
    def open(cls, name: str, root: Path, split: SplitName, download: bool = True) -> "ArrayImages":
        """download: the files that are not there; else nothing is written.  Raises DataError."""
        import torchvision

        kind, splits = ARRAYS[name]
        make = getattr(torchvision.datasets, kind)
        try:
            with _only_one(name, root) if download else nullcontext():
                if name in CLASSES:
                    return cls(root / f"{name}-{split}", *read_cifar(make, root, split, download))
                data = make(str(root), download=download, **splits[split])
        except (URLError, RuntimeError, OSError, EOFError) as error:
            if not download:
                raise DataError(
                    f"{name}: its files are not whole under {root}, to which a run would download them; copy them there as torchvision lays them out "
                    f"(torchvision.datasets.{kind}), or see that the network lets them be downloaded"
                ) from error
            raise DataError(
                f"{name}: its files are not whole under {root} and cannot be downloaded ({' '.join(str(error).split())}); copy them there as torchvision "
                f"lays them out (torchvision.datasets.{kind}), or give shards (data_prep/make_shards.py)"
            ) from error
        pixels, labels = np.asarray(data.data), np.asarray(getattr(data, "targets", getattr(data, "labels", None)), dtype=np.int32)
        if pixels.ndim == 4 and pixels.shape[1] == 3:  # SVHN and STL-10 are planes first
            pixels = pixels.transpose(0, 2, 3, 1)
        classes = list(getattr(data, "classes", [str(label) for label in range(int(labels.max()) + 1)]))
        return cls(root / f"{name}-{split}", classes, np.ascontiguousarray(pixels), labels)

    def __len__(self) -> int:
        return len(self.pixels)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        return self.labels[ids]

    @property
    def samples_per_shard(self) -> list[int]:
        return [len(self)]

    @functools.cached_property
    def identity(self) -> str:
        found = hashlib.sha256(f"{self.pixels.shape} {self.classes}".encode())
        found.update(self.pixels)  # type: ignore[arg-type]
        found.update(np.ascontiguousarray(self.labels))  # type: ignore[arg-type]
        return found.hexdigest()

    @property
    def stamp(self) -> str:
        return self.identity

    @functools.cached_property
    def prints(self) -> np.ndarray:
        return read_prints(self)

    def where(self, sample: int) -> str:
        return f"{self.path.name} image {sample}"

    def name_of(self, sample: int) -> str:
        return str(sample)

    def size_of(self, sample: int) -> tuple[int, int]:
        height, width = self.pixels.shape[1:3]
        return width, height

    def read(self, sample: int) -> bytes:
        return png(Image.fromarray(self.pixels[sample]))
