"""Where raw images come from.  `open_source` finds out what a path is."""

import tarfile
import zipfile
from functools import partial
from pathlib import Path

from mpp.errors import DataError
from sources.archives import MAGIC, PackedTar, Tar, Zip
from sources.base import IMAGE_SUFFIXES, Source, SourceOptions
from sources.folder import Folder

FORMATS = ("folder", "zip", "tar", *MAGIC.values())
_REMEDY = "give a folder of images, a .zip, .tar, .tar.gz, .tar.xz or .tar.zst"


def open_source(where: Path | str, leave_out: Path | str, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 (frozen)
    """The source at a path, or at a URL (a str), by its content; leave_out: a folder that is not part of it.

    Raises DataError for anything else.
    """
    if isinstance(where, str):
        return _open_url(where, str(leave_out), options)
    path = where
    if path.is_dir():
        return Folder(path, Path(leave_out))
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_REMEDY}")
    with path.open("rb") as file:
        start = file.read(6)
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


def _open_url(url: str, leave_out: str, options: SourceOptions) -> Source:
    """A file is fetched first; a prefix of an object store is read in place."""
    from remote import stat  # which imports sources.base

    from sources.bucket import Bucket
    from sources.fetched import Fetched

    info = stat(url)
    if info is None:
        if options.checksum or options.format not in (None, "folder"):
            raise DataError(f"{url}: is no file but a prefix, which is read as a folder of images; leave out --checksum and --format")
        return Bucket(url, leave_out)
    return Fetched(url, info, partial(open_source, leave_out=leave_out, options=options))
