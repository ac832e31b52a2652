"""Labelled images, wherever they lie, behind the face of a ShardSet: encoded bytes, size, label and place of each by its id.

shards/train             a folder of shards (manifest.json): made by data_prep, or indexed by it
imagenet/train           a folder of one folder a class, in torchvision's ImageFolder order (what is an image, a class or a split: class_folders.py)
cifar10, cifar10:ROOT    torchvision's own data sets that are arrays, downloaded to ROOT (default: data) where the network allows
"""

import functools
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.error import URLError

import numpy as np
from PIL import Image

from mpp.data.class_folders import (
    CONVERTED,
    FolderLevels,
    class_names,
    describe,
    folder_at,
    is_hidden,
    listed_names,
    too_sparse,
    walk,
)
from mpp.data.decode import FORMATS, check_header, format_of, open_image
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
    if folder.is_dir():
        if named := sorted(entry.name for entry in os.scandir(folder) if (folder / entry.name / MANIFEST).exists()):
            first = "train" if "train" in named else named[0]
            raise DataError(f"{source} holds the splits {', '.join(named)}; give one of them, such as {folder / first}")
        return FolderImages.open(folder)
    raise DataError(
        f"{source}: no such folder of shards (data_prep/make_shards.py makes them), of class folders, nor one of torchvision's {', '.join(ARRAYS)}"
    )


@dataclass(eq=False)
class FolderImages:
    """A folder of one folder a class; where all files are images, classes, images and order are torchvision's ImageFolder's."""

    path: Path
    classes: list[str]
    files: list[str]
    labels: np.ndarray  # int32 [n]
    states: np.ndarray  # int64 [n, 2]: bytes, time of change in ns
    remarks: tuple[str, ...] = ()  # what of the folder is not used, and what is unusual, for people

    labelled = True

    @classmethod
    def open(cls, path: Path) -> "FolderImages":
        """Raises DataError for a folder without class folders, of splits, or with images that lie in none of its folders."""
        ignored: Counter[str] = Counter()
        try:
            found = sorted(walk(path, ignored), key=lambda file: (folder_at(file.name, 1), *os.path.split(file.name)))
            folders = {entry.name for entry in os.scandir(path) if entry.is_dir() and not is_hidden(entry.name)}
        except OSError as error:
            raise of_this_rank(DataError(f"{path}: cannot be read: {error}; check the disk or mount and try again")) from error
        if not found or not folders:
            seen = f" but {describe(ignored)}" if ignored and not found else ""
            raise DataError(
                f"{path} holds neither {MANIFEST} nor folders of classes with images{seen}; "
                "make shards with data_prep/make_shards.py SOURCE OUT --labels"
            )
        unusual = _refuse_splits(path, [file.name for file in found])
        labels = [folder_at(file.name, 1) for file in found]
        if "" in labels:
            stray = found[labels.index("")].name
            raise DataError(f"{path}: {stray!r} lies in no folder, so it has no class; move it into the folder of its class, or away")
        classes = class_names(set(labels), str(path), numbers=False)
        number = {name: place for place, name in enumerate(classes)}
        empty = sorted(folders - set(classes))
        parts = [f"the folders {listed_names(empty)}, which hold no images and are no classes" if empty else "", describe(ignored)]
        return cls(
            path,
            classes,
            [str(path / file.name) for file in found],
            np.array([number[label] for label in labels], dtype=np.int32),
            np.array([(file.size, file.changed_ns) for file in found], dtype=np.int64),
            tuple(filter(None, ["leaves out " + "; ".join(filter(None, parts)) if any(parts) else "", unusual])),
        )

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


