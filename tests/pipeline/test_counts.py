"""What is counted and averaged over ranks and over a stop: the figures of one process that was never stopped."""

import json
import shutil

import pytest

from tests.pipeline.conftest import metrics, succeed

WORDS = ["data.max_bad_fraction=1", "model.drop_path=0", "log={every_steps: 2, holdout_every_steps: 2, pictures: 0}"]
BAD = (0, 13, 27, 38, 45)  # of 48, the last 8 held out


@pytest.fixture(scope="module")
def damaged(shards, tmp_path_factory):
    from mpp.data.shards import ShardSet

    folder = tmp_path_factory.mktemp("damaged") / "train"
    shutil.copytree(shards, folder)
    opened = ShardSet.open(folder)
    for sample in BAD:
        row = opened.index[sample]
        with (folder / opened.shard_name(row["shard"])).open("r+b") as tar:
            tar.seek(int(row["offset"]) + 60)
            tar.write(b"\x00\x01\x02\x03")
    return folder


@pytest.fixture(scope="module")
def whole(damaged, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    succeed(run, damaged, *WORDS)
    return run


def test_the_count_of_bad_samples_goes_on_after_a_resume(whole, damaged, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > 4:
            shutil.rmtree(folder)
    assert "resumes at step 4" in succeed(run, damaged, *WORDS).out
    counts = [values["data/bad_samples"] for _, values in sorted(metrics(whole).items())]
    assert 0 < counts[0] < counts[1] < counts[-1] and counts[-1] >= 8  # four bad ones an epoch of 40, and 96 samples
    assert metrics(run) == metrics(whole)
    last = json.loads((run / "checkpoints" / "000000008" / "COMMIT.json").read_text())
    assert last["bad_samples"] == counts[-1]


def test_figures_of_two_processes_are_those_of_one(whole, damaged, tmp_path):
    """Loss, skill, hold-out, gradient norm and bad samples: a sum that one rank kept to itself shows in one of them."""
    run = tmp_path / "run"
    succeed(run, damaged, *WORDS, world=2)
    ours, theirs = metrics(run), metrics(whole)
    assert ours.keys() == theirs.keys() == {2, 4, 6, 8}
    for step, values in theirs.items():
        assert ours[step].keys() == values.keys() >= {"train/loss", "train/skill", "holdout/loss", "holdout/skill", "data/bad_samples"}
        assert ours[step] == pytest.approx(values, rel=2e-4, abs=2e-4), step
        assert ours[step]["data/bad_samples"] == values["data/bad_samples"]
