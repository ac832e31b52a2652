"""Fit a codebook to patches of your own shards, by k-means, for target.name=codebook.

    python mpp/fit_codebook.py --config configs/beit_b16.yaml data.shards=SHARDS/train [clusters=8192] [key=value ...]
    python mpp/fit_codebook.py data.shards=SHARDS/train out=codebook.safetensors of='{name: hog}' model.image_size=224 model.patch_size=16

--config: a YAML of pretraining, whose seed, model and data sections count, and whose target.path is what is written.  Prints the error by iteration,
and of images that were not fitted to the error, the share of codes in use and their perplexity.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/fit_codebook.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence

from mpp.base.errors import interruptible, run_program
from mpp.base.text import say_lines
from mpp.config.codebook import CodebookConfig
from mpp.config.help import KeysParser
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import dump, load
from mpp.recipe.codes import CodebookKnobs


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    config = config_of(arguments)
    if arguments.print_config:
        say_lines(dump(config))
        return 0
    with interruptible():
        from mpp.mains.fit_codebook import fit  # here, because it takes seconds

    return fit(config)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeysParser(CodebookConfig, description=__doc__)
    parser.add_argument("--config", help="a YAML of pretraining, such as configs/beit_b16.yaml: its seed, model, data and target.path")
    parser.add_argument("--print-config", action="store_true", help="print the merged config and stop")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, such as clusters=512 out=codebook.safetensors")
    return parser.parse_intermixed_args(argv)


def config_of(arguments: argparse.Namespace) -> CodebookConfig:
    below = {}
    if arguments.config:
        run = load(PretrainConfig, arguments.config)
        below = run.model_dump(mode="json", include={"seed", "model", "data"})
        below |= {"out": run.target.path} if isinstance(run.target, CodebookKnobs) else {}
    return load(CodebookConfig, None, arguments.words, below)


if __name__ == "__main__":
    run_program(main)
