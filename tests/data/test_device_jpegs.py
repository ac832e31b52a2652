import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpp.base.errors import ConfigError
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.device_jpegs import DeviceJpegs, is_safe
from mpp.data.loader import batches
from mpp.data.order import Order, OrderSampler
from mpp.data.shards import ShardSet
from mpp.data.write_shards import Sample, write_manifest, write_shard
from tests.data.masked_images import dataset
from tests.data.test_crop import encoded, scene

gpu = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """16 images: plain, grey, progressive and turned JPEGs, PNGs."""
    folder = tmp_path_factory.mktemp("jpegs") / "train"
    folder.mkdir()
    samples = []
    for key in range(16):
        image, kind, options = scene(60 + key, 50, key), "JPEG", {"quality": 90, "subsampling": key % 3}
        if key % 5 == 1:
            image = image.convert("L")
        elif key % 5 == 2:
            options["progressive"] = True
        elif key % 5 == 3:
            options["orientation"] = 6
        elif key % 5 == 4:
            kind, options = "PNG", {}
        data = encoded(image, kind, **options)
        width, height = (50, 60 + key) if key % 5 == 3 else (60 + key, 50)
        samples.append(Sample(key, "jpg" if kind == "JPEG" else "png", data, width, height, -1))
    shard = write_shard(folder, "000000.tar", samples)
    colours = np.ones((3, 256), dtype=np.int64)
    write_manifest(folder, split="train", shards=[shard], classes=[], colours=colours, colour_images=1, rejects=0, source={"name": "test"})
    return folder


def stream(data: CropDataset, workers: int) -> list[dict]:
    order = Order(tuple(data.pixels.source.samples_per_shard), 8, 4, data.seed)
    plan = plan_batch(8 * data.views, 4, 1, 4 * data.views, data.views)
    return list(batches(data, OrderSampler(order, plan, 0, 1, 0, 3), workers, pin_memory=False))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_jpegs_decoded_on_the_device_give_the_same_batches_but_for_rounding(photos, device, workers):
    shards = ShardSet.open(photos)
    data = replace(dataset(photos), views=2)
    there = replace(data, pixels=DeviceJpegs(shards, 10**6, torch.device(device)))
    expected, found = stream(data, 0), stream(there, workers)
    assert (
        sum("image" in there.batch([(0, sample, 0)]) for sample in range(16)) == 8
    )  # turned ones, PNGs and grey ones with sampling factors stay with the CPU
    assert {each["image"].device.type for each in found} == {device, "cpu"}  # of some micro-batches no image is for the device
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if name not in ("bad", "image"))
        off = (one["image"].int() - other["image"].cpu().int()).abs().float()
        assert off.mean() < (0.5 if device == "cpu" else 2)
        assert torch.quantile(off.flatten(), 0.99) <= (2 if device == "cpu" else 8)


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_what_the_device_refuses_is_judged_by_the_cpu(photos, device, monkeypatch):
    shards = ShardSet.open(photos)
    data = dataset(photos)
    broken = bytearray(shards.read(0))
    broken[broken.index(b"\xff\xda") + 6] = 0x33  # Huffman tables that the file does not have; its header is read all the same
    assert is_safe(bytes(broken))
    original = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, sample: bytes(broken) if sample == 0 else original(self, sample))
    there = replace(data, pixels=DeviceJpegs(shards, 10**6, torch.device(device)))
    keys = [(0, 5, 0), (0, 0, 1), (0, 4, 2)]
    one, other = data.batch(keys), there.batch(keys)
    assert len(other["encoded_rows"]) == 2
    other = there.completed(other)
    assert [bad["sample"] for bad in one["bad"]] == [0]
    for name in ("shown", "replaced", "box", "kind"):
        assert torch.equal(one[name], other[name])
    assert one["bad"] == other["bad"]
    assert torch.equal(one["image"][1:], other["image"][1:].cpu())  # the refused one and a PNG come from the CPU
    assert (one["image"][0].int() - other["image"][0].cpu().int()).abs().float().mean() < 2


def jpeg(mode: str = "RGB", **options) -> bytes:
    return encoded(scene(60, 50, 1).convert(mode), "JPEG", quality=90, **options)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 1}, {"subsampling": 2}], ids=str
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_whole_jpegs_are_safe_but_for_grey_ones_with_sampling_factors(mode, options):
    data = jpeg(mode, **options)
    assert is_safe(data) == (mode == "RGB" or "subsampling" not in options)
    assert is_safe(data[:2] + b"\xff" + data[2:]) == is_safe(data)  # a fill byte
    middle = data.index(b"\xff\xda") + 40
    for stray in (b"\xff\xd8", b"\xff\xd9", b"\xff\xe0"):
        assert not is_safe(data[:middle] + stray + data[middle:])
    assert not is_safe(data[:-2])


@given(st.data())
def test_any_damage_is_judged_without_an_error(dice):
    data = bytearray(jpeg(progressive=dice.draw(st.booleans())))
    for _ in range(dice.draw(st.integers(1, 4))):
        data[dice.draw(st.integers(0, len(data) - 1))] = dice.draw(st.integers(0, 255))
    assert is_safe(bytes(data[: dice.draw(st.integers(0, len(data)))])) in (True, False)


def test_a_device_that_decodes_nothing_is_refused(photos, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no nvJPEG")

    monkeypatch.setattr("mpp.data.device_jpegs.decode_jpeg", broken)
    with pytest.raises(ConfigError, match=r"system.decode=device: cpu decodes no JPEGs here \(no nvJPEG\); take system.decode=cpu"):
        DeviceJpegs(ShardSet.open(photos), 10**6, torch.device("cpu"))


def test_too_many_pixels_are_bad_before_the_device_sees_them(photos):
    shards = ShardSet.open(photos)
    there = replace(dataset(photos), pixels=DeviceJpegs(shards, 3000, torch.device("cpu")))
    batch = there.batch([(0, 5, 0)])
    assert "too many pixels" in batch["bad"][0]["reason"]
    assert Image.open(io.BytesIO(shards.read(int(batch["shown"][0])))).width <= 60
