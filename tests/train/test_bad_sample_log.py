import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from mpp.base.errors import DataError
from mpp.processes.world import World
from mpp.train.bad_samples import BadSamples
from tests.data.masked_images import dataset


@pytest.fixture
def bad_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.train.bad_samples.dist.all_gather_object", lambda found, mine: found.__setitem__(0, mine))
    return BadSamples(tmp_path, World(0, 1, 1, torch.device("cpu")))


def test_a_row_of_bad_samples_counts_each_once_though_each_meets_those_behind_it(tmp_path, make_shards, damage, bad_samples):
    folder = make_shards(tmp_path / "train", [20])
    damage(folder, range(4, 10))
    for views in (1, 3):
        batch = replace(dataset(folder), views=views).batch([(0, sample, views * sample) for sample in range(20)])
        assert len(batch["bad"]) == 21
        assert bad_samples.note(batch["bad"]) == 6 == int(batch["replaced"].sum()) // views
    assert len([json.loads(line) for line in bad_samples.path.read_text().splitlines()]) == 42


@pytest.mark.parametrize(("bad", "seen", "allowed", "stops"), [
    (0, 1, 0.0, False), (1, 10**6, 0.0, True), (1, 12, 0.001, False), (2, 12, 0.001, True), (10, 1000, 0.01, False), (11, 1000, 0.01, True),
])  # fmt: skip
def test_a_run_stops_beyond_its_budget_of_one_sample_at_least(bad_samples, bad, seen, allowed, stops):
    message = f"{bad} unreadable of {seen} samples, more than data.max_bad_fraction={allowed:g} allows"
    with pytest.raises(DataError, match=message) if stops else nullcontext():
        bad_samples.stop_beyond(bad, seen, allowed)
