"""Tiny labelled shards and an encoder folder, made here: no real data needed."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpp.config.sections import ModelConfig
from mpp.data.write_shards import Sample, write_manifest, write_shard
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder

CLASSES = ["red", "green", "blue"]
TINY = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=12, depth=3, heads=3)


def make_split(
    folder: Path,
    *,
    count: int,
    seed: int,
    classes=CLASSES,
    labelled: bool = True,
    permute_labels: bool = False,
    size=(20, 17),
    first: int = 0,
    uneven: bool = False,
) -> Path:
    """PNGs of noise whose mean colour tells the class, somewhat.  first: the first class that has images.  uneven: the last has a fifth."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    labels = first + np.arange(count) % (len(classes) - first)
    if uneven:
        labels = np.repeat(np.arange(3), [2 * count // 5, 2 * count // 5, count // 5])
    shown = rng.permutation(labels) if permute_labels else labels
    samples = []
    for i in range(count):
        pixels = rng.integers(0, 200, (size[1], size[0], 3))
        pixels[..., labels[i] % 3] += 8
        data = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
        samples.append(Sample(i, "png", data.getvalue(), *size, int(shown[i]) if labelled else -1))
    write_manifest(
        folder,
        split=folder.name,
        shards=[write_shard(folder, "000000.tar", samples)],
        classes=list(classes) if labelled else [],
        colours=np.ones((3, 256), np.int64),
        colour_images=count,
        rejects=0,
        source={"name": "noise"},
    )
    return folder


@pytest.fixture(scope="session")
def splits(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("splits")
    return {
        "train": make_split(root / "train", count=120, seed=1),
        "test": make_split(root / "test", count=60, seed=2),
        "shuffled": make_split(root / "shuffled", count=60, seed=2, permute_labels=True),
        "unlabelled": make_split(root / "unlabelled", count=30, seed=3, labelled=False),
        "other": make_split(root / "other", count=30, seed=4, classes=["red", "green", "grey"]),
    }


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "encoder"
    write_encoder(folder, build_encoder(TINY, 5).vit.state_dict(), TINY, (0.5,) * 3, (0.5,) * 3, "tiny, seed 5")
    return folder
