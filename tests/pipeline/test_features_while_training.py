"""Looks at the features and into the encoder change nothing of a run, are written down once, and are the same on any number of processes and ZeRO stage."""

import shutil

import pytest
import torch

from mpp.monitor.board import logged
from tests.pipeline.conftest import succeed, tensors

LOOKS = ["evaluate={every_steps: 4, images: 40}", "log.pictures=1"]


def rows(run):
    return logged(run, "features/rank")


def test_a_run_that_is_looked_at_has_the_weights_of_one_that_is_not(shards, tmp_path):
    finished = succeed(tmp_path / "looked", shards, *LOOKS)
    succeed(tmp_path / "left alone", shards, "evaluate.images=0", "log.pictures=0")
    ours, theirs = tensors(tmp_path / "looked", 8), tensors(tmp_path / "left alone", 8)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [row["step"] for row in rows(tmp_path / "looked")] == [0, 4, 8] and not rows(tmp_path / "left alone")
    assert finished.out.count("features: rank") == 3 and "before the first step" in finished.out and "% of the time)" in finished.out
    for row in rows(tmp_path / "looked"):
        assert 0 <= row["features/linear"] <= 1 and 0 < row["attention/entropy/block_02"] <= 1
        assert row["attention/distance/mean"] == pytest.approx(
            (row["attention/distance/block_01"] + row["attention/distance/block_02"]) / 2
        )
    assert list((tmp_path / "looked" / "pictures").glob("000000000000*.png")) and not (tmp_path / "left alone" / "pictures").exists()


def test_a_resumed_run_has_the_looks_of_an_uninterrupted_one_each_once(shards, tmp_path):
    succeed(tmp_path / "whole", shards, *LOOKS)
    succeed(tmp_path / "cut", shards, *LOOKS, "optim.total_samples=96")
    for newer in ("000000008", "000000006"):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / newer)
    assert "resumes at step 4" in succeed(tmp_path / "cut", shards, *LOOKS).out
    figures = lambda run: [{name: value for name, value in row.items() if name != "speed/features_share"} for row in rows(run)]
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


def test_a_run_that_begins_anew_has_its_own_look_at_the_beginning_alone(shards, tmp_path):
    run = tmp_path / "run"
    succeed(run, shards, *LOOKS)
    shutil.rmtree(run / "checkpoints")
    succeed(run, shards, *LOOKS)
    assert [row["step"] for row in rows(run)] == [0, 4, 8]


@pytest.mark.parametrize("stage", [0, 3])
def test_two_processes_see_what_one_sees(stage, shards, tmp_path):
    succeed(tmp_path / "one", shards, *LOOKS)
    succeed(tmp_path / "two", shards, *LOOKS, f"system.zero_stage={stage}", world=2)
    alone, both = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in both] == [0, 4, 8]
    for ours, theirs in zip(alone, both, strict=True):
        for name in ("features/rank", "features/deviation", "attention/distance/block_01", "attention/entropy/mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2)
