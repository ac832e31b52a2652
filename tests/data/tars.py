"""WebDataset tars as others write them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import picture


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pictures(keys: Iterable[int]) -> list[tuple[str, bytes]]:
    """A picture and a text of each key, whose pixels no other key has."""
    return [member for key in keys for member in ((f"{key:06d}.png", picture(key, 24, None)), (f"{key:06d}.txt", b"a caption"))]


def write_tars(folder: Path, counts: Iterable[int]) -> Path:
    """000.tar, 001.tar, ... of so many samples each, whose keys go on from tar to tar."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, count in enumerate(counts):
        write_tar(folder / f"{number:03d}.tar", pictures(range(first, first + count)))
        first += count
    return folder