def _refuse_splits(path: Path, names: Iterable[str]) -> str:
    """Raises DataError where folders are splits, or it cannot be told whether they are; returns what is unusual about them."""
    levels = FolderLevels()
    for name in names:
        levels.add(name)
    layout = levels.layout(labels=True)
    make = f"make shards with data_prep/make_shards.py {path} OUT --labels"
    places = [str(path / layout.wrapped_in / name) for name in layout.splits]
    if layout.doubt:
        told = f", which takes options to tell classes and splits apart, or give one split, such as {places[-1]}" if places else ""
        raise DataError(f"{path}: {layout.doubt}; {make}{told}")
    if layout.split_level == layout.level and layout.split_level < layout.class_level:
        raise DataError(
            f"{path} holds the folders {', '.join(layout.wrapped_in + name for name in layout.splits)} of classes, which are splits and no classes; "
            f"give one of them, such as {places[-1]}"
        )
    if layout.split_level:
        raise DataError(
            f"{path}: its classes are divided into the splits {', '.join(layout.splits)}; {make}, which makes OUT/{layout.splits[0]}"
        )
    if layout.class_level > 1:
        inside = path / layout.wrapped_in if layout.wrapped_in else Path(places[-1])
        raise DataError(f"{path}: the classes are the folders in {inside}, since it is named like a split; give {inside}")
    return layout.remark


@functools.lru_cache(4)  # a sample is asked for its size, then for its bytes
def _file_bytes(file: str) -> bytes:
    """As data_prep stores it: JPEG, PNG and WebP as they are, what else is an image as PNG.  The content decides, not the suffix."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise of_this_rank(
            DataError(f"{file}: {error.strerror}; check the disk or mount, or the folder that changed under the program")
        ) from error
    if format_of(data, formats=FORMATS + CONVERTED) in FORMATS:
        return data
    return _png(open_image(data, formats=CONVERTED))


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
        raise of_this_rank(DataError(f"{images.where(sample)}: {error}; a measurement leaves no image out, so {_mend(images)}")) from error


def _mend(images: LabelledImages) -> str:
    return "mend that file, or take it away" if isinstance(images, FolderImages) else "copy or make the split again"


def counts_of(images: LabelledImages) -> np.ndarray:
    """int64: the labelled images of each class."""
    labels = np.asarray(images.labels)
    return np.bincount(labels[labels >= 0], minlength=len(images.classes))


def remarks_on(train: LabelledImages, test: LabelledImages | None) -> list[str]:
    """What is unusual about labelled splits, a line each, to be said before anything is measured on them."""
    remarks = []
    for key, images in (("train", train), ("test", test)):
        if images is None or not images.labelled:
            continue
        if isinstance(images, FolderImages):
            remarks += [f"{key}={images.path}: {remark}" for remark in images.remarks]
        empty = np.flatnonzero(counts_of(images) == 0).tolist()
        if empty:
            said = f"{key}={images.path}: {len(empty):,} of {len(images.classes):,} classes have no images: {listed_names([images.classes[at] for at in empty])}"
            if too_sparse(len(images.classes) - len(empty), len(images.classes) - 1):
                said += "; every head is trained for all of them: make shards again with --label-names, which makes classes of the labels that occur"
            remarks.append(said)
    if test is not None and train.labelled and test.labelled and len(train.classes) == len(test.classes):
        unseen = np.flatnonzero((counts_of(train) == 0) & (counts_of(test) > 0)).tolist()
        if unseen:
            remarks.append(
                f"test={test.path} has images of {listed_names([train.classes[at] for at in unseen])}, of which train has none: no answer to them can be right"
            )
    return remarks


def check_splits(train: LabelledImages, test: LabelledImages | None, otherwise: str = "") -> None:
    """Raises DataError for unlabelled splits, other classes, or one split given twice.  otherwise: what can be done without labels."""
    for key, images in (("train", train), ("test", test)):
        if images is not None and not images.labelled:
            raise DataError(
                f"{key}={images.path} holds no labels, which are needed; make them with data_prep/make_shards.py SOURCE OUT --labels{otherwise}"
            )
    present = int((counts_of(train) > 0).sum())
    if present < 2:
        inside = (
            {folder_at(os.path.relpath(file, train.path), 2) for file in train.files} - {""} if isinstance(train, FolderImages) else set()
        )
        below = (
            f" (in it lie {listed_names(sorted(inside))}: if they are the classes, give {train.path / train.classes[0]})" if inside else ""
        )
        raise DataError(
            f"train={train.path} has {present} class{below}, and there is nothing to tell apart; give images of two or more{otherwise}"
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
