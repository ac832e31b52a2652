"""What a program that looks at shards was given: a split's folder, or one with splits in it."""

from pathlib import Path

from mpp.data.shard_format import MANIFEST
from mpp.errors import DataError


def splits_of(folder: Path) -> list[Path]:
    """The splits at a path; one that lost its manifest is still a split.  Raises DataError where there is none."""

    def holds_shards(path: Path) -> bool:
        return path.is_dir() and ((path / MANIFEST).exists() or any(path.glob("*.tar")))

    try:
        if holds_shards(folder):
            return [folder]
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give a split, such as OUT/train, or the OUT of make_shards.py")
        found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and holds_shards(path))
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror}; check that it can be read") from error
    if not found:
        raise DataError(f"{folder}: holds neither shards nor splits; give a split, such as OUT/train, or the OUT of make_shards.py")
    return found
