"""What a run takes before it is queued: memory of each GPU by ZeRO stage, step time, images a second, days, what goes over the network, loader cores, and
what limits it.

    python mpp/plan.py --config configs/mae_l16.yaml --gpus 64 --gpu h100 [key=value ...]

Nothing is trained and no data is read: parameters, arithmetic and memory are counted on shapes, for any recipe.  What a GPU reaches of its limit has to
be measured: give --rate what benchmarks/step.py printed on one, or --gpu here to have this machine measured with a few steps.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/plan.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence

from mpp.base.errors import interruptible, run_program
from mpp.config.help import KeysParser, count, positive
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    config = load(PretrainConfig, arguments.config, arguments.words)
    with interruptible():
        from mpp.mains.plan import Machines, plan  # here, because it takes seconds

    given = vars(arguments)
    return plan(config, Machines(**{name: given[name] for name in Machines.__annotations__}), arguments.rate)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeysParser(PretrainConfig, description=__doc__)
    parser.add_argument("--config", help="a YAML file, such as configs/mae_l16.yaml")
    parser.add_argument("--gpus", type=count, default=8, help="processes, one a GPU (8)")
    parser.add_argument("--per-node", type=count, default=8, help="GPUs of a node (8)")
    parser.add_argument("--gpu", default="h100", help="h100, h200, a100, or here: this machine, which is measured (h100)")
    parser.add_argument("--rate", type=positive, help="images a second of one GPU on synthetic images, as benchmarks/step.py measured")
    parser.add_argument(
        "--network", type=positive, default=25.0, help="GB/s that a GPU sends to other nodes (25: a port of 200 Gbit/s for each)"
    )
    parser.add_argument("--cores", type=count, default=96, help="CPU cores of a node (96)")
    parser.add_argument(
        "--loader-rate",
        type=positive,
        default=1000.0,
        help="images a second and core, as mpp/loader_speed.py measures on your shards (1,000)",
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, such as data.global_batch=8192")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    run_program(main)
