"""Labels that are several: told apart from a class's name, and refused, as an image has one class here.

A source that has its labels by type (a list in JSON or parquet, an array) writes them as a JSON list; in a text several are only taken for that
where it is unmistakable.  A "great white shark" is one class, and so is "cat|dog" unless "cat" and "dog" are classes of their own.
"""

import ast
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

SHOWN = 8  # values of a list, for messages
LETTERS = 60
MORE = ", ...]"
NUMBER = r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"
_NUMBERS = re.compile(rf"{NUMBER}(?:(?:\s*[,;|]\s*|\s+){NUMBER})+")
READERS: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
_SEPARATORS = re.compile(r"[,;|]")


def list_text(values: Sequence[Any]) -> str:
    """Of a label that is a list, as `several_in` knows it again; its beginning, as a listing may hold one for every image."""
    text = json.dumps(values[:SHOWN], default=str)[:-1]
    return text + "]" if len(values) <= SHOWN and len(text) < LETTERS else text[:LETTERS] + MORE


def several_in(labels: Collection[str], *, digits_are_names: bool = False) -> str:
    """One of all labels of a source that is several, the least; empty where none is.  digits_are_names: so the user says."""
    known = set(labels)
    return min(
        (label for label in known if _is_list(label) or (not digits_are_names and _is_numbers(label)) or _joins(label, known)), default=""
    )


def said_of(label: str, *, names: bool = False) -> str:
    """What is the matter with it and what to do, for behind "has ".  names: whether --label-names would take it for a name."""
    shown = label if len(label) <= LETTERS else label[:LETTERS] + "..."
    said = (
        f"several labels, {shown!r}: multi-label targets are not supported, an image has one class; choose one with --label-field or in a list of "
        "path and label, or leave out --labels and --label-field for pretraining"
    )
    return said + ("; if this is the name of a class, give --label-names" if names and _is_numbers(label) else "")


def _is_numbers(label: str) -> bool:
    return bool(_NUMBERS.fullmatch(label.strip()))


def _is_list(label: str) -> bool:
    """Whether JSON, Python or numpy would write a list like that."""
    if not (label.startswith("[") and label.endswith("]")):
        return False
    inside = label[1:-1].strip()
    return (
        not inside
        or label.endswith(MORE)
        or bool(re.fullmatch(NUMBER, inside))
        or _is_numbers(inside)
        or any(_reads(read, f"[{inside}]") for read in READERS)
    )


def _reads(read: Callable[[str], Any], text: str) -> bool:
    try:
        return isinstance(read(text), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # [unknown] is a name
        return False


def _joins(label: str, known: Collection[str]) -> bool:
    parts = [part.strip() for part in _SEPARATORS.split(label)]
    return len(parts) > 1 and all(part in known for part in parts)
