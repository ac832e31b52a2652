"""A small process beside each rank that notices when a rank of the job has died, was stopped or hangs, says which, and ends the job.

It is started by mpp/processes/watch.py as a program of its own, on nothing but the standard library: it lives on when its rank is stopped, killed, or holds
Python's lock.  Twice a second or so it looks at its rank, in /proc and in a piece of shared memory in which the rank counts how far it is, and
tells the watchman of rank 0, who compares all ranks and decides.  When he has, he prints one line, and every watchman writes its rank's stack
down where that can be had, kills the rank's loader processes and ends the rank.

What counts (`verdict`), in this order: a rank that died; one that left with an error, which said why itself; one that is stopped; one that
stands still while others have waited for it; all standing still together; one that nothing is heard of.  Seconds are counted in looks, so that
a job which was suspended as a whole, and its watchmen with it, is not late when it goes on.
"""

import contextlib
import fcntl
import hmac
import json
import mmap
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BOARD_BYTES = 8192
_COUNTS = struct.Struct("<QQqBBiB")  # moves, meets, step (-1: none), waits, slow, status on leaving, said so itself
RUNNING = -(2**31)  # status of a rank that has not left
PHASE_AT, WORDS_AT = 64, 128  # where the phase and the last words stand, in UTF-8 up to a zero byte
SECONDS_FOR_STACKS = 1.0  # from the verdict to the first rank's end, which breaks the connections that others wait on
SECONDS_TO_LEAVE = 3.0  # between being asked to end and being killed
SECONDS_TO_FOLLOW = 5.0  # for all to leave, after one has with an error; as long as a TCP connection's loss may take to be noticed
SECONDS_TO_SPEAK = 10.0  # for whoever connects to show the token
MOST_STRANGERS = 64  # who have not, at once
MOST_UNREAD = 1 << 22  # bytes of a line, from one who has
END, MOST_ASKED = "!", 4096  # how a rank is asked to end, before the line for people; bytes, which a pipe takes in one piece
FATAL = {"Segmentation fault": "SIGSEGV", "Bus error": "SIGBUS", "Aborted": "SIGABRT", "Floating-point exception": "SIGFPE",
         "Floating point exception": "SIGFPE", "Illegal instruction": "SIGILL"}  # fmt: skip  # as faulthandler calls them
WAITING_PLACES = (
    "/torch/distributed/",
    "/deepspeed/comm/",
    "/mpp/processes/world.py",
    "/mpp/train/progress.py",
    "/mpp/train/gradient_exchange.py",
)  # innermost frames of those who wait
PIDFD_GET_INFO, PIDFD_INFO_EXIT = 0xC040FF0B, 8  # Linux 6.15 and later


# ------------------------------------------------------------------------------------------------------ what a rank says of itself


@dataclass(frozen=True)
class Board:
    """What a rank has written into the shared memory."""

    moves: int = 0  # grows whenever the rank gets anything done
    meets: int = 0  # how often it came to a place where all wait for each other: the same number at the same place in every rank
    step: int = -1
    waits: bool = False  # is at such a place
    slow: bool = False  # does what may take long: loads, compiles, saves, measures
    status: int = RUNNING
    said: bool = True  # it has printed its last words itself
    phase: str = "starting"
    words: str = ""  # why it left, one line

    def write(self, memory: mmap.mmap) -> None:
        _COUNTS.pack_into(memory, 0, self.moves, self.meets, self.step, self.waits, self.slow, self.status, self.said)
        for place, text, room in ((PHASE_AT, self.phase, WORDS_AT - PHASE_AT), (WORDS_AT, self.words, BOARD_BYTES - WORDS_AT)):
            data = text.encode(errors="replace")[: room - 1] + b"\0"
            memory[place : place + len(data)] = data

    @staticmethod
    def read(memory: mmap.mmap) -> "Board":
        moves, meets, step, waits, slow, status, said = _COUNTS.unpack_from(memory, 0)
        text = lambda place, end: memory[place:end].partition(b"\0")[0].decode(errors="replace")
        return Board(moves, meets, step, bool(waits), bool(slow), status, bool(said), text(PHASE_AT, WORDS_AT), text(WORDS_AT, BOARD_BYTES))


