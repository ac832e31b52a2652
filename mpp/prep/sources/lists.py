"""Lists of images: a text file, CSV or JSON lines with a path and perhaps a label a row, read as a stream.

    list    path, path<TAB>label, or, of a path with an image's suffix, path label; blanks inside a path are part of it
    csv     cells between commas, semicolons, TABs or bars; a header names the columns (PATH_COLUMNS, LABEL_COLUMNS and SPLIT_COLUMNS in any case,
            or those that --image-field and --label-field name); without one the path comes first, then the label
    jsonl   objects with keys of the same names; the label is a string, a whole number or null

UTF-8, or UTF-16 and UTF-32, which are found out.  Blanks round a cell are no part of it, except in JSON.  A first row that is no row of data, such
as a header of other words, is refused: it would be taken for an image, and its label for a class.  (csv reads the cells; its Sniffer takes the
0 of photos/0001.jpg for what separates cells.)

A row is taken whatever its suffix is: the user says that it is an image.  While listing no file is looked at, but those of the first two rows, because a look costs a
millisecond on a network disk and a list may have a hundred million rows: so what is missing, empty or too large is found when it is read,
and of an image it is not known whether it changed meanwhile.  Of the list itself it is.
"""

import codecs
import csv
import errno
import itertools
import json
import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mpp.base.errors import BadSample, DataError
from mpp.data.class_folders import IMAGE_SUFFIXES, SPLITS, split_named
from mpp.prep.multi_label import list_text
from mpp.prep.source import Item, Reader, Source, SourceOptions, state_of, wrong_size

# Where several are there, the first of these.
PATH_COLUMNS = ("path", "file", "filename", "image", "url", "filepath", "file_path", "file_name", "image_path", "image_file", "image_name")
LABEL_COLUMNS = ("label", "class", "cls", "target", "category")
SPLIT_COLUMNS = ("split", "subset", "partition")
KNOWN = (*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS)
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a TAB", "|": "a bar"}
MAX_LINE_BYTES = 1 << 20
NOT_THERE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)  # a path that leads nowhere; anything else is a fault of the disk
_BLANK_LABEL = re.compile(rf"(.*(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))[ ]+(\S.*)", re.IGNORECASE)  # img/0.jpg 3


class Row(NamedTuple):
    line: int  # its number, from 1
    path: str
    label: str = ""
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class ListFile(Source):
    """Relative paths are relative to the list's folder.  Labels that are all digits are class numbers."""

    path: Path
    kind: str  # of ROWS
    state: str  # of the list when it was opened
    options: SourceOptions = SourceOptions()  # noqa: RUF009 (frozen)
    digits_are_numbers = True

    @classmethod
    def open(cls, path: Path, kind: str, options: SourceOptions = SourceOptions()) -> "ListFile":  # noqa: B008 (frozen)
        """Raises DataError for a list without rows, and for one whose columns cannot be told."""
        state = state_of(path)
        if next(ROWS[kind](path, options), None) is None:
            raise DataError(f"{path}: holds no rows; give each image one")
        return cls(path, kind, state, options)

    @property
    def unlabelled(self) -> str:
        if self.kind == "jsonl":
            keys = list(next(_objects(self.path))[1])
            there = set(map(str.lower, keys)) & set(LABEL_COLUMNS) or self.options.label_field
            return "has no label in the list" if there else f"has none of the keys {', '.join(LABEL_COLUMNS)} ({_which(keys, 'label')})"
        table = _Table.of(self.path, self.kind, self.options)
        if table.label_at >= 0:
            return "has no label in the list"
        if table.header:
            return f"has no label, because no column of the list is called {', '.join(LABEL_COLUMNS)} ({_which(table.header, 'label')})"
        many = "several columns and no header" if table.columns > 1 else "no column of labels"
        return f"has no label, because the list has {many}: give it a header, such as path,label"

    def identity(self) -> str:
        return self.state

    def items(self, ignored: Counter) -> Iterator[Item]:
        for row in ROWS[self.kind](self.path, self.options):
            for what, text in (("path", row.path), ("label", row.label), ("group", row.group)):
                if wrong := _no_name(text):
                    raise DataError(f"{self.path}: line {row.line}: the {what} {text!r} {wrong}; mend the list")
            if re.fullmatch(r"-?[0-9]+\.?[0-9]*", row.label) and not row.label.isdecimal():
                raise DataError(
                    f"{self.path}: line {row.line}: the label {row.label} is a number, but no class number; mend the list (no label: empty)"
                )
            if not row.path:
                raise DataError(f"{self.path}: line {row.line} has no path; give each row one, or remove the row")
            split = split_named(row.split) if row.split else "train"
            if not split:
                raise DataError(
                    f"{self.path}: line {row.line}: the split {row.split!r} is none of {', '.join(SPLITS)}; mend it, or call that column something else"
                )
            yield Item(row.path, -1, (), row.label, split, row.group)
        if state_of(self.path) != self.state:
            raise DataError(f"{self.path}: has changed while it was listed; start again, and leave the source alone meanwhile")

    def reader(self) -> "ListReader":
        return ListReader(self.path.parent)


