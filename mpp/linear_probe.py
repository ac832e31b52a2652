"""How well an encoder transfers with everything frozen: one table of linear, k-NN and few-shot probes and feature rank.

    python mpp/linear_probe.py encoder=RUN train=SHARDS/train test=SHARDS/test [key=value ...]
    deepspeed mpp/linear_probe.py ...        # on several GPUs or nodes: each image's features are computed once, by one of them

Beside the encoder stand two baselines under the same protocol, the same architecture at random initialisation and raw pixels, and the
encoders of beside=[...].  Every hyper-parameter comes from a hold-out of train; the test split is read once, at the end, and each read is
logged.  Without test= the figures are on a further hold-out of train that no choice has seen.
"""

# This file reads the command line (torch alone is imported for it: knobs stand with the probes' code); what is measured, in order, is mpp/mains/linear_probe.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
import sys
from collections.abc import Sequence

from mpp.base.errors import ConfigError, interruptible, run_program
from mpp.base.text import say_lines
from mpp.config.help import KeysParser
from mpp.config.probe import ProbeConfig
from mpp.config.schema import dump, load

NEEDED = "python mpp/linear_probe.py encoder=RUN train=SHARDS/train [test=SHARDS/test]"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    config = parse(words)
    if config is None:
        return 0
    with interruptible():
        from mpp.mains.linear_probe import probe  # here, because it takes seconds

    return probe(config, words)


def parse(words: list[str]) -> ProbeConfig | None:
    """None where there is nothing to measure."""
    parser = KeysParser(ProbeConfig, description=__doc__)
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="encoder=RUN train=SHARDS [test=SHARDS] ...; --print-config shows all"
    )
    parser.add_argument("--config", help="a YAML file of the same keys")
    parser.add_argument("--print-config", action="store_true", help="show the merged config and stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers pass it
    options = parser.parse_intermixed_args(words)
    config = load(ProbeConfig, options.config, options.words)
    if options.print_config:
        say_lines(dump(config))
        return None
    for key in ("encoder", "train"):
        if not getattr(config, key):
            raise ConfigError(f"{key}= is missing; {NEEDED}")
    return config


if __name__ == "__main__":
    run_program(main)
