"""The image sets of loader.py: the same JPEG bytes as files and as shards, made once.

    SET/once/       the unique images, one file each, as they lie in the shards
    SET/files/      `entries` files, 1000 to a folder: the unique images again and again, as hard links
    SET/shards/     the same in tars with mpp's manifest and index: the tars of the unique images again and again, as hard links
    SET/set.json    what loader_child.ImageSet reads; written last

So a set of any length takes the space of its unique images, and nothing that scales with the entries is spared a loader: names to list,
files to open, rows of an index, tars or chunks to deal out.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpp.data.shards import ShardSet
from mpp.data.write_shards import write_manifest

BATCH = 128
MAKE_SHARDS = Path(__file__).parents[1] / "data_prep" / "make_shards.py"


@dataclass(frozen=True)
class Source:
    """What a set is made of: an archive or a folder; options: further words for make_shards.py; side: pixels of a crop."""

    name: str
    images: Path
    side: int
    options: tuple[str, ...] = ()


def build(source: Source, work: Path, entries: int) -> Path:
    """The set's folder, made when it is not there."""
    place = hashlib.sha256(str(source.images.resolve()).encode()).hexdigest()[:8]
    folder = work / f"{source.name}-{entries}-{place}"  # other photographs, another set
    if (folder / "set.json").exists():
        return folder
    print(f"{source.name}: makes {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    chosen = folder / "chosen"
    chosen.mkdir(parents=True)
    for number, (suffix, data) in enumerate(spread(source.images, entries)):
        (chosen / f"{number:06d}{suffix}").write_bytes(data)
    made = folder / "made"
    command = [sys.executable, MAKE_SHARDS, chosen, made, "--max-rejects", "0.1", "--quiet", *source.options]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    shutil.rmtree(chosen)

    unpack(made / "train", folder / "once")
    unique = sorted((folder / "once").iterdir())
    copies = max(1, round(entries / len(unique)))
    repeat_files(unique, folder / "files", copies)
    repeat_shards(made / "train", folder / "shards", copies)
    shutil.rmtree(made)
    sizes = {"side": source.side, "batch": BATCH, "entries": copies * len(unique), "unique": len(unique), "copies": copies}
    (folder / "set.json").write_text(json.dumps(sizes))
    return folder


def spread(images: Path, most: int) -> Iterator[tuple[str, bytes]]:
    """Suffix and bytes of the JPEGs of a folder or an archive; where there are more than `most`, evenly spread ones."""
    if images.is_dir():
        paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        yield from ((path.suffix, path.read_bytes()) for path in paths[:: -(-len(paths) // most)])
        return
    with tarfile.open(images) as tar:
        members = [member for member in tar if member.isfile()]
        for member in members[:: -(-len(members) // most)]:
            file = tar.extractfile(member)
            assert file
            yield Path(member.name).suffix, file.read()


def unpack(shards: Path, folder: Path) -> None:
    folder.mkdir()
    opened = ShardSet.open(shards)
    for sample in range(len(opened)):
        (folder / f"{sample:06d}.jpg").write_bytes(opened.read(sample))


def repeat_files(unique: list[Path], folder: Path, copies: int) -> None:
    for number in range(copies * len(unique)):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(unique[number % len(unique)])


def repeat_shards(once: Path, folder: Path, copies: int) -> None:
    """The tars linked again and again, with keys that go on counting in the index."""
    folder.mkdir()
    opened, known = ShardSet.open(once), json.loads((once / "manifest.json").read_text())
    keys = int(opened.index["key"][-1]) + 1
    ends = np.cumsum(opened.samples_per_shard)[:-1]

    def shards() -> Iterator[tuple[dict, np.ndarray]]:
        for copy in range(copies):
            for entry, rows in zip(known["shards"], np.split(opened.index[:], ends), strict=True):
                name = f"{copy:04d}-{entry['name']}"
                (folder / name).hardlink_to(once / entry["name"])
                rows = rows.copy()
                rows["key"] += np.uint64(copy * keys)
                yield entry | {"name": name}, rows

    colours = np.ones((3, 256), dtype=np.int64)  # no loader looks at them
    write_manifest(
        folder, split="train", shards=shards(), classes=[], colours=colours, colour_images=1, rejects=0, source={"name": once.name}
    )
