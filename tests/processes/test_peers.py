"""What processes tell each other before they have collectives.  Ranks are threads here, with a store of their own process; tests/pipeline has real ones."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from mpp.base.errors import AGAIN, UNMET, BusyError, ConfigError, GoneError, UserError
from mpp.processes import agreement, peers
from mpp.processes.launch import Launch
from mpp.processes.peers import ALONE, Peers
from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, free_port


def job(size: int, work: Callable[[Peers], Any], seconds: float = 20.0, hosts: int = 2) -> list[Any]:
    """What each rank makes of it, or the error that it raises."""
    store, found = dist.HashStore(), [None] * size

    def one(rank: int) -> None:
        mine = Peers(Launch(rank, size), [f"n{r * hosts // size}" for r in range(size)], list(range(size)), store, seconds)
        try:
            found[rank] = work(mine)
        except UserError as error:
            found[rank] = error
            mine.leaves(2, str(error), True)

    threads = [threading.Thread(target=one, args=[rank]) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def refuse(words: str) -> None:
    raise UserError(words)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_all_have_what_the_first_makes_and_what_each_has(size):
    def work(mine: Peers) -> tuple:
        return (
            mine.from_first(lambda: {"a": [mine.rank, 1]}),
            mine.gather(10 * mine.rank),
            mine.together(lambda: mine.rank),
            mine.collect(1),
        )

    found = job(size, work)
    everyone = [10 * rank for rank in range(size)]
    assert found == [({"a": [0, 1]}, everyone, rank, [1] * size if rank == 0 else []) for rank in range(size)]


def test_a_process_alone_hears_what_it_says_in_the_same_form():
    assert ALONE.from_first(lambda: (1, 2)) == [1, 2] and ALONE.gather((3,)) == [[3]] and ALONE.together(lambda: (4,)) == (4,)
    assert ALONE.first and ALONE.first_of_host and ALONE.local_size == 1
    with pytest.raises(UserError, match="no"):
        ALONE.together(lambda: refuse("no"))


@pytest.mark.parametrize("where", [0, 1, 3])
def test_what_stops_one_stops_all_with_the_same_words(where):
    found = job(4, lambda mine: mine.together(lambda: refuse("it broke") if mine.rank == where else 7))
    assert [str(error) for error in found] == ["it broke"] * 4
    assert [error.status for error in found] == [2] * 4

    def busy(mine: Peers) -> None:
        if mine.rank == where:
            raise BusyError("another is at work")

    found = job(4, lambda mine: mine.together(lambda: busy(mine)))
    assert [(str(error), error.status) for error in found] == [("another is at work", UNMET)] * 4  # no rank says that a person must mend it
    found = job(4, lambda mine: mine.from_first(lambda: refuse("no such thing")))
    assert [str(error) for error in found] == ["no such thing"] * 4


def test_who_waits_for_one_that_has_left_is_told_and_waits_no_longer():
    found = job(3, lambda mine: refuse("its own trouble") if mine.rank == 2 else mine.gather(1), seconds=5)
    assert [str(error) for error in found[:2]] == ["rank 2 (host n1) has left: its own trouble"] * 2
    assert [error.status for error in found] == [2, 2, 2]  # a person must mend it


def test_who_does_not_come_is_named():
    found = job(3, lambda mine: None if mine.rank == 1 else mine.gather(1), seconds=0.5)
    assert "rank 1 of 3 has told nothing for 0 s" in str(found[0]) and found[0].status == UNMET


def test_who_has_ended_otherwise_lets_the_others_be_started_again():
    """An interrupt, a fault of the program: whoever waited for it was well."""

    def work(mine: Peers) -> Any:
        return mine.leaves(130, "", True) if mine.rank == 1 else mine.gather(1)

    found = job(3, work, seconds=5)
    assert {(str(found[rank]), found[rank].status) for rank in (0, 2)} == {("rank 1 (host n0) has left: exit status 130", AGAIN)}


LATE = """
import sys, time
from mpp.base.errors import run_program
from mpp.processes.peers import Peers, meet
wait = Peers._wait
def late(self, names):
    wait(self, names)
    time.sleep(1)  # the system gives this process no core for a moment
Peers._wait = late
def main(argv):
    print(meet(20).from_first(lambda: "all is well"))
