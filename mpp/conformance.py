"""What each paper says of a recipe, beside what is measured of it here.

    python mpp/conformance.py                       (every recipe that has claims)
    python mpp/conformance.py mpp_b16 mae_b16
    python mpp/conformance.py mae_b16 mask.ratio=0.5   (what an ablation changes)
    python mpp/conformance.py mae_b16 --config mine.yaml

Masks are drawn, small models are run on two images, large ones are built without memory: nothing is read but the YAML.  Exit status 1 where something
differs that is not declared, with its reason, among the claims or in the head of the YAML.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/conformance.py, the claims are in mpp/claims/papers/.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import Parser, interruptible, run_program

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    with interruptible():
        from mpp.mains.conformance import conform  # here, because it takes seconds

    words = [name for name in arguments.names if "=" in name]
    return conform([name for name in arguments.names if "=" not in name], arguments.config, words, CONFIGS, arguments.json)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="RECIPE|key=value", help="names of YAMLs in configs/, and overrides, such as mask.ratio=0.5"
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML of one's own, in place of the recipe's")
    parser.add_argument("--json", action="store_true", help="one object in place of the tables")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    run_program(main)
