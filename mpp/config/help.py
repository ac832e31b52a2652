"""A command line of key=value words, whose --help is the page of knobs: each key, its default and the comment behind it in the source."""

import argparse
import ast
import inspect
import json
import math
import re
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import yaml
from pydantic import BaseModel

from mpp.base.errors import Parser, UserError
from mpp.config.schema import Dumper, Section, known_keys


class KeysParser(Parser):
    """A command line of key=value words: --help ends with every key of the config."""

    def __init__(self, schema: type[Section], **more: Any):
        super().__init__(**more)
        self.schema = schema

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"unrecognized arguments: --?([A-Za-z][\w.-]*)", message):
            key = found[1].replace("-", "_")
            raise UserError(
                f"{message}; keys have no dashes before them, such as {key if key in known_keys(self.schema) else 'seed'}=...; --help lists them"
            )
        super().error(message)

    def format_help(self) -> str:
        self.epilog = explain(self.schema)
        return super().format_help()


def run_folder(given: str | None, file: str | None, usual: str) -> Path:
    """Where a run lies: where it was said, or runs/NAME of the YAML file, or of the program."""
    return Path(given or f"runs/{Path(file).stem if file else usual}")


def positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be positive")
    return value


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1 on")
    return int(text)


def explain(schema: type[Section]) -> str:
    """Every key with its default and the comment behind it, a line each: what --help shows."""
    lines = list(explained(schema, ""))
    wide = min(44, max(len(words) for words, _ in lines))
    return "keys, their defaults and units:\n" + "\n".join(f"  {words:{wide}}  {comment}".rstrip() for words, comment in lines)


def explained(schema: type[BaseModel], prefix: str) -> typing.Iterator[tuple[str, str]]:
    """Of every key below this prefix KEY=DEFAULT, and the comment behind it, which begins with the choice that it is of unless that is the default."""
    comments: dict[str, str] = {}
    leaves = {name for name, field in schema.model_fields.items() if not _sections_of(field.annotation)}
    for parent in reversed(schema.__mro__):
        if issubclass(parent, Section) and leaves & vars(parent).get("__annotations__", {}).keys():  # a composed one has no source
            comments |= _comments_of(parent)
    for name, field in schema.model_fields.items():
        kinds = _sections_of(field.annotation)
        if not kinds:
            default = None if field.is_required() else field.get_default()
            shown = (
                yaml.dump(default, Dumper=Dumper, default_flow_style=True, width=1 << 16)
                if default is None or isinstance(default, str)
                else ""
            )
            text = (shown or json.dumps(default)).removesuffix("\n").removesuffix("\n...")
            yield f"{prefix}{name}={text if not field.is_required() else ''}", comments.get(name, "")
        for kind in kinds:
            row = next(iter(explained(kind, "")))[0] if len(kinds) > 1 or "name" in kind.model_fields else ""
            for words, comment in explained(kind, f"{prefix}{name}."):
                chosen = isinstance(field.default, kind) or not row
                yield words, comment if chosen else f"({prefix}{name}.{row}) {comment}".rstrip()


@dataclass(frozen=True)
class Knob:
    default: Any
    comment: str  # unit, and where the default comes from


def knobs_of(config: BaseModel, prefix: str = "") -> dict[str, Knob]:
    """By dotted key, of the sections that this config has chosen."""
    comments: dict[str, str] = {}
    for parent in reversed(type(config).__mro__):
        if issubclass(parent, Section) and parent is not Section:
            comments |= _comments_of(parent)
    found: dict[str, Knob] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= knobs_of(value, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            found[prefix + name] = Knob(default, comments.get(name, ""))
    return found


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    return [kind for kind in _kinds_of(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _kinds_of(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [kind for part in typing.get_args(annotation) for kind in _kinds_of(part)]
    return [annotation]


def _comments_of(schema: type[BaseModel]) -> dict[str, str]:
    """What stands behind each field of a section in the source: these files are the one page on which a knob is described."""
    lines, _ = inspect.getsourcelines(schema)
    found: dict[str, str] = {}
    for statement in ast.parse(textwrap.dedent("".join(lines))).body[0].body:  # type: ignore[attr-defined]
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            behind = [lines[number - 1].partition("  # ")[2].strip() for number in range(statement.lineno, (statement.end_lineno or 0) + 1)]
            told = (words.removeprefix("fmt: skip").removeprefix("  # ") for words in behind)
            found[statement.target.id] = " ".join(words for words in told if words)
    return found
