"""WebDataset tars of any origin -> a manifest and an index beside them, so that they are trained on where they lie.

    python data_prep/index_shards.py FOLDER [--labels]
    python data_prep/index_shards.py s3://bucket/tars [--labels]      # gs:// likewise

No tar is copied, moved or changed.  Worker processes read each tar once, one tar each: its sha256, where every image lies, the CRC-32 and the
size of each, and the colours of some.  Killed at any instant, the same command goes on with the tars it lacks and ends with the same bytes.

FOLDER may be a prefix of an object store.  Each tar is then fetched once into --scratch, which holds one tar a worker at a time, and what is
written below goes into the store; training reads the set from there (data.shards=s3://bucket/tars).

    FOLDER/index.bin          where the images lie
    FOLDER/manifest.json      written last: without it FOLDER is no set of shards
    FOLDER/rejects.jsonl      what is not readable, or of a kind that must be converted (make_shards.py does that)
    FOLDER/.work/*.done       the rows of a finished tar, while the others are missing
"""

# This file reads the command line and imports nothing slow; the work is mpp/prep/indexing.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import interruptible, run_program
from mpp.base.machine import usable_cores
from mpp.data.decode import MAX_PIXELS
from mpp.prep.options import MAX_PIXELS_HELP, at_least, parser_of, place, share


def main(argv: Sequence[str] | None = None) -> int:
    """Index the tars; returns 0.  Raises UserError, one line, for everything that can be mended."""
    args = parse(argv)
    with interruptible():
        from mpp.prep.indexing import run  # here, because it takes seconds

    return run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "out", type=place, metavar="FOLDER", help="of WebDataset tars, or s3://bucket/prefix of them; gets manifest.json and index.bin"
    )
    parser.add_argument("--labels", action="store_true", help="index class labels: the numbers in the field cls")
    parser.add_argument("--image-field", metavar="NAME", help="field of the images, where keys have several")
    parser.add_argument("--label-field", metavar="NAME", help="field, or key of the field json, that holds the class number")
    parser.add_argument("--check", choices=("header", "decode"), default="header", help="how an image is checked")
    parser.add_argument("--max-pixels", type=at_least(1), default=MAX_PIXELS, metavar="N", help=MAX_PIXELS_HELP)
    parser.add_argument("--max-rejects", type=share, default=0.0, metavar="SHARE", help="share of unreadable images to go on with")
    parser.add_argument(
        "--workers", type=at_least(1), default=usable_cores(), metavar="N", help="processes; the result does not depend on it"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where tars of a URL are fetched to, one a worker at a time (~/.cache/mpp)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.label_field and not args.labels:
        parser.error("--label-field says where labels are; give --labels with it")
    return args


if __name__ == "__main__":
    run_program(main)
