import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp.base.errors import DataError
from tests.data.test_crop import encoded, scene

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import grey_images


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as out:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


def test_grey_images_keep_their_names_their_order_and_their_luma(tmp_path):
    coloured = {f"train/{name}.jpg": encoded(scene(20, 10, seed), "JPEG") for seed, name in enumerate(("cat/b", "dog/a"))}
    out = tmp_path / "new" / "grey.tar"
    assert grey_images.main([str(tar(tmp_path / "images.tar.xz", coloured)), str(out)]) == 0
    with tarfile.open(out) as found:
        assert found.getnames() == ["train/cat/b.png", "train/dog/a.png"]
        for member, data in zip(found, coloured.values(), strict=True):
            grey = np.asarray(Image.open(found.extractfile(member)))
            luma = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) @ [0.299, 0.587, 0.114]
            assert (grey == grey[..., :1]).all() and np.abs(grey[..., 0] - luma).max() <= 1


def test_what_is_no_tar_of_images_is_refused_and_nothing_is_written(tmp_path):
    for source in (tar(tmp_path / "texts.tar", {"a.jpg": b"no image"}), Path(__file__)):
        with pytest.raises(DataError, match="is no tar of images"):
            grey_images.main([str(source), str(tmp_path / "grey.tar")])
    assert not (tmp_path / "grey.tar").exists()
