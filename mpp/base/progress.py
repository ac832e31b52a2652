"""How far a command is: what it does, how much of how much, at what rate, and how long that still takes.

    with Progress("extracting features", len(samples), "images") as bar:
        for batch in batches:
            ...
            bar.update(len(batch))

On a terminal one line that moves and is gone at the end.  Elsewhere (a pipe, the log of a batch job) plain lines, a minute apart at least, and none of work
that ends sooner, where work is whatever follows without a pause.  Both on stderr: stdout is for results.  Of several processes rank 0 alone speaks, and workers never do.

Where one is inside another the inner one is shown, behind the name and the count of the outer: "random init (8 of 20): linear: 1,200 of 5,000 steps".
`mpp.base.text.say` takes the line off the terminal before it prints, so bars and lines do not meet.  There is no thread, since programs fork: what is shown
moves when `update` is called, which costs a third of a microsecond; of work on a GPU call it where the host waits anyway, or once in many steps.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from mpp.base import text

SHOWN_AFTER = 1.0  # seconds until a line is shown on a terminal
REDRAWN_AFTER = 0.2  # seconds between its moves
LINE_SECONDS = 60.0  # between plain lines, and before the first
NARROW, USUAL = 40, 80  # columns of a terminal that is no wider, or does not say
LEAST_BAR, LEAST_NAME = 10, 12  # columns of a line

clock = time.monotonic
Item = TypeVar("Item")
_open: list["Progress"] = []  # the outermost first
_drawn = 0  # columns of the line that stands on the terminal
_line_due = 0.0  # when the next plain line may be written
_closed = float("-inf")  # when the outermost one was


class Progress:
    def __init__(
        self, what: str, total: int | None = None, unit: str = "", *, scale: float = 1.0, at_once: bool = False, quiet: bool = False
    ):
        """what: is done, in words.  total: of the units, None where that is not known.  unit: in the plural.  scale: units shown for each counted, such as
        1e-6 for MB of bytes.  at_once: shown on a terminal from the start, for work that may not get to its first `update` within seconds."""
        self.what, self.total, self.unit, self.scale = what, total, unit, scale
        self.done, self._moves = 0, False
        self._at_once, self._speaks = at_once, not quiet and os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None

    def __enter__(self) -> Self:
        global _line_due
        self._began = self._next = clock()
        if not self._speaks:
            return self
        text.making_room = _making_room
        if not _open and self._began - _closed > SHOWN_AFTER:  # else what follows at once is the same work
            _line_due = self._began + LINE_SECONDS
        _open.append(self)
        if self._at_once:
            self._look()
        elif on_terminal():
            self._next += SHOWN_AFTER
        return self

    def update(self, count: int = 1, what: str | None = None) -> None:
        """count: units done since the last call; what: is done from now on."""
        self.done, self._moves = self.done + count, True
        if what is not None and what != self.what:
            self.what = what
            self._next = clock() if self._at_once else self._next
        if self._speaks and clock() >= self._next:
            self._look()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _closed
        if not self._speaks or self not in _open:
            return
        if isinstance(error, KeyboardInterrupt) and _open[-1] is self and not getattr(error, "told", False):
            error.told = True  # type: ignore[attr-defined]
            if clock() - _open[0]._began >= SHOWN_AFTER:
                _clear()
                _write(f"stopped: {self.words()}\n")
        drawn = _drawn
        _clear()
        _open.remove(self)
        _closed = clock() if not _open else _closed
        if drawn and _open:
            _open[-1]._look()

    def _look(self) -> None:
        """Show what there is to show now, and say when to look again."""
        global _line_due
        now = clock()
        if _open[-1] is not self:
            return
        if on_terminal():
            self._next = now + REDRAWN_AFTER
            _draw(self)
        else:
            if now >= _line_due:
                _line_due = now + LINE_SECONDS
                _write(self.words() + "\n")
            self._next = _line_due

    @property
    def name(self) -> str:
        """With those it is inside of."""
        outer = (
            [f"{each.what} ({each.counted()})" if each.total else each.what for each in _open[: _open.index(self)]] if self in _open else []
        )
        return text.printable(": ".join([*outer, self.what]))

    def counted(self) -> str:
        number = (lambda count: f"{count:,}") if self.scale == 1 else (lambda count: f"{count * self.scale:,.1f}")
        return f"{number(self.done)} of {number(self.total)}" if self.total else number(self.done)

    def pace(self) -> str:
        """Rate and time left, as far as they are known."""
        seconds, parts = clock() - self._began, []
        if self.done and seconds > 0 and self.unit:
            rate = self.done * self.scale / seconds
            parts.append(
                f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.1f} {self.unit}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s each"
            )
        if self.done and self.total and self.done <= self.total:
            parts.append(f"about {minutes((self.total - self.done) * seconds / self.done)} left")
        elif seconds >= 1:
            parts.append(f"for {minutes(seconds)}")
        return ", ".join(parts)

    def amount(self) -> str:
        """How much of how much, at what rate, and the time left."""
        count = f"{self.counted()} {self.unit}".rstrip() if self.total or self.done else ""
        return ", ".join(filter(None, [count, self.pace()]))

    def words(self) -> str:
        return f"{self.name}: {amount}" if (amount := self.amount()) else f"{self.name} ..."


def tracked(
    items: Iterable[Item], what: str, total: int | None, unit: str, *, at_once: bool = False, quiet: bool = False
) -> Iterator[Item]:
    """The items, counted as the next one is asked for."""
    with Progress(what, total, unit, at_once=at_once, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.update()


def minutes(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def on_terminal() -> bool:
    """Whether stderr can move a line: a terminal, or a notebook's cell."""
    return (sys.stderr.isatty() and os.environ.get("TERM") != "dumb") or "ipykernel" in sys.modules


def _draw(bar: Progress) -> None:
    global _drawn
    from tqdm import tqdm  # here, because programs that answer at once must not wait for it
    from tqdm.utils import disp_len

    columns = max(NARROW, _columns()) - 1  # the last column would make some terminals begin a new line
    words = bar.amount()
    if bar.total:
        form, room = "{desc}: {percentage:3.0f}%|{bar}| {words}", columns - disp_len(words) - disp_len(": 100%|| ") - LEAST_BAR
    elif bar._moves and words:
        form, room = "{desc}: {words}", columns - disp_len(words) - 2
    else:  # what may not move again shows no time that stands still
        form, room = "{desc} ...", columns - 4
    name = bar.name if disp_len(bar.name) <= room else "..." + bar.name[len(bar.name) + 3 - max(room, LEAST_NAME) :]  # its end says most
    line = tqdm.format_meter(min(bar.done, bar.total or bar.done), bar.total, 0, ncols=columns, prefix=name, bar_format=form, words=words)
    _write(f"\r{line}{' ' * (_drawn - disp_len(line))}")
    _drawn = disp_len(line)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or USUAL
    except (OSError, ValueError, AttributeError):  # a notebook's cell
        return USUAL


def _clear() -> None:
    global _drawn
    if _drawn:
        _write(f"\r{' ' * _drawn}")
        _write("\r")
        _drawn = 0


@contextmanager
def _making_room() -> Iterator[None]:
    """Around a line that is printed: what is shown gives way to it and comes back below."""
    drawn = _drawn if multiprocessing.parent_process() is None else 0
    if drawn:
        _clear()
    yield
    if drawn and _open:
        _open[-1]._look()


def _write(words: str) -> None:
    sys.stderr.write(words)
    sys.stderr.flush()
