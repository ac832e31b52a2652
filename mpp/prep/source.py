"""What a source of images is: something that can be listed as a stream and then read at random, from any process."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mpp.base.errors import BadSample
from mpp.data.class_folders import class_names, folder_at
from mpp.remote.urls import MAX_FILE_BYTES, Bar

FOREIGN = "webdataset in place"  # the manifest's source.kind of tars that were indexed where they lie
FETCHED = "fetched"  # the folder of the scratch folder that holds what came from a URL


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says about the source beyond its path."""

    format: str | None = None  # one of FORMATS; None: found out from the content
    checksum: str | None = None  # md5 or sha256 of the source's file, in hexadecimal
    image_field: str | None = None  # column of parquet or CSV, key of a JSON line or WebDataset field of the images
    label_field: str | None = None  # column of parquet or CSV, key of a JSON line, WebDataset field or key of the field json
    group_field: str | None = None  # likewise, of the thing that an image shows


class Item(NamedTuple):
    """One image as its source lists it."""

    name: str  # "/" between the parts, relative to the source; unique in its split
    size: int  # bytes; -1 where the source cannot tell
    place: tuple = ()  # what the source's reader needs to find it: numbers and strings
    label: str = ""  # class name, or class number in digits; empty for none
    split: str = "train"  # as the source divides its images, if it does
    group: str = ""  # the thing that it shows, where a field was named that tells


def state_of(path: Path) -> str:
    """Changes when a file is replaced: its size and the time of its last change."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


class Reader:
    """Reads items of one source; each worker process has its own."""

    most_bytes: int = MAX_FILE_BYTES  # of a file that is read here (one of a URL has at most MAX_FILE_BYTES in any case)

    def read(self, item: Item) -> bytes:
        """The file's bytes.  Raises BadSample for unusable content, DataError when the source is not the one that was listed."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is held open."""


class Source:
    """A pile of images.  Small and picklable: it is sent to the worker processes."""

    path: Path
    kind: str

    @property
    def numbered(self) -> bool:
        """Whether labels are class numbers in digits."""
        return False

    @property
    def digits_are_numbers(self) -> bool:
        """Whether labels are class numbers where all of them are digits."""
        return False

    @property
    def unlabelled(self) -> str:
        """What is the matter with an image without a label."""
        return "lies in no folder"

    @property
    def name(self) -> str:
        """For the manifest: no path of this machine."""
        return self.path.name

    def identity(self) -> str:
        """Changes when the source is replaced, as far as can be told without listing it."""
        return state_of(self.path)

    def fetch(self, scratch: Path, bar: Bar) -> "Source":
        """A source on this machine, whose `kind` is known: itself, or one made of a file fetched into `scratch`."""
        return self

    def unpack(self, scratch: Path, bar: Bar) -> "Source":
        """A source with the same images that can be read at random: itself, or one made of files below `scratch`.

        Idempotent: each file gets its name when it is whole.  Raises DataError for a damaged source.
        """
        return self

    def items(self, ignored: Counter) -> Iterator[Item]:
        """Every file that may be an image, in any order; what is left out is counted by suffix or reason.  Raises DataError."""
        raise NotImplementedError

    def reader(self) -> Reader:
        raise NotImplementedError

    def told(self, item: Item) -> bytes:
        """JSON that is stored beside an image, in the field json; nothing where there is none."""
        return b""

    def class_names(self, labels: Collection[str]) -> list[str]:
        """Class names in the order of their numbers, given every label that occurs.  Raises DataError as class_folders.class_names does."""
        return class_names(labels, self.name, numbers=self.numbered or (self.digits_are_numbers and all(map(str.isdecimal, labels))))

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        """numbers: class name -> number."""
        return numbers[label] if label in numbers else numbers[str(int(label))]  # of numbers, 007 is 7


@dataclass(frozen=True)
class Around(Source):
    """A source that changes something of another."""

    source: Source

    @property
    def kind(self) -> str:  # type: ignore[override]  # elsewhere a field
        return self.source.kind

    @property
    def name(self) -> str:
        return self.source.name

    def identity(self) -> str:
        return self.source.identity()

    def reader(self) -> Reader:
        return self.source.reader()

    @property
    def numbered(self) -> bool:
        return self.source.numbered

    @property
    def digits_are_numbers(self) -> bool:
        return self.source.digits_are_numbers

    @property
    def unlabelled(self) -> str:
        return self.source.unlabelled

    def class_names(self, labels: Collection[str]) -> list[str]:
        return self.source.class_names(labels)

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        return self.source.class_number(label, numbers)


def first_folder(name: str) -> str:
    """The label of a file in a tree: its first folder, or nothing."""
    return folder_at(name, 1)


def check_size(item: Item, most: int = MAX_FILE_BYTES) -> None:
    """Raises BadSample for an empty file or one too large to be a picture, and for a link that leads nowhere (-1 bytes)."""
    if item.size < 0:
        raise BadSample("a link that leads nowhere")
    if not item.size or item.size > most:
        raise BadSample(wrong_size(item.size, most))


def wrong_size(size: int, most: int = MAX_FILE_BYTES) -> str:
    """What is the matter with a file of 0 or more than `most` bytes."""
    return f"{size} bytes, and the limit is {most}: store it compressed, as PNG or JPEG" if size else "an empty file"
