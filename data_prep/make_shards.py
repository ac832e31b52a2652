"""A pile of images -> WebDataset shards with a manifest and an index.

    python data_prep/make_shards.py SOURCE OUT [--labels] [--val 0.01] [--resize 256]

The images are listed as a stream, shuffled by the seed in bounded memory (mpp/prep/shuffle.py) and numbered; then worker processes read, check and
write them, each a whole shard at a time, so that the result does not depend on how many there are.  Killed at any instant, the same command
goes on with the shards it lacks and ends with the same bytes.

On many machines: run the command with --part 0/8 ... 7/8, in any order and at any time, then once without --part: that makes whatever is
still missing and writes the manifest, and the result is the same as one process would have made.

SOURCE may be the URL of an archive, which is fetched once, or of a prefix of an object store, which is read in place.  OUT may be
s3://bucket/prefix: shards are made in a local folder (--scratch), uploaded and compared; what is finished is noted in the store, so that
parts on many machines see it.  A store has no locks: do not run the same part twice at a time (the bytes would still be right).

    OUT/.work/plan.json           what this OUT is being made from; a different command is refused
    OUT/.work/begun.json          the same before there is a plan: what another command left is not taken over
    OUT/.work/listing.json        what the source holds, once listed; beside it the shuffled order (*.items, *.offsets)
    OUT/.work/source.tar          SOURCE unpacked, while it is needed (only for compressed tars)
    OUT/.work/fetched/            SOURCE fetched from its URL, while it is needed
    OUT/.work/tiles/              with --tile: what the scans were cut into, as much disk as the shards; beside it the scans' order (scans/)
    OUT/.work/train-000003.done   a finished shard's rows; written after the shard has its name
    OUT/.work/drops               with --dedup: which images are repeats, once all shards were made; the shards that hold some are made anew
    OUT/rejects.jsonl             files that are no readable images
    OUT/duplicates.jsonl          images that are byte for byte another's
"""

# This file reads the command line and imports nothing slow; the work is mpp/prep/making.py.
from mpp.base.interrupts import quiet_until_main

quiet_until_main(__name__)


import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from mpp.base.errors import interruptible, run_program
from mpp.base.machine import usable_cores
from mpp.data.decode import MAX_PIXELS
from mpp.prep.holdout import Grouping
from mpp.prep.options import MAX_PIXELS_HELP, at_least, parser_of, place, share
from mpp.prep.prepare import QUALITY
from mpp.prep.sources import FORMATS


