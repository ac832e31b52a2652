"""img2dataset over local files, by file:// URLs: no server, no network.  Interface as webdataset_loop.py.

Copy: disable_all_reencoding.  Resize: keep_ratio to 256 with the short side, only where larger (skip_reencode keeps the others),
INTER_AREA (its default; its cubic is not antialiased), JPEG quality 95, which OpenCV stores as 4:2:0.
What it does differently: sha256 of each downloaded image, a JSON field a sample and a Parquet table a shard are written too; the order
within a shard is that in which its threads finish; image content is not looked at when it copies; nothing is flushed to the disk.
On restart it skips shards whose *_stats.json exists.  `verify` is our loop: each image against the sha256 in its JSON (after copying only).
"""

import hashlib
import json
import multiprocessing
import os
import random
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # no look at the network at each start

THREADS = 8  # a process; its default of 256 is for slow servers


def make(root: str, out: str, workers: str, per_shard: str, resize: str) -> None:
    from img2dataset import download

    urls = Path(f"{out}.txt")
    if not urls.exists():
        paths = [Path(folder, name).resolve() for folder, _, names in os.walk(root) for name in names]
        random.Random(0).shuffle(paths)
        urls.write_text("\n".join(path.as_uri() for path in paths) + "\n")
    how = (
        {"resize_mode": "keep_ratio", "image_size": int(resize), "resize_only_if_bigger": True, "skip_reencode": True, "encode_quality": 95}
        if int(resize)
        else {"resize_mode": "no", "disable_all_reencoding": True}
    )
    download(
        str(urls),
        output_folder=out,
        output_format="webdataset",
        processes_count=int(workers),
        thread_count=THREADS,
        number_sample_per_shard=int(per_shard),
        extract_exif=False,
        compute_hash="sha256",
        max_shard_retry=0,
        **how,
    )


def verify(out: str, workers: str) -> None:
    with multiprocessing.Pool(int(workers)) as pool:
        wrong = sum(pool.map(wrong_hashes, sorted(Path(out).glob("*.tar"))))
    if wrong:
        raise SystemExit(f"{wrong} images differ from their sha256")


def wrong_hashes(shard: Path) -> int:
    expected = json.loads(shard.with_name(f"{shard.stem}_stats.json").read_text())["successes"]
    found = wrong = 0
    image = b""
    with tarfile.open(shard) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file
            if member.name.endswith(".jpg"):
                image = file.read()
            elif member.name.endswith(".json"):
                found += 1
                wrong += hashlib.sha256(image).hexdigest() != json.loads(file.read())["sha256"]
    return wrong + expected - found


def stored(out: str) -> Iterator[bytes]:
    for shard in sorted(Path(out).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file
                    yield file.read()


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "versions":
        import img2dataset  # noqa: F401 (whether it can be imported)

        print(json.dumps({name: version(name) for name in ("img2dataset", "opencv-python-headless", "webdataset")}))
    elif what == "describe":
        from describe import describe

        print(json.dumps(describe(stored(*words))))
    else:
        {"make": make, "verify": verify}[what](*words)
