"""What would go wrong with a run, before it is begun: images, batch, learning rate, memory, loader, disks, network and clocks are looked at, in under a minute.

    python mpp/doctor.py --config configs/mae_b16.yaml data.shards=shards/train run_dir=runs/b16 [--gpus 16 --gpu h100] [--json]
    python mpp/doctor.py --config configs/finetune_b16.yaml encoder=runs/b16 train=shards/train test=shards/val run_dir=runs/b16-ft
    srun python mpp/doctor.py --config configs/mae_b16.yaml data.shards=/data/train run_dir=runs/b16

It takes the config and the words of mpp/pretrain.py, or of mpp/finetune.py, and knows by their keys which is meant.  Started on a login machine it looks
at that; started as the run is, inside the job, every process looks at its own machine, and they exchange tensors.  A run is neither begun nor changed, and
no image of a test split is looked at.  Exit status: 0 all is well, or there are warnings; 1 a check failed, or a process has died; 2 the command is wrong.
Below stand the keys of pretraining; those of fine-tuning: python mpp/finetune.py --help.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/doctor.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from functools import partial

from mpp.base.errors import ConfigError, interruptible, run_program
from mpp.config.finetune import FinetuneConfig
from mpp.config.help import KeysParser, count, run_folder
from mpp.config.pretrain import PretrainConfig
from mpp.config.probe import ProbeConfig
from mpp.config.schema import anew, given, known_keys, load, strange_keys


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    schema = schema_of(arguments)
    config = load(schema, arguments.config, arguments.words)
    of_file = load(schema, arguments.config, []) if arguments.config else None
    if isinstance(config, FinetuneConfig):
        config.refuse_missing()
    usual = "finetune" if isinstance(config, FinetuneConfig) else "pretrain"
    run_dir = run_folder(config.run_dir, arguments.config, usual)
    with interruptible():  # here, because it takes seconds
        from mpp.mains.doctor import Asked, Planned, examine
        from mpp.mains.doctor_finetuning import FinetuningExaminer
        from mpp.mains.doctor_pretraining import PretrainingExaminer

    planned = Planned(arguments.gpus, min(arguments.gpus, arguments.per_node), arguments.gpu, arguments.cores) if arguments.gpus else None
    again = partial(anew, schema, arguments.config, arguments.words)
    kind = FinetuningExaminer if isinstance(config, FinetuneConfig) else PretrainingExaminer
    return examine(kind, Asked(config, run_dir, again, of_file, planned), arguments.json)


def schema_of(arguments: argparse.Namespace) -> type[PretrainConfig] | type[FinetuneConfig]:
    """That of the program which knows most of the keys that file and words name; where several know as many, the first.  Raises ConfigError for those
    of a probe: what it refuses, it refuses in its first seconds."""
    tree = given(arguments.config, arguments.words)
    strange = {schema: len(strange_keys(schema, tree)) for schema in (PretrainConfig, FinetuneConfig, ProbeConfig)}
    fewest = min(strange.values())
    if fewest == strange[PretrainConfig]:
        return PretrainConfig
    if fewest == strange[FinetuneConfig]:
        return FinetuneConfig
    names = ", ".join(key for key in strange_keys(FinetuneConfig, tree) if key in known_keys(ProbeConfig))
    raise ConfigError(
        f"{names}: keys of mpp/linear_probe.py, which is not looked at here; it says itself what it cannot do, before it reads an image"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = KeysParser(PretrainConfig, description=__doc__)
    parser.add_argument("--config", help="a YAML file, such as configs/mae_b16.yaml or configs/finetune_b16.yaml")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")
    parser.add_argument("--gpus", type=count, help="on a login machine: how many GPUs the run is meant for, one a process")
    parser.add_argument("--per-node", type=count, default=8, help="of those, GPUs of a node (8)")
    parser.add_argument("--gpu", default="h100", help="their kind: h100, h200 or a100 (h100)")
    parser.add_argument("--cores", type=count, default=96, help="CPU cores of a node (96)")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # put there by the launcher; the rank comes from the environment
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides, such as data.shards=shards/train run_dir=runs/try")
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.gpus and (
        meant := [name for name in ("per_node", "gpu", "cores") if getattr(arguments, name) != parser.get_default(name)]
    ):
        option = f"--{meant[0].replace('_', '-')}"
        raise ConfigError(
            f"{option} {getattr(arguments, meant[0])} is of machines that are meant; say how many GPUs, such as --gpus 8, or leave it out"
        )
    if arguments.gpus and arguments.gpu not in ("h100", "h200", "a100"):
        raise ConfigError(f"--gpu {arguments.gpu} is not known; choose h100, h200 or a100")
    if arguments.gpus and arguments.gpus > arguments.per_node and arguments.gpus % arguments.per_node:
        raise ConfigError(
            f"--gpus {arguments.gpus} must be whole nodes of --per-node {arguments.per_node}; give a multiple, or another --per-node"
        )
    return arguments


if __name__ == "__main__":
    run_program(main)
