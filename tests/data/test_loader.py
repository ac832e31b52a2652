import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from mpp.config import DropCorruption, RandomMask, ReplaceCorruption
from mpp.data.augment import Augment
from mpp.data.crop import cut, resize
from mpp.data.decode import decode
from mpp.data.images import ShardImages
from mpp.data.loader import FIXED, MaskedImages, batches, default_workers, fixed_batches, packed, unpacked
from mpp.data.order import Order, OrderSampler, plan_batch
from mpp.data.shards import ShardSet
from mpp.data.training_set import without_last
from mpp.errors import ConfigError, DataError
from mpp.masking import Masking
from mpp.rng import CROP, MASK, Draws

SIZE = 16
AUGMENT = Augment(SIZE, (0.2, 1.0), (0.75, 4 / 3), flip=True)
MASKING = Masking(16, RandomMask(ratio=0.5), ReplaceCorruption())


def dataset(folder, samples: int | None = None, seed: int = 5, max_pixels: int = 10**6) -> MaskedImages:
    shards = ShardSet.open(folder)
    return MaskedImages(ShardImages(shards, max_pixels), AUGMENT, MASKING, seed, range(samples or len(shards)))


def crop_of(data: MaskedImages, image: int, epoch: int, sample: int, view: int = 0) -> np.ndarray:
    """uint8 [3, S, S]: what the image looks like under the draws of (epoch, sample, view)."""
    width, height = data.images.shards.size_of(image)
    box = data.augment.draw(Draws(data.seed, CROP, epoch, sample, view)).box(width, height)
    return cut(data.images.shards.read(image), width, height, [box], data.augment.size)[0]


def sampler(data: MaskedImages, step: int = 0, last: int = 5, rank: int = 0, world: int = 1) -> OrderSampler:
    order = Order(tuple(data.images.shards.samples_per_shard), 12, 6, data.seed)
    return OrderSampler(order, plan_batch(12, 6, world, 4), rank, world, step, last)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) if name != "bad" else a["bad"] == b["bad"] for name in a)


# ----------------------------------------------------------------------------------------------------------------------------- the batch


def test_a_batch_holds_what_the_recipe_needs(tiny_shards):
    batch = dataset(tiny_shards).batch([(0, 3, 0), (0, 30, 1), (1, 3, 2)])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if name != "bad"} == {
        "image": ((3, 3, SIZE, SIZE), torch.uint8),
        "flip": ((3,), torch.bool),
        "kind": ((3, 16), torch.int64),
        "source": ((3, 16), torch.int64),
        "visible": ((3, 8), torch.int64),
        "predicted": ((3, 8), torch.int64),
        "position": ((3,), torch.int64),
        "sample": ((3,), torch.int64),
        "shown": ((3,), torch.int64),
        "replaced": ((3,), torch.bool),
        "box": ((3, 4), torch.int64),
    }
    assert batch["position"].tolist() == [0, 1, 2]
    assert batch["sample"].tolist() == [3, 30, 3]
    assert not batch["replaced"].any()
    assert batch["bad"] == []


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(tiny_shards, workers):
    data = dataset(tiny_shards)
    alone = list(batches(data, sampler(data), 0, pin_memory=False))
    assert len(alone) == 15
    found = list(batches(data, sampler(data), workers, pin_memory=False))
    assert all(same(a, b) for a, b in zip(alone, found, strict=True))


