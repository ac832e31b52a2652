"""Kill it anywhere: a resumed run is the uninterrupted run."""

import fcntl
import functools
import json
import os
import shutil
import signal
import time

import pytest
import torch

from mpp.base.errors import AGAIN, UNMET, BusyError
from mpp.disk.files import temporary
from mpp.disk.locks import lock_folder
from mpp.pretrain import main
from mpp.train.run_folder import hold_run_folder
from tests.pipeline.conftest import TINY, finish, metrics, pretrain, start, succeed, tensors

STEP, LAST = 4, 8


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    succeed(run, shards)
    return run


def forget_after(run, step):
    """The state a kill leaves: the newest commit is `step`, and a later write had begun."""
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    (run / "checkpoints" / f"{step + 2:09d}").mkdir()
    (run / "checkpoints" / f"{step + 2:09d}" / "rank00000.safetensors").write_bytes(b"half")


def assert_same_bits(a, b):
    ours, theirs = tensors(a, LAST), tensors(b, LAST)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_resumed_run_with_drop_path_is_bit_identical_and_its_metrics_are_cut_back(uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    forget_after(run, STEP)
    finished = succeed(run, shards)
    assert f"resumes at step {STEP}" in finished.out
    assert_same_bits(uninterrupted, run)
    assert metrics(run) == metrics(uninterrupted)


@pytest.mark.slow
def test_sigkill_at_any_time_then_the_same_command_ends_with_the_same_bits(uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    words = [*TINY, f"data.shards={shards}", f"run_dir={run}"]
    for file in ("checkpoints/000000002/COMMIT.json", "checkpoints/000000006/rank00000.safetensors"):
        processes = start(words)
        while not (run / file).exists() and processes[0].poll() is None:
            time.sleep(0.001)
        os.kill(processes[0].pid, signal.SIGKILL)
        finish(processes)
    succeed(run, shards)
    assert_same_bits(uninterrupted, run)
    assert metrics(run) == metrics(uninterrupted)


@pytest.mark.slow
def test_sigterm_commits_the_step_in_hand_and_the_same_command_goes_on(uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    processes = start([*TINY, f"data.shards={shards}", f"run_dir={run}", "checkpoint.every_samples=null"])
    while not (run / "metrics.jsonl").exists() and processes[0].poll() is None:
        time.sleep(0.001)
    processes[0].send_signal(signal.SIGTERM)
    stopped = finish(processes)
    stopped_early = "stopped as asked at step" in stopped.out
    assert stopped.status == [AGAIN if stopped_early else 0], stopped.err
    commits = list((run / "checkpoints").glob("*/COMMIT.json"))
    assert len(commits) == 1
    assert stopped_early or "done" in stopped.out
    succeed(run, shards)
    assert_same_bits(uninterrupted, run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_leaves_the_loader_its_work_and_commits(shards, tmp_path, number):
    run = tmp_path / "run"
    words = ["system.workers=2", "system.micro_batch_max=3", "optim.total_samples=60000", "checkpoint.every_samples=null"]
    processes = start([*TINY, f"data.shards={shards}", f"run_dir={run}", *words])
    while len((run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []) < 5:
        assert processes[0].poll() is None
        time.sleep(0.01)
    os.killpg(processes[0].pid, number)
    stopped = finish(processes)
    assert stopped.status == [AGAIN], stopped.err
    assert "stopped as asked at step" in stopped.out
    assert len(list((run / "checkpoints").glob("*/COMMIT.json"))) == 1


@pytest.mark.slow
def test_going_back_to_a_step_keeps_what_it_writes_and_sets_newer_checkpoints_aside(uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    finished = succeed(run, shards, f"resume={STEP}", "checkpoint.keep=2")
    assert f"resumes at step {STEP}" in finished.out
    assert_same_bits(uninterrupted, run)
    names = sorted(path.parent.name for path in (run / "checkpoints").glob("*/COMMIT.json"))
    assert names == ["000000006", "000000006.aside1", "000000008", "000000008.aside1"]


def test_a_run_folder_takes_one_run_at_a_time(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.train.run_folder.lock_folder", functools.partial(lock_folder, seconds=0))
    run = tmp_path / "run"
    run.mkdir()
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another run is training here") as caught:
            main([*TINY, f"data.shards={shards}", f"run_dir={run}"])
    assert caught.value.status == UNMET  # it may be a start of this very job, on a node that the scheduler has given up
    assert [path.name for path in run.iterdir()] == ["lock"]


def test_whoever_holds_a_run_folder_removes_what_a_kill_has_left_half_written(tmp_path):
    (tmp_path / "flight").mkdir()
    left = [temporary(tmp_path / "lock.owner"), temporary(tmp_path / "flight/weights.safetensors")]
    stays = [tmp_path / ".hidden", tmp_path / "flight/rank0.json"]
    for path in (*left, *stays):
        path.touch()
    lock = hold_run_folder(tmp_path, lambda: None, None)
    assert not any(path.exists() for path in left) and all(path.exists() for path in stays)
    lock.close()


@pytest.mark.slow
def test_what_a_run_that_never_committed_has_left_does_not_count(uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    run.mkdir()  # its baseline may be another target's
    (run / "baseline.json").write_text((uninterrupted / "baseline.json").read_text().replace('"loss": ', '"loss": 9'))
    succeed(run, shards)
    assert (run / "baseline.json").read_bytes() == (uninterrupted / "baseline.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage, world", [(1, 2), (2, 2), (3, 2), (3, 3), pytest.param(1, 3, marks=pytest.mark.long), pytest.param(2, 3, marks=pytest.mark.long)])  # fmt: skip
def test_each_zero_stage_on_processes_that_divide_no_parameter_too_resumes_to_the_same_bits(stage, world, shards, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    words = [f"system.zero_stage={stage}", "model.drop_path=0"]
    succeed(run, shards, *words, world=world)
    shutil.copytree(run, again)
    forget_after(again, STEP)
    succeed(again, shards, *words, world=world)
    assert_same_bits(run, again)
    assert metrics(run) == metrics(again)


@pytest.mark.slow
def test_worlds_accumulations_and_stages_give_one_result_and_a_checkpoint_of_one_resumes_on_another(shards, tmp_path):
    whole, split, moved = tmp_path / "whole", tmp_path / "split", tmp_path / "moved"
    succeed(whole, shards, "model.drop_path=0")
    succeed(split, shards, "model.drop_path=0", "system.micro_batch_max=4", world=1)
    for step, values in metrics(whole).items():
        # Accumulation scaled twice, or not at all, would show here at once.
        assert metrics(split)[step]["optim/gradient_norm"] == pytest.approx(values["optim/gradient_norm"], rel=1e-4)
        assert metrics(split)[step]["train/loss"] == pytest.approx(values["train/loss"], rel=1e-4)
    shutil.copytree(whole, moved)
    forget_after(moved, STEP)
    succeed(moved, shards, "model.drop_path=0", "system.zero_stage=2", "system.micro_batch_max=3", world=2)
    ours, theirs = tensors(whole, LAST), tensors(moved, LAST)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=2e-4), name
    assert {row["world_size"] for row in (json.loads(path.read_text()) for path in (moved / "checkpoints").glob("*/COMMIT.json"))} == {1, 2}


FAULTY = """
import os, signal, sys
import mpp.train.checkpoint as checkpoint
write, calls = checkpoint._write, []
def faulty(start, tensors, moments):
    calls.append(start)
    if len(calls) == 2 and os.environ["RANK"] == "{rank}":
        start.with_name(start.name + ".safetensors").write_bytes(b"half of a checkpoint")
        {fault}
    return write(start, tensors, moments)
checkpoint._write = faulty
from mpp.base.errors import run_program
from mpp.pretrain import main
from mpp.train.run_folder import hold_run_folder
run_program(main)
"""


@pytest.mark.slow
def test_a_kill_inside_a_checkpoint_leaves_the_one_before(uninterrupted, shards, tmp_path):
    run = tmp_path / "run"
    killed = pretrain(run, shards, program=["-c", FAULTY.format(rank=0, fault="os.kill(os.getpid(), signal.SIGKILL)")])
    assert killed.status == [-signal.SIGKILL]
    assert [path.parent.name for path in (run / "checkpoints").glob("*/COMMIT.json")] == ["000000002"]
    assert (run / "checkpoints" / "000000004" / "rank00000.safetensors").exists()
    assert "resumes at step 2" in succeed(run, shards).out
    assert_same_bits(uninterrupted, run)


def test_a_share_that_could_not_be_written_for_whatever_reason_is_not_committed(shards, tmp_path):
    run = tmp_path / "run"
    failed = pretrain(run, shards, program=["-c", FAULTY.format(rank=0, fault="raise MemoryError('planted')")])
    assert failed.status == [1] and "MemoryError: planted" in failed.err
    assert [path.parent.name for path in (run / "checkpoints").glob("*/COMMIT.json")] == ["000000002"]


@pytest.mark.slow
def test_a_full_disk_on_one_rank_stops_all_with_one_line_and_keeps_what_was_committed(shards, tmp_path):
    run = tmp_path / "run"
    fault = "raise OSError(28, 'No space left on device')"
    finished = pretrain(run, shards, "checkpoint.give_up_minutes=0", world=2, program=["-c", FAULTY.format(rank=1, fault=fault)])
    assert finished.status == [2, 2]
    assert len(finished.error_lines) == 1 and "No space left" in finished.error_lines[0] and "rank 1" in finished.error_lines[0]
    assert "make room there); earlier ones are whole" in finished.error_lines[0]
    assert [path.parent.name for path in (run / "checkpoints").glob("*/COMMIT.json")] == ["000000002"]
