"""What is told of an examination: each finding as soon as it is there, and at the end how many of which kind, by rank 0 for all."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mpp.base.errors import UserError, say_error
from mpp.base.text import counted, say, say_json
from mpp.checks.finding import Finding, attempt, status
from mpp.processes.peers import Peers

Made = TypeVar("Made")


class Report:
    """Tells each finding as soon as it is there: what comes later may hang."""

    def __init__(self, as_json: bool, speaks: bool):
        self.as_json, self.speaks, self.findings, self.began = as_json, speaks, list[Finding](), time.perf_counter()
        self._writing, self._ended = threading.Lock(), False

    def add(self, *findings: Finding) -> None:
        with self._writing:
            if not self._ended:
                self._add(findings)

    def _add(self, findings: Sequence[Finding]) -> None:
        self.findings += findings
        if self.speaks and not self.as_json:
            for finding in findings:
                for line in finding.lines:
                    say(line)

    def attempt(self, name: str, work: Callable[[], Made]) -> Made | None:
        """What it gives that all processes give alike; None, and told, where it is refused."""
        found = attempt(name, work)
        if isinstance(found, Finding):
            self.add(found)
            return None
        return found

    def passes(self, name: str, work: Callable[[], object]) -> bool:
        """Whether it is not refused, which is told."""
        return self.attempt(name, lambda: [work()]) is not None

    def end(self, peers: Peers) -> int:
        """Exit status, of all ranks that of rank 0."""
        with self._writing:
            self._sum_up(peers)
        return peers.from_first(lambda: status(self.findings))

    def break_off(self, peers: Peers, words: str) -> None:
        """From any thread: the processes cannot go on together, which is a finding, too; nobody is waited for, and nothing is told any more.  words: why,
        as an error has them."""
        with self._writing:
            if self._ended:
                return
            if self.speaks:
                self._add([Finding.refused("processes", UserError(words or "another process has left; its own message says why"))])
                self._sum_up(peers)
                sys.stdout.flush()
            elif words:
                say_error(words)
            self._ended = True

    def _sum_up(self, peers: Peers) -> None:
        self._ended = True
        seconds = time.perf_counter() - self.began
        of = {verdict: sum(each.verdict == verdict for each in self.findings) for verdict in ("ok", "warning", "FAILED")}
        if self.speaks and self.as_json:
            say_json(
                {
                    "checks": [{k: v for k, v in each.as_dict().items() if k != "figure"} | {"verdict": each.verdict.lower()} for each in self.findings],
                    "ok": of["ok"], "warnings": of["warning"], "failed": of["FAILED"],
                    "processes": peers.size, "hosts": list(dict.fromkeys(peers.hosts)), "seconds": round(seconds, 1),
                }
            )  # fmt: skip
        elif self.speaks:
            say(
                f"{counted(len(self.findings), 'finding')} in {seconds:.0f} s: {of['ok']} ok, {counted(of['warning'], 'warning')}, {of['FAILED']} failed"
            )
