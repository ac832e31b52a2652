"""The images of stores.py, made once, and the same bytes as each peer stores them.

SET/once/              the images, one file each: crops of photographs, cut at random and stored anew as JPEGs
SET/served/BUCKET/     what the store serves: mpp/ (tars with manifest and index, for mpp and webdataset), and what each peer has written
SET/set.json           what peers/store_child.py reads; written last
"""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from loader_sets import spread
from PIL import Image

BATCH, SIDE, BUCKET = 128, 224, "photos"
QUALITY = 95
MAKE_SHARDS = Path(__file__).parents[1] / "data_prep" / "make_shards.py"


def build(photos: Path, work: Path, shards: int, shard_mb: float) -> Path:
    """The set's folder, made when it is not there: so many shards, each of at least so many MB."""
    folder = work / f"set-{shards}x{shard_mb:g}"
    if (folder / "set.json").exists():
        return folder
    print(f"makes {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    once = folder / "once"
    once.mkdir(parents=True)
    images = [data for _, data in spread(photos, 1000)]
    random = np.random.default_rng(0)
    count, total = 0, 0
    while total < shards * shard_mb * 1e6 * 1.12:  # shards are cut by images, and images differ
        data = crop(images[random.integers(len(images))], random)
        (once / f"{count:06d}.jpg").write_bytes(data)
        count, total = count + 1, total + len(data)
    made, each = folder / "made", count // shards
    for number in range(shards * each, count):  # all shards have as many images
        path = once / f"{number:06d}.jpg"
        total -= path.stat().st_size
        path.unlink()
    count = shards * each
    command = [sys.executable, MAKE_SHARDS, once, made, "--samples-per-shard", each, "--max-rejects", "0", "--quiet"]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    served = folder / "served" / BUCKET
    served.mkdir(parents=True)
    (made / "train").rename(served / "mpp")
    shutil.rmtree(made)
    sizes = [path.stat().st_size for path in sorted((served / "mpp").glob("*.tar"))]
    known = {"side": SIDE, "batch": BATCH, "entries": count, "bucket": BUCKET, "image_bytes": total, "shards": len(sizes)}
    known |= {"shard_bytes": [min(sizes), max(sizes)], "samples_per_shard": each}
    (folder / "set.json").write_text(json.dumps(known))
    return folder


def crop(data: bytes, random: np.random.Generator) -> bytes:
    """A crop of 80 to 100 % of each side, so that hardly two images are the same."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = (max(SIDE, int(length * random.uniform(0.8, 1))) for length in image.size)
    left, top = (int(random.integers(max(1, whole - part + 1))) for whole, part in zip(image.size, (width, height), strict=True))
    buffer = io.BytesIO()
    image.crop((left, top, min(image.width, left + width), min(image.height, top + height))).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
