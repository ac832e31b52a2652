"""What is told of work that lasts: a line that moves on a terminal, plain lines a minute apart elsewhere, nothing of what ends sooner."""

import fcntl
import multiprocessing
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpp.base import progress
from mpp.base.errors import UserError, interruptible
from mpp.base.progress import Progress, minutes, tracked
from mpp.base.text import say, say_json, say_lines
from mpp.disk.files import sha256_of
from mpp.disk.locks import lock_folder
from mpp.processes.watch import watch
from tests.forks import run_forked

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    monkeypatch.setattr(progress, "_open", [])
    monkeypatch.setattr(progress, "_drawn", 0)
    monkeypatch.setattr(progress, "_closed", float("-inf"))
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "clock", found)
    return found


class Terminal:
    """A pseudo-terminal of so many columns as stdout and stderr, and what then stands on its screen."""

    def __init__(self, columns: int = 100):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, 0x5414, (40).to_bytes(2, sys.byteorder) + columns.to_bytes(2, sys.byteorder) + bytes(4))  # TIOCSWINSZ
        self.columns, self._parts = columns, bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the last writer has gone
                return
            self._parts += data

    def written(self) -> str:
        """All so far, once the other side has closed it."""
        self._reader.join(30)
        return self._parts.decode()

    def screen(self) -> list[str]:
        """What a reader sees: lines without blanks at their ends.  Nothing but letters, returns and ends of lines may have been written."""
        lines, at = [""], 0
        for letter in self.written():
            if letter == "\r":
                at = 0
            elif letter == "\n":
                lines.append("")
            else:
                assert unicodedata.category(letter) != "Cc", repr(letter)
                assert at < self.columns, "a line of progress is wider than the terminal, which breaks it in two"
                lines[-1] = lines[-1][:at].ljust(at) + letter + lines[-1][at + 1 :]
                at += 1
        return [line.rstrip() for line in lines]


@pytest.fixture
def on_terminal(monkeypatch) -> Iterator[Callable[[Callable[[], object]], Terminal]]:
    """on_terminal(work, columns=100): what stands on a terminal after the work."""
    monkeypatch.setenv("TERM", "xterm")

    def show(work: Callable[[], object], columns: int = 100) -> Terminal:
        terminal = Terminal(columns)
        with os.fdopen(terminal.slave, "w") as slave, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", slave)
            patch.setattr(sys, "stdout", slave)
            work()
        return terminal

    yield show


# ------------------------------------------------------------------------------------------------------------- a pipe, the log of a batch job


def test_in_a_pipe_a_plain_line_a_minute_says_what_how_much_at_what_rate_and_the_time_left(clock, capsys):
    with Progress("features of shards/train", 3000, "images") as bar:
        for _ in range(180):
            clock.now += 1
            bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "features of shards/train: 600 of 3,000 images, 10 images/s, about 4:00 left",
        "features of shards/train: 1,200 of 3,000 images, 10 images/s, about 3:00 left",
        "features of shards/train: 1,800 of 3,000 images, 10 images/s, about 2:00 left",
    ]


def test_nothing_is_said_of_what_ends_within_a_minute(clock, capsys):
    for _ in range(5):
        with Progress("features", 59, "images", at_once=True) as bar:
            for _ in range(59):
                clock.now += 1
                bar.update()
        clock.now += 10  # something else, or a notebook that waits for its user
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_the_minute_is_that_of_the_whole_work_and_the_line_names_all_it_is_inside_of(clock, capsys):
    with Progress("random init", 40, "probes") as outer:
        outer.update(8)
        for _ in range(3):
            with Progress("linear", 1000, "steps") as bar:
                for _ in range(25):
                    clock.now += 1
                    bar.update(40)
    assert capsys.readouterr().err.splitlines() == ["random init (8 of 40): linear: 400 of 1,000 steps, 40 steps/s, about 0:15 left"]


