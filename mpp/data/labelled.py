"""Labelled images, wherever they lie, behind the face of a ShardSet: encoded bytes, size, label and place of each by its id.

shards/train             a folder of shards (manifest.json): made by data_prep, or indexed by it
imagenet/train           a folder of one folder a class, in torchvision's ImageFolder order
cifar10, cifar10:ROOT    torchvision's own data sets that are arrays, downloaded to ROOT (default: data) where the network allows
"""

import functools
import hashlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.error import URLError

import numpy as np
from PIL import Image

from mpp.data.decode import check_header, open_image
from mpp.data.shard_format import MANIFEST
from mpp.data.shards import ShardSet
from mpp.errors import BadSample, DataError, of_this_rank
from mpp.files import lock_folder

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
STORED = (".jpg", ".jpeg", ".png", ".webp")  # handed on as they are; what else ImageFolder takes is stored anew as PNG
FOREIGN = ("BMP", "PPM", "TIFF", "GIF")
SPLITS = {"train", "val", "valid", "validation", "test"}
ROOT = "data"
HALF_HOUR = 1800.0


class LabelledImages(Protocol):
    """What a ShardSet, a folder of classes and an array have in common."""

    path: Path
    classes: list[str]

    def __len__(self) -> int: ...

    @property
    def samples_per_shard(self) -> Sequence[int]:
        """How the ids lie on the disk, for the order of training."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int32 [n], -1 for none."""
        ...

    @property
    def labelled(self) -> bool: ...

    @property
    def identity(self) -> str:
        """sha256 of what the set is, the same on every machine: joins results."""
        ...

    @property
    def stamp(self) -> str:
        """Changes whenever a file changes, also where `identity` does not look: for caches."""
        ...

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        ...

    def where(self, sample: int) -> str:
        """Its place, for messages."""
        ...

    def read(self, sample: int) -> bytes:
        """Encoded as JPEG, PNG or WebP.  Raises BadSample for bad content, DataError for a disk that fails."""
        ...


def is_array(source: str) -> bool:
    """Whether it names one of torchvision's data sets, cifar10 or cifar10:ROOT, and no folder."""
    return source.partition(":")[0] in ARRAYS and not Path(source).is_dir()


def open_labelled(source: str, split: SplitName) -> LabelledImages:
    """Open the images that `source` names (see above); `split` is for the sources that have several.  Raises DataError."""
    folder = Path(source)
    if (folder / MANIFEST).exists():
        return ShardSet.open(folder)
    name, _, root = source.partition(":")
    if is_array(source):
        return ArrayImages.open(name, Path(root or ROOT), split)
    if folder.is_dir() and any(entry.is_dir() for entry in os.scandir(folder)):
        if named := [entry for entry in ("train", "val", "test") if (folder / entry / MANIFEST).exists()]:
            raise DataError(f"{source} holds the splits {', '.join(named)}; give one of them, such as {folder / named[0]}")
        inside = [entry for entry in os.scandir(folder) if entry.is_dir()]
        if {entry.name for entry in inside} <= SPLITS and any(below.is_dir() for entry in inside for below in os.scandir(entry)):
            named = sorted(entry.name for entry in inside)
            raise DataError(
                f"{source} holds the folders {', '.join(named)} of classes, which are splits and no classes; give one of them, such as {folder / named[-1]}"
            )
        return FolderImages.open(folder)
    if folder.is_dir():
        raise DataError(
            f"{folder} holds neither {MANIFEST} nor folders of classes; make shards with data_prep/make_shards.py SOURCE OUT --labels"
        )
    raise DataError(
        f"{source}: no such folder of shards (data_prep/make_shards.py makes them), of class folders, nor one of torchvision's {', '.join(ARRAYS)}"
    )


