"""What a rank tells of itself, so that one that stops, hangs or dies is noticed by the others (mpp/processes/watchman.py).

A rank counts what it gets done (`moved`), and how often it came to a place where all wait for each other (`meets`); the watchman beside it reads
both out of shared memory.  A job of one process has no watchman: nobody waits for it.
"""

import dataclasses
import faulthandler
import json
import mmap
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from mpp.base import errors
from mpp.base.progress import Progress
from mpp.processes import watchman


class Watch:
    """Of this process; does nothing before `begin`."""

    def __init__(self) -> None:
        self.board = watchman.Board()
        self.patience, self.slow = 60.0, 1800.0  # seconds, see watchman.verdict
        self.told: Callable[[str], object] | None = (
            None  # in place of the watchman's own line: is given it, or "", before this process is ended
        )
        self.memory: mmap.mmap | None = None
        self.process: subprocess.Popen | None = None

    def begin(self, rank: int, size: int, folder: Path | None, share: Callable[[Any], Any]) -> None:
        """Collective: start the watchmen of this job.

        folder: where stacks are written; None: nowhere.  share: gives all processes what rank 0 puts in.
        """
        listener = _listener(os.environ["MASTER_ADDR"], size == int(os.environ["LOCAL_WORLD_SIZE"])) if rank == 0 else None
        port, token = share((listener.getsockname()[1], secrets.token_hex(16)) if listener else None)
        board, stack, (end_here, end_there) = os.memfd_create("board"), os.memfd_create("stack"), os.pipe()
        os.ftruncate(board, watchman.BOARD_BYTES)
        self.memory = mmap.mmap(board, watchman.BOARD_BYTES)
        self.moved("starting", slow=True)
        os.set_blocking(stack, True)
        appended = os.open(f"/proc/self/fd/{stack}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # the watchman empties it
        faulthandler.enable(appended)
        faulthandler.register(signal.SIGUSR2, appended)
        kept = [board, stack, end_there, *([listener.fileno()] if listener else [])]
        orders = watchman.Orders(
            rank, size, socket.gethostname(), os.getpid(), (os.environ["MASTER_ADDR"], port), self.patience, self.slow, str(folder.resolve()) if folder else "", board,
            stack, end_there, listener.fileno() if listener else None, self.told is not None,
        )  # fmt: skip
        command = [sys.executable, "-I", "-S", watchman.__file__, json.dumps(dataclasses.asdict(orders))]
        self.process = subprocess.Popen(command, pass_fds=kept, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/")
        assert self.process.stdin is not None
        self.process.stdin.write(token.encode())  # not among the words of the command, which everybody on this machine may read
        self.process.stdin.close()
        for number in (board, stack, end_there):
            os.close(number)
        if listener:
            listener.close()
        threading.Thread(target=self._end_when_asked, args=[end_here], name="watch", daemon=True).start()
        errors.at_leaving.append(self.leaves)
        errors.lost_connection.append(self.wait_for_the_end)

    def moved(self, phase: str | None = None, step: int | None = None, *, slow: bool = False) -> None:
        """Something was done.  phase: what is done next, in words; slow: that may take long; step: optimiser steps done."""
        board = self.board
        self._set(
            moves=board.moves + 1,
            waits=False,
            phase=board.phase if phase is None else phase,
            slow=board.slow if phase is None else slow,
            step=board.step if step is None else step,
        )

    def meets(self) -> None:
        """Every process comes here, and waits for the others next."""
        self._set(moves=self.board.moves + 1, meets=self.board.meets + 1, waits=True)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around a collective."""
        self.meets()
        yield
        self.moved()

    @contextmanager
    def slowly(self, phase: str, total: int | None = None, unit: str = "") -> Iterator[Progress]:
        """What may take long, such as saving; what was done before goes on behind it.  total, unit: as a Progress has them, which is given."""
        before = self.board
        self.moved(phase, slow=True)
        with Progress(phase, total, unit, at_once=True) as bar:
            yield bar
        self.moved(before.phase, slow=before.slow)

    def leaves(self, status: int, words: str, said: bool) -> None:
        self._set(status=status, words=words, said=said)

    def wait_for_the_end(self) -> None:
        """After a connection to another process was lost: give the watchmen time to say why, and to end this process."""
        threading.Event().wait(2 * watchman.SECONDS_TO_FOLLOW)

    def _set(self, **values: Any) -> None:
        if self.memory is not None:
            self.board = dataclasses.replace(self.board, **values)
            self.board.write(self.memory)

    def _end_when_asked(self, end: int) -> None:
        if asked := os.read(end, watchman.MOST_ASKED):
            errors.stopping("ended by the watchman, because of another process", device=False)
            if self.told:
                self.told(asked.decode(errors="replace").removeprefix(watchman.END))
            leave_at_once(errors.AGAIN)  # whoever is the cause has a status of his own
        if self.board.status == watchman.RUNNING:
            sys.stderr.write(
                f"warning: the watchman of rank {os.environ.get('RANK', '0')} has ended: a process that hangs may go unnoticed\n"
            )


watch = Watch()
meeting = watch.meeting


def _listener(address: str, alone: bool) -> socket.socket:
    """On the one interface that has this address of rank 0's host, where all ranks mean the same by it.

    alone: no rank is on another host.  A name may mean another address there (Debian gives a host's own name 127.0.1.1), and an address may be
    translated on the way: then on all interfaces, where a stranger still lacks the token.
    """
    literal = re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", address)
    for family, _, _, _, place in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM) if literal or alone else []:
        with suppress(OSError):  # none of this machine's
            return socket.create_server(place, family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def leave_at_once(status: int) -> NoReturn:
    errors.leave_no_children()
    os._exit(status)
