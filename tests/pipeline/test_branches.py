"""Several cool-downs from one trunk: a branch goes on where the trunk was, with all its state and the samples that come next."""

import json
import shutil

import pytest
import torch

from mpp.base.errors import CheckpointError
from mpp.pretrain import main
from tests.pipeline.conftest import TINY, finish, metrics, start, succeed, tensors

TRUNK = [
    "optim={base_lr: 1e-3, warmup_samples: 24, final_weight_decay: 0.5, weight_decay_samples: 60, schedule: constant, total_samples: 72}",
    "target={name: features, blocks: 2, ema_schedule: lr}",
    "checkpoint={keep_at_samples: [20, 48], every_minutes: null, keep: 2}",
    "log.samples=true",
]
COOLED = ["optim.schedule=wsd", "optim.cooldown_samples=48", "optim.total_samples=96", "optim.final_lr=1e-5"]
MANY = """
import json, sys
import torch.distributed as dist
import mpp.train.engine as engine
import mpp.train.gathering as gathering
from mpp.pretrain import main

world = engine.start_distributed()
gathering.start_distributed = lambda *_, **__: world  # one process group for all runs
dist.destroy_process_group = lambda *_: None
for words in json.loads(sys.argv[1]):
    main(words)
"""


@pytest.fixture(scope="module")
def place(shards, tmp_path_factory):
    """trunk: 6 steps at the peak.  straight: 8 steps, the last 4 of them cooling down; branch: the same from the trunk's step 4.  again: the trunk from
    its step 2 on."""
    place = tmp_path_factory.mktemp("branches")
    run = lambda name, *words: [*TINY, *TRUNK, f"data.shards={shards}", f"run_dir={place / name}", *words]
    checkpoint = lambda step: f"branch_from={place / 'trunk' / 'checkpoints' / f'{step:09d}'}"
    runs = [
        run("straight", *COOLED),
        run("trunk"),
        run("branch", *COOLED, checkpoint(4), "checkpoint.every_samples=24"),
        run("again", checkpoint(2)),
    ]
    done = finish(start([json.dumps(runs)], 1, ["-c", MANY]))
    assert done.status == [0], done.err
    (place / "said").write_text(done.out)
    (place / "words").write_text(json.dumps(runs[2]))
    return place


def assert_same_bits(ours, theirs, step):
    a, b = tensors(ours, step), tensors(theirs, step)
    assert a.keys() == b.keys() and any(name.startswith("ema/") for name in a)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def commit(run, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"{step:09d}" / "COMMIT.json").read_text())


def samples(run) -> list[str]:
    return sorted((run / "samples.rank0.tsv").read_text().splitlines(), key=lambda line: int(line.split("\t")[0]))


def test_a_branch_is_the_run_that_was_asked_for_its_end_at_first_to_the_bit(place):
    assert_same_bits(place / "straight", place / "branch", 8)
    whole, branch = metrics(place / "straight"), metrics(place / "branch")
    assert branch == {step: values for step, values in whole.items() if step > 4} and len(branch) == 4
    rates = [whole[step]["optim/learning_rate"] for step in range(1, 9)]
    assert rates[:5] == [0, 5e-4, 1e-3, 1e-3, 1e-3] and rates[5] == pytest.approx(1e-5 + 9.9e-4 * 0.5)
    assert [whole[step]["teacher/decay"] for step in range(1, 9)] == [1 - rate for rate in rates]
    assert whole[1]["optim/weight_decay"] == pytest.approx(0.05) and whole[6]["optim/weight_decay"] == whole[8]["optim/weight_decay"] == 0.5


def test_a_branch_that_ends_as_its_trunk_is_the_trunk_continued_to_the_bit(place):
    assert_same_bits(place / "trunk", place / "again", 6)
    assert metrics(place / "again") == {step: values for step, values in metrics(place / "trunk").items() if step > 2}


def test_no_sample_is_seen_twice_and_none_is_lost_at_the_border(place):
    before = [line for line in samples(place / "trunk") if int(line.split("\t")[0]) < 48]
    assert len(before) == 48 and before + samples(place / "branch") == samples(place / "straight")


def test_where_branches_leave_is_committed_and_never_pruned(place):
    steps = lambda run: sorted(int(folder.name) for folder in (place / run / "checkpoints").iterdir())
    assert steps("trunk") == [2, 4, 6]  # 20 samples are reached by step 2
    assert steps("straight") == [2, 4, 8] and commit(place / "straight", 4)["kept"] and "kept" not in commit(place / "straight", 8)


def test_commits_and_encoders_of_a_branch_say_where_it_began(place):
    trunk, branch = commit(place / "trunk", 4), commit(place / "branch", 8)
    began = {"checkpoint": str(place / "trunk" / "checkpoints" / "000000004"), "samples_seen": 48, "commit": trunk["seal"]}
    assert branch["branched_from"] == began | {"step": 4, "asked": began["checkpoint"]}
    handed_on = lambda run, folder: json.loads((place / run / folder / "config.json").read_text())["mpp"]["pretraining"]
    assert handed_on("branch", "encoder")["branched_from"] == began
    assert handed_on("branch", "encoder")["recipe"] == handed_on("straight", "encoder")["recipe"] != handed_on("trunk", "encoder")["recipe"]
    assert handed_on("branch", "teacher")["recipe"] != handed_on("branch", "encoder")["recipe"]
    assert f"run {place / 'branch'} | branches from {began['checkpoint']} at step 4" in (place / "said").read_text()
    assert "peak learning rate 0.001 (base_lr, at any batch) | ZeRO 0" in (place / "said").read_text()


def test_a_killed_branch_resumes_by_the_same_command_to_the_same_bits(place, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "branch", run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > 6:
            shutil.rmtree(folder)
    words = [word for word in json.loads((place / "words").read_text()) if not word.startswith("run_dir=")]
    assert "resumes at step 6" in succeed(run, shards, *words).out
    assert_same_bits(place / "straight", run, 8)
    assert commit(run, 8)["branched_from"] == commit(place / "branch", 8)["branched_from"]


def test_a_trunk_may_be_given_its_end_in_place_and_that_is_the_same_run_to_the_bit(place, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "trunk", run)
    said = succeed(run, shards, *TRUNK, *COOLED, "resume=4").out
    assert "resumes at step 4" in said and "from step 4 on optim.schedule=wsd (before: constant)" in said
    assert (run / "checkpoints" / "000000006.aside1").is_dir()
    assert_same_bits(place / "straight", run, 8)
    cooled = finish(start([*TINY, *TRUNK, *COOLED, f"data.shards={shards}", f"run_dir={run}", "optim.total_samples=144"]))
    assert (
        cooled.status == [2] and "has cooled down since 48 samples" in cooled.err and "or here with resume=4, which renames" in cooled.err
    )


def test_a_damaged_commit_of_a_trunk_is_refused_and_nothing_is_written(place, shards, tmp_path):
    trunk = tmp_path / "trunk"
    shutil.copytree(place / "trunk", trunk)
    file = trunk / "checkpoints" / "000000004" / "rank00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    words = [*TINY, *TRUNK, *COOLED, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    refused = finish(start([*words, f"branch_from={file.parent}"]))
    assert refused.status == [2] and "rank00000.safetensors is not what was committed" in refused.err
    assert "nothing was changed: give another checkpoint" in refused.err and not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(CheckpointError, match=r"target\.blocks=2, this run asks for 1; a branch keeps all but how it ends"):
        main([*words, f"branch_from={file.parent}", "target.blocks=1"])
