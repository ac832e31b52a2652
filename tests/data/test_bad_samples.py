import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpp.base.errors import DataError
from mpp.base.rng import CROP, MASK, Draws
from mpp.data.loader import batches, fixed_batches
from mpp.data.order import EveryOnce
from tests.data.masked_images import AUGMENT, MASKING, crop_of, dataset, same
from tests.masks import draw


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
        assert int(found["pose"][row]) == AUGMENT.draw(Draws(5, CROP, 4, sample, 0)).pose
        assert found["kind"][row].tolist() == draw(MASKING, Draws(5, MASK, 4, sample, 0)).kind.tolist()
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


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_measured_has_no_stand_ins(tmp_path, make_shards, damage, workers):
    folder = make_shards(tmp_path / "train", [6, 5])
    damage(folder, [6])
    data, before = replace(dataset(folder), leaves_none_out=True), multiprocessing.active_children()
    with pytest.raises(DataError, match=r"train/000001.tar: 000000000006 .*CRC-32.*leaves no image out, so copy or make the split again"):
        list(batches(data, EveryOnce(data.ids, 4, 0, 1), workers, pin_memory=False))
    assert set(multiprocessing.active_children()) <= set(before)  # who goes on is not held up by them
    assert len(list(batches(replace(data, pool=range(6)), EveryOnce(np.arange(6), 4, 0, 1), workers, pin_memory=False))) == 2


def test_too_many_pixels_make_a_bad_sample(tiny_shards):
    data = dataset(tiny_shards)
    areas = (data.pixels.source.index["width"].astype(int) * data.pixels.source.index["height"]).tolist()
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


def test_padding_repeats_a_bad_sample_but_not_its_fault(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 6])
    damage(folder, [11])
    data = dataset(folder)
    found = [fault for rank in range(2) for rows, _ in fixed_batches(data, np.arange(8, 12), 8, rank, 2) for fault in rows["bad"]]
    assert [fault["bad"] for fault in found] == [11]


def test_a_program_fault_is_no_bad_sample(tiny_shards, monkeypatch):
    data = dataset(tiny_shards)
    for fault in (ImportError, ZeroDivisionError, OSError(5, "Input/output error")):
        monkeypatch.setattr("mpp.data.pixels.cut", lambda *_, fault=fault: (_ for _ in ()).throw(fault))
        with pytest.raises(fault if isinstance(fault, type) else OSError):
            data.batch([(0, 7, 0)])


def test_fewer_samples_than_a_hundred_may_all_be_bad(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [5])
    damage(folder, range(5))
    with pytest.raises(DataError, match=r"^5 samples in a row are unreadable"):
        dataset(folder).batch([(0, 2, 0)])


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
    monkeypatch.setattr("mpp.disk.patience.Disks.patience", 0.0)
    data, keys = dataset(folder), [(0, sample, sample) for sample in (1, 2, 9)]
    before = dataset(folder).batch(keys)
    if was_open:
        data.pixels.source.read(0)
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
