"""Every key of a config, and tables of what must change when one of them does."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel


@dataclass(frozen=True)
class Change:
    """One key with another value, and what is then seen.

    words: that change it.  sees: observations that must differ from those of the reference.  beside: words that both runs get.
    same: observations that must not differ.
    """

    words: str
    sees: str
    beside: str = ""
    same: str = ""


def keys(schema: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted keys of all leaves that can have another value; the rows of a union section are laid over each other."""
    found = set()
    for name, field in schema.model_fields.items():
        sections, pending = [], [field.annotation]
        while pending:
            kind = pending.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                sections.append(kind)
            elif typing.get_origin(kind) in (typing.Union, types.UnionType, Annotated):
                pending += typing.get_args(kind)
        if not sections:
            found.add(prefix + name)
        if len(sections) > 1:
            found.add(f"{prefix}{name}.name")
        for section in sections:
            found |= {key for key in keys(section, f"{prefix}{name}.") if not _has_one_value(section, key.rpartition(".")[2])}
    return found


def _has_one_value(section: type[BaseModel], name: str) -> bool:
    kind = section.model_fields[name].annotation if name in section.model_fields else None
    return typing.get_origin(kind) is Literal and len(typing.get_args(kind)) == 1


def faults(changes: Mapping[str, Sequence[Change]], observed: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """One line for each observation that is the same and should not be, or the other way round.  observed: (beside, words) -> observations."""
    lines = []
    for key, rows in changes.items():
        for row in rows:
            assert any(word.startswith((key + "=", key.split(".")[0] + "=")) for word in split(row.words)), f"{key}: {row.words}"
            before, after = observed[row.beside, ""], observed[row.beside, row.words]
            for name in row.sees.split():
                if before.get(name) == after.get(name):
                    lines.append(f"{row.words}: {name} is {after.get(name)} as before")
            for name in row.same.split():
                if before.get(name) != after.get(name):
                    lines.append(f"{row.words}: {name} was {before.get(name)} and is {after.get(name)}")
    return lines


def split(words: str) -> list[str]:
    """Words of a row, between two blanks each."""
    return [word for word in words.split("  ") if word]
