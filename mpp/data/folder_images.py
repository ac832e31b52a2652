"""A folder of one folder a class as labelled images: what is an image, a class or a split, class_folders.py says."""

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpp.base.errors import DataError, of_this_rank
from mpp.base.progress import tracked
from mpp.data.class_folders import (
    FolderLevels,
    class_names,
    describe,
    folder_at,
    is_hidden,
    listed_names,
    walk,
)
from mpp.data.decode import check_header, storable
from mpp.data.fingerprints import read_prints
from mpp.data.images import ReadInPlace
from mpp.data.shard_format import MANIFEST
from mpp.processes.peers import ALONE, Peers


@dataclass(eq=False)
class FolderImages(ReadInPlace):
    """A folder of one folder a class; where all files are images, classes, images and order are torchvision's ImageFolder's."""

    path: Path
    classes: list[str]
    files: list[str]
    labels: np.ndarray  # int32 [n]
    states: np.ndarray  # int64 [n, 2]: bytes, time of change in ns
    remarks: tuple[str, ...] = ()  # what of the folder is not used, and what is unusual, for people

    remedy = "mend that file, or take it away"

    @classmethod
    def open(cls, path: Path, peers: Peers = ALONE) -> "FolderImages":
        """peers: who opens it together, collectively: rank 0 lists it.  Raises DataError for a folder without class folders, of splits, or with images
        that lie in none of its folders."""
        listed = peers.from_first(lambda: _list(path))
        found, folders, ignored = [Listed(*file) for file in listed[0]], set(listed[1]), Counter(listed[2])
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

    @classmethod
    def open_unlabelled(cls, path: Path) -> "FolderImages":
        """Every image below the folder, in the order of the names; its folders mean nothing, and all labels are 0.  Raises DataError for one without
        images."""
        ignored: Counter[str] = Counter()
        try:
            found = sorted(walk(path, ignored), key=lambda file: os.path.split(file.name))
        except OSError as error:
            raise of_this_rank(DataError(f"{path}: cannot be read: {error}; check the disk or mount and try again")) from error
        if not found:
            seen = f" but {describe(ignored)}" if ignored else ""
            raise DataError(f"{path} holds neither {MANIFEST} nor images{seen}; give a folder of images or of shards")
        states = np.array([(file.size, file.changed_ns) for file in found], dtype=np.int64)
        return cls(path, [""], [str(path / file.name) for file in found], np.zeros(len(found), dtype=np.int32), states)

    @classmethod
    def of_files(cls, path: Path, files: Sequence[str]) -> "FolderImages":
        """Those files, in that order, without labels; path: what they are called together.  Raises DataError for one that is not there."""
        states = []
        for file in files:
            try:
                found = Path(file).stat()
            except OSError as error:
                raise of_this_rank(DataError(f"{file}: {error.strerror}; give files that are there")) from error
            states.append((found.st_size, found.st_mtime_ns))
        return cls(path, [], list(files), np.full(len(files), -1, dtype=np.int32), np.array(states, dtype=np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.files)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        return self.labels[ids]

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def name_of(self, sample: int) -> str:
        return os.path.relpath(self.files[sample], self.path)

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

    @functools.cached_property
    def prints(self) -> np.ndarray:
        return read_prints(self)

    def where(self, sample: int) -> str:
        return self.files[sample]

    def size_of(self, sample: int) -> tuple[int, int]:
        return _file_size(self.files[sample])

    def read(self, sample: int) -> bytes:
        return _file_bytes(self.files[sample])


class Listed(NamedTuple):
    """A file of the folder."""

    name: str  # relative
    size: int  # bytes
    changed_ns: int


def _list(path: Path) -> tuple[list[Listed], list[str], dict[str, int]]:
    """The files that may be images, in ImageFolder's order; the folders; how many of what else."""
    ignored: Counter[str] = Counter()
    try:
        found = [Listed(file.name, file.size, file.changed_ns) for file in tracked(walk(path, ignored), f"listing {path}", None, "files")]
        folders = [entry.name for entry in os.scandir(path) if entry.is_dir() and not is_hidden(entry.name)]
    except OSError as error:
        raise of_this_rank(DataError(f"{path}: cannot be read: {error}; check the disk or mount and try again")) from error
    return sorted(found, key=lambda file: (folder_at(file.name, 1), *os.path.split(file.name))), folders, ignored


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


@functools.lru_cache(4)  # a sample is asked for its size, for its bytes, and for its size again
def _file_bytes(file: str) -> bytes:
    """As data_prep stores it: JPEG, PNG and WebP as they are, what else is an image as PNG.  The content decides, not the suffix."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise of_this_rank(
            DataError(f"{file}: {error.strerror}; check the disk or mount, or the folder that changed under the program")
        ) from error
    return storable(data)


@functools.lru_cache(4)
def _file_size(file: str) -> tuple[int, int]:
    _, width, height = check_header(_file_bytes(file), sys.maxsize)  # whoever decodes it has a limit of its own
    return width, height
