"""Labelled crops: what is random about them belongs to (seed, epoch, sample) and (seed, pair), and to nothing else."""

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.functional import center_crop, resize

from mpp.base.errors import ConfigError
from mpp.base.rng import MIX, RAND_AUGMENT, Draws, seed_of
from mpp.data.augment import Augment, Centre
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import batches
from mpp.data.mixing import Mixing, beta, erased_box
from mpp.data.order import FIXED, EveryOnce, Order, OrderSampler, Parts
from mpp.data.pixels import MemoryPixels, StoredPixels
from mpp.data.recolour import global_generators, rand_augment
from mpp.data.shards import ShardSet

SIZE = (8, 12)
MEAN = (0.5, 0.4, 0.3)
MIXING = Mixing(0.8, 1.0, 1.0, 0.5)


def dataset(folder, ids=None, **other) -> CropDataset:
    shards = ShardSet.open(folder)
    augment = Augment(SIZE, (0.3, 1.0), (1.0, 2.0), flip=True)
    ids = np.arange(len(shards)) if ids is None else np.array(ids)
    settings = {"recolour": rand_augment("rand-m9-mstd0.5-inc1", *SIZE, MEAN), "erasing": 0.5, "mixing": MIXING} | other
    return CropDataset(StoredPixels(shards, 10**6), augment, 5, ids, labels=shards.labels, **settings)


def step_of(data: CropDataset, rank: int, world: int, micro_batch_max: int) -> list[dict]:
    order = Order((len(data.ids),), 12, 6, data.seed)
    plan = plan_batch(12, 6, world, micro_batch_max, together=2)
    return list(batches(data, OrderSampler(order, plan, rank, world, 1, 3, data.ids), 0, False))


def joined(parts: list[dict]) -> dict:
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name not in ("bad", "keys")}
    first = rows["position"].argsort()
    return {name: value[first] for name, value in rows.items()}


def test_world_and_micro_batch_change_nothing_not_even_partners(tiny_shards):
    data = dataset(tiny_shards)
    whole = joined(step_of(data, 0, 1, 12))
    split = joined([batch for rank in range(2) for batch in step_of(data, rank, 2, 3)])
    assert all(len(batch["label"]) == 2 for batch in step_of(data, 1, 2, 3))  # pairs are never parted
    assert whole.keys() == split.keys() >= {"label", "erase", "noise", "share", "paste"}
    for name in whole:
        assert torch.equal(whole[name], split[name]), name
    pairs = whole["share"].view(-1, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1]) and len(set(pairs[:, 0].tolist())) > 6
    assert torch.equal(whole["paste"].view(-1, 2, 4)[:, 0], whole["paste"].view(-1, 2, 4)[:, 1])


def test_an_epoch_and_a_seed_of_their_own_give_other_draws(tiny_shards):
    data = dataset(tiny_shards)
    one = data.batch([(0, 3, 0), (0, 4, 1)])
    assert not torch.equal(one["image"], data.batch([(1, 3, 0), (1, 4, 1)])["image"])
    assert not torch.equal(one["noise"], data.batch([(1, 3, 0), (1, 4, 1)])["noise"])
    assert not torch.equal(one["share"], data.batch([(0, 3, 2), (0, 4, 3)])["share"])
    assert not torch.equal(one["share"], replace(data, seed=6).batch([(0, 3, 0), (0, 4, 1)])["share"])


def test_colours_are_timms_rand_augment_under_the_samples_own_seed_and_the_global_generators_stay(tiny_shards):
    data, plain = dataset(tiny_shards), dataset(tiny_shards, recolour=None)
    python, arrays = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    keys = [(2, sample, sample) for sample in range(12)]
    found, before = data.batch(keys)["image"], plain.batch(keys)["image"]
    assert random.getstate() == python and np.array_equal(np.random.get_state()[1], arrays)  # noqa: NPY002
    settings = {"translate_const": 3, "img_mean": (128, 102, 76), "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", settings)
    for row, (epoch, sample, _) in enumerate(keys):
        seed = seed_of(5, RAND_AUGMENT, epoch, sample)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
        wanted = np.asarray(theirs(Image.fromarray(before[row].permute(1, 2, 0).numpy())))
        assert np.array_equal(found[row].permute(1, 2, 0).numpy(), wanted)
    random.setstate(python)
    assert (found != before).any(dim=(1, 2, 3)).sum() > 6
    with pytest.raises(ZeroDivisionError), global_generators(1):
        _ = 1 // 0
    assert random.getstate() == python