def test_parts_of_some_seconds_that_follow_each_other_are_not_silent_for_minutes(clock, capsys):
    for what in ("listing", "making", "writing", "looking"):
        with Progress(what, 40, "shards", at_once=True) as bar:
            for _ in range(40):
                clock.now += 1
                bar.update()
    with Progress("saving a checkpoint", at_once=True):  # in which nothing moves
        clock.now += 100
    assert capsys.readouterr().err.splitlines() == [
        "making: 20 of 40 shards, 1.0 shards/s, about 0:20 left",
        "writing: 40 of 40 shards, 1.0 shards/s, about 0:00 left",
    ]
    with Progress("compiling", at_once=True):
        clock.now += 100
        with Progress("inside", at_once=True):
            pass
    assert capsys.readouterr().err.splitlines() == ["compiling ...", "compiling: inside ..."]


def test_without_a_total_the_line_says_how_much_and_for_how_long(clock, capsys):
    with Progress("listing images", unit="files") as bar, Progress("reading"):
        bar.update(5)
    with Progress("listing images", unit="files") as bar:
        clock.now += 61
        bar.update(1220)
        clock.now += 60
        bar.update(0, "waiting for a lock")
    assert capsys.readouterr().err.splitlines() == [
        "listing images: 1,220 files, 20 files/s, for 1:01",
        "waiting for a lock: 1,220 files, 10 files/s, for 2:01",
    ]


def test_rates_are_readable_at_every_speed(clock):
    found = []
    for rate in (1234.5, 42.0, 4.25, 0.25, 0.05):
        with Progress("x", 10**6, "steps") as bar:
            clock.now += 1000
            bar.update(round(1000 * rate))
            found.append(bar.pace().partition(",")[0] if rate < 1000 else bar.pace().rpartition(",")[0])
    assert found == ["1,234 steps/s", "42 steps/s", "4.2 steps/s", "0.2 steps/s", "20 s each"]
    with Progress("x", 5_000_000, "MB", scale=1e-6) as bar:
        clock.now += 1
        bar.update(1_500_000)
        assert bar.words() == "x: 1.5 of 5.0 MB, 1.5 MB/s, about 0:02 left"
    assert [minutes(seconds) for seconds in (0.4, 7, 59.6, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]


def test_more_than_was_expected_is_no_negative_time(clock):
    with Progress("x", 10, "steps") as bar:
        clock.now += 5
        bar.update(12)
        assert bar.words() == "x: 12 of 10 steps, 2.4 steps/s, for 0:05"


@pytest.mark.parametrize("rank", ["1", "7"])
def test_a_second_rank_is_silent(clock, capsys, monkeypatch, on_terminal, rank):
    monkeypatch.setenv("RANK", rank)

    def work() -> None:
        with Progress("features", 200, "images", at_once=True) as bar:
            for _ in range(200):
                clock.now += 1
                bar.update()

    work()
    assert capsys.readouterr().err == ""
    assert on_terminal(work).written() == ""


def _a_worker(folder: str) -> None:
    with (Path(folder) / "said").open("w") as sys.stderr, Progress("in a worker", 2, "images") as bar:
        progress.clock = lambda: 1e9
        bar.update()


def test_a_worker_process_is_silent(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_a_worker, args=(str(tmp_path),))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert (tmp_path / "said").read_text() == ""


def test_quiet_is_quiet(clock, capsys):
    for _ in tracked(range(100), "x", 100, "images", quiet=True):
        clock.now += 10
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["cat\x1b[31m", "cat\rerror: forged", "cat\nerror: forged"])
def test_names_reach_neither_pipe_nor_terminal_as_anything_but_letters(clock, capsys, on_terminal, name):
    def work() -> None:
        with Progress(name, 200, "images", at_once=True) as bar:
            for _ in range(130):
                clock.now += 1
                bar.update()

    work()
    lines = capsys.readouterr().err
    assert lines.count("\n") == 2
    assert all(unicodedata.category(letter) != "Cc" for letter in lines.replace("\n", ""))
    assert on_terminal(work).screen() == [""]


