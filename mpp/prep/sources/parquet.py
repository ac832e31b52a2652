"""Parquet image data sets as Hugging Face stores them: a column of encoded images, perhaps one of labels.

A parquet file cannot be read at random: one image costs its whole row group, often hundreds of megabytes.  So the images are copied once, as
a stream, to files in the scratch folder (as much disk as they have bytes), where a read is a single pread.  pyarrow holds about three times
the images of one row group meanwhile.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from mpp.base.errors import DataError
from mpp.base.text import sized
from mpp.data.class_folders import IMAGE_SUFFIXES, SPLITS, reason_to_ignore
from mpp.disk.files import write_stream
from mpp.prep.source import Item, Source, SourceOptions
from mpp.prep.sources.rows import RowsReader, packed, read_rows
from mpp.prep.sources.webdataset import label_text
from mpp.remote.urls import Bar

PARQUET_MAGIC = b"PAR1"
LABEL_LISTS = ("label", "labels")  # columns that hold labels, where they hold lists
BATCH_ROWS = 16  # held in memory at once
BUFFER_BYTES = 1 << 20  # of a column that are read ahead
UNNAMED = ("part", "data", "shard", "file", "image", "images")  # what writers call files that belong to no split
_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
_NUMBERED = re.compile(r"(\w+)-\d+-of-\d+")  # train_extra-00000-of-00004: Hugging Face allows any name


@dataclass(frozen=True)
class Columns:
    """What is read of each file; the same in all of them."""

    image: str
    in_struct: bool  # struct {bytes, path} rather than plain bytes
    has_path: bool
    label: str | None
    label_kind: str = ""  # "class" (a number in `classes`), "number", "text", or "list", of which no classes can be made
    classes: tuple[str, ...] = ()
    group: str | None = dataclass_field(default=None, repr=False)  # of the stamp only where there is one


@dataclass(frozen=True)
class Parquet(Source):
    """A .parquet file or a folder of them.  Splits come from the names: train-00000-of-00005.parquet, default/test/0000.parquet."""

    path: Path
    files: tuple[str, ...]  # names below the folder; of a single file its own
    columns: Columns
    label_names: tuple[str, ...]  # the columns that could have been meant, where none was chosen
    scratch: Path | None = None
    kind = "parquet"

    @property
    def root(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def numbered(self) -> bool:
        return self.columns.label_kind == "number"

    @property
    def unlabelled(self) -> str:
        if self.columns.label:
            return f"has no label in the column {self.columns.label}"
        return "has no label column" + (f" ({', '.join(self.label_names)}: choose with --label-field)" if self.label_names else "")

    def identity(self) -> str:
        return hashlib.blake2b("".join(map(self._stamp, self.files)).encode(), digest_size=16).hexdigest()

    def _stamp(self, name: str) -> str:
        status = (self.root / name).stat()
        known = [name, status.st_size, status.st_mtime_ns, repr(self.columns), *([self.columns.group] if self.columns.group else [])]
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()

    def unpack(self, scratch: Path, bar: Bar) -> "Parquet":
        targets = {name: scratch / f"source-{self._stamp(name)}.rows" for name in self.files}
        missing = [name for name, target in targets.items() if not target.exists()]
        sizes = [self._image_bytes(self.root / name) for name in missing]
        if sum(sizes) > (free := shutil.disk_usage(scratch).free):
            raise DataError(
                f"{scratch}: the images must be copied out of {self.name} for the time of the run ({sized(sum(sizes))}), but the disk "
                f"has {sized(free)} free; free some space or choose another OUT"
            )
        with bar("unpacking", sum(sizes)) as progress:
            for name in missing:
                write_stream(targets[name], self._rows(self.root / name, progress))
        return replace(self, scratch=scratch)

    def _image_bytes(self, path: Path) -> int:
        """Bytes of the image column, uncompressed."""
        with _opened(path) as file:
            chunks = (chunk for chunk in _chunks(file.metadata) if chunk.path_in_schema.split(".")[0] == self.columns.image)
            return sum(chunk.total_uncompressed_size for chunk in chunks)

    def _rows(self, path: Path, progress: Any) -> Iterator[bytes]:
        columns = self.columns
        wanted = [f"{columns.image}.bytes"] if columns.in_struct else [columns.image]
        wanted += [f"{columns.image}.path"] if columns.has_path else []
        wanted += [name for name in dict.fromkeys((columns.label, columns.group)) if name]
        with _opened(path) as file:
            for group in range(file.num_row_groups):  # one by one: over all of them pyarrow would hold several
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                    for row in batch.to_pylist():
                        found = (row[columns.image] or {}) if columns.in_struct else {"bytes": row[columns.image]}
                        data, label = found["bytes"] if found else None, row[columns.label] if columns.label else None
                        text = (label or "") if columns.label_kind == "text" else label_text(label)
                        thing = row[columns.group] if columns.group else None
                        yield packed(data, text, found.get("path") or "", *([str(thing)] if thing is not None else []))
                        progress.update(len(data or b""))

    def items(self, ignored: Counter) -> Iterator[Item]:
        assert self.scratch
        if self.path.is_dir():
            ignored.update(
                reason_to_ignore([name]) or Path(name).suffix for name in _files_below(str(self.path), "") if name not in self.files
            )
        for name in self.files:
            stamp, split = self._stamp(name), split_of(name)
            for number, row in enumerate(read_rows(self.scratch / f"source-{stamp}.rows")):
                place = (stamp, row.offset if row.size >= 0 else row.path)
                yield Item(f"{name}/{number}", row.size, place, row.label, split, row.group)

    def reader(self) -> RowsReader:
        assert self.scratch
        return RowsReader(self.scratch, lambda item: f"source-{item.place[0]}.rows")

    def class_names(self, labels: Collection[str]) -> list[str]:
        if self.columns.label_kind != "class":
            return super().class_names(labels)
        if wrong := [label for label in labels if int(label) >= len(self.columns.classes)]:
            raise DataError(
                f"{self.path}: the column {self.columns.label} holds {wrong[0]}, but has {len(self.columns.classes)} class names; mend it, "
                "choose another with --label-field, or leave out --labels"
            )
        return list(self.columns.classes)

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        return int(label) if self.columns.label_kind in ("class", "number") else numbers[label]


def open_parquet(path: Path, options: SourceOptions) -> Parquet:
    """Looks at the schema of every file.  Raises DataError where they differ, and where the column of images is not clear."""
    below = _files_below(str(path), "") if path.is_dir() else [path.name]
    files = sorted(name for name in below if name.lower().endswith(".parquet") or not path.is_dir())
    if not files:
        raise DataError(f"{path}: holds no .parquet files; give the file or the folder that holds them")
    root = path if path.is_dir() else path.parent
    columns = label_names = None
    for name in files:
        with _opened(root / name) as file:
            _refuse_joined(root / name, file.metadata)
            found, label_names = _find_columns(root / name, file.schema_arrow, options)
            possible, group = [field.name for field in file.schema_arrow if _label_kind(field, {})], options.group_field
            if group and group not in possible:
                there = ", ".join(possible) or "none"
                raise DataError(f"{root / name}: has no column {group} of numbers or texts for --group; those it has: {there}")
            found = replace(found, group=group)
        if found != (columns or found):
            raise DataError(
                f"{path}: {files[0]} and {name} do not have the same columns or class names, so they are two data sets; give one's folder"
            )
        columns = found
    assert columns is not None and label_names is not None
    return Parquet(path, tuple(files), columns, label_names)


def _refuse_joined(path: Path, metadata: Any) -> None:
    """Raises DataError where a second parquet file hangs on the first: the footer at the end would be read with the first one's data."""
    end = len(PARQUET_MAGIC)
    for chunk in _chunks(metadata):
        start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
        end = max(end, start + chunk.total_compressed_size)
    footer = path.stat().st_size - 8 - metadata.serialized_size  # between lie at most indexes of pages and filters
    with path.open("rb") as file:
        file.seek(end)
        before = b""
        while end < footer and (data := file.read(min(BUFFER_BYTES, footer - end))):
            if 2 * PARQUET_MAGIC in before + data:
                raise DataError(f"{path}: is several parquet files joined, of which only one would be read; take them apart")
            before, end = data[-2 * len(PARQUET_MAGIC) :], end + len(data)


