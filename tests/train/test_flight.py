"""What the flight recorder notes of a batch."""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpp.base import errors
from mpp.train import flight
from mpp.train.flight import Flight, Kept, labels_check, masks_check


def recorder(folder) -> Flight:
    world = SimpleNamespace(device=torch.device("cpu"), rank=0, size=1, first=True)
    return Flight(folder, world, {}, views=1, accumulation=1, look_every=1)


@pytest.mark.parametrize(("free", "goes_on", "kept"), [(16_000, True, True), (15_999, True, False), (15_999, False, True)])
def test_weights_of_a_run_that_goes_on_leave_room_for_its_next_checkpoint(free, goes_on, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "at_stopping", [])
    monkeypatch.setattr(flight.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free))
    tensors = {"weight/a": torch.zeros(600), "ema/a": torch.zeros(400)}  # 4,000 bytes; their checkpoint has at most three times as many
    if kept:
        recorder(tmp_path).keep_weights(tensors, Kept(3, 3), goes_on)
    else:
        with pytest.raises(OSError, match="the next checkpoint needs the room"):
            recorder(tmp_path).keep_weights(tensors, Kept(3, 3), goes_on)
    assert (tmp_path / "flight" / "weights.safetensors").exists() == kept


def test_weights_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch, flushed):
    monkeypatch.setattr(errors, "at_stopping", [])
    recorder(tmp_path).keep_weights({"weight/a": torch.zeros(3)}, Kept(3, 3), goes_on=False)
    assert [name.partition(".tmp-")[0] for name in flushed] == [".weights.safetensors"]


def test_what_is_drawn_for_labelled_images_changes_their_check():
    batch = {
        "label": torch.tensor([1, 0]),
        "erase": torch.tensor([[0, 0, 4, 4], [0, 0, 0, 0]]),
        "noise": torch.tensor([5, 6]),
        "share": torch.tensor([0.5, 0.5]),
        "paste": torch.tensor([[1, 2, 3, 4]] * 2),
    }
    checks = [labels_check(batch), *(labels_check(batch | {name: value + 1}) for name, value in batch.items())]
    assert len(set(checks)) == 6 and masks_check(batch) is None
    assert labels_check({"kind": batch["label"]}) is None
    plain = {"label": batch["label"]}
    assert labels_check(plain) == labels_check(plain | {"image": torch.zeros(2)}) != labels_check(batch)


def test_what_is_noted_of_a_batch_keeps_none_of_its_memory(tmp_path, monkeypatch):
    """A batch comes from its loader process as one tensor of numbers, masks among them: a view of a few would keep them all, 16 steps long."""
    monkeypatch.setattr(errors, "at_stopping", [])
    samples = torch.tensor([7, 8, 9])
    batch = {
        "sample": samples,
        "shown": torch.tensor([7, 5, 9]),
        "position": torch.arange(3),
        "image": torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
    }
    noting = recorder(tmp_path)
    noting.begin(1, {})
    noting.note(batch | {"kind": torch.ones(3, 4, dtype=torch.int64), "source": torch.zeros(3, 4, dtype=torch.int64)})
    (noted,) = noting._steps[-1].batches
    assert noted["samples"].tolist() == [7, 8, 9] and noted["replaced"] == {8: 5} and noted["position"] == 0
    arrays = [value for value in noted.values() if isinstance(value, np.ndarray)]
    assert arrays and not any(np.shares_memory(array, tensor.numpy()) for array in arrays for tensor in batch.values())
