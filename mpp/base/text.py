"""What a person is shown: every letter that comes from outside (names of files and classes, config, exceptions of libraries) prints.

`say` is how every program speaks; tests/base/test_text.py lets no other print in.  Beneath it lies `Cleaned`, for what libraries write.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

_PLAIN = re.compile(r"[ -~\xa1-\xac\xae-\u02ff]*")  # most texts: nothing to look at letter by letter
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|(?<!\A)\r(?!\n)")

making_room: Callable[[], AbstractContextManager[None]] = nullcontext
"""Around a line that is printed; mpp/base/progress.py takes its own line off the terminal meanwhile."""


def printable(text: object) -> str:
    """On one line, without anything that a terminal obeys: control characters, turns of the writing direction, letters without a shape and
    surrogates stand as Python writes them, such as \\\\x1b, \\\\n, \\\\u202e."""
    said = str(text)
    if _PLAIN.fullmatch(said):
        return said
    return "".join(letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else _escaped(letter) for letter in said)


def font_file() -> Path:
    """Of the letters in pictures: DejaVu Sans, which comes with matplotlib and has those of Europe's languages; Pillow's own has English alone."""
    import matplotlib  # here: only who draws needs it

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 shard", "1,234 shards", "3 classes" (many: where it is no mere s)."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def sized(count: float) -> str:
    """Bytes in words, in units of 1,000: "492 kB", "1.23 GB", "17 bytes"."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000, next(units)
    if unit == "bytes":
        return counted(round(count), "byte")
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:,.0f} {unit}"


def say(text: object = "", *, error: bool = False) -> None:
    """One line on stdout, or on stderr."""
    with making_room():
        print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def say_lines(text: str) -> None:
    """A text of several lines, such as a table: whoever lays it out has made the words in it `printable`."""
    for line in text.removesuffix("\n").split("\n"):
        say(line)


def say_json(facts: Any) -> None:
    """One object on a line of its own."""
    with making_room():
        print(json.dumps(facts).replace("\x7f", "\\u007f"), flush=True)  # JSON itself escapes all else


class Cleaned:
    """A stream of text, such as stdout, that writes no control characters but ends of lines, and the return with which a progress bar begins."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_CONTROLS.sub(lambda found: _escaped(found[0]), text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
