import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mpp.data.pixels as pixels
from mpp.base.errors import BadSample, ConfigError
from mpp.base.rng import CROP, Draws
from mpp.data.batch_plan import plan_batch
from mpp.data.crop import resize
from mpp.data.crop_dataset import CropDataset
from mpp.data.labelled import open_labelled
from mpp.data.loader import batches
from mpp.data.order import Order, OrderSampler
from mpp.data.pixels import DevicePixels, MemoryPixels, StoredPixels, bicubic_weights, cut_on_device
from mpp.data.shards import ShardSet
from tests.data.masked_images import AUGMENT, SIZE, dataset
from tests.data.test_device_jpegs import gpu, photos  # noqa: F401, a fixture

CPU = torch.device("cpu")


def training(folder, views: int = 1) -> CropDataset:
    return replace(dataset(folder), views=views)


def in_ram(data: CropDataset, pool: range | None = None) -> MemoryPixels:
    return MemoryPixels(data.pixels.source, pool or data.pool, 10**6, threads=2, processes=1)


def stream(data: CropDataset, workers: int) -> list[dict]:
    order = Order(tuple(data.pixels.source.samples_per_shard), 6, 6, data.seed)
    plan = plan_batch(6 * data.views, 6, 1, 3 * data.views, data.views)
    return list(batches(data, OrderSampler(order, plan, 0, 1, 0, 4), workers, pin_memory=False))


@pytest.fixture
def equal_sizes(tmp_path, make_shards):
    """11 images of 24 x 24 pixels."""
    return make_shards(tmp_path / "equal" / "train", [6, 5], side=24)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_ram_give_the_same_batches_bit_for_bit(tiny_shards, workers):
    data = training(tiny_shards, views=2)
    expected, found = stream(data, 0), stream(replace(data, pixels=in_ram(data)), workers)
    assert len(found) == 8
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if name != "bad")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_images_on_the_device_give_the_same_batches_to_two_levels(equal_sizes, device, workers):
    data = training(equal_sizes, views=2)
    expected = stream(data, 0)
    found = stream(replace(data, pixels=DevicePixels(in_ram(data), torch.device(device))), workers)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if name not in ("bad", "image"))
        off = (one["image"].int() - other["image"].cpu().int()).abs()
        assert off.max() <= 2
        assert off.float().mean() < 0.3


@pytest.mark.parametrize("place", ["ram", "device"])
def test_a_bad_sample_is_replaced_as_it_is_from_shards(equal_sizes, damage, place):
    damage(equal_sizes, [3, 4, 10])
    data = training(equal_sizes)
    held = in_ram(data)
    memory = replace(data, pixels=held if place == "ram" else DevicePixels(held, CPU))
    keys = [(0, sample, 7 + sample) for sample in range(11)]
    one, other = data.batch(keys), memory.completed(memory.batch(keys))
    assert one["bad"] == other["bad"]
    assert [fault["bad"] for fault in one["bad"]] == [3, 4, 4, 10]
    assert torch.equal(one["shown"], other["shown"])
    assert (one["image"].int() - other["image"].int()).abs().max() <= (0 if place == "ram" else 2)


def test_a_pool_that_does_not_begin_at_the_first_sample_is_found(tiny_shards):
    data = training(tiny_shards)
    held = in_ram(data, range(7, 20))
    boxes = [AUGMENT.draw(Draws(0, CROP)).box(*data.pixels.size_of(19))]
    assert np.array_equal(held.cut(19, boxes, SIZE)[0], data.pixels.cut(19, boxes, SIZE)[0])


def test_turned_photographs_in_ram_give_the_same_bits(photos):  # noqa: F811
    data = training(photos)
    expected, found = stream(data, 0), stream(replace(data, pixels=in_ram(data)), 0)
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(expected, found, strict=True))


def test_a_file_that_cannot_be_read_is_a_bad_sample_in_memory_too(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (20, 20), "red").save(tmp_path / label / "0.png")
    (tmp_path / "ant" / "1.png").write_bytes(b"no image")
    stored = StoredPixels(open_labelled(str(tmp_path), "train"), 10**6)
    data = CropDataset(stored, AUGMENT, 5, range(3))
    expected = data.batch([(0, 1, 0)])
    memory = in_ram(data)
    shutil.rmtree(tmp_path)  # nobody asks the disk again
    for held in (memory, DevicePixels(memory, CPU)):
        found = replace(data, pixels=held)
        found = found.completed(found.batch([(0, 1, 0)]))
        assert found["shown"].tolist() == expected["shown"].tolist() == [2]
        assert found["bad"] == expected["bad"] and torch.equal(found["image"], expected["image"])


