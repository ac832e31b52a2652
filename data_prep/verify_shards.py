"""Are these shards what they were when they were made?

    python data_prep/verify_shards.py FOLDER [FOLDER ...] [--full]
    python data_prep/verify_shards.py s3://bucket/train [--full]      # gs:// likewise

FOLDER is a split (OUT/train) or OUT, for all its splits.  Of one in an object store sizes are those of a listing, the chosen images are fetched
one by one, and with --full each shard is fetched once, whole, into --scratch, which holds one shard a worker at a time.  Without --full: the manifest, the index's hash and rows, the size of every shard,
and --sample images, spread over all shards by --seed (CRC-32, tar header, format, size in pixels).  With --full: every byte.  Each shard's
sha256, each tar walked by hand against the index, each image's CRC-32 and pixels, each label, and what the manifest says of all of them
worked out anew, so that one flipped bit anywhere is found.

Every fault is counted; the first of each kind are listed by shard, key and byte.  Exit status 0: none; 1: faults; 2: nothing could be checked.

Of tars that were indexed where they lie (index_shards.py) the images, their place, size and CRC-32 and each tar's sha256 are checked, and
--full names each image that the index does not list, also behind the end mark, and bytes there that are no tar; the images' names, other
members and what fills up blocks are their maker's affair.  An image that never could be decoded is a fault too: make_shards.py looks at
the headers only, unless --check decode.

What cannot be found: a manifest that was changed together with its `check` in what follows from nothing else (names of classes, `source`,
`mpp`, `split`, the number of rejects after the last key), or a whole set replaced by another one.  Keep the sha256 of manifest.json elsewhere
against that: run folders do.
"""

# This file reads the command line and imports nothing slow; the work is mpp/prep/verifying.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import interruptible, run_program
from mpp.base.machine import usable_cores
from mpp.prep.options import at_least, parser_of, place


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 without faults, 1 with."""
    args = parse(argv)
    with interruptible():
        from mpp.prep.verifying import run  # here, because it takes seconds

    return run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "folders",
        type=place,
        nargs="+",
        metavar="FOLDER",
        help="a split, such as OUT/train, or OUT for all its splits; or s3://..., gs://...",
    )
    parser.add_argument("--full", action="store_true", help="read every byte and decode every image")
    parser.add_argument("--sample", type=at_least(0), default=1000, metavar="N", help="images a split to look at without --full")
    parser.add_argument("--seed", type=at_least(0), default=0, help="which images those are")
    parser.add_argument("--workers", type=at_least(1), default=usable_cores(), metavar="N", help="processes")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where shards of a URL are fetched to, one a worker at a time (~/.cache/mpp)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="the findings as one JSON object")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_program(main)