@dataclass(eq=False)
class FolderImages:
    """A folder of one folder a class; classes and images are torchvision's ImageFolder's, in its order."""

    path: Path
    classes: list[str]
    files: list[str]
    labels: np.ndarray  # int32 [n]
    states: np.ndarray  # int64 [n, 2]: bytes, time of change in ns

    labelled = True

    @classmethod
    def open(cls, path: Path) -> "FolderImages":
        from torchvision.datasets import ImageFolder

        try:
            listed = ImageFolder(str(path))
            files = [file for file, _ in listed.samples]
            states = np.array([(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)], dtype=np.int64)
        except FileNotFoundError as error:
            raise DataError(f"{path}: {error}; a folder of classes has images in every folder") from error
        except OSError as error:
            raise of_this_rank(DataError(f"{path}: cannot be read: {error}; check the disk or mount and try again")) from error
        return cls(path, listed.classes, files, np.array([label for _, label in listed.samples], dtype=np.int32), states)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def samples_per_shard(self) -> list[int]:
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()

    @functools.cached_property
    def identity(self) -> str:
        return self._hash(with_times=False)

    @functools.cached_property
    def stamp(self) -> str:
        return self._hash(with_times=True)

    def _hash(self, with_times: bool) -> str:
        """Of names, labels and sizes; contents are too many to read."""
        found = hashlib.sha256()
        for file, (size, changed) in zip(self.files, self.states.tolist(), strict=True):
            found.update(f"{os.path.relpath(file, self.path)}\t{size}\t{changed if with_times else ''}\n".encode(errors="surrogateescape"))
        return found.hexdigest()

    def where(self, sample: int) -> str:
        return self.files[sample]

    def size_of(self, sample: int) -> tuple[int, int]:
        _, width, height = check_header(self.read(sample), sys.maxsize)  # whoever decodes it has a limit of its own
        return width, height

    def read(self, sample: int) -> bytes:
        return _file_bytes(self.files[sample])


@functools.lru_cache(4)  # a sample is asked for its size, then for its bytes
def _file_bytes(file: str) -> bytes:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise of_this_rank(
            DataError(f"{file}: {error.strerror}; check the disk or mount, or the folder that changed under the program")
        ) from error
    return data if file.lower().endswith(STORED) else _png(open_image(data, formats=FOREIGN))


@dataclass(eq=False)
class ArrayImages:
    """One of torchvision's data sets that is an array in memory."""

    path: Path
    classes: list[str]
    pixels: np.ndarray  # uint8 [n, H, W, 3] or, grey, [n, H, W]
    labels: np.ndarray  # int32 [n]

    labelled = True

    @classmethod
    def open(cls, name: str, root: Path, split: SplitName) -> "ArrayImages":
        import torchvision

        kind, splits = ARRAYS[name]
        make = getattr(torchvision.datasets, kind)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with (root / f".{name}.lock").open("w") as lock:  # one of several processes downloads
                lock_folder(lock, f"{name}: another process has been downloading to {root} for half an hour; stop it", seconds=HALF_HOUR)
                data = make(str(root), download=True, **splits[split])
        except (URLError, RuntimeError, OSError, EOFError) as error:
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

    def where(self, sample: int) -> str:
        return f"{self.path.name} image {sample}"

    def size_of(self, sample: int) -> tuple[int, int]:
        height, width = self.pixels.shape[1:3]
        return width, height

    def read(self, sample: int) -> bytes:
        return _png(Image.fromarray(self.pixels[sample]))


def open_rgb(images: LabelledImages, sample: int, max_pixels: int) -> Image.Image:
    """The decoded image, RGB, upright.  Raises DataError naming its place: a measurement leaves no image out."""
    try:
        return open_image(images.read(sample), max_pixels)
    except BadSample as error:
        raise of_this_rank(
            DataError(f"{images.where(sample)}: {error}; a measurement leaves no image out, so copy or make the split again")
        ) from error


def check_splits(train: LabelledImages, test: LabelledImages | None, otherwise: str = "") -> None:
    """Raises DataError for unlabelled splits, other classes, or one split given twice.  otherwise: what can be done without labels."""
    for key, images in (("train", train), ("test", test)):
        if images is not None and not images.labelled:
            raise DataError(
                f"{key}={images.path} holds no labels, which are needed; make them with data_prep/make_shards.py SOURCE OUT --labels{otherwise}"
            )
    if len(train.classes) < 2:
        raise DataError(
            f"train={train.path} has {len(train.classes)} class, and there is nothing to tell apart; give images of two or more{otherwise}"
        )
    if test is None:
        return
    if test.identity == train.identity:
        raise DataError(
            f"test={test.path} is the same split as train={train.path}; give another, or leave test= out for a hold-out of train"
        )
    if test.classes != train.classes:
        odd = sorted(set(test.classes) ^ set(train.classes))
        raise DataError(
            f"test={test.path} has {len(test.classes)} classes and train={train.path} {len(train.classes)}, and they must be the same in "
            f"the same order; {f'only one of them has {odd[0]!r}' if odd else 'here the order differs'}; make both with one data_prep/make_shards.py"
        )


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()