def test_a_resumed_loader_goes_on_with_the_same_batches(tiny_shards):
    data = dataset(tiny_shards)
    whole = list(batches(data, sampler(data), 0, pin_memory=False))
    rest = list(batches(data, sampler(data, step=2), 0, pin_memory=False))
    assert all(same(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_ranks_together_see_what_one_process_sees(tiny_shards):
    data = dataset(tiny_shards)

    def joined(parts: list[dict]) -> dict:
        return {name: torch.cat([part[name] for part in parts]) for name in ("image", "flip", "kind", "source", "predicted", "sample")}

    alone = joined(list(batches(data, sampler(data, 1, 2), 0, pin_memory=False)))
    ranks = [batch for rank in range(3) for batch in batches(data, sampler(data, 1, 2, rank, 3), 0, pin_memory=False)]
    assert all(torch.equal(alone[name], value) for name, value in joined(ranks).items())


def test_crop_flip_and_mask_belong_to_seed_epoch_and_sample_alone(tiny_shards):
    data, names = dataset(tiny_shards), ("image", "flip", "kind", "source", "visible", "predicted")
    alone = data.batch([(2, 7, 40)])
    in_company = data.batch([(2, 9, 3), (0, 7, 5), (2, 7, 900), (1, 7, 2)])
    for name in names:
        assert torch.equal(alone[name][0], in_company[name][2])
    other_epoch, other_seed = data.batch([(3, 7, 40)]), replace(data, seed=6).batch([(2, 7, 40)])
    for name in ("image", "kind", "source"):
        assert not torch.equal(alone[name], other_epoch[name])
        assert not torch.equal(alone[name], other_seed[name])


def test_two_samples_with_equal_pixels_are_cropped_and_masked_differently(tiny_shards):
    data = dataset(tiny_shards)
    crops = [crop_of(data, 0, 0, sample) for sample in range(10)]
    assert len({crop.tobytes() for crop in crops}) == 10
    assert len({tuple(MASKING.draw(Draws(5, MASK, 0, sample, 0)).kind) for sample in range(10)}) == 10


def test_half_of_the_samples_are_flipped_or_none():
    flips = sum(AUGMENT.draw(Draws(5, CROP, 0, sample)).flip for sample in range(2000))
    assert abs(flips - 1000) < 100  # 4.5 standard deviations
    never = replace(AUGMENT, flip=False)
    assert not any(never.draw(Draws(5, CROP, 0, sample)).flip for sample in range(50))


def test_a_dropping_recipes_batch_has_static_shapes(tiny_shards):
    data = replace(dataset(tiny_shards), masking=Masking(16, RandomMask(ratio=0.75), DropCorruption()))
    batch = data.batch([(0, sample, sample) for sample in range(5)])
    assert batch["visible"].shape == (5, 4)
    assert batch["predicted"].shape == (5, 12)


# ------------------------------------------------------------------------------------------------------------------------------ the crop


@pytest.mark.parametrize(
    ("width", "height", "scale", "ratio"),
    [(500, 375, (0.05, 1.0), (0.75, 4 / 3)), (300, 400, (0.2, 1.0), (0.75, 4 / 3)), (400, 100, (0.3, 0.9), (0.5, 2.0))],
)
def test_crops_are_distributed_as_torchvisions(width, height, scale, ratio):
    draws = 5000
    augment = Augment(SIZE, scale, ratio, flip=True)
    ours = np.array([augment.draw(Draws(1, CROP, 0, sample)).box(width, height) for sample in range(draws)], dtype=float)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        boxes = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(draws)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in boxes], dtype=float)

    def features(box: np.ndarray) -> np.ndarray:
        w, h = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        share, aspect = w * h / (width * height), np.log(w / h)
        return np.stack(
            [share, share**2, aspect, aspect**2, (box[:, 0] + box[:, 2]) / width, (box[:, 1] + box[:, 3]) / height, box[:, 0] ** 2]
        )

    a, b = features(ours), features(theirs)
    error = np.sqrt((a.var(axis=1) + b.var(axis=1)) / draws)
    assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) < 4 * error).all()
    for mine, other in zip(a, b, strict=True):
        grid = np.quantile(np.concatenate([mine, other]), np.linspace(0.02, 0.98, 25))
        gap = np.abs((mine[:, None] <= grid).mean(axis=0) - (other[:, None] <= grid).mean(axis=0)).max()
        assert gap < 0.04  # Kolmogorov-Smirnov at 5,000 against 5,000: beyond it fewer than 1 in 1,000


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_a_crop_never_leaves_the_image(width, height, low, share, sample):
    augment = Augment(8, (low, low + share * (1 - low)), (0.75, 4 / 3), flip=True)
    left, top, right, bottom = augment.draw(Draws(0, CROP, 0, sample)).box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize(("width", "height", "box"), [(400, 10, (193, 0, 206, 10)), (10, 400, (0, 193, 10, 206)), (9, 9, (0, 0, 9, 9))])
