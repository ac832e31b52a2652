"""What is in these shards?  A page of text, and a picture of it.

    python data_prep/inspect_shards.py FOLDER [--out DIR] [--images 64]
    python data_prep/inspect_shards.py SPLIT --config        # only which config suits them, for scripts

FOLDER is a split (OUT/train) or OUT, for all its splits, or the URL of one (s3://bucket/train, gs://, https://): then the shards of the chosen
images are fetched, whole, into a folder of TMPDIR (mpp-cache-UID), where training that is given no other finds them.  The text: images, bytes, shards, sizes, formats, colours, balance of the classes.
The picture, inspect-<split>.png beside the split or in DIR: images chosen by --seed, evenly over the shards, each with its class, above the
sizes, the classes and the colours.  Nothing is verified beyond what opening a set checks and the CRC-32 of the images shown.
"""

# This file reads the command line and imports nothing slow; the work is mpp/prep/inspecting.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import interruptible, run_program
from mpp.prep.options import at_least, parser_of, place

MOST_IMAGES = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0.  Raises DataError for shards that cannot be opened."""
    args = parse(argv)
    with interruptible():
        from mpp.prep.inspecting import run  # here, because it takes seconds

    return run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "folder", type=place, metavar="FOLDER", help="a split, such as OUT/train, or OUT for all its splits; or the URL of one"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the picture goes; unless given beside the split, of a URL here")
    parser.add_argument("--images", type=at_least(0, MOST_IMAGES), default=64, metavar="N", help="images to show")
    parser.add_argument("--seed", type=at_least(0), default=0, help="which images those are")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="the facts as one JSON object instead of text")
    parser.add_argument("--config", action="store_true", help="print the path of the config that suits these images, and nothing else")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_program(main)
