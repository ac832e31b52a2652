"""Lists of images: a text file, CSV or JSON lines with a path and perhaps a label a row, read as a stream.

    list    path, or path<TAB>label; the path is taken as it stands, spaces included
    csv     a header names the columns (PATH_COLUMNS, LABEL_COLUMNS, in any case); without one the path comes first, then the label
    jsonl   objects with keys of the same names; the label is a string, a whole number or null

A row is taken whatever its suffix is: the user says that it is an image.  No file is looked at while listing, because a look costs a
millisecond on a network disk and a list may have a hundred million rows: so what is missing, empty or too large is found when it is read,
and of an image it is not known whether it changed meanwhile.  Of the list itself it is.
"""

import csv
import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.errors import BadSample, DataError
from sources.base import IMAGE_SUFFIXES, MAX_FILE_BYTES, Item, Source, numbers_as_names

PATH_COLUMNS = ("path", "file", "filename", "image", "url")  # where several are there, the first of these
LABEL_COLUMNS = ("label", "class", "cls")
MAX_LINE_BYTES = 1 << 20
NOT_THERE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)  # a path that leads nowhere; anything else is a fault of the disk
Row = tuple[int, str, str, str]  # line number from 1, path, label, group


@dataclass(frozen=True)
class ListFile(Source):
    """Relative paths are relative to the list's folder.  Labels that are all digits are class numbers."""

    path: Path
    kind: str  # of ROWS
    size: int  # bytes of the list when it was opened, and when it was last changed
    changed_ns: int
    group: str | None = None  # the column that holds it
    unlabelled = "has no label in the list"

    @classmethod
    def open(cls, path: Path, kind: str, group: str | None = None) -> "ListFile":
        status = path.stat()
        return cls(path, kind, status.st_size, status.st_mtime_ns, group)

    def identity(self) -> str:
        return f"{self.size} {self.changed_ns}"

    def items(self, ignored: Counter) -> Iterator[Item]:
        for number, path, label, group in ROWS[self.kind](self.path, self.group):
            _check_text(path, "path", self.path, number)
            _check_text(label, "label", self.path, number)
            _check_text(group, "group", self.path, number)
            if re.fullmatch(r"-?[0-9]+\.?[0-9]*", label) and not label.isdecimal():
                raise DataError(
                    f"{self.path}: line {number}: the label {label} is a number, but no class number; mend the list (no label: empty)"
                )
            if not path:
                raise DataError(f"{self.path}: line {number} has no path; give each row one, or remove the row")
            yield Item(path, -1, (), label, group=group)
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed_ns):
            raise DataError(f"{self.path}: has changed while it was listed; start again, and leave the source alone meanwhile")

    def reader(self) -> "ListReader":
        return ListReader(self.path.parent)

    def class_names(self, labels: Collection[str]) -> list[str]:
        return numbers_as_names(labels, self.name) if all(label.isdecimal() for label in labels) else sorted(labels)

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        return numbers[label] if label in numbers else numbers[str(int(label))]  # 007 is 7


