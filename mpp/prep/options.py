"""What several programs read from the command line alike, and say alike."""

import argparse
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpp.base.errors import Parser, UserError
from mpp.remote.urls import Url, is_url

MAX_PIXELS_HELP = "larger images are rejects; a worker takes up to 16 bytes a pixel while it decodes one"


def parser_of(doc: str | None) -> Parser:
    """Of a program with this docstring: --help shows its first two paragraphs, what it is for and how it is called."""
    return Parser(description="\n\n".join((doc or "").split("\n\n")[:2]), formatter_class=_WithDefaults)


class _WithDefaults(argparse.RawDescriptionHelpFormatter):
    """Each option with the default that it has; one that is off, or follows from something else, has none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.option_strings and action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if shown else action.help


def at_least(lowest: int, most: int = 2**63 - 1) -> Any:
    """A whole number from the lowest to the most."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= most:
            limit = "" if most == 2**63 - 1 else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}{limit}")
        return int(text)

    return whole_number


def place(text: str) -> Path | Url:
    """A folder or file, or the URL of one."""
    return Url(text) if is_url(text) else Path(text)


def share(text: str) -> float:
    """From 0 to 1."""
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")


@contextmanager
def disk_errors(out: Path | str, remedy: str, kept: str, *, smaller: str = "") -> Iterator[None]:
    """What the file system refuses becomes one line that says how to go on.

    remedy: where the error itself tells none; kept: what a second run takes over; smaller: how files become so, such as ", or ...".
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        remedy = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "raise the quota or free some space",
            errno.EFBIG: f"choose a file system or a limit that allows larger files{smaller}",
        }.get(error.errno, remedy)
        raise UserError(
            f"{error.filename or out}: {error.strerror}; {remedy}, then run the same command again: finished {kept} are kept"
        ) from error