def test_warnings_are_as_before_when_images_were_decoded_in_threads(tiny_shards):
    before = list(warnings.filters)
    in_ram(training(tiny_shards))
    assert warnings.filters == before


def test_images_of_several_sizes_do_not_go_to_the_device(tiny_shards):
    data = training(tiny_shards)
    with pytest.raises(ConfigError, match=r"system.images=device needs images of one size, .*holds \d+ sizes, such as .*system.images=ram"):
        DevicePixels(in_ram(data), CPU)


def test_images_that_do_not_fit_are_refused_before_they_are_decoded(tiny_shards, monkeypatch):
    monkeypatch.setattr(pixels, "open_stored", None)
    monkeypatch.setattr(pixels, "free_memory", lambda: 10_000)
    with pytest.raises(ConfigError, match=r"take [\d.]+ kB of RAM, of which 10 kB are free; take system.images=shards"):
        in_ram(training(tiny_shards))


def test_an_image_of_another_size_than_the_index_says_is_bad_in_memory_too(tiny_shards, monkeypatch):
    monkeypatch.setattr(pixels, "open_stored", lambda *_: (Image.new("RGB", (3, 3)), 1))
    held = in_ram(training(tiny_shards))
    with pytest.raises(BadSample, match="is 3x3 pixels as stored, the index says"):
        held.cut(0, [], SIZE)


# ------------------------------------------------------------------------------------------------------------------ crops by matrix product


@given(st.integers(1, 50), st.integers(1, 40), st.integers(0, 2**32 - 1), st.data())
def test_the_devices_crops_equal_the_cpus_to_two_levels(side, size, seed, data):
    left, top = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    right, bottom = data.draw(st.integers(left + 1, side)), data.draw(st.integers(top + 1, side))
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found = cut_on_device(torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.tensor([[left, top, right, bottom]]), size)[0]
    expected = torch.from_numpy(resize(pixels[top:bottom, left:right], size))
    assert (found.int() - expected.int()).abs().max() <= 2


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 20))
def test_bicubic_weights_sum_to_one_and_stay_inside_the_box(length, size, low):
    weights = bicubic_weights(torch.tensor([low]), torch.tensor([low + length]), low + length + 5, size)[0]
    assert torch.allclose(weights.sum(1), torch.ones(size), atol=1e-5)
    assert not weights[:, :low].any()
    assert not weights[:, low + length :].any()


# ------------------------------------------------------------------------------------------------------------------------------------ views


def test_views_of_a_sample_stand_side_by_side_and_have_draws_of_their_own(tiny_shards):
    data, alone = training(tiny_shards, views=3), training(tiny_shards)
    batch = data.batch([(1, 7, 30), (1, 9, 33)])
    assert batch["sample"].tolist() == [7, 7, 7, 9, 9, 9]
    assert batch["position"].tolist() == [30, 31, 32, 33, 34, 35]
    for name in ("image", "kind"):
        assert torch.equal(batch[name][0], alone.batch([(1, 7, 0)])[name][0])  # view 0 is the only one of a run without views
        assert len({batch[name][view].numpy().tobytes() for view in range(6)}) == 6


def test_views_that_differ_in_their_mask_share_crop_and_pose(tiny_shards):
    data = replace(training(tiny_shards, views=4), differ_in="mask")
    batch = data.batch([(0, sample, 4 * sample) for sample in range(8)])
    for name in ("image", "pose", "box"):
        grouped = batch[name].reshape(8, 4, -1)
        assert torch.equal(grouped, grouped[:, :1].expand_as(grouped))
    assert len({tuple(row) for row in batch["kind"].tolist()}) == 32
    own = replace(data, differ_in="crop").batch([(0, sample, 4 * sample) for sample in range(8)])
    assert torch.equal(own["kind"], batch["kind"])  # masks are those of the view either way
    assert torch.equal(own["image"][::4], batch["image"][::4])


def test_an_image_with_several_views_is_read_and_decoded_once(tiny_shards, monkeypatch):
    data, read = training(tiny_shards, views=4), []
    original = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, sample: read.append(sample) or original(self, sample))
    data.batch([(0, 3, 0), (0, 8, 4)])
    assert read == [3, 8]


def test_a_bad_sample_with_several_views_is_one_fault(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 5])
    damage(folder, [2])
    batch = training(folder, views=3).batch([(0, 2, 6), (0, 3, 9)])
    assert [(fault["position"], fault["bad"]) for fault in batch["bad"]] == [(6, 2)]
    assert batch["shown"].tolist() == [3] * 6
    assert batch["replaced"].tolist() == [True] * 3 + [False] * 3
