"""Words of the command line that several programs read alike."""

import argparse
import sys
from typing import Any

MAX_PIXELS_HELP = "larger images are rejects; a worker takes up to 16 bytes a pixel while it decodes one"


def at_least(lowest: int, most: int = 2**63 - 1) -> Any:
    """A whole number from the lowest to the most."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= most:
            limit = "" if most == 2**63 - 1 else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}{limit}")
        return int(text)

    return whole_number


def share(text: str) -> float:
    """From 0 to 1."""
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")


def progress(args: argparse.Namespace) -> dict[str, Any]:
    """A log file gets a line now and then instead of a moving bar."""
    return {"disable": args.quiet, "dynamic_ncols": True, "mininterval": 0.2 if sys.stderr.isatty() else 30.0}