# ------------------------------------------------------------------------------------------------------------- a terminal


def test_on_a_terminal_one_line_moves_and_is_gone_at_the_end(clock, on_terminal):
    def work() -> None:
        with Progress("features of shards/train", 3000, "images") as bar:
            for _ in range(100):
                clock.now += 0.1
                bar.update(30)

    terminal = on_terminal(work)
    shown = terminal.written()
    assert re.search(r"features of shards/train:  50%\|█+ +\| 1,5\d0 of 3,000 images, 300 images/s, about 0:05 left", shown)
    assert 30 < shown.count("%|") < 60, "five times a second, from the first second on"
    assert terminal.screen() == [""]


def test_what_ends_within_a_second_is_not_shown_unless_asked_for(clock, on_terminal):
    def work(at_once: bool) -> None:
        with Progress("features", 9, "images", at_once=at_once) as bar:
            for _ in range(9):
                clock.now += 0.1
                bar.update()

    assert on_terminal(lambda: work(False)).written() == ""
    at_once = on_terminal(lambda: work(True))
    assert "features:   0%|" in at_once.written()
    assert at_once.screen() == [""]


TABLE = ["top-1, %          linear", "pretrained   88.30 ±1.99", "random init  62.17 ±0.57"]


def test_lines_and_tables_stand_whole_between_the_moves_of_a_bar(clock, on_terminal):
    def work() -> None:
        with Progress("random init", 20, "probes", at_once=True) as outer:
            for number in range(20):
                for step in tracked(range(100), "linear", 100, "steps"):
                    clock.now += 0.05
                    if step == 70:
                        say(f"chosen    probe {number}")
                outer.update()
            say_lines("\n".join(TABLE))
            say_json({"top-1": 88.3})
            say("warning: to stderr", error=True)

    expected = [*(f"chosen    probe {number}" for number in range(20)), *TABLE, '{"top-1": 88.3}', "warning: to stderr", ""]
    terminal = on_terminal(work)
    assert terminal.written().count("linear") > 100
    assert terminal.screen() == expected


def test_a_line_is_never_wider_than_the_terminal(clock, on_terminal):
    def work() -> None:
        with (
            Progress("a long name of a folder " * 5, 100, "images", at_once=True) as bar,
            Progress("and one inside of it " * 5, at_once=True),
        ):
            bar.update(50)
            say("said")
        with Progress("another long name of a folder " * 5, 100, "images", at_once=True) as bar:
            for _ in range(100):
                clock.now += 1
                bar.update()

    for columns, seen in ((50, "50 of 100 images"), (80, "about 0:50 left"), (200, "about 0:50 left")):
        terminal = on_terminal(work, columns)
        assert terminal.screen() == ["said", ""]
        assert seen in terminal.written()


def test_a_shorter_line_leaves_nothing_of_a_longer_one(clock, on_terminal):
    def work() -> None:
        with Progress("reading a folder with a long name", at_once=True) as bar:
            bar.update(0, "done")
        say("said")

    assert on_terminal(work).screen() == ["said", ""]


def test_the_inner_work_is_shown_and_then_the_outer_again(clock, on_terminal):
    def work() -> None:
        with Progress("outer", 4, "probes", at_once=True) as outer:
            outer.update(3)
            with Progress("inner", at_once=True):
                clock.now += 100
                say("meanwhile")  # no time is shown that would stand still
            say("between")

    shown = on_terminal(work).written()
    assert shown.count("outer (3 of 4): inner ...") == 2
    assert "for 1:40" not in shown
    assert re.search(r"inner.*outer:  75%.*between\r\n\router:  75%", shown, re.DOTALL)


