"""One run as one page that needs no network: how it went, curves, pictures, transfer, data, cost, config, how to have it again; or several runs compared.

    python mpp/report.py RUN                 # RUN/report.html
    python mpp/report.py RUN OTHER ...       # comparison.html: what differs in the config, curves over samples and time, paired differences

A run that goes on, or was stopped, has a page, too: of what it has written so far.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/report.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence

from mpp.base.errors import Parser, interruptible, run_program


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    with interruptible():
        from mpp.mains.report import report  # here, because it takes seconds

    return report(options.runs, options.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of mpp/pretrain.py or mpp/finetune.py")
    parser.add_argument(
        "--out", metavar="FILE", help="where to write it; of one run RUN/report.html unless given, of several comparison.html"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_program(main)