def test_when_nothing_fits_the_largest_centred_box_is_taken(width, height, box):
    augment = Augment(8, (1.0, 1.0), (0.75, 4 / 3) if width != height else (1.0, 1.0), flip=False)
    found = augment.draw(Draws(0, CROP)).box(width, height)
    with torch.random.fork_rng(devices=[]):
        top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(augment.ratio))
    assert found == (left, top, left + w, top + h) == box


def test_an_image_is_the_boxs_pixels_resized_and_never_flipped_by_the_worker(tiny_shards):
    data = dataset(tiny_shards)
    batch = data.batch([(3, sample, sample) for sample in range(6)])
    assert batch["flip"].any()
    for sample, (left, top, right, bottom) in enumerate(batch["box"].tolist()):
        expected = resize(decode(data.images.shards.read(sample))[top:bottom, left:right], SIZE)
        assert np.array_equal(batch["image"][sample].numpy(), expected)


# --------------------------------------------------------------------------------------------------------------------------- bad samples


def test_a_bad_sample_is_replaced_by_the_next_readable_one_with_its_own_seed(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 5])
    whole = dataset(folder)
    good = whole.batch([(4, 8, 0), (4, 7, 1)])
    damage(folder, [6, 7])
    found = dataset(folder).batch([(4, 6, 17), (4, 7, 18), (4, 8, 19)])
    assert found["replaced"].tolist() == [True, True, False]
    assert found["sample"].tolist() == [6, 7, 8]
    assert found["shown"].tolist() == [8, 8, 8]
    for row, sample in enumerate((6, 7)):
        assert np.array_equal(found["image"][row].numpy(), crop_of(whole, 8, 4, sample))
        assert bool(found["flip"][row]) == AUGMENT.draw(Draws(5, CROP, 4, sample, 0)).flip
        assert found["kind"][row].tolist() == MASKING.draw(Draws(5, MASK, 4, sample, 0)).kind.tolist()
    assert torch.equal(found["kind"][1], good["kind"][1])  # the mask is the one the sample would have had
    assert torch.equal(found["image"][2], good["image"][0])


def test_every_fault_on_the_way_is_recorded(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 5])
    damage(folder, [6, 7])
    bad = dataset(folder).batch([(4, 6, 17), (4, 0, 18), (4, 7, 19)])["bad"]
    assert [(fault["position"], fault["sample"], fault["bad"]) for fault in bad] == [(17, 6, 6), (17, 6, 7), (19, 7, 7)]
    assert [fault["where"].split(" (")[0] for fault in bad] == [f"train/000001.tar: {key:012d}" for key in (6, 7, 7)]
    assert all("CRC-32" in fault["reason"] for fault in bad)


def test_replacement_is_cyclic_within_the_training_samples(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 5])
    damage(folder, [8])
    data = dataset(folder, samples=9)  # 9 and 10 are held out
    batch = data.batch([(0, 8, 0)])
    assert np.array_equal(batch["image"][0].numpy(), crop_of(data, 0, 0, 8))
    whole_set = dataset(folder)
    assert np.array_equal(whole_set.batch([(0, 8, 0)])["image"][0].numpy(), crop_of(data, 9, 0, 8))


def test_a_bad_held_out_sample_is_replaced_by_a_held_out_one(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 5])
    damage(folder, [10])
    data = dataset(folder)
    held_out = replace(data, pool=range(9, 11))
    assert np.array_equal(held_out.batch([(0, 10, 0)])["image"][0].numpy(), crop_of(data, 9, 0, 10))


