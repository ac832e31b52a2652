"""One table over measurements: every results.json in and below the folders given, from mpp/linear_probe.py and mpp/finetune.py.

    python mpp/results.py runs/a runs/b                  (or, once installed: mpp results runs/a runs/b)
    python mpp/results.py runs/a runs/b --compare linear # and how far the encoders lie apart on the same images

Figures stand together only where they were measured on the same images.  Rows that several runs share (raw pixels, random initialisation of one
architecture and seed) are shown once.
"""

# This file reads the command line and imports nothing slow; the table is made by mpp/mains/results.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence

from mpp.base.errors import Parser, interruptible, run_program


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    with interruptible():
        from mpp.mains.results import tabulate  # here, because it takes seconds

    return tabulate(options.folders, options.compare, options.json)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="run folders, or folders that hold some")
    parser.add_argument(
        "--compare",
        metavar="PROBE",
        help="paired differences to the first encoder, by a probe as results.json names it (linear, knn, ...) or finetune",
    )
    parser.add_argument("--json", metavar="FILE", help="write the table and the differences there, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_program(main)
