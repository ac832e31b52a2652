"""WebDataset tars, read in place: files that lie side by side and share a key are one sample, and its image is taken.

The key of a file is its path up to the first dot of its base name and the rest is its field, as the package webdataset has it: "x/12.jpg" and
"x/12.cls" are the fields jpg and cls of the key x/12, and "a.b.jpg" is the field b.jpg of the key a.
"""

import hashlib
import io
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mpp.base.errors import DataError
from mpp.data.class_folders import reason_to_ignore
from mpp.data.shard_format import FORMAT, MANIFEST
from mpp.data.shards import ShardSet
from mpp.prep.multi_label import list_text
from mpp.prep.source import Item, Source, SourceOptions
from mpp.prep.sources.archives import FilesReader, regular_files
from mpp.prep.sources.links import NOWHERE

# What may lie beside the tars: img2dataset's tables and counts, indexes, manifests and notes.
SIDE_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".idx", ".bin", ".yaml", ".yml")
CLASS_FIELD = "cls"  # the field of the label, as the package webdataset names it
NUMPY_MAGIC = b"\x93NUMPY"
LABEL_BYTES = 1 << 20  # a longer field holds no label
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset keeps for itself


class Field(NamedTuple):
    key: str
    name: str  # lower case, without the dot that begins it
    member: str  # the file's name in the tar
    offset: int  # of its first byte in the tar
    size: int
    is_image: bool
    is_link: bool


class TarImage(NamedTuple):
    member: str
    offset: int
    size: int
    label: str  # empty for none; a whole number has no leading zeros
    is_link: bool  # to another member of the tar, whose offset and size these are
    group: str  # empty where none was asked for, and for none