def test_too_many_pixels_make_a_bad_sample(tiny_shards):
    data = dataset(tiny_shards)
    areas = (data.images.shards.index["width"].astype(int) * data.images.shards.index["height"]).tolist()
    limit = sorted(areas)[20]
    batch = dataset(tiny_shards, max_pixels=limit).batch([(0, sample, sample) for sample in range(40)])
    assert batch["replaced"].tolist() == [area > limit for area in areas]
    assert "too many pixels" in batch["bad"][0]["reason"]


def test_a_hundred_bad_samples_in_a_row_stop_the_run(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [103], smallest=4)
    damage(folder, range(100))
    data = dataset(folder)
    assert len(data.batch([(0, 1, 0)])["bad"]) == 99
    with pytest.raises(DataError, match=r"100 samples in a row are unreadable, from train/000000.tar: 000000000000 .*CRC-32.*make_shards"):
        data.batch([(0, 0, 0)])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_disk_stops_the_run_with_one_error_whatever_the_workers(tmp_path, make_shards, monkeypatch, workers):
    folder = make_shards(tmp_path / "train", [6, 8])
    monkeypatch.setattr("mpp.data.shards.RETRY_SECONDS", (0.0,))
    data = dataset(folder)
    (folder / "000001.tar").unlink()
    with pytest.raises(DataError, match=r"train/000001.tar.*No such file"):
        list(batches(data, sampler(data, 0, 1), workers, pin_memory=False))


@dataclass(frozen=True)
class Deadly(MaskedImages):
    """The worker that is asked for the run's first sample is killed, as by a kernel out of memory, while everybody waits for it."""

    main: int = 0

    def __getitems__(self, keys):
        if os.getpid() != self.main and any(position == 0 for _, _, position in keys):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitems__(keys)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_an_error_and_no_hang(tiny_shards, workers):
    own = dataset(tiny_shards)
    data = Deadly(own.images, own.augment, own.masking, own.seed, own.pool, main=os.getpid())
    with pytest.raises(DataError, match="a loader process died"):
        list(batches(data, sampler(data), workers, pin_memory=False))


# ------------------------------------------------------------------------------------------------------------------------------ hold-out


@pytest.mark.parametrize(
    ("shards", "holdout", "left"),
    [((5, 4, 3), 0, (5, 4, 3)), ((5, 4, 3), 2, (5, 4, 1)), ((5, 4, 3), 3, (5, 4)), ((5, 4, 3), 5, (5, 2)), ((5, 4, 3), 12, ())],
)
def test_the_last_samples_are_held_out_of_training(shards, holdout, left):
    assert without_last(list(shards), holdout) == left


@given(st.lists(st.integers(1, 20), min_size=1, max_size=10), st.data())
def test_training_shards_are_a_prefix_of_the_set(shards, data):
    holdout = data.draw(st.integers(0, sum(shards)))
    left = without_last(shards, holdout)
    assert sum(left) == sum(shards) - holdout
    assert all(size > 0 for size in left)
    assert list(left[:-1]) == shards[: max(0, len(left) - 1)]