run_program(main)
"""


def test_rank_0_with_whom_the_store_ends_leaves_last(tmp_path):
    (tmp_path / "program.py").write_text(LATE)
    port, ranks = free_port(), []
    for rank in range(3):
        ours = {"RANK": rank, "WORLD_SIZE": 3, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        given = os.environ | {name: str(value) for name, value in ours.items()}
        ranks.append(subprocess.Popen([sys.executable, tmp_path / "program.py"], env=given, stdout=subprocess.PIPE, text=True))
    assert [(process.communicate(timeout=60)[0], process.returncode) for process in ranks] == [("all is well\n", 0)] * 3


ALONE_OF_TWO = ["mpp/pretrain.py", "system.patience_slow_seconds=1", "data.shards=nowhere"]


@pytest.mark.parametrize("there", [0, 1])
def test_processes_that_do_not_meet_end_with_a_status_for_a_few_more_tries(there, tmp_path):
    ours = {"RANK": there, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    given = os.environ | {name: str(value) for name, value in ours.items()}
    done = run_forked([*ALONE_OF_TWO, f"run_dir={tmp_path}/run"], cwd=ROOT, env=given, timeout=120)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == UNMET and ("rank 1 of 2 has not come to" if there == 0 else "the processes cannot meet at") in line


def test_what_has_a_value_that_cannot_be_right_is_not_tried_again():
    for error in (ConfigError("two processes are rank 0"), UserError("")):
        assert error.status == 2
    assert peers.cannot_meet(Launch(), RuntimeError("timeout")).status == UNMET


def test_hosts_know_their_first_process_and_how_many_they_have():
    found = job(6, lambda mine: (mine.first_of_host, mine.local_size), hosts=2)
    assert found == [(True, 3), (False, 3), (False, 3)] * 2


@pytest.mark.parametrize("what", ["program", "python", "torch", "config.optim.base_lr", "mpp"])
def test_processes_that_are_not_alike_stop_and_say_who_differs_in_what(monkeypatch, what):
    settings = {"optim.base_lr": 1e-3, "seed": 3}
    monkeypatch.setattr(agreement, "code_digest", lambda: "a" * 64)
    assert job(5, lambda mine: agreement.agree(mine, "mpp/pretrain.py", settings)) == [None] * 5

    def other(mine: Peers) -> None:
        collect = mine.collect
        change = lambda facts: facts | {what: "other"} if mine.rank in (2, 4) and isinstance(facts, dict) else facts
        mine.collect = lambda facts: collect(change(facts))  # type: ignore[method-assign]
        agreement.agree(mine, "mpp/pretrain.py", settings)

    found = job(5, other)
    assert {type(error) for error in found[:1]} == {ConfigError} and len({str(error) for error in found}) == 1
    assert f"rank 2 (host n0) and 1 more has {what}=other, rank 0 " in str(found[0])
    assert str(found[0]).endswith(agreement.REMEDIES[what.partition(".")[0]])


def test_weights_that_each_process_reads_for_itself_must_be_the_same():
    same = lambda mine: agreement.agree_on_weights(mine, {"encoder": "a" * 64})
    assert job(4, same) == [None] * 4
    digests = lambda mine: {"target.encoder": "a" * 64, "init_from": ("b" if mine.rank == 3 else "c") * 64}
    found = job(4, lambda mine: agreement.agree_on_weights(mine, digests(mine)))
    assert {str(error) for error in found} == {
        "the processes of this job are not alike: rank 3 (host n1) has weights.init_from=bbbbbbbbbbbb, rank 0 cccccccccccc; give a file or folder that all nodes "
        "share, or, of a run that still trains, one checkpoint: RUN/checkpoints/NNN"
    }


def test_many_differences_are_named_up_to_a_few_and_counted():
    facts = [{f"config.{key:02d}": value for key in range(20)} for value in ("0", "1")]
    with pytest.raises(ConfigError, match=r"config.07=1, rank 0 0; and 12 further differences; do so$"):
        peers.refuse_unlike(facts, lambda rank: f"rank {rank}", {"config": "do so"})


def test_the_digest_of_the_code_changes_with_any_file_of_it(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.py", "data/b.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(agreement, "__file__", str(tmp_path / "processes" / "agreement.py"))
    digests = set()
    for change in (
        lambda: None,
        lambda: (tmp_path / "data" / "b.py").write_text("2"),
        lambda: (tmp_path / "data" / "b.py").rename(tmp_path / "data" / "c.py"),
    ):
        change()
        agreement.code_digest.cache_clear()
        digests.add(agreement.code_digest())
    agreement.code_digest.cache_clear()
    assert len(digests) == 3


def test_five_hundred_and_twelve_processes_agree_through_one_store(monkeypatch):
    monkeypatch.setattr(agreement, "code_digest", lambda: "a" * 64)
    settings = {f"section.key{number}": number for number in range(150)}

    def work(mine: Peers) -> int:
        agreement.agree(mine, "mpp/pretrain.py", settings)
        return sum(mine.gather(mine.rank))

    assert job(512, work, seconds=100) == [512 * 511 // 2] * 512


class Lost(dist.HashStore):
    """From one call on its server, rank 0, cannot be reached."""

    calls: int

    def get(self, name: str) -> bytes:
        self.calls -= 1
        if self.calls < 0:
            raise dist.DistNetworkError("Connection reset by peer")
        return super().get(name)

    def set(self, name: str, value: str) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise dist.DistNetworkError("Broken pipe")
        super().set(name, value)


@pytest.mark.parametrize("rank, hosts, speaks", [(1, "aaaa", True), (2, "aaaa", False), (2, "aabb", True), (3, "aabb", False), (1, "aabb", True)])  # fmt: skip
@pytest.mark.parametrize("calls", [0, 1])
def test_rank_0s_death_between_two_calls_is_told_by_one_process_of_each_host(rank, hosts, speaks, calls):
    store = Lost()
    store.calls = 9
    store.set("told/2", '{"made": null}')  # what rank 0 has answered before it died
    store.calls = calls
    mine = Peers(Launch(rank, 4), hosts, range(4), store, 5.0)
    with pytest.raises(GoneError, match=r"^rank 0 \(host a\) has ended, or cannot be reached any more") as raised:
        mine.gather(1)
    assert raised.value.status == AGAIN
    assert getattr(raised.value, "of_this_rank", False) is speaks