@dataclass(frozen=True)
class WebDataset(Source):
    """One tar or a folder of them, in the order of their names.  An image's label is the text of the sample's field `cls`."""

    path: Path
    image_field: str | None = None
    label_field: str | None = None
    group_field: str | None = None
    ours: bool = False  # mpp's own shards: cls is a number in the manifest's list of classes
    kind = "webdataset"

    @property
    def digits_are_numbers(self) -> bool:
        return not self.ours

    @property
    def unlabelled(self) -> str:
        return f"has no usable {self.label_field or CLASS_FIELD} field" + ("" if self.label_field else " (--label-field names another)")

    def tars(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        return sorted(path for path in self.path.iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith("."))

    def identity(self) -> str:
        known = hashlib.blake2b(digest_size=16)
        for tar in self.tars():
            status = tar.stat()
            known.update(json.dumps([tar.name, status.st_size, status.st_mtime_ns]).encode())
        return known.hexdigest()

    def items(self, ignored: Counter) -> Iterator[Item]:
        for tar in self.tars():
            for image in self.images(tar, ignored):
                yield Item(f"{tar.name}/{image.member}", image.size, (image.offset,), image.label, group=image.group)

    def images(self, tar: Path, ignored: Counter) -> Iterator[TarImage]:
        """The image of every key in one tar; the fields that are left behind are counted.  Raises DataError where a key has several."""
        with tar.open("rb") as file:
            for key, together in itertools.groupby(_fields(file, str(tar), ignored), lambda field: field.key):
                fields: dict[str, Field] = {}
                for field in together:
                    if field.name in fields:
                        ignored["(repeated fields)"] += 1
                    fields[field.name] = field  # the last counts, as it would when extracting
                image = self._image(tar, key, fields)
                if image is None:
                    ignored["(keys without an image)"] += 1
                    continue
                label, source = self._text(file, fields, self.label_field or CLASS_FIELD, in_json=bool(self.label_field))
                group, told = self._text(file, fields, self.group_field, in_json=True) if self.group_field else ("", "")
                for name in fields:
                    if name not in (image.name, source, told):
                        ignored["." + name.rpartition(".")[2]] += 1  # all of a dotted one could be another for every file
                yield TarImage(image.member, image.offset, image.size, label, image.is_link, group)

    def _image(self, tar: Path, key: str, fields: dict[str, Field]) -> Field | None:
        if self.image_field is not None:
            return fields.get(self.image_field)
        found = [field for field in fields.values() if field.is_image]
        if len(found) > 1:
            names = ", ".join(field.name for field in found[:4]) + (", ..." if len(found) > 4 else "")
            raise DataError(
                f"{tar}: the key {key} has {len(found)} images (fields {names}); choose a field with --image-field {found[0].name}, or, if "
                "these are separate pictures whose names have dots, give the tar by itself: it is then read as a plain one"
            )
        return found[0] if found else None

    def _text(self, file: BinaryIO, fields: dict[str, Field], wanted: str, *, in_json: bool) -> tuple[str, str]:
        """A label or group and the field that it comes from: the one of this name or, where that may be, the key of this name in the json."""
        source = wanted if wanted in fields else "json" if in_json else ""
        if source not in fields or fields[source].size > LABEL_BYTES:
            return "", source
        data = os.pread(file.fileno(), fields[source].size, fields[source].offset)
        try:
            if data.startswith(NUMPY_MAGIC):
                return label_text(_array(data).tolist()), source
            return label_text(data.decode() if source == wanted else json.loads(data).get(wanted)), source
        except (ValueError, AttributeError, RecursionError):  # no text, no JSON, or no JSON object
            return "", source

    def reader(self) -> FilesReader:
        return FilesReader(self.path if self.path.is_dir() else self.path.parent, lambda item: item.name.partition("/")[0])

    def class_names(self, labels: Collection[str]) -> list[str]:
        if not self.ours:
            return super().class_names(labels)
        classes = ShardSet.open(self.path).classes
        wrong = [label for label in labels if not (label.isdecimal() and int(label) < len(classes))]
        if wrong:
            raise DataError(f"{self.path}: holds the label {max(wrong)}, but {MANIFEST} names {len(classes)} classes; copy it again")
        return classes

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        return int(label) if self.ours else numbers[label]


def open_webdataset(path: Path, options: SourceOptions) -> WebDataset:
    """Raises DataError where there are no tars."""
    source = replace(with_fields(path, options), ours=options.label_field is None and is_ours(path) and ShardSet.open(path).labelled)
    if not source.tars():
        raise DataError(f"{path}: holds no .tar at its top level; give the folder of the tars (compressed ones must be unpacked to .tar)")
    return source


def with_fields(path: Path, options: SourceOptions) -> WebDataset:
    """Of tars that are not there yet, or no shards of ours."""
    return WebDataset(path, options.image_field and options.image_field.lower().lstrip("."), options.label_field, options.group_field)


def is_webdataset(folder: Path, leave_out: Path) -> bool:
    """Whether there are tars at its top level and nothing but what belongs to them."""
    tars = False
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):  # noqa: PTH112 (entry.is_dir() raises for a link to itself)
                if Path(entry.path).resolve() != leave_out:
                    return False
            elif suffix == ".tar":
                tars = True
            elif suffix not in SIDE_SUFFIXES:
                return False
    return tars


def is_ours(path: Path) -> bool:
    """Whether a folder has a manifest of mpp's."""
    try:
        return is_our_manifest((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_our_manifest(data: bytes) -> bool:
    """Other programs have manifests, too."""
    try:
        return json.loads(data)["format"] == FORMAT
    except (ValueError, TypeError, KeyError):
        return False


def _fields(file: BinaryIO, name: str, ignored: Counter) -> Iterator[Field]:
    for member in regular_files(file, name, ignored):
        parts = member.parts
        reason = "(links that lead nowhere)" if member.size == NOWHERE else reason_to_ignore(parts)
        if _META.match(parts[0] + "/"):
            reason = "(webdataset's own)"
        if reason.startswith("("):
            ignored[reason] += 1
            continue
        *_, base = parts
        stem, _, field = base.partition(".")
        yield Field("/".join([*parts[:-1], stem]), field.lower(), member.name, member.place[0], member.size, not reason, bool(member.link))


def _array(data: bytes) -> np.ndarray:
    """Of an .npy whose bytes are those that its head tells of: np.load would make room for whatever that says.  Raises ValueError."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("it is of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError("its head is damaged") from error
    values = np.frombuffer(data, dtype, offset=stream.tell())  # refuses objects
    if values.size != math.prod(shape):
        raise ValueError("it is cut short")
    return values.reshape(shape)


def label_text(value: Any) -> str:
    """A label as the listing has it: text, or a class number in digits; empty for nothing usable (null, negative), of a list a text that is refused."""
    if isinstance(value, list):
        return list_text(value)
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return str(int(text)) if int(text) >= 0 else ""
    return text