def test_posterizing_to_no_bits_is_black_and_no_error():
    image = Image.new("RGB", (4, 4), "white")
    augment = rand_augment("rand-m10-n1-p1-inc1", 4, 4, MEAN)
    op = next(op for op in augment.ops if op.name == "PosterizeIncreasing")
    assert op(image).getextrema() == ((0, 0),) * 3


def test_words_that_timm_does_not_know_are_refused():
    with pytest.raises(ConfigError, match=r"rand-m9-mstd0\.5-inc1"):
        rand_augment("autumn", 8, 8, MEAN)


def test_a_replaced_sample_brings_its_own_label_and_stands_within_the_ids(make_shards, damage, tmp_path):
    folder = make_shards(tmp_path / "train", [12])
    damage(folder, [7])
    data = dataset(folder, ids=[2, 3, 7, 9])
    batch = data.batch([(0, 7, 0), (0, 9, 1)])
    assert batch["shown"].tolist() == [9, 9] and batch["label"].tolist() == [9 % 4, 9 % 4]
    assert [fault["bad"] for fault in batch["bad"]] == [7]
    damage(folder, [9])
    assert data.batch([(0, 9, 0)])["shown"].tolist() == [2]  # cyclic


def test_the_order_over_some_images_takes_each_of_them_once_an_epoch(tiny_shards):
    ids = [1, 4, 5, 8, 13, 21, 22, 25, 30, 33, 36, 39]
    data = dataset(tiny_shards, ids=ids)
    order = Order((5, 4, 3), 12, 6, data.seed)
    sampler = OrderSampler(order, plan_batch(12, 6, 1, 12), 0, 1, 0, 3, data.ids)
    for keys in sampler:
        assert sorted(sample for _, sample, _ in keys) == ids


@pytest.mark.parametrize(("count", "world"), [(40, 1), (13, 3), (5, 4)])
def test_every_image_is_taken_exactly_once_and_all_ranks_take_equally_many_batches(count, world):
    shares = [list(EveryOnce(np.arange(100, 100 + count), 4, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert {len(batch) for share in shares for batch in share} == {4}
    taken = [(sample, place) for share in shares for batch in share for _, sample, place in batch if place < count]
    assert sorted(taken) == [(100 + place, place) for place in range(count)]


def test_the_centre_is_cut_in_the_shape_that_is_asked_for(tiny_shards):
    assert Centre((8, 8), 0.875).draw(Draws(0, MIX)).box(256, 320) == (16, 48, 240, 272)
    assert Centre((8, 16), 1.0).draw(Draws(0, MIX)).box(100, 100) == (0, 25, 100, 75)
    assert Centre((16, 8), 1.0).draw(Draws(0, MIX)).box(300, 20) == (145, 0, 155, 20)
    data = replace(dataset(tiny_shards, recolour=None, erasing=0.0, mixing=None), augment=Centre(SIZE, 1.0))
    assert data.batch([(0, 3, 0)])["image"].shape == (1, 3, *SIZE)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1.0, 0.875, 0.9, 0.5]) | st.floats(0.1, 1.0), st.integers(1, 384))
def test_the_centre_square_is_torchvisions_centre_crop(width, height, share, resolution):
    side = max(1, round(share * min(width, height)))
    pixels = torch.arange(width * height).view(1, height, width)
    for size in (resolution, (resolution, resolution)):
        left, top, right, bottom = Centre(size, share).draw(Draws(0, MIX)).box(width, height)
        assert torch.equal(pixels[:, top:bottom, left:right], center_crop(pixels, [side, side]))


@given(st.integers(16, 3000), st.integers(16, 3000))
def test_the_centre_square_is_what_resize_256_and_centre_crop_224_leave_to_a_pixel(width, height):
    """A pixel of the image or of the resized one, whichever is larger: torchvision rounds in the latter."""
    per_pixel = min(width, height) / 256
    sides = torch.empty(1, height, width, device="meta")
    rows, columns = resize(sides, 256).shape[1:]
    left, top = round((columns - 224) / 2) * per_pixel, round((rows - 224) / 2) * per_pixel
    wanted = left, top, left + 224 * per_pixel, top + 224 * per_pixel
    found = Centre(224, 224 / 256).box(width, height)
    assert max(abs(one - two) for one, two in zip(found, wanted, strict=True)) <= 1.01 * max(1, per_pixel)


