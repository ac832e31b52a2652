"""Take a step of a run again, on a CPU: which module's output, or gradient, ceased to be finite first, and which images did it.

    python mpp/replay.py RUN/flight/rank0.json [step=N] [weights=RUN/checkpoints/N] [key=value ...]
    python mpp/replay.py RUN/flight/skipped-1200.rank0.json

RUN/flight is what a run leaves, of pretraining or fine-tuning, that stopped before its end or skipped a step (mpp/train/flight.py).  The rank's batch
of the step is made again, with the same crops and masks, or labels and mixing, and compared with what was noted.  Then forward and backward pass are
taken, in fp32 and in the run's precision, with an eye on every module.  Writes replay.json, and replay.png of the images, beside the dump (out=).
docs/troubleshooting.md says what is exact, and what to do about what it finds.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/replay.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
import sys
from collections.abc import Sequence

from mpp.base.errors import ConfigError, interruptible, run_program
from mpp.base.text import say_lines
from mpp.config.help import KeysParser
from mpp.config.replay import ReplayConfig
from mpp.config.schema import dump, load

NEEDED = "python mpp/replay.py RUN/flight/rank0.json"


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(list(sys.argv[1:] if argv is None else argv))
    if config is None:
        return 0
    with interruptible():
        from mpp.mains.replay import replay  # here, because it takes seconds

    return replay(config)


def parse(words: list[str]) -> ReplayConfig | None:
    """None where there is nothing to replay."""
    parser = KeysParser(ReplayConfig, description=__doc__)
    parser.add_argument("words", nargs="*", metavar="DUMP or key=value", help="RUN/flight/rankN.json step=...; --print-config shows all")
    parser.add_argument("--config", help="a YAML file of the same keys")
    parser.add_argument("--print-config", action="store_true", help="show the merged config and stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers pass it
    options = parser.parse_intermixed_args(words)
    config = load(ReplayConfig, options.config, [word if "=" in word else f"dump={word}" for word in options.words])
    if options.print_config:
        say_lines(dump(config))
        return None
    if not config.dump:
        raise ConfigError(f"the dump is missing; {NEEDED}")
    return config


if __name__ == "__main__":
    run_program(main)
