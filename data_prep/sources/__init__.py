"""Where raw images come from.  `open_source` finds out what a path is."""

import tarfile
import zipfile
from collections import Counter
from pathlib import Path

from mpp.errors import DataError
from sources.archives import MAGIC, PackedTar, Tar, Zip
from sources.base import IMAGE_SUFFIXES, Source, SourceOptions
from sources.folder import Folder
from sources.parquet import PARQUET_MAGIC, is_parquet, open_parquet
from sources.webdataset import is_webdataset, open_webdataset

FORMATS = ("folder", "zip", "tar", *MAGIC.values(), "parquet", "webdataset")
_REMEDY = "give a folder of images, a .zip, .tar, .tar.gz, .tar.xz or .tar.zst, parquet files or a folder of WebDataset tars"


def open_source(path: Path, leave_out: Path, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 (frozen)
    """The source at `path`, by its content; leave_out: a folder that is not part of it.  Raises DataError for anything else."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_REMEDY}")
    if options.format == "webdataset" or (options.format is None and path.is_dir() and is_webdataset(path, leave_out)):
        return open_webdataset(path, options)
    if options.format == "parquet" or (options.format is None and path.is_dir() and is_parquet(path)):
        return open_parquet(path, options)
    if path.is_dir():
        return Folder(path, leave_out)
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(PARQUET_MAGIC):
        return open_parquet(path, options)
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return PackedTar(path, kind)
    if zipfile.is_zipfile(path):
        return Zip(path)
    if tarfile.is_tarfile(path):
        return Tar(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: is a single file; give the folder that holds the images: {path.parent}")
    raise DataError(f"{path}: is neither a folder nor a whole archive of a known kind; {_REMEDY}")


def other_format(source: Source, ignored: Counter) -> str:
    """Advice where a folder of images holds files that may have been meant instead; empty where it does not."""
    meant = [(suffix, kind) for suffix, kind in ((".tar", "webdataset"), (".parquet", "parquet")) if ignored[suffix]]
    if source.kind != "folder" or not meant:
        return ""
    return f"for its {ignored[meant[0][0]]} {meant[0][0]} files say --format {meant[0][1]}"
