"""An encoder for other libraries, with a certificate of how far it is from mpp's own there.

    python mpp/export.py RUN OUT --to timm transformers safetensors
    python mpp/export.py RUN OUT --teacher
    python mpp/export.py --check OUT

RUN is a run folder (its newest commit; also where checkpoint.copy_to has copied it, s3://...) or anything else that mpp reads as an encoder.  Writes OUT/timm (timm.create_model("local-dir:OUT/timm",
pretrained=True)), OUT/transformers (AutoModel and AutoImageProcessor), OUT/transformers-mae (ViTMAEForPreTraining with the run's decoder) and
OUT/safetensors (plain weights by timm's names); in each a CERTIFICATE.json, which --check measures again.  --teacher: the average of the encoder
that a run has learned from (data2vec, I-JEPA), which also lies in RUN/teacher once it has ended.
"""

# This file reads the command line and imports nothing slow; the rest is mpp/mains/export.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import Parser, interruptible, run_program

TARGETS = ("timm", "transformers", "transformers-mae", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    with interruptible():
        from mpp.mains.export import check_all, export  # here, because it takes seconds

    if arguments.check:
        return check_all(arguments.check)
    return export(arguments.encoder, arguments.out, list(dict.fromkeys(arguments.to or ["timm"])), arguments.teacher)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("encoder", nargs="?", metavar="RUN", help="a run folder, an encoder/ folder, a checkpoint, or timm:NAME")
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder to write into")
    parser.add_argument("--to", nargs="+", choices=TARGETS, action="extend", metavar="TARGET", help=f"{', '.join(TARGETS)} (default: timm)")
    parser.add_argument("--teacher", action="store_true", help="of a run: the teacher, an average of the encoder, instead of the encoder")
    parser.add_argument("--check", nargs="+", type=Path, metavar="FOLDER", help="measure the certificates of these folders again, and stop")
    arguments = parser.parse_args(argv)
    if arguments.check and (arguments.encoder or arguments.to or arguments.teacher):
        parser.error("--check takes folders alone")
    if not arguments.check and not arguments.out:
        parser.error("RUN and OUT are needed, such as: python mpp/export.py runs/b16 exported --to timm transformers")
    return arguments


if __name__ == "__main__":
    run_program(main)