def main(argv: Sequence[str] | None = None) -> int:
    """Make the shards; returns 0.  Raises UserError, one line, for everything that can be mended."""
    args = parse(argv)
    with interruptible():
        from mpp.prep.making import run  # here, because it takes seconds

    return run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("source", type=place, metavar="SOURCE", help=f"of images: {', '.join(FORMATS)}; or the URL of one")
    parser.add_argument("out", type=place, metavar="OUT", help="a new folder or s3://bucket/prefix; gets train/ and, with --val, val/")
    parser.add_argument("--format", choices=FORMATS, help="what SOURCE is, where its content does not tell")
    parser.add_argument(
        "--checksum",
        metavar="HEX",
        help="md5 or sha256 that SOURCE must have, a file; in ImageNet's folder: the devkit's, or 'official' for all",
    )
    parser.add_argument(
        "--image-field", metavar="NAME", help="column of parquet or CSV, key of JSON lines or WebDataset field of the images"
    )
    parser.add_argument(
        "--label-field", metavar="NAME", help="the same of the labels, or a key of WebDataset's .json; unless given label, class or cls"
    )
    parser.add_argument("--labels", action="store_true", help="store class labels; in a tree the first folder level is the class")
    parser.add_argument("--label-names", action="store_true", help="labels that are numbers are names: classes are those that occur")
    parser.add_argument(
        "--class-level",
        type=at_least(1),
        metavar="N",
        help="folder level that is the class, 1 the outermost; unless given below splits, or 1",
    )
    parser.add_argument(
        "--split-level",
        type=at_least(0),
        metavar="N",
        help="folder level that is the split: train, val, test; 0 for none; unless given, found",
    )
    parser.add_argument(
        "--val",
        type=_val,
        default=0,
        metavar="X",
        help="images to keep apart in OUT/val: a share below 1 or a count; with --labels of each class alike",
    )
    parser.add_argument(
        "--group",
        type=_group,
        metavar="X",
        help="images that --val keeps together: of one value of the field X, of one folder at level X (1: the topmost), or re:REGEX in the name",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the shuffle and the choice of OUT/val")
    parser.add_argument("--samples-per-shard", type=at_least(1), default=2048, metavar="N", help="keys a shard")
    parser.add_argument(
        "--tile", type=at_least(8, 8192), metavar="T", help="cut each image into tiles of T x T pixels; --val keeps a scan whole"
    )
    parser.add_argument(
        "--overlap", type=at_least(0), default=0, metavar="O", help="pixels that neighbouring tiles share (at the right and lower rim more)"
    )
    parser.add_argument(
        "--window",
        type=_level,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="raw levels of grey deeper than 8 bits (16 and 32 bits, signed, floats) that become black and white; the others are clipped",
    )
    parser.add_argument("--check", choices=("header", "decode"), default="header", help="how an image that is copied is checked")
    parser.add_argument("--resize", type=at_least(8), metavar="S", help="shrink short sides above S pixels to S")
    parser.add_argument(
        "--encode", choices=("keep", "jpeg", "png", "webp"), default="keep", help="what to store; keep: shrunk images as JPEG"
    )
    parser.add_argument(
        "--quality", type=_quality, metavar="Q", help=f"of encoded images; unless given JPEG {QUALITY['JPEG']}, WebP {QUALITY['WEBP']}"
    )
    parser.add_argument(
        "--dedup", action="store_true", help="leave out images that are byte for byte another's; val's are kept before train's"
    )
    parser.add_argument("--max-pixels", type=at_least(1), default=MAX_PIXELS, metavar="N", help=MAX_PIXELS_HELP)
    parser.add_argument("--max-rejects", type=share, default=0.0, metavar="SHARE", help="share of unreadable images to go on with")
    parser.add_argument(
        "--part", type=_part, metavar="I/N", help="make only every N-th shard from the I-th on, I from 0; finish without it"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=usable_cores(), metavar="N", help="processes; the result does not depend on it"
    )
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where work is kept until it is in an OUT that is a URL (~/.cache/mpp)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="the closing summary as one JSON object")
    args = parser.parse_args(argv)
    if args.quality and (args.encode == "png" or not (args.resize or args.tile or args.encode != "keep")):
        parser.error("--quality is of encoded images; give --encode jpeg, --encode webp or --resize with it")
    if args.overlap and not args.tile:
        parser.error("--overlap is of tiles; give --tile with it")
    if args.tile and args.overlap >= args.tile:
        parser.error(f"--overlap {args.overlap} must be less than --tile {args.tile}, as the next tile begins so many pixels further on")
    if args.window and not args.window[0] < args.window[1]:
        parser.error(f"--window {args.window[0]} {args.window[1]}: the first level, which becomes black, must be below the second, white")
    args.window = tuple(args.window) if args.window else None
    for option, what in (("label_field", "where labels are"), ("label_names", "what labels are"), ("class_level", "where labels are")):
        if getattr(args, option) and not args.labels:
            parser.error(f"--{option.replace('_', '-')} says {what}; give --labels with it")
    if args.group and not args.val:
        parser.error("--group says what --val keeps together; give --val with it")
    return args


def _quality(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 100:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a quality from 1 to 100")


def _level(text: str) -> float | int:
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if math.isfinite(level):
        return int(level) if level.is_integer() else level
    raise argparse.ArgumentTypeError(f"{text!r} is not a level, a number")


def _val(text: str) -> float | int:
    try:
        return int(text) if text.isdecimal() else share(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share below 1 nor a count of images") from None


def _group(text: str) -> Grouping:
    try:
        return Grouping.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if part.isdecimal() and parts.isdecimal() and int(part) < int(parts):
        return int(part), int(parts)
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N-1, such as 0/8 ... 7/8")


if __name__ == "__main__":
    run_program(main)
