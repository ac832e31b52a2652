"""Pretrain a Vision Transformer by masked patch prediction.

    deepspeed mpp/pretrain.py --config configs/mpp_b16.yaml data.shards=shards/train run_dir=runs/b16 [key=value ...]

The same command again goes on from the newest checkpoint in run_dir.
"""

# This file reads the command line and imports nothing slow; the training loop is mpp/mains/pretrain.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from functools import partial

from mpp.base.errors import interruptible, run_program
from mpp.base.text import say_lines
from mpp.config.help import KeysParser, run_folder
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import anew, dump, load


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    config = load(PretrainConfig, arguments.config, arguments.words)
    if arguments.print_config:
        say_lines(dump(config))
        return 0
    run_dir = run_folder(config.run_dir, arguments.config, "pretrain")
    with interruptible():
        from mpp.mains.pretrain import pretrain  # here, because it takes seconds

    return pretrain(config, run_dir, argv, again=partial(anew, PretrainConfig, arguments.config, arguments.words))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeysParser(PretrainConfig, description=__doc__)
    parser.add_argument("--config", help="a YAML file, such as configs/mpp_b16.yaml")
    parser.add_argument("--print-config", action="store_true", help="print the merged config and stop")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # put there by the launcher; the rank comes from the environment
    parser.add_argument("--skip-samples", metavar="A:B", help="the same as data.skip_samples=A:B")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, such as optim.base_lr=1e-3 run_dir=runs/try")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.skip_samples:
        arguments.words.append(f"data.skip_samples={arguments.skip_samples}")
    return arguments


if __name__ == "__main__":
    run_program(main)
