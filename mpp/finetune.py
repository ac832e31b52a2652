"""Fine-tune an encoder end to end on labelled images, at any resolution, and measure it once on a test split.

    deepspeed mpp/finetune.py --config configs/finetune_b16.yaml encoder=RUN train=SHARDS/train test=SHARDS/test [key=value ...]

Whatever is chosen (weights or their average, and by you: learning rates, epochs) is chosen on a hold-out of train.  init=random is the baseline:
the same architecture from scratch at the same budget.
"""

# This file reads the command line and imports nothing slow; the training loop is mpp/mains/finetune.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from functools import partial

from mpp.base.errors import interruptible, run_program
from mpp.base.text import say_lines
from mpp.config.finetune import FinetuneConfig
from mpp.config.help import KeysParser, run_folder
from mpp.config.schema import anew, dump, load


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    config = load(FinetuneConfig, arguments.config, arguments.words)
    if arguments.print_config:
        say_lines(dump(config))
        return 0
    config.refuse_missing()
    run_dir = run_folder(config.run_dir, arguments.config, "finetune")
    with interruptible():
        from mpp.mains.finetune import finetune  # here, because it takes seconds

    return finetune(config, run_dir, argv, again=partial(anew, FinetuneConfig, arguments.config, arguments.words))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeysParser(FinetuneConfig, description=__doc__)
    parser.add_argument("--config", help="a YAML file, such as configs/finetune_b16.yaml")
    parser.add_argument("--print-config", action="store_true", help="print the merged config and stop")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # put there by the launcher; the rank comes from the environment
    parser.add_argument("words", nargs="*", metavar="key=value", help="encoder=RUN train=SHARDS [test=SHARDS] optim.base_lr=1e-3 ...")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    run_program(main)
