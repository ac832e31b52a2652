"""Look inside an encoder: filters, positions, how far and how widely each head looks, attention maps, patch tokens as colours.

    python mpp/inside.py encoder=RUN images=FOLDER [key=value ...]
    python mpp/inside.py encoder=timm:vit_base_patch16_224 images=SHARDS/val out=inside

RUN is a run folder (its newest commit) or anything else that mpp reads as an encoder, any model of timm's too; FOLDER holds images or shards.  Writes
into out= (RUN/inside) one picture a subject and inside.json with the numbers behind them; its layout stands at the top of mpp/mains/inside.py, and
docs/inside.md says how to read the pictures.  What an architecture does not have is named, not drawn.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/inside.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
import sys
from collections.abc import Sequence

from mpp.base.errors import ConfigError, interruptible, run_program
from mpp.base.text import say_lines
from mpp.config.help import KeysParser
from mpp.config.inside import InsideConfig
from mpp.config.schema import dump, load

NEEDED = "python mpp/inside.py encoder=RUN images=FOLDER"


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(list(sys.argv[1:] if argv is None else argv))
    if config is None:
        return 0
    with interruptible():
        from mpp.mains.inside import look_inside  # here, because it takes seconds

    return look_inside(config)


def parse(words: list[str]) -> InsideConfig | None:
    """None where there is nothing to look at."""
    parser = KeysParser(InsideConfig, description=__doc__)
    parser.add_argument("words", nargs="*", metavar="key=value", help="encoder=RUN images=FOLDER ...; --print-config shows all")
    parser.add_argument("--config", help="a YAML file of the same keys")
    parser.add_argument("--print-config", action="store_true", help="show the merged config and stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers pass it
    options = parser.parse_intermixed_args(words)
    config = load(InsideConfig, options.config, options.words)
    if options.print_config:
        say_lines(dump(config))
        return None
    for key in ("encoder", "images"):
        if not getattr(config, key):
            raise ConfigError(f"{key}= is missing; {NEEDED}")
    return config


if __name__ == "__main__":
    run_program(main)
