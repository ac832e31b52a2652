"""data_prep/make_shards.py with one constant changed, and the check of what it wrote; the interface of the peers beside this file.

    python mpp_tools.py make ROOT OUT WORKERS PER_SHARD RESIZE [COLOUR_IMAGES]
    python mpp_tools.py verify OUT WORKERS [full]
    python mpp_tools.py describe OUT
    python mpp_tools.py versions

make_shards.py decodes the first 10,000 images of a split for mean and standard deviation.  In a benchmark of a few thousand images that
would be all of them, in a real set it is a start-up cost; COLOUR_IMAGES (32 here) takes the place of the 10,000.

`verify` compares the sha256 of every shard; full: data_prep/verify_shards.py --full, which also decodes every image.
"""

import json
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import PIL

import mpp
from mpp.base.errors import run_program
from mpp.data.shard_format import read_manifest
from mpp.data.shards import ShardSet
from mpp.disk.files import sha256_of
from mpp.prep import shard_job

PROGRAMS = Path(__file__).parents[2] / "data_prep"

COLOUR_IMAGES = 32


def program(name: str) -> Callable[[list[str]], int]:
    return runpy.run_path(str(PROGRAMS / f"{name}.py"))["main"]


def make(root: str, out: str, workers: str, per_shard: str, resize: str, colour_images: str = str(COLOUR_IMAGES)) -> None:
    shard_job.MEAN_STD_IMAGES = int(colour_images)  # worker processes are forked and inherit it
    words = [root, out, "--workers", workers, "--samples-per-shard", per_shard, "--quiet", "--json"]
    run_program(lambda _: program("make_shards")([*words, *(["--resize", resize] if int(resize) else [])]))


def verify(out: str, workers: str, full: str = "") -> None:
    if full:
        run_program(lambda _: program("verify_shards")([f"{out}/train", "--full", "--quiet", "--workers", workers]))
    folder = Path(out) / "train"
    shards = list(read_manifest(folder)[0].shards)
    with ProcessPoolExecutor(int(workers)) as pool:
        for entry, found in zip(shards, pool.map(sha256_of, [folder / entry.name for entry in shards]), strict=True):
            if found != entry.sha256:
                raise SystemExit(f"{folder / entry.name}: sha256 is not the manifest's")


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "versions":
        print(json.dumps({"mpp": mpp.__version__, "pillow": PIL.__version__}))
    elif what == "describe":
        from describe import describe

        shards = ShardSet.open(Path(words[0]) / "train")
        print(json.dumps(describe(map(shards.read, range(len(shards))))))
    else:
        {"make": make, "verify": verify}[what](*words)
