"""The manifest's list of shards, in columns: about a hundred bytes a shard, where an object for each takes a kilobyte.

A set of a billion images has a hundred thousand shards, or a million, and every process of a job reads its manifest.
"""

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, SchemaValidator, core_schema

STRETCH = 1 << 12  # entries that are objects at once: 4 MB
DIGEST = 32  # bytes of a sha256
_BETWEEN = re.compile(r"[ \t\n\r]*(,?)[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_quoted = json.JSONEncoder().encode  # json.dumps would look at its options for every name


class ShardEntry(NamedTuple):
    name: str
    bytes: int
    sha256: str  # hexadecimal
    samples: int


_COUNT = core_schema.int_schema(strict=True, ge=0, lt=2**63)
_RULES = {
    "name": core_schema.str_schema(strict=True, pattern=r"^[^/\\\x00]+\.[tT][aA][rR]$"),
    "bytes": _COUNT,
    "sha256": core_schema.str_schema(strict=True, pattern=r"^[0-9a-f]{64}$"),
    "samples": _COUNT,
}
_ENTRIES = SchemaValidator(
    core_schema.list_schema(core_schema.typed_dict_schema({name: core_schema.typed_dict_field(rule) for name, rule in _RULES.items()}))
)


class ShardTable(Sequence[ShardEntry]):
    """Grows at its end.  Its entries are made when they are asked for."""

    def __init__(self, entries: Iterable[ShardEntry] = ()):
        self.names: list[bytes] = []  # as the file system has them
        self.bytes, self.samples = array("q"), array("q")  # of each shard
        self._digests = bytearray()  # the shards' sha256, DIGEST bytes each
        self.extend(entries)

    def extend(self, entries: Iterable[ShardEntry]) -> None:
        if rows := list(entries):
            self._grow(*zip(*rows, strict=True))

    def _grow(self, names: Sequence[str], sizes: Sequence[int], sha256s: Sequence[str], samples: Sequence[int]) -> None:
        self.names += map(os.fsencode, names)
        self.bytes.extend(sizes)
        self._digests += bytes.fromhex("".join(sha256s))
        self.samples.extend(samples)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, at: slice) -> list[ShardEntry]: ...
    def __getitem__(self, at: int | slice) -> ShardEntry | list[ShardEntry]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        return ShardEntry(os.fsdecode(self.names[at]), self.bytes[at], self.sha256(at), self.samples[at])

    def __iter__(self) -> Iterator[ShardEntry]:
        return map(self.__getitem__, range(len(self)))

    def sha256(self, number: int) -> str:
        """Hexadecimal."""
        number = range(len(self))[number]
        return self._digests[number * DIGEST : (number + 1) * DIGEST].hex()

    def pieces(self, form: str, between: str) -> Iterator[str]:
        """The entries in JSON, many together: each as `form` has it, with %(name)s, which brings its quotes, %(bytes)d, %(samples)d and %(sha256)s."""
        for first in range(0, len(self), STRETCH):
            told = (self[number]._asdict() for number in range(first, min(first + STRETCH, len(self))))
            yield (between if first else "") + between.join(form % (each | {"name": _quoted(each["name"])}) for each in told)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In a model it is taken as it is, and dumped as the list that it stands for."""
        dumped = core_schema.plain_serializer_function_ser_schema(lambda table: [entry._asdict() for entry in table])
        return core_schema.is_instance_schema(cls, serialization=dumped)


def parsed(text: str) -> dict[str, Any]:
    """A manifest's JSON object, as json.loads gives it, but for its list `shards`, which comes as a ShardTable and is read entry by entry.

    Raises ValueError for what is no JSON object, and pydantic's ValidationError, with the entry's place in the list, for an entry that is none.
    """
    found: dict[str, Any] = {}
    at = _past(text, 0, "{")
    if text[at : at + 1] != "}":
        while True:
            key, at = _DECODER.raw_decode(text, at)
            if not isinstance(key, str):
                raise ValueError(f"expecting a name in quotes before char {at}")
            at = _past(text, at, ":")
            found[key], at = _table(text, at) if key == "shards" and text[at : at + 1] == "[" else _DECODER.raw_decode(text, at)
            between = _BETWEEN.match(text, at)
            assert between is not None  # nothing is something, too
            at = between.end()
            if not between[1]:
                break
    if _past(text, at, "}") != len(text):
        raise ValueError("more behind its end")
    return found


def _table(text: str, at: int) -> tuple[ShardTable, int]:
    """The list that begins there, and where it ends."""
    table, at = ShardTable(), _past(text, at, "[")
    more = text[at : at + 1] != "]"
    while more:
        part: list[Any] = []
        while more and len(part) < STRETCH:
            entry, at = _DECODER.raw_decode(text, at)
            part.append(entry)
            between = _BETWEEN.match(text, at)
            assert between is not None  # nothing is something, too
            more, at = bool(between[1]), between.end()
        try:
            told = _ENTRIES.validate_python(part)
        except ValidationError as error:
            raise _further_on(error, len(table)) from None
        table._grow(*([entry[name] for entry in told] for name in ShardEntry._fields))
    return table, _past(text, at, "]")


def _further_on(error: ValidationError, entries: int) -> ValidationError:
    """Of a part of the list, which begins behind so many."""
    lines = [
        InitErrorDetails(
            type=PydanticCustomError("entry", "{said}", {"said": each["msg"]}),
            loc=("shards", entries + int(each["loc"][0]), *each["loc"][1:]),
            input=each["input"],
        )
        for each in error.errors()
    ]
    return ValidationError.from_exception_data("Manifest", lines)


def _past(text: str, at: int, what: str) -> int:
    """Behind this character, which must come next, and the blanks around it."""
    found = re.compile(rf"[ \t\n\r]*{re.escape(what)}[ \t\n\r]*").match(text, at)
    if found is None:
        raise ValueError(f"expecting {what!r} at char {at}")
    return found.end()
