"""What feeding a GPU from these shards takes on this machine: views a second and core by stage, the cores a GPU needs, where the limit is.

    python mpp/loader_speed.py --config configs/mpp_b16.yaml data.shards=shards/train [--rate 1500] [key=value ...]

Times the loader's own code on the samples of the first steps, in training order, with the config's crops, views and masks.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/loader_speed.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from functools import partial

from mpp.base.errors import interruptible, run_program
from mpp.config.help import KeysParser, positive, run_folder
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import anew, load


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    config = load(PretrainConfig, arguments.config, arguments.words)
    with interruptible():
        from mpp.mains.loader_speed import time_loader  # here, because it takes seconds

    again = partial(anew, PretrainConfig, arguments.config, arguments.words)
    return time_loader(config, run_folder(config.run_dir, arguments.config, "pretrain"), again, arguments.seconds, arguments.rate)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeysParser(PretrainConfig, description=__doc__)
    parser.add_argument("--config", help="a YAML file, such as configs/mpp_b16.yaml")
    parser.add_argument("--rate", type=positive, help="views a second that a GPU trains at (benchmarks/step.py measures it)")
    parser.add_argument("--seconds", type=positive, default=5.0, help="about how long each stage is timed")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, such as data.shards=shards/train")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    run_program(main)