def test_an_error_takes_the_line_away_and_an_interrupt_says_where_it_fell(clock, on_terminal, capsys):
    def work(error: BaseException) -> None:
        with (
            pytest.raises(type(error)),
            Progress("outer", 4, "probes", at_once=True),
            Progress("linear", 100, "steps", at_once=True) as bar,
        ):
            clock.now += 5
            bar.update(50)
            raise error

    assert on_terminal(lambda: work(UserError("no such folder"))).screen() == [""]
    stopped = "stopped: outer (0 of 4): linear: 50 of 100 steps, 10 steps/s, about 0:05 left"
    assert on_terminal(lambda: work(KeyboardInterrupt())).screen() == [stopped, ""]
    capsys.readouterr()
    work(KeyboardInterrupt())
    assert capsys.readouterr().err == f"{stopped}\n"


def test_the_last_line_of_what_is_killed_names_what_it_was_doing():
    """Killed at once, without a farewell."""
    terminal = Terminal()
    program = "from mpp.base.progress import Progress\nimport os\nwith Progress('saving a checkpoint', at_once=True):\n    os.kill(os.getpid(), 9)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    killed = subprocess.run([sys.executable, "-c", program], stdout=terminal.slave, stderr=terminal.slave, env=environment, timeout=60)
    os.close(terminal.slave)
    assert killed.returncode == -9
    assert terminal.screen() == ["saving a checkpoint ..."]


def test_a_dumb_terminal_gets_plain_lines_and_a_notebook_a_line_that_moves(clock, on_terminal, monkeypatch, capsys):
    def work() -> None:
        with Progress("features", 100, "images", at_once=True) as bar:
            for _ in range(61):
                clock.now += 1
                bar.update()

    monkeypatch.setenv("TERM", "dumb")
    assert on_terminal(work).screen() == ["features: 60 of 100 images, 1.0 images/s, about 0:40 left", ""]
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    work()
    assert "\rfeatures:  61%|" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- who uses it


def test_what_is_waited_for_is_said_and_then_had(tmp_path, on_terminal, monkeypatch):
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.1)

    def work() -> None:
        with (tmp_path / "lock").open("w") as held, (tmp_path / "lock").open("w") as asked:
            lock_folder(held, "")
            threading.Timer(0.5, held.close).start()
            lock_folder(asked, "still held", seconds=20)

    terminal = on_terminal(work, 200)
    assert f"waiting for another program to let go of {tmp_path}" in terminal.written()
    assert terminal.screen() == [""]


def test_a_file_is_hashed_aloud(tmp_path, clock, capsys, monkeypatch):
    import hashlib

    data = bytes(range(256)) * 4000 + b"end"
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr("mpp.disk.files.HASHED", 1000)
    real = Progress.update

    def update(bar: Progress, count: int = 1, what: str | None = None) -> None:
        clock.now += 0.1
        real(bar, count, what)

    monkeypatch.setattr(Progress, "update", update)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert capsys.readouterr().err == f"sha256 of {tmp_path / 'file'}: 0.6 of 1.0 MB, 0.0 MB/s, about 0:42 left\n".replace(
        "0.0 MB/s", "100 s each"
    )


def test_what_the_watch_is_told_of_a_terminal_is_told_of_too(on_terminal):
    def work() -> None:
        with watch.slowly("saving a checkpoint"):
            pass
        with interruptible():
            pass

    shown = on_terminal(work).written()
    assert "saving a checkpoint ..." in shown
    assert "starting ..." in shown


def test_a_program_in_a_pipe_writes_nothing_of_progress_and_on_a_terminal_leaves_its_lines_whole(tiny_shards, tmp_path):
    words = ["data_prep/verify_shards.py", str(tiny_shards), "--full", "--workers", "2"]
    piped = run_forked(words, cwd=ROOT, env=os.environ)
    assert piped.stderr == ""
    terminal = Terminal(120)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    shown = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=terminal.slave, stderr=terminal.slave, env=environment, timeout=120)
    os.close(terminal.slave)
    assert shown.returncode == piped.returncode
    without_times = lambda lines: [re.sub(r"[\d.,]+ (s|MB/s)\b", "N", line) for line in lines]
    assert "starting ..." in terminal.written()
    assert without_times(terminal.screen()) == without_times([*piped.stdout.splitlines(), ""])