@dataclass
class Report:
    """One rank, as its watchman sees it.  Seconds are counted in looks."""

    rank: int
    host: str
    pid: int
    step: int = -1
    phase: str = "starting"
    meets: int = 0
    waits: bool = False
    slow: bool = False
    still: float = 0.0  # seconds since it moved
    longest: float = 0.0  # that it ever stood still between two moves of what is quick
    idle: float = 0.0  # seconds since it used a processor
    stopped: float = 0.0  # seconds that it was stopped by a signal
    dead: str | None = None  # how it died, if it did without leaving
    status: int = RUNNING  # with which it left
    said: bool = True
    words: str = ""
    stack: str | None = None  # on request
    silent: float = 0.0  # seconds since its watchman was heard; kept by the one who decides
    gone: float = 0.0  # seconds since it left or died; likewise

    @property
    def here(self) -> bool:
        return self.dead is None and self.status == RUNNING

    @property
    def stuck(self) -> float:
        """Seconds that it has got nothing done; what may take long gets something done as long as it uses a processor."""
        return min(self.still, self.idle) if self.slow and not self.waits else self.still

    def allowed(self, patience: float, slow: float) -> float:
        """Seconds that it may get nothing done.  A job whose steps are long by nature gets three times what it has needed so far."""
        return slow if self.slow else min(max(patience, 3 * self.longest), slow)

    @property
    def who(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"

    @property
    def where(self) -> str:
        return (f"at step {self.step}, " if self.step >= 0 else "") + self.phase

    @property
    def in_a_collective(self) -> bool:
        """Whether a thread of it stands where ranks wait for each other, by its stack."""
        blocks = (self.stack or "").split("\n\n")
        innermost = [next((line for line in block.splitlines() if line.lstrip().startswith("File ")), "") for block in blocks]
        return any(place in line for line in innermost for place in WAITING_PLACES)


@dataclass(frozen=True)
class Verdict:
    line: str  # for people; "": whoever is the cause has said it
    stacks: bool = False  # they help
    cause: str = ""  # who left, and what he said, where the line is left out for that


# ------------------------------------------------------------------------------------------------------------------- what counts


def verdict(ranks: Mapping[int, Report], patience: float, slow: float) -> Verdict | None:
    """None where all is well, as far as is known.

    patience: seconds after which a rank that stands still while others wait is late.  slow: the same where it does what may take long, and
    where all stand still together.
    """
    for each in ranks.values():
        if each.dead:
            return Verdict(f"{each.who} {each.dead}, {each.where}; {_AGAIN}")
    here = [each for each in ranks.values() if each.here]
    for each in ranks.values():
        if each.status not in (RUNNING, 0) and each.gone >= SECONDS_TO_FOLLOW and here:
            words = f"{each.who}: {each.words or f'exit status {each.status}'}"
            return Verdict("" if each.said else words, cause=words)
    for each in here:
        if each.stopped >= patience:
            return Verdict(
                f"{each.who} has been stopped by a signal (such as SIGSTOP) for {each.stopped:.0f} s, {each.where}, and the others wait for it; "
                f"a stopped process shows no stack; {_AGAIN}",
                stacks=True,
            )
    late = late_ranks(here, patience, slow)
    if late:
        first, others = late[0], f" and {len(late) - 1} more of {len(ranks)} ranks" if late[1:] else ""
        return Verdict(
            f"{first.who}{others} has not moved for {first.still:.0f} s, {first.where}, and the others wait for it; {_AGAIN}", stacks=True
        )
    if here and all(each.stuck >= slow for each in here):
        slowest = min(here, key=lambda each: (each.waits, each.meets, each.rank))
        return Verdict(
            f"no rank has moved for {min(each.stuck for each in here):.0f} s; {slowest.who} is {slowest.where}; a disk, a network or a GPU may "
            f"hang; {_AGAIN}",
            stacks=True,
        )
    for each in here:
        if each.silent >= patience:
            return Verdict(
                f"nothing was heard of {each.who} for {each.silent:.0f} s, {each.where}: its host or the network to it is down, or all its processes "
                f"are stopped; {_AGAIN}",
                stacks=True,
            )
    return None


_AGAIN = "the job is ended: mend it, and give the same command again"


def late_ranks(here: list[Report], patience: float, slow: float) -> list[Report]:
    """Those that stand still while another, further on, has waited for them as long."""
    if not here:
        return []
    furthest = max(each.meets for each in here)
    behind = [each for each in here if each.meets < furthest or not each.waits]
    waited = max((each.still for each in here if each.meets == furthest and each.waits), default=0.0)
    late = [each for each in behind if min(each.stuck, waited) >= each.allowed(patience, slow)]
    if late or not nobody_moves(here, patience):
        return late
    # All came to the same place, or cannot be told apart by counting: stacks tell who waits for others there.
    suspects = [each for each in here if each.stack is not None and not each.in_a_collective]
    if len(suspects) == len(here) or any(each.stack is None for each in here):
        return []
    busy_for_too_long = lambda each: not each.slow and each.still >= slow
    return [each for each in suspects if min(each.still, each.idle) >= each.allowed(patience, slow) or busy_for_too_long(each)]


def nobody_moves(here: list[Report], patience: float) -> bool:
    return bool(here) and all(each.still >= patience for each in here)


# ------------------------------------------------------------------------------------------------------------- what a process shows


def process_state(pid: int) -> tuple[str, float]:
    """State as in ps ("T": stopped, "t": under a debugger, "Z", "" where it is gone) and processor seconds used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> dict[int, str]:
    """Of every thread of a process, with the time each began at, which tells it from a later one of the same number."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child): began_at(int(child)) for child in task.read_text().split()}
    return found


def opened(pid: int) -> int:
    """A file that can be read from the end of this process on."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:  # it was killed while its watchman started
        reading, writing = os.pipe()
        os.close(writing)
        return reading


def began_at(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def ending_signal(pidfd: int, pid: int) -> int | None:
    """The signal that has ended a process, where the system tells: 0 if none did, None if it is not known.

    From the process file descriptor (Linux 6.15), or the record of a dead process that nobody has collected yet.
    """
    info = bytearray(64)
    struct.pack_into("<Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
        if struct.unpack_from("<Q", info, 0)[0] & PIDFD_INFO_EXIT:
            return struct.unpack_from("<i", info, 60)[0] & 0x7F
    except OSError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[49]) & 0x7F if fields[0] == "Z" else None
    except (OSError, IndexError, ValueError):
        return None


def memory_kills() -> int:
    """How often the system has killed for want of memory in this control group (or its parents): 0 where that is not told."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return 0
    for _, controllers, path in groups:
        for file in (Path(f"/sys/fs/cgroup{path}/memory.events"), Path("/sys/fs/cgroup/memory.events")) if not controllers else (
            Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"), Path("/sys/fs/cgroup/memory/memory.oom_control")
        ) if controllers == "memory" else ():  # fmt: skip
            with contextlib.suppress(OSError, ValueError):
                for line in file.read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
    return 0


# ------------------------------------------------------------------------------------------------------------------- the watchman


@dataclass
class Orders:
    """What a watchman is started with, as JSON; numbers named *_fd are open files."""

    rank: int
    size: int
    host: str
    pid: int
    hub: tuple[str, int]  # where rank 0's watchman listens
    patience: float
    slow: float
    folder: str  # for stacks; "": nowhere
    board_fd: int
    stack_fd: int
    end_fd: int  # what is written there asks the rank to end
    listen_fd: int | None = None  # of rank 0's
    rank_speaks: bool = False  # the rank says the line itself, as long as it can


@dataclass
class Peer:
    connection: socket.socket
    unread: bytes = b""
    known: bool = False  # has shown the token
    waited: float = 0.0  # seconds without it


class Watchman:
    def __init__(self, orders: Orders, token: str):
        """token: what the watchmen of one job know, and nobody else."""
        self.orders, self.token = orders, token.encode()
        self.memory = mmap.mmap(orders.board_fd, BOARD_BYTES, prot=mmap.PROT_READ)
        self.pidfd = opened(orders.pid)
        self.mine = Report(orders.rank, orders.host, orders.pid)
        self.look_every = max(0.02, min(1.0, orders.patience / 10))
        self.moved: tuple[int, int] = (-1, -1)
        self.cpu, self.looked = 0.0, time.monotonic()
        self.kills = memory_kills()
        self.children: dict[int, str] = {}  # of the rank: its loader processes
        self.ranks: dict[int, Report] = {orders.rank: self.mine}  # as far as they are known here
        self.peers: dict[int, Peer] = {}  # rank 0's watchman: by file number
        self.hub: Peer | None = None  # the others': their connection to him
        self.hub_silent, self.farewell = 0.0, False
        self.found: Verdict | None = None
        self.asked_for_stacks = False
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.pidfd, selectors.EVENT_READ)
        self.listener: socket.socket | None = None
        if orders.listen_fd is not None:
            self.listener = socket.socket(fileno=orders.listen_fd)
            self.listener.setblocking(False)
            self.selector.register(self.listener, selectors.EVENT_READ)

    # One look at one's own rank.

    def look(self) -> float:
        """Bring `mine` up to date; the seconds since the last look, as they are counted."""
        now = time.monotonic()
        seconds, self.looked = min(now - self.looked, 3 * self.look_every), now
        mine, board = self.mine, Board.read(self.memory)
        state, cpu = process_state(mine.pid)
        traced = state == "t"  # somebody looks at it with a debugger: let be
        busy = cpu - self.cpu > 0.05 * seconds
        self.cpu = cpu
        moved = (board.moves, board.meets) != self.moved
        if moved and not (mine.slow or mine.waits or traced):  # as it was until then
            mine.longest = max(mine.longest, mine.still + seconds)
        self.moved = board.moves, board.meets
        if moved:
            mine.stack = None  # of where it stood
        mine.still = 0.0 if moved or traced else mine.still + seconds
        mine.idle = 0.0 if moved or traced or busy else mine.idle + seconds
        mine.stopped = mine.stopped + seconds if state == "T" else 0.0
        mine.step, mine.phase, mine.meets, mine.waits, mine.slow = board.step, board.phase, board.meets, board.waits, board.slow
        mine.status, mine.said, mine.words = board.status, board.said, board.words
        if not self.gone():
            self.children = children(mine.pid)
        elif mine.status == RUNNING and mine.dead is None:
            mine.dead = self.how_it_died()
        return seconds

    def gone(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def how_it_died(self) -> str:
        number = ending_signal(self.pidfd, self.mine.pid)
        dumped = self.dumped()
        named = next((name for words, name in FATAL.items() if f"Fatal Python error: {words}" in dumped), None)
        if number:
            named = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        if dumped.startswith("Fatal"):
            self.write_stack(dumped)
            named = f"{named or 'a fatal error'}" + (f" (its stack is in {self.stack_path()})" if self.orders.folder else "")
        if number == 0 and named is None:
            return "has ended without a word"
        killed_for_memory = memory_kills() > self.kills
        if named in (None, "SIGKILL"):
            why = ", for want of memory as its control group says" if killed_for_memory else ", as the system does for want of memory"
            return f"was killed by {named or 'a signal, SIGKILL most likely'}{why}"
        return f"was killed by {named}"

    # Stacks.

    def dumped(self) -> str:
        with contextlib.suppress(OSError):
            return os.pread(self.orders.stack_fd, 1 << 20, 0).decode(errors="replace")
        return ""

    def take_stack(self) -> str:
        """Ask the rank's faulthandler; "" where it does not answer."""
        if not self.mine.here or self.mine.stopped or self.gone():
            return ""
        os.ftruncate(self.orders.stack_fd, 0)
        with contextlib.suppress(OSError):
            os.kill(self.mine.pid, signal.SIGUSR2)
        length, ends = -1, time.monotonic() + 1.0
        while time.monotonic() < ends:
            time.sleep(0.05)
            before, length = length, os.fstat(self.orders.stack_fd).st_size
            if length > 0 and length == before:
                break
        return self.dumped()

    def stack_path(self) -> Path:
        return Path(self.orders.folder) / f"stack.rank{self.mine.rank}.txt"

    def write_stack(self, text: str) -> None:
        if not self.orders.folder:
            return
        with contextlib.suppress(OSError):
            self.stack_path().write_text(f"{self.mine.who}, {self.mine.where}\n\n{text}")

    # Words between watchmen: a line each, the token and JSON.  Anybody who reaches the port may connect: of a stranger nothing is parsed, nothing is sent
    # to him, he may keep neither memory nor a connection for long, and never more than a few.

    def send(self, peer: Peer, words: dict[str, Any]) -> bool:
        try:
            peer.connection.settimeout(1.0)
            peer.connection.sendall(self.token + b" " + json.dumps(words).encode() + b"\n")
            peer.connection.settimeout(0.0)
        except OSError:
            return False
        return True

    def receive(self, peer: Peer) -> list[dict[str, Any]] | None:
        """None where the other end is closed, or no watchman's."""
        try:
            data = peer.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        peer.unread += data
        if not data or len(peer.unread) > MOST_UNREAD:
            return None
        if not peer.known:
            if len(peer.unread) <= len(self.token):
                return []
            if not hmac.compare_digest(peer.unread[: len(self.token)], self.token):
                return None
            peer.known = True
        *lines, peer.unread = peer.unread.split(b"\n")
        try:
            return [json.loads(line[len(self.token) :]) for line in lines]
        except ValueError:
            return None

    def connect(self) -> None:
        if self.listener is not None or self.hub is not None or self.farewell:
            return
        try:
            connection = socket.create_connection(self.orders.hub, timeout=1.0)
        except OSError:
            return
        connection.setblocking(False)
        self.hub = Peer(connection)
        self.selector.register(connection, selectors.EVENT_READ)

    def report(self) -> None:
        if self.hub is not None and not self.send(self.hub, {"report": asdict(self.mine)}):
            self.drop_hub()

    def drop_hub(self) -> None:
        if self.hub is not None:
            self.selector.unregister(self.hub.connection)
            self.hub.connection.close()
            self.hub = None

    def hear_hub(self) -> None:
        if self.hub is None:
            return
        heard = self.receive(self.hub)
        if heard is None:
            self.drop_hub()
            return
        for words in heard:
            self.hub_silent = 0.0
            self.farewell = self.farewell or bool(words.get("farewell"))
            if words.get("stacks"):
                self.mine.stack = self.take_stack()
                self.report()
            if "verdict" in words:
                self.found = Verdict("", bool(words["verdict"]))

    def hear_peers(self, ready: list[Any]) -> None:
        for file in ready:
            if file is self.listener:
                assert self.listener is not None
                with contextlib.suppress(OSError):
                    connection, _ = self.listener.accept()
                    connection.setblocking(False)
                    self.peers[connection.fileno()] = Peer(connection)
                    self.selector.register(connection, selectors.EVENT_READ)
                    strangers = [number for number, peer in self.peers.items() if not peer.known]
                    for number in strangers[:-MOST_STRANGERS]:
                        self.drop_peer(number)
            elif isinstance(file, socket.socket) and file.fileno() in self.peers:
                number = file.fileno()
                heard = self.receive(self.peers[number])
                try:
                    for words in heard if heard is not None else [{}]:
                        told = Report(**words["report"])
                        told.gone = self.ranks[told.rank].gone if told.rank in self.ranks else 0.0
                        self.ranks[told.rank] = told
                except (KeyError, TypeError):  # closed, or no watchman's
                    self.drop_peer(number)

    def drop_peer(self, number: int) -> None:
        peer = self.peers.pop(number)
        self.selector.unregister(peer.connection)
        peer.connection.close()

    @property
    def known_peers(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.known]

    # The watch.

    def watch(self) -> None:
        next_look, watching = 0.0, True
        while not self.found:
            ready = [key.fileobj for key, _ in self.selector.select(max(0.0, next_look - time.monotonic()))]
            self.hear_peers(ready)
            if self.hub is not None and self.hub.connection in ready:
                self.hear_hub()
            if watching and self.gone():
                self.selector.unregister(self.pidfd)  # it would be ready for ever
                watching, next_look = False, 0.0
            if time.monotonic() >= next_look:
                seconds = self.look()
                next_look = time.monotonic() + self.look_every
                self.connect()
                self.report()
                self.count(seconds)
                self.ask_for_stacks()
            self.found = self.found or (verdict(self.ranks, *self.limits) if self.listener is not None else self.without_a_hub())
            if not watching and not self.found and (self.listener is None or self.all_is_over()):
                return self.leave()
        return self.end_the_job(self.found)

    @property
    def limits(self) -> tuple[float, float]:
        return self.orders.patience, self.orders.slow

    def count(self, seconds: float) -> None:
        """Of the others, what their own watchmen cannot count."""
        for each in self.ranks.values():
            each.gone = 0.0 if each.here else each.gone + seconds
            each.silent += seconds
        self.mine.silent = 0.0
        self.hub_silent += seconds
        for number, peer in list(self.peers.items()):
            peer.waited += 0.0 if peer.known else seconds
            if peer.waited > SECONDS_TO_SPEAK:
                self.drop_peer(number)
        for peer in self.known_peers:
            self.send(peer, {"here": True})

    def all_is_over(self) -> bool:
        """Rank 0, which has left, did so in order, or nobody is left."""
        return self.mine.status == 0 or not any(each.here for each in self.ranks.values())

    def ask_for_stacks(self) -> None:
        """Rank 0's: where nobody moves, once, of all."""
        here = [each for each in self.ranks.values() if each.here]
        if self.listener is None or len(self.ranks) < self.orders.size or not nobody_moves(here, self.orders.patience):
            self.asked_for_stacks = False
        elif not self.asked_for_stacks:
            self.asked_for_stacks = True
            self.mine.stack = self.take_stack()
            for peer in self.known_peers:
                self.send(peer, {"stacks": True})

    def without_a_hub(self) -> Verdict | None:
        """Of the others: rank 0's watchman is not heard, so that his host is down or he was killed."""
        if self.farewell or not self.mine.here or self.hub_silent < self.orders.patience:
            return None
        line = (
            f"nothing was heard of rank 0 ({self.orders.hub[0]}) for {self.hub_silent:.0f} s: its host or the network to it is down, or all its "
            f"processes are stopped or were killed; {_AGAIN}"
        )
        return Verdict(line if self.mine.rank == 1 else "", stacks=True)

    # The end.

    def end_the_job(self, found: Verdict) -> None:
        line = found.line
        if found.stacks and line and self.orders.folder:
            line += f" (stacks of the ranks, where they could be had: {Path(self.orders.folder) / 'stack.rank*.txt'})"
        if self.orders.rank_speaks and self.mine.here and not self.mine.stopped:
            line = line or found.cause
        else:
            self.say(line)
            line = ""
        for peer in self.known_peers:
            self.send(peer, {"verdict": int(found.stacks)})
        told = time.monotonic()
        if found.stacks and (stack := self.take_stack()):
            self.write_stack(stack)
        if found.stacks:
            time.sleep(max(0.0, told + SECONDS_FOR_STACKS - time.monotonic()))
        self.end_the_rank(line)
        self.leave()

    def say(self, line: str) -> None:
        if line:
            with contextlib.suppress(OSError):
                os.write(2, f"error: {' '.join(line.split())}\n".encode())

    def end_the_rank(self, line: str) -> None:
        """line: which it is to say."""
        if not self.gone():
            with contextlib.suppress(OSError):
                os.write(self.orders.end_fd, f"{END}{line}".encode()[:MOST_ASKED])
            if self.mine.stopped == 0 and not select.select([self.pidfd], [], [], SECONDS_TO_LEAVE)[0]:
                self.say(line)  # it could not
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            select.select([self.pidfd], [], [], SECONDS_TO_LEAVE)
        for pid, began in self.children.items():  # they end by themselves, unless they are stopped
            if pid != os.getpid() and began and began_at(pid) == began:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def leave(self) -> None:
        for peer in self.known_peers:
            self.send(peer, {"farewell": True})
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)  # what was sent arrives
        if self.hub is not None:
            self.report()


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # of a group: its rank decides, and it ends when that does
    orders = Orders(**json.loads(sys.argv[1]))
    orders.hub = (orders.hub[0], orders.hub[1])
    Watchman(orders, sys.stdin.read()).watch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
