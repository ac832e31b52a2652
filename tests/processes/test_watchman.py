"""Who is late, by what the watchmen of a job tell of their ranks."""

import dataclasses
import json
import mmap
import os
import socket
import subprocess
from pathlib import Path

import pytest

from mpp.processes.watch import _listener
from mpp.processes.watchman import BOARD_BYTES, MOST_STRANGERS, RUNNING, SECONDS_TO_SPEAK, Board, Orders, Report, Verdict, Watchman, verdict

PATIENCE, SLOW = 60.0, 1800.0
WAITING = 'Thread 1 (most recent call first):\n  File "/x/torch/distributed/distributed_c10d.py", line 1 in all_reduce\n  File "/x/mpp/a.py", line 2 in f'
WORKING = 'Thread 1 (most recent call first):\n  File "/x/mpp/mains/pretrain.py", line 1 in pretrain\n  File "/x/torch/distributed/run.py", line 2 in f'


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
    left = judge(rank(0), rank(1, status=2, gone=6.0, words="a disk is full"))
    assert left == Verdict("", cause="rank 1 (host host1, pid 1001): a disk is full")  # for who has not heard it
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


TOKEN = "5" * 32


@pytest.fixture
def hub(tmp_path):
    """Rank 0's watchman of two, which listens."""
    board, stack, (_, end) = os.memfd_create("board"), os.memfd_create("stack"), os.pipe()
    os.ftruncate(board, 8192)
    listener = _listener("127.0.0.1", True)
    place = listener.getsockname()
    orders = Orders(0, 2, "here", os.getpid(), place[:2], 60.0, 1800.0, str(tmp_path), board, stack, end, listener.detach())
    return Watchman(orders, TOKEN)


def turn(hub: Watchman, times: int = 3) -> None:
    for _ in range(times):
        hub.hear_peers([key.fileobj for key, _ in hub.selector.select(0.05)])


def connect(hub: Watchman, data: bytes = b"") -> socket.socket:
    other = socket.create_connection(hub.orders.hub)
    other.sendall(data)
    turn(hub)
    other.settimeout(0.2)
    return other


def is_dropped(other: socket.socket) -> bool:
    try:
        return other.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def told(number: int, token: str = TOKEN) -> bytes:
    return f"{token} {json.dumps({'report': dataclasses.asdict(rank(number))})}\n".encode()


def test_whoever_has_the_token_is_heard_in_pieces_too(hub):
    other = connect(hub, told(1)[:7])
    other.sendall(told(1)[7:90])
    turn(hub)
    assert set(hub.ranks) == {0}
    other.sendall(told(1)[90:])
    turn(hub)
    assert hub.ranks[1].host == "host1" and not is_dropped(other)
    hub.count(1.0)
    assert other.recv(4096) == f'{TOKEN} {{"here": true}}\n'.encode()


@pytest.mark.parametrize(
    "data",
    [
        told(1, "6" * 32),
        told(1, ""),
        TOKEN[:-1].encode() + b"6 {}\n",
        b"[" * 100_000,  # what json reads with as deep a stack
        b"GET / HTTP/1.1\r\nHost: node0:29500\r\n\r\n",
        b"\xff" * 40,
    ],
)
def test_of_a_stranger_nothing_is_parsed_and_he_is_sent_away_at_once(hub, data, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("it was parsed"))
    other = connect(hub, data)
    turn(hub)
    assert is_dropped(other) and set(hub.ranks) == {0} and not hub.peers


def test_a_stranger_who_says_nothing_is_told_nothing_and_goes_after_a_while(hub):
    other = connect(hub)
    hub.count(SECONDS_TO_SPEAK - 1)
    assert not is_dropped(other)
    hub.count(2.0)
    assert is_dropped(other) and not hub.peers


def test_however_many_strangers_connect_a_watchman_gets_through_and_none_who_has_is_dropped(hub):
    first = connect(hub, told(1))
    strangers = [socket.create_connection(hub.orders.hub) for _ in range(3 * MOST_STRANGERS)]
    turn(hub, 4 * MOST_STRANGERS)
    assert len(hub.peers) == MOST_STRANGERS + 1
    last = connect(hub, told(2))
    assert set(hub.ranks) == {0, 1, 2} and not is_dropped(first) and not is_dropped(last)
    assert sum(map(is_dropped, strangers[:-MOST_STRANGERS])) == 2 * MOST_STRANGERS


def test_the_listener_is_on_the_interface_that_the_address_names_where_all_ranks_mean_the_same_by_it():
    everywhere = ("0.0.0.0", "::")
    where = lambda address, alone: _listener(address, alone).getsockname()[0]
    assert where("127.0.0.1", False) == where("127.0.0.1", True) == "127.0.0.1"
    assert where("localhost", True) in ("127.0.0.1", "::1")
    assert where("localhost", False) in everywhere  # a name is another address on another host
    assert where("192.0.2.1", False) in everywhere  # translated on the way: none of this machine's


def test_the_token_is_not_among_the_words_of_a_process(tmp_path, monkeypatch):
    """Of a real watchman, as its rank starts it."""
    from mpp.processes import watch as module

    monkeypatch.setattr(module.secrets, "token_hex", lambda _: TOKEN)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(module.faulthandler, "register", lambda *_: None)
    monkeypatch.setattr(module.faulthandler, "enable", lambda *_: None)
    for hooks in ("at_leaving", "lost_connection"):
        monkeypatch.setattr(module.errors, hooks, [])
    mine, shared = module.Watch(), []
    mine.begin(0, 2, tmp_path, lambda value: shared.append(value) or value)
    assert mine.process is not None
    try:
        (port, token) = shared[0]
        assert token == TOKEN
        words = Path(f"/proc/{mine.process.pid}/cmdline").read_text()
        assert str(port) in words and TOKEN not in words
        with socket.create_connection(("127.0.0.1", port)) as other:  # and it knows the token nevertheless
            other.sendall(told(1))
            other.settimeout(20)
            assert other.recv(len(TOKEN)) == TOKEN.encode()
    finally:
        mine.process.kill()
        mine.process.wait()


def test_a_rank_that_was_killed_while_its_watchman_started_is_named_as_one_killed_later(hub):
    ended = subprocess.Popen(["true"])
    ended.wait()
    Board().write(mmap.mmap(hub.orders.board_fd, BOARD_BYTES))
    late = Watchman(dataclasses.replace(hub.orders, pid=ended.pid, listen_fd=None), TOKEN)
    late.look()
    assert late.mine.dead == "was killed by a signal, SIGKILL most likely, as the system does for want of memory"
    found = verdict({0: late.mine}, 60.0, 1800.0)
    assert found is not None and f"rank 0 (host here, pid {ended.pid}) was killed by a signal" in found.line