@dataclass
class ListReader(Reader):
    folder: Path

    def read(self, item: Item) -> bytes:
        if "://" in item.name:
            from mpp.remote.urls import read_url  # here, because it needs packages that a list of files does not

            data: bytes = read_url(item.name)
            if not data:
                raise BadSample("an empty file")
            return data
        path = self.folder / item.name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # before it is opened: a pipe would wait for ever
                raise BadSample("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
            if not 0 < status.st_size <= self.most_bytes:
                raise BadSample(wrong_size(status.st_size, self.most_bytes))
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


def _no_name(text: str) -> str:
    """Why a text can be no name; empty where it can."""
    if re.search("[\ud800-\udfff]", text):
        return "holds half a surrogate pair"  # JSON can write one
    return "holds a NUL" if "\0" in text else ""


# ---------------------------------------------------------------- rows


def encoding_of(path: Path) -> str:
    """UTF-8, or what the first bytes tell: a byte-order mark, or the zeros of UTF-16 without one."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # before UTF-16's, with which the first begins
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = start[::2], start[1::2]
    if len(start) >= 8 and 0 in even + odd and not (0 in even and 0 in odd):  # paths are mostly ASCII, whose upper bytes are zeros
        zeros = even if 0 in even else odd
        if zeros.count(0) > len(zeros) / 2:
            return "utf-16-be" if zeros is even else "utf-16-le"
    return "utf-8"


def lines(path: Path) -> Iterator[str]:
    """Every line with its end, without a byte-order mark.  Raises DataError, with the line's number, for one that is too long or no text."""
    encoding = encoding_of(path)
    # of UTF-8 a wrong byte is let through and looked for in its own line, so that this line can be named
    read_as, errors = ("utf-8-sig", "surrogateescape") if encoding == "utf-8" else (encoding, "strict")
    number = 0
    with path.open(encoding=read_as, errors=errors, newline="\n") as file:
        try:
            while text := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(text) > MAX_LINE_BYTES:
                    raise DataError(f"{path}: line {number} is longer than {MAX_LINE_BYTES} bytes, so this is no list of images")
                if errors != "strict" and not text.isascii():
                    text.encode(errors=errors).decode()
                yield text
        except UnicodeError as error:
            if errors == "strict" or not isinstance(error, UnicodeDecodeError):
                remedy = f"is not {encoding.upper()}, as the list begins; convert it to UTF-8, for instance with iconv"
                raise DataError(f"{path}: line {number + 1} {remedy}") from error
            raise DataError(
                f"{path}: line {number} is not UTF-8 ({error.reason} at its byte {error.start + 1}); convert the list, for instance with iconv"
            ) from error


def _is_path(cell: str) -> bool:
    """Whether a cell is surely the path of an image."""
    return cell.lower().endswith(IMAGE_SUFFIXES) or "://" in cell


def _leads_somewhere(path: Path, cell: str) -> bool:
    """Whether a cell of the list at `path` is the path of a file.  Only for the first rows: a look may cost a millisecond."""
    try:
        return bool(cell) and (path.parent / cell).is_file()
    except (OSError, ValueError):
        return False


def _which(names: Iterable[str], what: str) -> str:
    return f"it has {', '.join(map(repr, names))}; name one with --{what}{'' if what == 'group' else '-field'}"


@dataclass(frozen=True)
class _Table:
    """How the rows of a list or a CSV are to be read, from its first two."""

    header: tuple[str, ...]  # empty for none
    columns: int
    path_at: int
    label_at: int  # -1 for none
    split_at: int
    group_at: int

    @classmethod
    def of(cls, path: Path, kind: str, options: SourceOptions) -> "_Table":
        """Raises DataError where the first row is a header that names no known column, and where an option names none."""
        first, second = itertools.islice(itertools.chain(CELLS[kind](path), ((0, []), (0, []))), 2)
        cells, following = first[1], second[1]
        known = [cell.lower() for cell in cells]
        asked = {"image": options.image_field, "label": options.label_field, "group": options.group_field}
        if any(asked.values()) or (not any(map(_is_path, cells)) and set(known) & set(KNOWN)):
            places = {"image": _place(known, PATH_COLUMNS), "label": _place(known, LABEL_COLUMNS), "split": _place(known, SPLIT_COLUMNS)}
            for what, name in asked.items():
                if name is not None:
                    if name.lower() not in known:
                        raise DataError(f"{path}: no column is called {name!r} ({_which(cells, what)})")
                    places[what] = known.index(name.lower())
            if places["image"] < 0:
                said = f"call one {' or '.join(PATH_COLUMNS)}"
                raise DataError(f"{path}: its header {_joined(cells)} names no column of paths; {said}, or name one with --image-field")
            return cls(tuple(cells), len(cells), places["image"], places["label"], places["split"], places.get("group", -1))
        if reason := _is_header(path, cells, following):
            raise DataError(
                f"{path}: line {first[0]}, {_joined(cells)}, {reason}, so it is no row but a header of unknown words, or a remark; call the columns path "
                f"and label, or {_options_for(cells, following)}"
            )
        path_at = 0
        if any(map(_is_path, cells)) and not (_is_path(cells[0]) or _leads_somewhere(path, cells[0])):  # perhaps the label comes first
            path_at = next((at for at, cell in enumerate(cells) if _is_path(cell) and ("://" in cell or _leads_somewhere(path, cell))), 0)
            if not path_at:
                raise DataError(
                    f"{path}: line {first[0]}: {cells[0]!r} is no path of an image, and the other cells of {_joined(cells)} lead to no file; give the "
                    "list a header, such as path,label, that tells which is which, and quotes to a path that holds the separator"
                )
        turned = re.fullmatch(r"(\S+)\s+(.*)", cells[0]) if len(cells) == 1 else None
        if turned and _leads_somewhere(path, turned[2]) and not _leads_somewhere(path, cells[0]):
            raise DataError(
                f"{path}: line {first[0]}: {cells[0]!r} leads to no file, but {turned[2]!r} does, so {turned[1]!r} is perhaps its label; "
                "give path<TAB>label"
            )
        label_at = 1 - path_at if len(cells) == 2 else -1
        return cls((), len(cells), path_at, label_at, -1, -1)


def _place(known: list[str], names: Iterable[str]) -> int:
    return next((known.index(name) for name in names if name in known), -1)


def _joined(cells: Iterable[str]) -> str:
    return repr(",".join(cells))


def _is_header(path: Path, first: list[str], second: list[str]) -> str:
    """Why a first row cannot be a row of data, empty where it can."""
    if not first or any(map(_is_path, first)):
        return ""
    if not second:
        return "" if _leads_somewhere(path, first[0]) else "is the only row and leads to no file"
    if any(map(_is_path, second)):
        return "holds no path of an image, as the next does"
    if len(first) == len(second) == 2 and second[1].isdecimal() and first[1] and not first[1].isdecimal():
        return "has no class number, as the next has"
    if _leads_somewhere(path, second[0]) and not _leads_somewhere(path, first[0]):
        return "leads to no file, as the next does"
    return ""


def _options_for(header: list[str], row: list[str]) -> str:
    """The words that name a header's columns, as far as a row of data tells them."""
    if len(header) != len(row):
        return "take the line away"
    at = next((at for at, cell in enumerate(row) if _is_path(cell)), 0)
    labels = [name for place, name in enumerate(header) if place != at]
    label = shlex.quote(labels[0]) if len(labels) == 1 else f"NAME (one of {', '.join(map(repr, labels))})"
    return f"name them: --image-field {shlex.quote(header[at])}" + (f" --label-field {label}, with --labels" if labels else "")


def _text_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines(path), 1):
        line = line.strip(" \r\n")
        if not line.strip():
            continue
        if "\r" in line:
            raise DataError(f"{path}: line {number} holds a carriage return; end lines with a line feed, for instance with: tr '\\r' '\\n'")
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) > 2:
            raise DataError(
                f"{path}: line {number} has more than one TAB; give path<TAB>label, or name --format csv, which reads more columns"
            )
        if len(cells) == 1:
            if not _is_path(line) and (parted := _BLANK_LABEL.fullmatch(line)):
                cells = list(parted.groups())
            elif len(words := line.split()) > 1 and set(map(str.lower, words)) <= set(KNOWN):
                cells = words  # a header: path label
        yield number, cells


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    told, separator = _separator(path)
    behind = re.compile(rf'(?<!")" +(?={re.escape(separator)}|\r?\n?$)')  # blanks behind a closing quote, which strict CSV does not know
    table = csv.reader((behind.sub('"', line) for line in lines(path)), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for row in table:
            if any(cell.strip() for cell in row) and not (told and table.line_num == 1):
                yield table.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise DataError(f"{path}: line {table.line_num}: is no CSV ({error}); mend the list") from error


def _first_lines(path: Path) -> list[str]:
    """The first two lines that are not blank."""
    return list(itertools.islice((line.strip(" \r\n") for line in lines(path) if line.strip()), 2))


def _separator(path: Path) -> tuple[bool, str]:
    """Whether the first line says what separates cells, as Excel has it (sep=;), and what does."""
    first, second = (*_first_lines(path), "", "")[:2]
    if told := re.fullmatch(r"sep=(.)", first, re.IGNORECASE):
        return True, told[1]
    parted = {separator: (_parts(first, separator), _parts(second, separator)) for separator in SEPARATORS}
    for certain in (_has_known, lambda cells: any(map(_is_path, cells))):
        for rows in (0, 1):
            for separator, parts in parted.items():
                if len(parts[rows]) > 1 and certain(parts[rows]):
                    return False, separator
    return False, next((separator for separator, (one, two) in parted.items() if len(one) > 1 and len(two) in (0, len(one))), ",")


def _parts(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    except csv.Error:
        return []


def _has_known(cells: Iterable[str]) -> bool:
    return bool({cell.lower() for cell in cells} & set(KNOWN))


CELLS: dict[str, Callable[[Path], Iterator[tuple[int, list[str]]]]] = {"list": _text_cells, "csv": _csv_cells}


def _table_rows(kind: str, path: Path, options: SourceOptions) -> Iterator[Row]:
    table = _Table.of(path, kind, options)
    for number, (line, cells) in enumerate(CELLS[kind](path)):
        if table.header and tuple(cells) == table.header:
            if number:
                raise DataError(f"{path}: line {line} repeats the header {_joined(cells)}; take the line away")
            continue
        if len(cells) != table.columns and kind == "csv":
            raise DataError(
                f"{path}: line {line} has {len(cells)} {'field' if len(cells) == 1 else 'fields'}, the {'header' if table.header else 'first row'} "
                f"{table.columns}; mend it, perhaps with quotes around a path that holds {SEPARATORS.get(_separator(path)[1], 'a separator')}"
            )
        label_at = table.label_at if table.header or kind == "csv" else 1 - table.path_at  # in a list some rows may have none
        cell = lambda at, cells=cells: cells[at] if 0 <= at < len(cells) else ""
        yield Row(line, cell(table.path_at), cell(label_at), cell(table.split_at), cell(table.group_at))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: is no JSON ({error}); give one object a line, such as {_EXAMPLE}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: is no JSON object; give one a line, such as {_EXAMPLE}")
        yield number, row


_EXAMPLE = '{"path": "a.jpg", "label": "cat"}'


def _json_rows(path: Path, options: SourceOptions) -> Iterator[Row]:
    paths = (options.image_field.lower(),) if options.image_field is not None else PATH_COLUMNS
    labels = (options.label_field.lower(),) if options.label_field is not None else LABEL_COLUMNS
    for number, row in _objects(path):
        cells = {key.lower(): value for key, value in row.items()}
        name, label, split = _first(cells, paths), _first(cells, labels), _first(cells, SPLIT_COLUMNS)
        if not isinstance(name, str):
            there = _which(row, "image") if row else "it has no keys"
            raise DataError(f"{path}: line {number}: has no path; give a string as {' or '.join(paths)} ({there})")
        label = list_text(label) if isinstance(label, list) else label
        group = cells.get(options.group_field.lower()) if options.group_field else None
        for what, value in (("label", label), (options.group_field, group)):
            if isinstance(value, bool) or not isinstance(value, str | int | None):
                raise DataError(f"{path}: line {number}: the {what} {value!r} is neither a string nor a whole number; mend the list")
        yield Row(number, name, *("" if value is None else str(value).strip() for value in (label, split, group)))


def _first(cells: dict[str, Any], names: Iterable[str]) -> Any:
    return next((cells[name] for name in names if cells.get(name) is not None), None)


ROWS: dict[str, Callable[[Path, SourceOptions], Iterator[Row]]] = {
    "list": partial(_table_rows, "list"),
    "csv": partial(_table_rows, "csv"),
    "jsonl": _json_rows,
}


def kind_of_list(path: Path) -> str | None:
    """Which kind of list a file's first lines look like; None for none."""
    try:
        first, second = (*_first_lines(path), "", "")[:2]
    except DataError:
        return None
    if "\0" in first:
        return None
    if first.startswith("{"):
        return "jsonl"
    with_blanks = lambda line: bool(_BLANK_LABEL.fullmatch(line)) and not _is_path(line)
    if (with_blanks(first) or with_blanks(second)) and not any(separator in first for separator in SEPARATORS):
        return "list"
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    if re.fullmatch(r"sep=.", first, re.IGNORECASE):
        return "csv"
    for separator in ("\t", *SEPARATORS):  # the TAB first: addresses hold commas
        cells, following = _parts(first, separator), _parts(second, separator)
        if len(cells) < 2:
            continue
        if separator == "\t" and len(cells) == 2 and _is_path(cells[0]) and not first.startswith('"'):
            return "list"
        label_first = any(_is_path(cell) and _leads_somewhere(path, cell) for cell in cells[1:])
        header = len(following) == len(cells) and any(map(_is_path, following)) and not any(map(_is_path, cells))
        if cells[0].lower().endswith(IMAGE_SUFFIXES) or label_first or _has_known(cells) or header:
            return "csv"
    if _is_path(first):
        return "list"
    if first.lower() in KNOWN:
        return "csv"  # of one column
    return "list" if _is_path(second) else None


def beginning(path: Path) -> str:
    """How a file begins that is no list, for messages: empty where it is no text."""
    try:
        first = next(iter(_first_lines(path)), "")
    except DataError:
        return ""
    if not first:
        return "it is empty"
    if not first.isprintable():
        return ""
    if first.startswith("["):
        return "it is perhaps a JSON array: give one object a line, such as " + _EXAMPLE
    return (
        f"its first line is {first[:60]!r}, with no path that ends in an image's suffix; --format list, csv or jsonl reads it all the same"
    )
