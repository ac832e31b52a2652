"""Who is late, by what the watchmen of a job tell of their ranks."""

import dataclasses
import mmap

import pytest

from mpp.watchman import RUNNING, Board, Report, Verdict, verdict

PATIENCE, SLOW = 60.0, 1800.0
WAITING = 'Thread 1 (most recent call first):\n  File "/x/torch/distributed/distributed_c10d.py", line 1 in all_reduce\n  File "/x/mpp/a.py", line 2 in f'
WORKING = 'Thread 1 (most recent call first):\n  File "/x/mpp/pretraining.py", line 1 in pretrain\n  File "/x/torch/distributed/run.py", line 2 in f'


def rank(number: int, **more) -> Report:
    return Report(number, f"host{number}", 1000 + number, step=12, phase="training", meets=5, **more)


def judge(*ranks: Report) -> Verdict | None:
    return verdict({each.rank: each for each in ranks}, PATIENCE, SLOW)


def line(*ranks: Report) -> str:
    found = judge(*ranks)
    assert found is not None
    return found.line


def waits(number: int, seconds: float, **more) -> Report:
    return dataclasses.replace(rank(number), waits=True, meets=6, still=seconds, idle=seconds, **more)


@pytest.mark.parametrize(
    "late",
    [
        {"still": 61, "idle": 61},
        {"still": 61, "idle": 0},  # a loop without an end
        {"stopped": 61},
        {"still": 1801, "idle": 1801, "slow": True},
        {"still": 121, "idle": 121, "longest": 40},
        {"silent": 61},
    ],
)
def test_a_rank_that_others_wait_for_is_named_with_its_host_process_and_step(late):
    seconds = max(late.values())
    found = line(waits(0, seconds), rank(1, **late), waits(2, seconds))
    assert "rank 1 (host host1, pid 1001)" in found and "at step 12, training" in found and "rank 0" not in found


@pytest.mark.parametrize(
    "slow",
    [
        {"still": 59, "idle": 59},
        {"stopped": 59},
        {"still": 1799, "idle": 1799, "slow": True},  # loads, compiles, saves
        {"still": 9999, "idle": 0, "slow": True},  # the same, and uses a processor
        {"still": 119, "idle": 119, "longest": 40},  # steps of this job are long
        {"silent": 59},
    ],
)
def test_a_rank_that_is_slow_is_let_be(slow):
    assert judge(waits(0, 9999), rank(1, **slow)) is None


def test_a_rank_is_not_late_before_another_has_waited_as_long():
    assert judge(waits(0, 59), rank(1, still=100, idle=100)) is None
    assert judge(rank(0), rank(1, still=100, idle=100)) is None  # and nobody waits yet


def test_where_all_wait_for_a_slow_disk_together_nobody_is_late_before_the_longer_time():
    loads = {"slow": True, "still": 1799, "idle": 1799}
    assert judge(rank(0, **loads), rank(1, **loads)) is None
    assert line(rank(0, still=1800, idle=1800), rank(1, still=1800, idle=1800)).startswith("no rank has moved for 1800 s")


def test_where_all_came_equally_far_their_stacks_tell_who_waits():
    def stand(number: int, stack: str, **more) -> Report:
        return rank(number, still=61, idle=61, stack=stack, **more)

    assert judge(rank(0, still=61, idle=61), rank(1, still=61, idle=61)) is None
    assert "rank 1 (host" in line(stand(0, WAITING), stand(1, WORKING), stand(2, WAITING))
    assert judge(stand(0, WAITING), stand(1, WAITING)) is None
    assert judge(stand(0, WORKING), stand(1, WORKING)) is None
    assert judge(stand(0, WAITING), stand(1, WORKING, slow=True)) is None


def test_a_rank_that_died_is_named_at_once_and_one_that_left_with_an_error_speaks_for_itself():
    assert "rank 1 (host host1, pid 1001) was killed by SIGKILL, at step 12" in line(rank(0), rank(1, dead="was killed by SIGKILL"))
    assert judge(rank(0), rank(1, status=2, gone=1.0)) is None  # the others follow
    assert judge(rank(0), rank(1, status=2, gone=6.0)) == Verdict("")
    assert line(rank(0), rank(1, status=2, gone=6.0, said=False, words="a full disk")) == "rank 1 (host host1, pid 1001): a full disk"
    assert judge(rank(0, status=2, gone=6.0), rank(1, status=2, gone=6.0)) is None
    assert judge(rank(0), rank(1, status=0, gone=9999.0)) is None  # done


def test_what_a_rank_writes_its_watchman_reads():
    memory = mmap.mmap(-1, 8192)
    for board in (Board(), Board(7, 3, 12, True, True, 2, False, "säving" * 20, "a\n" * 9000), Board(phase="x")):
        board.write(memory)
        found = Board.read(memory)
        assert dataclasses.replace(found, phase="", words="") == dataclasses.replace(board, phase="", words="")
        assert board.phase.startswith(found.phase.rstrip("\N{REPLACEMENT CHARACTER}")) and board.words.startswith(found.words)
    assert Board.read(memory).status == RUNNING