@given(st.integers(1, 900), st.integers(1, 900), st.tuples(st.integers(1, 400), st.integers(1, 400)), st.floats(0.05, 1.0))
def test_the_centre_of_any_shape_is_the_largest_box_of_it_and_lies_in_the_middle(width, height, size, share):
    left, top, right, bottom = Centre(size, share).box(width, height)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    unit = min(Fraction(width, size[1]), Fraction(height, size[0]))  # one of the two sides is full at a share of 1
    for side, whole in ((right - left, unit * size[1]), (bottom - top, unit * size[0])):
        assert side == 1 or abs(side - Fraction(share) * whole) <= Fraction(1, 2) + Fraction(1, 10**9)
    left, top, right, bottom = Centre(size).box(width, height)
    assert right - left == width or bottom - top == height


def test_parts_that_were_dealt_out_come_with_their_rows(tiny_shards):
    ids = np.array([9, 2, 30, 7, 5])
    data = replace(dataset(tiny_shards, recolour=None, erasing=0.0, mixing=None), augment=Centre(8, 1.0), pool=ids, leaves_none_out=True)
    whole = data.batch([(FIXED, int(sample), row) for row, sample in enumerate(ids)])
    for workers in (0, 2):
        found = list(batches(data, Parts(ids, [range(2, 5), np.array([1, 0])]), workers, False))
        assert [part["position"].tolist() for part in found] == [[2, 3, 4], [1, 0]]
        assert [part["sample"].tolist() for part in found] == [[30, 7, 5], [2, 9]]
        assert torch.equal(torch.cat([part["image"] for part in found]), whole["image"][[2, 3, 4, 1, 0]])
        assert torch.equal(torch.cat([part["label"] for part in found]), whole["label"][[2, 3, 4, 1, 0]])


def test_images_in_memory_give_the_same_crops_of_any_shape(tiny_shards):
    data = dataset(tiny_shards)
    shards = data.pixels.source
    stored = replace(data, pixels=MemoryPixels(shards, range(len(shards)), 10**6, 1, 1))
    keys = [(0, sample, sample) for sample in range(6)]
    assert torch.equal(data.batch(keys)["image"], stored.batch(keys)["image"])


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = np.array([beta(Draws(1, MIX, key), alpha) for key in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_a_box_covers_what_the_partner_gives_and_mixup_has_none():
    drawn = [MIXING.draw(0, pair, 20, 30) for pair in range(2000)]
    cut = [(share, box) for share, box in drawn if box != (0, 0, 0, 0)]
    assert len(cut) == pytest.approx(1000, abs=120)
    for share, (left, top, right, bottom) in cut:
        assert 0 <= left <= right <= 30 and 0 <= top <= bottom <= 20
        assert share == pytest.approx(1 - (right - left) * (bottom - top) / 600)
    assert all(share == 1.0 for share, _ in (Mixing(0.8, 1.0, 0.0, 0.5).draw(0, pair, 20, 30) for pair in range(50)))
    assert sum(share < 1 for share, _ in (Mixing(0.8, 0.0, 0.25, 0.5).draw(0, pair, 20, 30) for pair in range(800))) == pytest.approx(
        200, abs=50
    )


def test_one_pair_in_five_is_cut_where_that_is_asked_for_and_each_kind_has_its_own_alpha():
    mixing = Mixing(mixup=0.2, cutmix=4.0, mixed=1.0, cut=0.2)
    drawn = [mixing.draw(0, pair, 200, 200) for pair in range(2000)]
    blended = np.array([share for share, box in drawn if box == (0, 0, 0, 0)])
    assert len(blended) == pytest.approx(1600, abs=60)
    assert blended.var() == pytest.approx(1 / (4 * 1.4), rel=0.1)  # nearly all or nothing
    areas = np.array([(right - left) * (bottom - top) / 200**2 for _, (left, top, right, bottom) in drawn if right])
    assert len(areas) > 300 and areas.max() < 0.95 and (areas < 0.02).mean() < 0.05  # seldom


def test_the_erased_rectangle_has_the_area_and_shape_of_the_paper():
    boxes = [erased_box(0.25, 0, 0, sample, 100, 100) for sample in range(4000)]
    found = [((right - left) * (bottom - top), (bottom - top) / (right - left)) for left, top, right, bottom in boxes if right]
    assert len(found) == pytest.approx(1000, abs=100)
    areas, ratios = np.array(found).T
    assert areas.min() / 1e4 > 0.018 and areas.max() / 1e4 < 0.35
    assert ratios.min() > 0.28 and ratios.max() < 3.6 and np.median(ratios) == pytest.approx(1, abs=0.12)