@dataclass(frozen=True)
class ListReader:
    folder: Path

    def read(self, item: Item) -> bytes:
        if "://" in item.name:
            from remote import read_url  # here, because it needs packages that a list of files does not

            data: bytes = read_url(item.name)
            if not data:
                raise BadSample("an empty file")
            return data
        path = self.folder / item.name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # before it is opened: a pipe would wait for ever
                raise BadSample("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
            if not 0 < status.st_size <= MAX_FILE_BYTES:
                raise BadSample(f"{status.st_size} bytes" if status.st_size else "an empty file")
            with path.open("rb", buffering=0) as file:
                data = file.read(status.st_size + 1) or b""
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            raise BadSample(os.strerror(error.errno)) from error
        if len(data) != status.st_size:
            raise DataError(
                f"{path}: has changed while it was read ({status.st_size} bytes before, {len(data)} read); "
                "remove OUT and start again, and leave the source alone meanwhile"
            )
        return data

    def close(self) -> None:
        pass


def _check_text(text: str, what: str, path: Path, number: int) -> None:
    try:
        text.encode()
        wrong = "holds a NUL" if "\0" in text else ""
    except UnicodeEncodeError:
        wrong = "holds half a surrogate pair"  # JSON can write one
    if wrong:
        raise DataError(f"{path}: line {number}: the {what} {text!r} {wrong}; mend the list")


# ---------------------------------------------------------------- rows


def lines(path: Path) -> Iterator[str]:
    """Every line with its end, without a byte-order mark.  Raises DataError, with the line's number, for one that is too long or no UTF-8."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}: line {number} is longer than {MAX_LINE_BYTES} bytes, so this is no list of images")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 ({error.reason} at its byte {error.start + 1}); convert the list, for instance with iconv"
                ) from error


def _text_rows(path: Path, group: str | None = None) -> Iterator[Row]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            name, _, label = line.rstrip("\r\n").partition("\t")
            if "\t" in label:
                raise DataError(f"{path}: line {number} has more than one TAB; give path<TAB>label, or name --format csv and use commas")
            yield number, name, label.strip(), ""


def _csv_rows(path: Path, group: str | None = None) -> Iterator[Row]:
    table = csv.reader(lines(path), strict=True)
    try:
        first = next((row for row in table if row), [])
        columns = [cell.strip().lower() for cell in first]
        group_at = columns.index(group.lower()) if group and group.lower() in columns else -1
        if group and group_at < 0:
            raise DataError(f"{path}: its first row {','.join(first)!r} names no column {group}; mend --group, or the header")
        if header := not set(columns).isdisjoint(PATH_COLUMNS + LABEL_COLUMNS):
            path_at = next((columns.index(name) for name in PATH_COLUMNS if name in columns), -1)
            label_at = next((columns.index(name) for name in LABEL_COLUMNS if name in columns), -1)
            if path_at < 0:
                raise DataError(f"{path}: its header {','.join(first)!r} names no column of paths; call one {' or '.join(PATH_COLUMNS)}")
        else:
            path_at, label_at = 0, 1 if len(first) > 1 else -1
            yield table.line_num, first[0] if first else "", first[1].strip() if len(first) > 1 else "", ""
        for row in table:
            if row and len(row) != len(first):
                raise DataError(
                    f"{path}: line {table.line_num} has {len(row)} fields, the {'header' if header else 'first row'} {len(first)}; "
                    "mend it, perhaps with quotes around a path that holds a comma"
                )
            if row:
                label, thing = (row[at].strip() if at >= 0 else "" for at in (label_at, group_at))
                yield table.line_num, row[path_at], label, thing
    except csv.Error as error:
        raise DataError(f"{path}: line {table.line_num}: is no CSV ({error}); mend the list") from error


def _json_rows(path: Path, group: str | None = None) -> Iterator[Row]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: is no JSON ({error}); mend the list") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: is no JSON object; give one a line, such as {{'path': 'a.jpg', 'label': 'cat'}}")
        cells = {key.lower(): value for key, value in row.items()}
        name, label = _first(cells, PATH_COLUMNS), _first(cells, LABEL_COLUMNS)
        if not isinstance(name, str):
            raise DataError(f"{path}: line {number}: has no path; give a string as {' or '.join(PATH_COLUMNS)}")
        if isinstance(label, bool) or not isinstance(label, str | int | None):
            raise DataError(f"{path}: line {number}: the label {label!r} is neither a string nor a whole number; mend the list")
        thing = cells.get(group.lower()) if group else None
        if isinstance(thing, bool) or not isinstance(thing, str | int | None):
            raise DataError(f"{path}: line {number}: the {group} {thing!r} is neither a string nor a whole number; mend the list")
        yield number, name, "" if label is None else str(label).strip(), "" if thing is None else str(thing).strip()


def _first(cells: dict[str, Any], names: Collection[str]) -> Any:
    return next((cells[name] for name in names if cells.get(name) is not None), None)


ROWS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {"list": _text_rows, "csv": _csv_rows, "jsonl": _json_rows}


def kind_of_list(path: Path) -> str | None:
    """Which kind of list a file's first line looks like; None for none."""
    try:
        first = next((line.strip() for line in lines(path) if line.strip()), "")
    except DataError:
        return None
    if "\0" in first:
        return None
    if first.startswith("{"):
        return "jsonl"
    cells = [cell.strip().strip('"').lower() for cell in first.split(",")]
    if path.suffix.lower() == ".csv" or (cells[0].endswith(IMAGE_SUFFIXES) and len(cells) > 1) or set(cells) & set(PATH_COLUMNS):
        return "csv"
    name = first.partition("\t")[0]
    return "list" if name.lower().endswith(IMAGE_SUFFIXES) or "://" in name else None
