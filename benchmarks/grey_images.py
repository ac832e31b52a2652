"""A tar of images -> the same images without colour, as PNGs: what an encoder that has seen grey images alone is measured on.

    python benchmarks/grey_images.py ../shared/data/cifar10-test.tar.xz runs/grey/test.tar

Grey is ITU-R 601 luma (Pillow's "L"), the same in all three channels; names and folders stay, so data_prep/make_shards.py finds the labels.
"""

import argparse
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mpp.base.errors import DataError, Parser, run_program
from mpp.base.text import counted, say
from mpp.disk.files import write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a tar, compressed or not")
    parser.add_argument("out", type=Path)
    options = parser.parse_args(argv)
    greyed = io.BytesIO()
    try:
        with tarfile.open(options.source) as source, tarfile.open(fileobj=greyed, mode="w") as out:
            written = sum(copy(source, member, out) for member in source if member.isfile())
    except (tarfile.TarError, UnidentifiedImageError) as error:
        raise DataError(f"{options.source} is no tar of images ({error})") from error
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, greyed.getvalue())
    say(f"{options.out}: {counted(written, 'grey image')}")
    return 0


def copy(source: tarfile.TarFile, member: tarfile.TarInfo, out: tarfile.TarFile) -> int:
    opened = source.extractfile(member)
    assert opened is not None  # a file has content
    with Image.open(opened) as image:
        grey, encoded = image.convert("L").convert("RGB"), io.BytesIO()
    grey.save(encoded, "PNG")
    copied = tarfile.TarInfo(str(Path(member.name).with_suffix(".png")))
    copied.size = encoded.tell()
    encoded.seek(0)
    out.addfile(copied, encoded)
    return 1


if __name__ == "__main__":
    run_program(main)
