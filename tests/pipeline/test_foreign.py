"""Tars that others wrote are trained on where they lie, after one pass that indexes them."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import webdataset
from PIL import Image

from tests.pipeline.conftest import ROOT, metrics, succeed


def picture(number: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((26, 22), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def test_webdatasets_and_img2datasets_tars_train_after_one_pass(tmp_path):
    folder = tmp_path / "laion"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:  # as webdataset's users do
            for number in range(12):
                tar.write({"__key__": f"a/b{shard}_{number}", "webp": picture(12 * shard + number, "WEBP"), "txt": "a caption"})
    with tarfile.open(folder / "00002.tar", "w", format=tarfile.GNU_FORMAT) as tar:  # as img2dataset does: a key of 9 digits, three fields
        for number in range(12):
            for field, data in (("jpg", picture(24 + number, "JPEG")), ("json", json.dumps({"url": "x"}).encode()), ("txt", b"caption")):
                info = tarfile.TarInfo(f"{number:09d}.{field}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    subprocess.run([sys.executable, "data_prep/index_shards.py", str(folder), "--quiet"], cwd=ROOT, check=True, capture_output=True)
    finished = succeed(
        tmp_path / "run", folder, "optim.total_samples=48", "optim.warmup_samples=12", "data.global_batch=12", "data.views=2"
    )
    assert "28 training samples" in finished.out
    assert "2 views of each" in finished.out
    assert max(metrics(tmp_path / "run")) == 4
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