@pytest.mark.parametrize(("count", "batch", "world"), [(10, 4, 1), (10, 4, 2), (8, 4, 2), (3, 4, 2), (1, 1, 3), (12, 5, 1)])
def test_fixed_batches_weigh_each_sample_once_and_padding_nothing(tiny_shards, count, batch, world):
    data, ids = dataset(tiny_shards), np.arange(40 - count, 40)
    ranks = [list(fixed_batches(data, ids, batch, rank, world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert {len(found["sample"]) for rank in ranks for found, _ in rank} == {batch}
    assert all(weight.dtype == torch.float32 for rank in ranks for _, weight in rank)
    weighed = {}
    for rank in ranks:
        for found, weight in rank:
            for sample, w in zip(found["sample"].tolist(), weight.tolist(), strict=True):
                weighed[sample] = weighed.get(sample, 0) + w
    assert weighed == dict.fromkeys(ids.tolist(), 1.0)


def test_padding_repeats_a_bad_sample_but_not_its_fault(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 6])
    damage(folder, [11])
    data = dataset(folder)
    found = [fault for rank in range(2) for rows, _ in fixed_batches(data, np.arange(8, 12), 8, rank, 2) for fault in rows["bad"]]
    assert [fault["bad"] for fault in found] == [11]


def test_fixed_batches_never_change_and_are_no_training_epochs(tiny_shards):
    data = dataset(tiny_shards)
    (first, _), (again, _) = (next(fixed_batches(data, np.array([3, 4]), 2)) for _ in range(2))
    assert same(first, again)
    assert same(first, data.batch([(FIXED, 3, 0), (FIXED, 4, 1)]))
    assert not any(torch.equal(first["kind"], data.batch([(epoch, 3, 0), (epoch, 4, 0)])["kind"]) for epoch in range(50))


def test_default_workers_leave_a_core_for_each_rank(monkeypatch):
    cores: Callable[[int], None] = lambda count: monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    for count, local_world, expected in [(16, 1, 15), (64, 1, 16), (16, 4, 3), (2, 1, 1), (1, 1, 1), (8, 8, 1)]:
        cores(count)
        assert default_workers(local_world) == expected


# -------------------------------------------------------------------------------------------------------------------------- the machine


def test_running_out_of_memory_is_an_error_of_the_run_and_no_bad_sample(tiny_shards, monkeypatch):
    data = dataset(tiny_shards)
    monkeypatch.setattr("mpp.data.images.cut", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(DataError, match=r"ran out of memory among samples 7, .*lower system.workers"):
        list(batches(data, [[(0, 7, 0)]], 0, pin_memory=False))


def test_a_program_fault_is_no_bad_sample(tiny_shards, monkeypatch):
    data = dataset(tiny_shards)
    for fault in (ImportError, ZeroDivisionError, OSError(5, "Input/output error")):
        monkeypatch.setattr("mpp.data.images.cut", lambda *_, fault=fault: (_ for _ in ()).throw(fault))
        with pytest.raises(fault if isinstance(fault, type) else OSError):
            data.batch([(0, 7, 0)])


@dataclass(frozen=True)
class Faulty(MaskedImages):
    def batch(self, keys):
        raise RuntimeError(f"of the program, at {keys[0]}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_in_a_worker_keeps_its_traceback(tiny_shards, workers):
    own = dataset(tiny_shards)
    data = Faulty(own.images, own.augment, own.masking, own.seed, own.pool)
    with pytest.raises(RuntimeError, match="of the program, at"):
        list(batches(data, sampler(data), workers, pin_memory=False))


def test_what_is_packed_comes_out_the_same_though_pinning_may_make_lists_of_tuples(tiny_shards):
    batch = dataset(tiny_shards).batch([(0, 3, 0), (0, 30, 1)])
    handed = packed(batch)
    assert [name for name, value in handed.items() if isinstance(value, torch.Tensor)] == ["image", "numbers"]
    handed["layout"] = [[name, list(shape), dtype] for name, shape, dtype in handed["layout"]]
    assert same(unpacked(handed), batch)


def test_fewer_samples_than_a_hundred_may_all_be_bad(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [5])
    damage(folder, range(5))
    with pytest.raises(DataError, match=r"^5 samples in a row are unreadable"):
        dataset(folder).batch([(0, 2, 0)])


def test_too_little_shared_memory_is_refused_before_workers_start(tiny_shards, monkeypatch):
    monkeypatch.setattr("mpp.data.loader.shutil.disk_usage", lambda _: type("Usage", (), {"free": 20_000}))
    data = dataset(tiny_shards)
    with pytest.raises(
        ConfigError, match=r"system.workers=2: .*through /dev/shm, up to 0 MB, and 0 MB are free; lower system.workers .*shm-size"
    ):
        list(batches(data, sampler(data), 2, pin_memory=False))
    assert len(list(batches(data, sampler(data), 0, pin_memory=False))) == 15


def test_a_worker_writes_its_images_into_shared_memory(tiny_shards, monkeypatch):
    monkeypatch.setattr("mpp.data.loader.get_worker_info", lambda: "a worker")
    assert dataset(tiny_shards).batch([(0, 7, 0)])["image"].is_shared()
    monkeypatch.setattr("mpp.data.loader.get_worker_info", lambda: None)
    assert not dataset(tiny_shards).batch([(0, 7, 0)])["image"].is_shared()


def test_a_batch_takes_no_more_memory_than_is_asked_for(tiny_shards):
    data = dataset(tiny_shards)
    batch = data.batch([(0, sample, sample) for sample in range(4)])
    assert sum(value.nbytes for name, value in batch.items() if name != "bad") <= data.bytes_of(4)


MANY_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (26, 4096))
from mpp.machine import allow_open_files
from tests.data.test_loader import batches, dataset, sampler
allow_open_files()
data = dataset(sys.argv[1])
print(len({int(i) for batch in batches(data, sampler(data), 2, pin_memory=False) for i in batch["sample"]}))
"""


def test_more_shards_and_batches_than_open_files_are_no_hindrance(tmp_path, make_shards):
    folder = make_shards(tmp_path / "train", [1] * 70)
    command = [sys.executable, "-c", MANY_FILES, folder]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert finished.stdout == "60\n", finished.stderr


def test_a_worker_has_one_thread(tiny_shards):
    own = dataset(tiny_shards)
    data = CountsThreads(own.images, own.augment, own.masking, own.seed, own.pool)
    torch.set_num_threads(2)
    try:
        found = list(batches(data, sampler(data, 0, 1), 2, pin_memory=False))
    finally:
        torch.set_num_threads(1)
    assert {batch["threads"] for batch in found} == {1}
    assert len({batch["process"] for batch in found} - {os.getpid()}) == 2


@dataclass(frozen=True)
class CountsThreads(MaskedImages):
    def __getitems__(self, keys):
        return super().__getitems__(keys) | {"threads": torch.get_num_threads(), "process": os.getpid()}


# --------------------------------------------------------------------------------------------------------------- shards that change in a run


def shard(folder: Path) -> Path:
    return folder / "000000.tar"


def delete(folder: Path) -> None:
    shard(folder).unlink()


def cut_short(folder: Path) -> None:
    os.truncate(shard(folder), 700)


def edit(folder: Path) -> None:
    with shard(folder).open("r+b") as file:
        file.seek(600)
        file.write(b"\x00" * (shard(folder).stat().st_size - 600))


def put_another_in_its_place(folder: Path) -> None:
    (folder / "other.tar").write_bytes((folder / "000001.tar").read_bytes())
    (folder / "other.tar").rename(shard(folder))


@pytest.mark.parametrize("was_open", [True, False])
@pytest.mark.parametrize("change", [delete, cut_short, edit, put_another_in_its_place])
def test_a_shard_that_changes_during_a_run_is_read_on_named_or_stops_the_run(tmp_path, make_shards, monkeypatch, change, was_open):
    folder = make_shards(tmp_path / "train", [6, 8])
    monkeypatch.setattr("mpp.data.shards.RETRY_SECONDS", (0.0,))
    data, keys = dataset(folder), [(0, sample, sample) for sample in (1, 2, 9)]
    before = dataset(folder).batch(keys)
    if was_open:
        data.images.shards.read(0)
    change(folder)
    if change is delete and not was_open:
        with pytest.raises(
            DataError, match=r"train/000000.tar: 000000000001 .*No such file or directory.*check the disk or mount, then resume"
        ):
            data.batch(keys)
        return
    found = data.batch(keys)
    if was_open and change in (delete, put_another_in_its_place):  # what was opened is still there
        assert same(before, found)
        return
    assert found["sample"].tolist() == [1, 2, 9]
    assert found["replaced"].tolist() == [True, True, False]
    assert {fault["where"].split(":")[0] for fault in found["bad"]} == {"train/000000.tar"}
    assert torch.equal(found["kind"], before["kind"])
    if change is cut_short:
        assert all("the shard has 700 bytes now, not" in fault["reason"] for fault in found["bad"])
