"""Labelled images by the word that names them, and what two splits of them owe each other.

shards/train             a folder of shards (manifest.json): made by data_prep, or indexed by it; or its URL (s3://, gs://, https://)
imagenet/train           a folder of one folder a class, in torchvision's ImageFolder order (what is an image, a class or a split: class_folders.py)
cifar10, cifar10:ROOT    torchvision's own data sets that are arrays, downloaded to ROOT (default: data) where the network allows
"""

import os
import re
from pathlib import Path

import numpy as np

from mpp.base.errors import DataError
from mpp.data.array_images import ARRAYS, ROOT, ArrayImages, SplitName, is_array
from mpp.data.class_folders import folder_at, listed_names, too_sparse
from mpp.data.folder_images import FolderImages
from mpp.data.images import LabelledImages
from mpp.data.shard_format import MANIFEST
from mpp.data.shards import ShardSet
from mpp.processes.peers import ALONE, Peers
from mpp.remote.urls import is_url

# torchvision's sets whose images have attributes, captions, boxes or maps of classes.
SEVERAL = re.compile(
    r"(celeba|voc|pascalvoc|mscoco|coco|widerface|kitti|cityscapes|sbd|sbdataset|flickr(8|30)k)($|detection|segmentation|captions|[0-9])"
)


def open_labelled(source: str, split: SplitName, peers: Peers = ALONE, download: bool = True) -> LabelledImages:
    """Open the images that `source` names (see above); `split` is for the sources that have several.  peers: who opens them together; collective.
    download: torchvision's sets, where they are not there.  Raises DataError."""
    folder = Path(source)
    if is_url(source) or (folder / MANIFEST).exists():
        return ShardSet.open(source, peers)
    name, _, root = source.partition(":")
    if is_array(source):
        return ArrayImages.open(name, Path(root or ROOT), split, download)
    if folder.is_dir():
        if named := sorted(entry.name for entry in os.scandir(folder) if (folder / entry.name / MANIFEST).exists()):
            first = "train" if "train" in named else named[0]
            raise DataError(f"{source} holds the splits {', '.join(named)}; give one of them, such as {folder / first}")
        return FolderImages.open(folder, peers)
    if SEVERAL.match(name.lower().replace("_", "")):
        raise DataError(
            f"{source}: torchvision's sets of that name have several labels or boxes an image (multi-label, detection), and none of it is one class an "
            "image, which classification needs; choose one label, and make shards of a list of path and label (data_prep/make_shards.py LIST OUT --labels)"
        )
    raise DataError(
        f"{source}: no such folder of shards, of class folders, nor one of torchvision's {', '.join(ARRAYS)}; give one of them "
        "(data_prep/make_shards.py makes shards)"
    )


def open_images(source: str) -> LabelledImages:
    """As `open_labelled`, of images whose classes nobody asks for: a folder of images may have any folders in it, or none.  Raises DataError."""
    folder = Path(source)
    if is_url(source):
        return ShardSet.open(source)
    named = folder.is_dir() and any((folder / entry.name / MANIFEST).exists() for entry in os.scandir(folder))
    if is_array(source) or not folder.is_dir() or named or (folder / MANIFEST).exists():
        return open_labelled(source, "test")
    return FolderImages.open_unlabelled(folder)


def counts_of(images: LabelledImages) -> np.ndarray:
    """int64: the labelled images of each class."""
    labels = np.asarray(images.labels)
    return np.bincount(labels[labels >= 0], minlength=len(images.classes))


def remarks_on(train: LabelledImages, test: LabelledImages | None) -> list[str]:
    """What is unusual about labelled splits, a line each, to be said before anything is measured on them."""
    remarks = []
    for key, images in (("train", train), ("test", test)):
        if images is None or not images.labelled:
            continue
        if isinstance(images, FolderImages):
            remarks += [f"{key}={images.path}: {remark}" for remark in images.remarks]
        empty = np.flatnonzero(counts_of(images) == 0).tolist()
        if empty:
            said = f"{key}={images.path}: {len(empty):,} of {len(images.classes):,} classes have no images: {listed_names([images.classes[at] for at in empty])}"
            if too_sparse(len(images.classes) - len(empty), len(images.classes) - 1):
                said += "; every head is trained for all of them: make shards again with --label-names, which makes classes of the labels that occur"
            remarks.append(said)
    if test is not None and train.labelled and test.labelled and len(train.classes) == len(test.classes):
        unseen = np.flatnonzero((counts_of(train) == 0) & (counts_of(test) > 0)).tolist()
        if unseen:
            remarks.append(
                f"test={test.path} has images of {listed_names([train.classes[at] for at in unseen])}, of which train has none: no answer to them can be right"
            )
    return remarks


def check_splits(train: LabelledImages, test: LabelledImages | None, otherwise: str = "") -> None:
    """Raises DataError for unlabelled splits, other classes, or one split given twice.  otherwise: what can be done without labels."""
    for key, images in (("train", train), ("test", test)):
        if images is not None and not images.labelled:
            raise DataError(
                f"{key}={images.path} holds no labels, which are needed; make them with data_prep/make_shards.py SOURCE OUT --labels{otherwise}"
            )
    present = int((counts_of(train) > 0).sum())
    if present < 2:
        inside = (
            {folder_at(os.path.relpath(file, train.path), 2) for file in train.files} - {""} if isinstance(train, FolderImages) else set()
        )
        below = (
            f" (in it lie {listed_names(sorted(inside))}: if they are the classes, give {train.path / train.classes[0]})" if inside else ""
        )
        raise DataError(
            f"train={train.path} has {present} class{below}, and there is nothing to tell apart; give images of two or more{otherwise}"
        )
    if test is None:
        return
    if test.identity == train.identity:
        raise DataError(
            f"test={test.path} is the same split as train={train.path}; give another, or leave test= out for a hold-out of train"
        )
    if test.classes != train.classes:
        odd = sorted(set(test.classes) ^ set(train.classes))
        raise DataError(
            f"test={test.path} has {len(test.classes)} classes and train={train.path} {len(train.classes)}, and they must be the same in "
            f"the same order; {f'only one of them has {odd[0]!r}' if odd else 'here the order differs'}; make both with one data_prep/make_shards.py"
        )
