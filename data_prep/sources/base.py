"""What a source of images is: something that can be listed as a stream and then read at random, from any process."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mpp.errors import BadSample, DataError

# JPEG, PNG and WebP are copied as they are; the others are converted without loss.  The content decides which, not the suffix.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
MAX_FILE_BYTES = 256 << 20  # beyond this it is no photograph, and an archive that claims it may be a bomb
MAX_CLASSES = 1_000_000
MAX_DEPTH = 200  # folders in folders
FETCHED = "fetched"  # the folder of the scratch folder that holds what came from a URL

Bar = Callable[[str, int | None], AbstractContextManager[Any]]  # (what, total bytes or None) -> something with update(bytes)


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says about the source beyond its path."""

    format: str | None = None  # one of FORMATS; None: found out from the content
    checksum: str | None = None  # md5 or sha256 of the source's file, in hexadecimal
    image_field: str | None = None  # parquet column or WebDataset field of the images, where there are several
    label_field: str | None = None  # parquet column, WebDataset field or key of the field json
    group_field: str | None = None  # column of a list or parquet file, WebDataset field or key of the field json


class Item(NamedTuple):
    """One image as its source lists it."""

    name: str  # "/" between the parts, relative to the source; unique in its split
    size: int  # bytes; -1 where the source cannot tell
    place: tuple = ()  # what the source's reader needs to find it: numbers and strings
    label: str = ""  # class name, or class number in digits; empty for none
    split: str = "train"  # as the source divides its images, if it does
    group: str = ""  # the thing that it shows, where a field was named that tells


class Reader(Protocol):
    """Reads items of one source; each worker process has its own."""

    def read(self, item: Item) -> bytes:
        """The file's bytes.  Raises BadSample for unusable content, DataError when the source is not the one that was listed."""

    def close(self) -> None: ...


class Source:
    """A pile of images.  Small and picklable: it is sent to the worker processes."""

    path: Path
    kind: str
    numbered = False  # labels are class numbers in digits
    unlabelled = "lies in no folder"  # what is the matter with an image without a label

    @property
    def name(self) -> str:
        """For the manifest: no path of this machine."""
        return self.path.name

    def identity(self) -> str:
        """Changes when the source is replaced, as far as can be told without listing it: here size and time of its file."""
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

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

    def class_names(self, labels: Collection[str]) -> list[str]:
        """Class names in the order of their numbers, given every label that occurs."""
        return numbers_as_names(labels, self.name) if self.numbered else sorted(labels)

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        """numbers: class name -> number."""
        return int(label) if self.numbered else numbers[label]


def numbers_as_names(labels: Collection[str], source: str) -> list[str]:
    """Names "0", "1", ... up to the largest label.  Raises DataError, naming the source, for a label that is no class number."""
    wrong = next((label for label in sorted(labels) if not (label.isdecimal() and len(label) < 20 and int(label) < MAX_CLASSES)), None)
    if wrong is not None:
        raise DataError(f"{source}: {wrong!r} is not a class number from 0 to {MAX_CLASSES - 1}; leave out --labels")
    return [str(number) for number in range(max(map(int, labels)) + 1)]


def reason_to_ignore(parts: Iterable[str]) -> str:
    """Of a file's name: empty for one to take, otherwise why it is not."""
    *folders, last = parts
    if ".." in folders or last == "..":
        return "(names with ..)"
    if last.startswith(".") or any(part.startswith(".") or part == "__MACOSX" for part in folders):
        return "(hidden)"
    suffix = os.path.splitext(last)[1].lower()  # noqa: PTH122 (names of archives are no paths of this machine)
    if suffix in IMAGE_SUFFIXES:
        return ""
    common = len(suffix) <= 10 and not suffix[1:].isdigit()  # numbered files would each have a suffix of their own
    return (suffix or "(no suffix)") if common else "(other suffixes)"


def first_folder(name: str) -> str:
    """The label of a file in a tree: its first folder, or nothing."""
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def check_size(item: Item) -> None:
    """Raises BadSample for an empty file or one too large to be a picture, and for a link that leads nowhere (-1 bytes)."""
    if item.size < 0:
        raise BadSample("a link that leads nowhere")
    if not item.size or item.size > MAX_FILE_BYTES:
        raise BadSample(f"{item.size} bytes" if item.size else "an empty file")


def describe(ignored: Counter) -> str:
    """ ".txt 12, (hidden) 3": the most frequent first."""
    kinds = [f"{kind} {count}" for kind, count in sorted(ignored.items(), key=lambda pair: (-pair[1], pair[0]))]
    return ", ".join(kinds[:8]) + (f", {len(kinds) - 8} more kinds" if len(kinds) > 8 else "")