def _chunks(metadata: Any) -> Iterator[Any]:
    """Every column of every row group, as pyarrow describes it."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        yield from map(group.column, range(group.num_columns))


def is_parquet(folder: Path) -> bool:
    """Whether there are parquet files below it and neither images nor tars, which tables may describe; ends at the first of those."""
    found = False
    for name in _files_below(str(folder), ""):
        suffix = Path(name).suffix.lower()
        if suffix in (*IMAGE_SUFFIXES, ".tar"):
            return False
        found = found or suffix == ".parquet"
    return found


def _files_below(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:  # a stream: one folder may hold millions
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name


def split_of(name: str) -> str:
    """From the file's name or else the nearest folder's; train where neither says."""
    *folders, last = name.split("/")
    if numbered := _NUMBERED.match(last):
        split = numbered[1].lower()
        return "train" if split in UNNAMED else SPLITS.get(split, split)
    for part in (last, *reversed(folders)):
        if found := _SPLIT.match(part):
            return SPLITS.get(found[1].lower(), found[1].lower())
    return "train"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file as pyarrow opens it; what it raises on damaged content becomes DataError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs the package pyarrow: pip install 'mpp[prep]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, page_checksum_verification=True) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: is cut short or damaged ({str(error).splitlines()[0]}); get it again") from error


def _find_columns(path: Path, schema: Any, options: SourceOptions) -> tuple[Columns, tuple[str, ...]]:
    """The columns to read, and those that may hold labels where none of them was chosen.  schema: pyarrow's."""
    features = _features(schema)
    images: dict[str, Columns] = {}
    plain: dict[str, Columns] = {}
    labels: dict[str, tuple[str, tuple[str, ...]]] = {}
    lists: list[str] = []
    for field in schema:
        marked = features.get(field.name, {})
        if image := _image_column(field):
            (images if image.in_struct or marked.get("_type") == "Image" else plain)[field.name] = image
        elif label := _label_kind(field, marked):
            labels[field.name] = label
        elif _is_list(field):
            lists.append(field.name)
    found = [options.image_field] if options.image_field in images | plain else [] if options.image_field else list(images or plain)
    if len(found) != 1:
        asked = f"no column {options.image_field} of images" if options.image_field else f"{len(found) or 'no'} columns of images"
        raise DataError(
            f"{path}: has {asked} (of encoded bytes: {', '.join(images | plain) or 'none'}; columns: {', '.join(schema.names)}); "
            + ("choose one with --image-field" if images | plain else "images must be stored as their files' bytes")
        )
    column = (images | plain)[found[0]]
    classes = [name for name, (kind, _) in labels.items() if kind == "class"]
    chosen = [options.label_field] if options.label_field else classes if len(classes) == 1 else [] if classes else ["label"]
    several = options.label_field or next((name for name in LABEL_LISTS if name in lists), "")
    if several in lists and (options.label_field or not chosen or chosen[0] not in labels):
        return replace(column, label=several, label_kind="list"), ()
    if options.label_field and options.label_field not in labels:
        raise DataError(
            f"{path}: has no column {options.label_field} of labels (class numbers or texts); those it has: {', '.join(labels) or 'none'}"
        )
    if not chosen or chosen[0] not in labels:
        return column, tuple(classes or labels)
    kind, names = labels[chosen[0]]
    return replace(column, label=chosen[0], label_kind=kind, classes=names), ()


def _features(schema: Any) -> dict[str, dict]:
    """What Hugging Face says of the columns: {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [...]}}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):  # other programs write parquet too
        return {}


def _image_column(field: Any) -> Columns | None:
    from pyarrow import types

    def is_binary(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    if types.is_struct(field.type):
        inner = {part.name: part.type for part in field.type}
        return Columns(field.name, True, "path" in inner, None) if "bytes" in inner and is_binary(inner["bytes"]) else None
    return Columns(field.name, False, False, None) if is_binary(field.type) else None


def _is_list(field: Any) -> bool:
    from pyarrow import types

    return types.is_list(field.type) or types.is_large_list(field.type) or types.is_fixed_size_list(field.type)


def _label_kind(field: Any, marked: dict) -> tuple[str, tuple[str, ...]] | None:
    """The kind of label, as Columns has it, and the class names."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_integer(kind):
        names = marked.get("names") if marked.get("_type") == "ClassLabel" else None
        return ("class", tuple(map(str, names))) if names else ("number", ())
    return ("text", ()) if types.is_string(kind) or types.is_large_string(kind) else None
