"""ImageNet's official files, made small: tars inside a tar for train, a tar for val, and the development kit with val's labels."""

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def write_tar(path: Path | None, members: dict, mode: str = "w") -> bytes:
    """members: name -> bytes, tarfile.TarInfo or None for a folder.  Returns the tar's bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            info.size = len(data) if isinstance(data, bytes) else 0
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def meta_mat(wnids: Sequence[str]) -> bytes:
    """synsets: a struct array [classes + 2, 1], whose last rows are no classes but stand above them; wnids in the order of ILSVRC2012_ID."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    synsets = np.empty((len(wnids) + 2, 1), [(field, object) for field in fields])
    for row, wnid in enumerate([*wnids, "n00000001", "n00000002"]):
        children = 0 if row < len(wnids) else 2
        synsets[row, 0] = (float(row + 1), wnid, f"word {row}, other", "gloss", float(children), np.zeros((1, children)), 0.0, 9.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def write_official(folder: Path, train: Mapping[str, Sequence[bytes]], val: Sequence[tuple[str, bytes]]) -> str:
    """The three files.  train: WordNet id -> JPEGs, in the order of ILSVRC2012_ID; val: (WordNet id, JPEG).  Returns the kit's md5."""
    folder.mkdir()
    inner = {f"{wnid}.tar": write_tar(None, {f"{wnid}_{n}.JPEG": data for n, data in enumerate(images)}) for wnid, images in train.items()}
    write_tar(folder / TRAIN, inner)
    write_tar(folder / VAL, {f"ILSVRC2012_val_{number:08d}.JPEG": data for number, (_, data) in enumerate(val, start=1)})
    numbers = {wnid: number for number, wnid in enumerate(train, start=1)}
    truth = "".join(f"{numbers[wnid]}\n" for wnid, _ in val).encode()
    kit = write_tar(folder / DEVKIT, {"ILSVRC2012_devkit_t12": None, META: meta_mat(list(train)), TRUTH: truth}, "w:gz")
    return hashlib.md5(kit).hexdigest()
