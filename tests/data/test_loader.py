import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.rng import MASK, Draws
from mpp.data.crop_dataset import CropDataset
from mpp.data.handing_over import packed, unpacked
from mpp.data.loader import LoaderProcesses, batches, fixed_batches
from mpp.data.order import FIXED
from mpp.data.training_set import without_last
from mpp.recipe.corruptions.drop import DropCorruption
from mpp.recipe.masking import Masking
from mpp.recipe.masks import RandomMask
from tests.data.masked_images import MASKING, SIZE, crop_of, dataset, same, sampler
from tests.masks import draw


def test_a_batch_holds_what_the_recipe_needs(tiny_shards):
    batch = dataset(tiny_shards).batch([(0, 3, 0), (0, 30, 1), (1, 3, 2)])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if name != "bad"} == {
        "image": ((3, 3, SIZE, SIZE), torch.uint8),
        "pose": ((3,), torch.int64),
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


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_again_is_read_by_the_same_processes_and_is_the_same(tiny_shards, workers):
    data = dataset(tiny_shards)
    alone = list(batches(data, sampler(data), 0, pin_memory=False))
    before = {child.pid for child in multiprocessing.active_children()}
    kept, processes = LoaderProcesses([data], workers, pin_memory=False), []
    for _ in range(3):
        found = list(kept.batches(data, sampler(data), "measuring"))
        assert len(found) == 15 and all(same(a, b) for a, b in zip(alone, found, strict=True))
        processes.append({child.pid for child in multiprocessing.active_children()} - before)
    assert len(processes[0]) == workers and processes[0] == processes[1] == processes[2]
    del kept
    assert not {child.pid for child in multiprocessing.active_children()} & processes[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_processes_read_several_sets_one_after_the_other_and_nothing_before_they_are_asked(tiny_shards, workers, monkeypatch):
    one = dataset(tiny_shards)
    other = replace(one, seed=one.seed + 1, masking=None)
    looked = torch.zeros(1).share_memory_()
    draw = CropDataset.batch
    monkeypatch.setattr(CropDataset, "batch", lambda self, keys: (looked.add_(1), draw(self, keys))[1])
    before = {child.pid for child in multiprocessing.active_children()}
    kept = LoaderProcesses([one, other], workers, pin_memory=False)
    began = {child.pid for child in multiprocessing.active_children()} - before
    assert len(began) == workers
    time.sleep(0.2)
    assert looked == 0
    alone = {each: list(batches(each_set, sampler(each_set), 0, pin_memory=False)) for each, each_set in (("one", one), ("other", other))}
    left = kept.batches(one, sampler(one), "training")
    assert same(next(left), alone["one"][0])
    del left  # half-way, as where a run was asked to stop
    for name, data in (("other", other), ("one", one), ("other", other)):
        found = list(kept.batches(data, sampler(data), "training"))
        assert len(found) == 15 and all(same(a, b) for a, b in zip(alone[name], found, strict=True))
    assert {child.pid for child in multiprocessing.active_children()} - before == began


def test_a_resumed_loader_goes_on_with_the_same_batches(tiny_shards):
    data = dataset(tiny_shards)
    whole = list(batches(data, sampler(data), 0, pin_memory=False))
    rest = list(batches(data, sampler(data, step=2), 0, pin_memory=False))
    assert all(same(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_ranks_together_see_what_one_process_sees(tiny_shards):
    data = dataset(tiny_shards)

    def joined(parts: list[dict]) -> dict:
        return {name: torch.cat([part[name] for part in parts]) for name in ("image", "pose", "kind", "source", "predicted", "sample")}

    alone = joined(list(batches(data, sampler(data, 1, 2), 0, pin_memory=False)))
    ranks = [batch for rank in range(3) for batch in batches(data, sampler(data, 1, 2, rank, 3), 0, pin_memory=False)]
    assert all(torch.equal(alone[name], value) for name, value in joined(ranks).items())


def test_crop_pose_and_mask_belong_to_seed_epoch_and_sample_alone(tiny_shards):
    data, names = dataset(tiny_shards), ("image", "pose", "kind", "source", "visible", "predicted")
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
    assert len({tuple(draw(MASKING, Draws(5, MASK, 0, sample, 0)).kind) for sample in range(10)}) == 10


def test_a_dropping_recipes_batch_has_static_shapes(tiny_shards):
    data = replace(dataset(tiny_shards), masking=Masking((4, 4), RandomMask(ratio=0.75), DropCorruption()))
    batch = data.batch([(0, sample, sample) for sample in range(5)])
    assert batch["visible"].shape == (5, 4)
    assert batch["predicted"].shape == (5, 12)


@pytest.mark.parametrize(
    ("shards", "holdout", "left"),
    [((5, 4, 3), 0, (5, 4, 3)), ((5, 4, 3), 2, (5, 4, 1)), ((5, 4, 3), 3, (5, 4)), ((5, 4, 3), 5, (5, 2)), ((5, 4, 3), 12, ())],
)
def test_the_last_samples_are_held_out_of_training(shards, holdout, left):
    assert without_last(np.array(shards), holdout).tolist() == list(left)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=10), st.data())
def test_training_shards_are_a_prefix_of_the_set(shards, data):
    holdout = data.draw(st.integers(0, sum(shards)))
    left = without_last(np.array(shards), holdout).tolist()
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


def test_fixed_batches_never_change_and_are_no_training_epochs(tiny_shards):
    data = dataset(tiny_shards)
    (first, _), (again, _) = (next(fixed_batches(data, np.array([3, 4]), 2)) for _ in range(2))
    assert same(first, again)
    assert same(first, data.batch([(FIXED, 3, 0), (FIXED, 4, 1)]))
    assert not any(torch.equal(first["kind"], data.batch([(epoch, 3, 0), (epoch, 4, 0)])["kind"]) for epoch in range(50))


def test_what_is_packed_comes_out_the_same_though_pinning_may_make_lists_of_tuples(tiny_shards):
    batch = dataset(tiny_shards).batch([(0, 3, 0), (0, 30, 1)])
    handed = packed(batch)
    assert [name for name, value in handed.items() if isinstance(value, torch.Tensor)] == ["image", "numbers"]
    assert handed["numbers"].dtype == torch.uint8
    handed["layout"] = [[name, list(shape), dtype] for name, shape, dtype in handed["layout"]]
    assert same(unpacked(handed), batch)


def test_what_is_packed_comes_out_as_views_of_what_was_handed_over(tiny_shards):
    columns = {
        "share": torch.rand(3),
        "flag": torch.tensor([True, False, True]),
        "box": torch.arange(12).view(3, 4),
        "none": torch.zeros(0),
    }
    handed = packed(columns | {"image": torch.zeros(3, 3, 4, 4, dtype=torch.uint8)})
    numbers = handed["numbers"].untyped_storage().data_ptr()  # pinned, where the loader pins
    found = unpacked(handed)
    for name, value in columns.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
        assert found[name].untyped_storage().data_ptr() == numbers
