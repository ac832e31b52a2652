"""Tables on the disk: every image once, again only when something has changed, and never believed unseen."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.functional import center_crop, to_pil_image

from mpp.base.errors import CheckpointError, ConfigError, DataError, UserError
from mpp.config.sections import ModelConfig
from mpp.data.decode import open_image
from mpp.data.labelled import open_labelled
from mpp.data.order import FIXED
from mpp.data.shards import ShardSet
from mpp.model.backbone import Backbone
from mpp.model.encoder import build_encoder
from mpp.processes.world import World
from mpp.transfer import extraction
from mpp.transfer.extraction import centre_crops, compare, extract, key_of, own_rows
from mpp.transfer.extractors import EncoderExtractor, PixelExtractor
from mpp.transfer.features import FeatureConfig, FeatureSpec

ALONE = World(0, 1, 1, torch.device("cpu"))
TINY = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=12, depth=3, heads=3)
SPEC = FeatureSpec("tiny", (1, 3), ("cls", "mean"), 16, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32")


def encoder(spec: FeatureSpec = SPEC, seed: int = 0) -> EncoderExtractor:
    return EncoderExtractor(Backbone(build_encoder(TINY, seed).vit).eval(), spec, ALONE.device)


def pixels(side: int = 8) -> PixelExtractor:
    return PixelExtractor(16, 1.0, (0.5,) * 3, (0.5,) * 3, side)


def run(source, folder, extractors, samples=None, **config):
    images = open_labelled(str(source), "train")
    rows = np.arange(len(images)) if samples is None else samples
    return extract(images, rows, extractors, FeatureConfig(**({"workers": 0, "batch": 16} | config)), folder, ALONE)


def test_features_do_not_depend_on_batch_size_workers_or_company(splits, tmp_path):
    whole = run(splits["train"], tmp_path / "a", {"e": encoder()})["e"]
    values = whole.features.values
    assert str(whole).startswith("120 of 120 images, 0 repeated, ") and not whole.cached
    for folder, config in {"b": {"batch": 7}, "c": {"workers": 2}}.items():
        assert_close(run(splits["train"], tmp_path / folder, {"e": encoder()}, **config)["e"].features.values, values)
    some = np.array([3, 50, 119])
    beside = run(splits["train"], tmp_path / "d", {"p": pixels(), "e": encoder()}, samples=some)
    assert_close(beside["e"].features.values, values[some])


def test_a_table_is_plain_arrays_with_labels_and_ids(splits, tmp_path):
    some = np.array([1, 5, 6])
    made = run(splits["train"], tmp_path, {"e": encoder()}, samples=some)["e"]
    assert np.array_equal(np.load(made.folder / "features.npy"), made.features.values.numpy())
    assert np.load(made.folder / "labels.npy").tolist() == (some % 3).tolist()
    assert np.load(made.folder / "samples.npy").tolist() == some.tolist()
    about = json.loads((made.folder / "features.json").read_text())
    assert about["columns"][3] == {"pooling": "mean", "layer": 3, "start": 36, "stop": 48}
    assert about["spec"]["encoder"] == "tiny" and about["data"]["identity"] == ShardSet.open(splits["train"]).manifest_hash


def test_all_of_a_table_is_on_the_disk_before_it_is_said_to_exist(splits, tmp_path, flushed):
    run(splits["train"], tmp_path, {"e": encoder()})
    before = flushed[: next(at for at, name in enumerate(flushed) if name.startswith(".features.json.tmp-"))]
    assert {"features.npy", "labels.npy", "samples.npy"} <= set(before)


def test_a_table_is_used_again_only_while_nothing_has_changed(splits, tmp_path, monkeypatch):
    train = open_labelled(str(splits["train"]), "train")
    first = run(splits["train"], tmp_path, {"e": encoder()})["e"]
    again = run(splits["train"], tmp_path, {"e": encoder()})["e"]
    assert again.cached and again.folder == first.folder and str(again).endswith("from the cache")
    assert torch.equal(again.features.values, first.features.values)
    keys = {
        key_of(train, np.arange(10), encoder(), ALONE),
        key_of(train, np.arange(11), encoder(), ALONE),
        key_of(open_labelled(str(splits["test"]), "test"), np.arange(10), encoder(), ALONE),
        key_of(train, np.arange(10), pixels(), ALONE),
        key_of(train, np.arange(10), encoder(), replace(ALONE, device=torch.device("cuda"))),
        *(
            key_of(train, np.arange(10), encoder(replace(SPEC, **change)), ALONE)
            for change in (
                {"encoder": "other"}, {"layers": (2, 3)}, {"poolings": ("mean",)}, {"resolution": 24}, {"crop": 0.9},
                {"mean": (0.4,) * 3}, {"std": (0.4,) * 3}, {"precision": "bf16"},
            )
        ),
    }  # fmt: skip
    monkeypatch.setattr(extraction, "version", lambda package: "0.0")
    keys.add(key_of(train, np.arange(10), encoder(), ALONE))
    assert len(keys) == 14


def test_an_extraction_that_was_killed_is_made_again(splits, tmp_path):
    first = run(splits["test"], tmp_path, {"e": encoder()})["e"]
    values = first.features.values.clone()
    (first.folder / "features.json").unlink()
    (first.folder / "features.npy").write_bytes(b"half")
    assert torch.equal(run(splits["test"], tmp_path, {"e": encoder()})["e"].features.values, values)


def test_a_flipped_bit_in_a_cached_table_is_found(splits, tmp_path):
    first = run(splits["test"], tmp_path, {"e": encoder()})["e"]
    with (first.folder / "features.npy").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x01")
    with pytest.raises(DataError, match=r"features.npy is not what was written.*delete"):
        run(splits["test"], tmp_path, {"e": encoder()})


def test_tables_are_hashed_stretch_by_stretch_and_each_stretch_is_looked_at(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "STRETCH", 1000)
    first = run(splits["test"], tmp_path, {"e": encoder()})["e"]
    about = json.loads((first.folder / "features.json").read_text())
    whole = (first.folder / "features.npy").read_bytes()
    assert about["stretch"] == 1000 and len(whole) > 3000
    expected = [hashlib.sha256(whole[at : at + 1000]).hexdigest() for at in range(0, len(whole), 1000)]
    assert about["files"]["features.npy"] == expected
    for at in (200, 1500, len(whole) - 1):
        (first.folder / "features.npy").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"features.npy is not what was written"):
            run(splits["test"], tmp_path, {"e": encoder()})
    (first.folder / "features.npy").write_bytes(whole + b"more")
    with pytest.raises(DataError, match=r"features.npy is not what was written"):
        run(splits["test"], tmp_path, {"e": encoder()})
    (first.folder / "labels.npy").unlink()
    (first.folder / "features.npy").write_bytes(whole)
    with pytest.raises(DataError, match=r"labels.npy is not what was written"):
        run(splits["test"], tmp_path, {"e": encoder()})


def test_a_cached_table_of_other_features_under_the_right_key_is_found(splits, tmp_path):
    """As after a change of code that the key does not know of."""
    run(splits["test"], tmp_path, {"e": encoder(seed=0)})
    with pytest.raises(ConfigError, match="computed afresh at another batch size differ"):
        run(splits["test"], tmp_path, {"e": encoder(seed=1)})


def test_an_extractor_that_sees_its_batch_is_caught(splits, tmp_path):
    class SeesBatch(PixelExtractor):
        def __call__(self, images):
            found = super().__call__(images)
            return found - found.mean(0)  # a forgotten BatchNorm in train mode

    with pytest.raises(ConfigError, match="another batch size"):
        run(splits["test"], tmp_path, {"p": SeesBatch(16, 1.0, (0.5,) * 3, (0.5,) * 3, 8)})


def test_features_that_are_not_finite_are_an_error_and_leave_no_table(splits, tmp_path):
    broken = encoder()
    broken.backbone.net.norm.weight.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        run(splits["test"], tmp_path, {"e": broken})
    assert not list(tmp_path.glob("*/features.json"))


def test_a_damaged_image_stops_the_probe_and_is_named(tmp_path, splits):
    shutil.copytree(splits["test"], tmp_path / "test")
    shards = ShardSet.open(tmp_path / "test")
    with (tmp_path / "test" / "000000.tar").open("r+b") as tar:
        tar.seek(int(shards.index[7]["offset"]) + 60)
        tar.write(b"\x00\x01\x02")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^test/000000.tar: 000000000007 .*CRC-32.*no image out, so copy") as caught:
            run(tmp_path / "test", tmp_path / "cache", {"p": pixels()}, workers=workers)
        assert "\n" not in str(caught.value)


def test_a_disk_that_fails_while_features_are_written_is_one_line_with_the_folder(splits, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(extraction.os, "pwrite", fails)
    with pytest.raises(UserError) as caught:
        run(splits["test"], tmp_path, {"p": pixels()})
    assert str(caught.value).startswith(f"features cannot be written to {tmp_path} ([Errno 5] Input/output error); ")


def test_a_full_disk_is_named_before_anything_is_extracted(splits, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extraction.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 60 x 192 features, 46.1 kB \(No space left on device\)"):
        run(splits["test"], tmp_path, {"p": pixels()})
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(("crop", "resolution"), [(1.0, 17), (0.8, 16), (0.5, 12)])
def test_the_crop_is_the_centre_square_of_a_share_of_the_short_side(splits, crop, resolution):
    images = open_labelled(str(splits["test"]), "test")
    spec = replace(SPEC, resolution=resolution, crop=crop)
    found = centre_crops(images, np.array([4, 9]), spec, FeatureConfig()).batch([(FIXED, 4, 0), (FIXED, 9, 1)])["image"]
    assert found.dtype == torch.uint8
    side = round(crop * 17)
    for sample, got in zip((4, 9), found, strict=True):
        expected = center_crop(open_image(images.read(sample), 10**6), [side, side])
        if side == resolution:
            assert np.array_equal(got.permute(1, 2, 0), np.asarray(expected))
        assert (np.asarray(to_pil_image(got)).mean() - np.asarray(expected).mean()) < 3


def test_extraction_leaves_the_global_random_state_alone(splits, tmp_path):
    state = torch.random.get_rng_state()
    run(splits["test"], tmp_path, {"p": pixels()}, workers=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_comparison_fails_on_nan_and_passes_within_the_tolerance():
    a = torch.ones(2, 4)
    compare("a", a, a * (1 + 1e-5), 1e-3, "here")
    with pytest.raises(ConfigError):
        compare("a", a, a * float("nan"), 1e-3, "here")


@pytest.mark.parametrize(("count", "batch", "size"), [(60, 7, 1), (61, 7, 3), (2, 4, 3)])
def test_every_row_is_one_processs_in_batches_as_asked_for(count, batch, size):
    shares = [own_rows(count, batch, replace(ALONE, rank=rank, size=size)) for rank in range(size)]
    assert [row for share in shares for part in share for row in part] == list(range(count))
    assert {len(part) for share in shares for part in share[:-1]} <= {batch} and all(
        len(part) <= batch for share in shares for part in share
    )


def test_rows_counted_twice_or_never_stop_the_probe(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "own_rows", lambda *_: [[row] for row in (*range(10), *range(5))])
    with pytest.raises(ConfigError, match="10 of 60 images were extracted and 5 of them more than once"):
        run(splits["test"], tmp_path, {"p": pixels()})


def test_a_folder_that_cannot_be_made_is_one_line(splits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"features\.cache="):
        run(splits["test"], Path(tmp_path / "file" / "x"), {"p": pixels()})
