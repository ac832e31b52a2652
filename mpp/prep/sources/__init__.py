"""Where raw images come from.  `open_source` finds out what a path is."""

import tarfile
import zipfile
from functools import partial
from pathlib import Path

from mpp.base.errors import DataError, UserError
from mpp.data.cifar import CLASSES as CIFAR
from mpp.data.cifar import LAYOUTS
from mpp.data.class_folders import IMAGE_SUFFIXES
from mpp.prep.source import Source, SourceOptions
from mpp.prep.sources.archives import MAGIC, PackedTar, Tar, Zip
from mpp.prep.sources.checksum import checked, parse_checksum
from mpp.prep.sources.cifar import Cifar, folder_inside
from mpp.prep.sources.folder import Folder
from mpp.prep.sources.imagenet import TRAIN, ImageNet, is_imagenet
from mpp.prep.sources.lists import ROWS, ListFile, beginning, kind_of_list
from mpp.prep.sources.parquet import PARQUET_MAGIC, is_parquet, open_parquet
from mpp.prep.sources.urls import open_url
from mpp.prep.sources.webdataset import is_ours, is_webdataset, open_webdataset

FOLDERS = ("folder", "imagenet")
EITHER = ("parquet", "webdataset")  # a file, or a folder of them
FORMATS = (*FOLDERS, "zip", "tar", *MAGIC.values(), *ROWS, *CIFAR, *EITHER)
CHECK_THEMSELVES = (*CIFAR, "imagenet")
_REMEDY = (
    "give a folder of images, a .zip, .tar, .tar.gz, .tar.xz or .tar.zst, a list of images (text, CSV or JSON lines), parquet files "
    "or a folder of WebDataset tars"
)


def open_source(where: Path | str, leave_out: Path | str, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 (frozen)
    """The source at a path, or at a URL (a str), by its content or of the kind that the options name; leave_out: a folder that is not part of it.

    Raises DataError for anything else, and UserError for options that do not fit it.
    """
    if isinstance(where, str):
        return open_url(where, str(leave_out), options, partial(open_source, leave_out=leave_out, options=options))
    path, leave_out = where, Path(leave_out)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_REMEDY}")
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path}: is neither a file nor a folder, but a pipe or a device; {_REMEDY}")
    checksum = options.checksum and parse_checksum(options.checksum)
    if options.format:
        kind = options.format
        if kind not in EITHER and path.is_dir() != (kind in FOLDERS):
            is_a, reads_a = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise DataError(f"{path}: is a {is_a}, but --format {kind} reads a {reads_a}; leave out --format, or name another SOURCE")
    else:
        kind = _kind(path, leave_out)
    with_fields = (*EITHER, *ROWS)
    if kind not in with_fields and (options.image_field or options.label_field):
        raise UserError(f"--image-field and --label-field: are for {', '.join(with_fields)}, and {path} is {kind}; leave them out")
    grouped = ("csv", "jsonl", *EITHER)
    if options.group_field and kind not in grouped:
        raise UserError(
            f"--group {options.group_field}: is a field of {', '.join(grouped)}, and {path} is {kind}; give the level of a folder, "
            "such as --group 1, or --group re:REGEX"
        )
    source = _open(path, kind, leave_out, options, checksum)
    return checked(source, checksum, CHECK_THEMSELVES) if checksum else source


def _open(path: Path, kind: str, leave_out: Path, options: SourceOptions, checksum: str | None) -> Source:
    if kind == "folder":
        return Folder(path, leave_out)
    if kind == "imagenet":
        return ImageNet.open(path, checksum)
    if kind in ROWS:
        return ListFile.open(path, kind, options)
    if kind == "parquet":
        if path.is_file() and not _begins(path, PARQUET_MAGIC):
            raise DataError(f"{path}: is no parquet file; leave out --format")
        return open_parquet(path, options)
    if kind == "webdataset":
        if path.is_file() and _archive(path) != "tar":
            raise DataError(f"{path}: is no tar; give a WebDataset tar or a folder of them, or leave out --format")
        return open_webdataset(path, options)
    archive = _archive(path)
    if kind in CIFAR:
        folder = folder_inside(path, archive) if archive in MAGIC.values() else ""
        if folder not in LAYOUTS or LAYOUTS[folder].kind != kind:
            names = " or ".join(layout.archive for layout in LAYOUTS.values() if layout.kind == kind)
            raise DataError(f"{path}: does not hold what --format {kind} reads; give {names}, or leave out --format")
        return Cifar(path, kind, archive, folder, checksum)
    if kind != archive:
        raise DataError(f"{path}: is {f'of the format {archive}' if archive else 'no whole archive'}, not {kind}; leave out --format")
    return Zip(path) if kind == "zip" else Tar(path) if kind == "tar" else PackedTar(path, kind)


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _archive(path: Path) -> str:
    """Which kind of archive a file is; empty for none."""
    with path.open("rb") as file:
        start = file.read(6)
    packed = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")
    return packed or ("zip" if zipfile.is_zipfile(path) else "tar" if tarfile.is_tarfile(path) else "")


def _kind(path: Path, leave_out: Path) -> str:
    """Which of FORMATS a path is, by its content.  Raises DataError for none of them."""
    if path.is_dir():
        if is_ours(path / "train"):  # its contact sheets would be all the images that are found
            raise DataError(f"{path}: holds splits of shards, not images; to make them anew give one of them, such as {path / 'train'}")
        if is_imagenet(path):
            return "imagenet"
        return "webdataset" if is_webdataset(path, leave_out) else "parquet" if is_parquet(path) else "folder"
    if _begins(path, PARQUET_MAGIC):
        return "parquet"
    archive = _archive(path)
    if archive in MAGIC.values():
        layout = LAYOUTS.get(folder_inside(path, archive))
        return layout.kind if layout else archive
    if path.name == TRAIN:
        raise DataError(f"{path}: holds tars of images; give the folder it lies in, {path.parent}")
    kind = archive or kind_of_list(path)
    if kind:
        return kind
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: is a single file; give the folder that holds the images: {path.parent}")
    begins = beginning(path)
    raise DataError(
        f"{path}: is neither a folder nor a whole archive nor a list of a known kind{f' ({begins})' if begins else ''}; {_REMEDY}"
    )
