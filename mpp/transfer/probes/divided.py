"""Probes that try many things of which none needs another, so that several processes share one search and find to the digit what one finds.

    search = probe.search(train)       a generator: it yields rounds of trials, and is sent what they gave
    fits = find([search, ...], ...)    in every process alike: of each search, what then fits what it has chosen

Each process asks the same and is told the same, so all make the same choices, and only trials are divided.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from mpp.transfer.probes.contract import Fitted, Probe, Train


@dataclass(frozen=True)
class Trials:
    """A round of a search."""

    costs: Sequence[float]  # of each trial: how long it takes beside the others
    work: Callable[[Sequence[int]], list[Any]]
    """Do these of them (ascending), in one pass: what each gives, which must not depend on who does it nor on what is done beside it, and is small."""


Search = Generator[Trials, list[Any], Callable[[], Fitted]]
Found = dict[tuple[int, int], Any]  # by search and trial


@dataclass(frozen=True)
class Searched:
    """What a search has come to."""

    fit: Callable[[], Fitted]
    seconds: float  # that trials have taken, of all processes together


class DividedProbe(Probe, ABC):
    @abstractmethod
    def search(self, train: Train) -> Search:
        """What is tried on `split.fit` and looked at on `split.choose`; returns what fits the choice on both, which one process does."""

    def fit(self, train: Train) -> Fitted:
        return find([self.search(train)])[0].fit()


def deal(costs: Sequence[Sequence[float]], processes: int) -> list[list[tuple[int, int]]]:
    """For each process its trials, (search, trial), of searches whose trials cost so much.

    All trials are laid in one line, those beside each other that are equally far in their own search, and the line is cut into stretches of equal
    cost.  So a process has neighbours of each search, which need the same features, much the same share of each, and at most one trial more than its
    share of all.
    """
    line = []
    for number, each in enumerate(costs):
        before, whole = 0.0, sum(each)
        for trial, own in enumerate(each):
            line.append(((before + own / 2) / whole, number, trial, own))
            before += own
    shares: list[list[tuple[int, int]]] = [[] for _ in range(processes)]
    before, whole = 0.0, sum(map(sum, costs))
    for _, number, trial, own in sorted(line):
        shares[min(processes - 1, int((before + own / 2) / whole * processes))].append((number, trial))
        before += own
    return shares


def find(
    searches: Sequence[Search],
    rank: int = 0,
    processes: int = 1,
    share: Callable[[Callable[[], Any]], list[Any]] = lambda work: [work()],
    begins: Callable[[int], object] = lambda number: None,
) -> list[Searched]:
    """Collective where there are several processes: each does its share of every round of all these searches.

    share: does this process's work and gives what each process's has given, in order of rank (collective).  begins: is told which search is worked for.
    """
    ended: dict[int, Callable[[], Fitted]] = {}
    asked: dict[int, Trials] = {}
    seconds = [0.0] * len(searches)

    def goes_on(number: int, given: list[Any] | None) -> None:
        try:
            asked[number] = next(searches[number]) if given is None else searches[number].send(given)
        except StopIteration as end:
            asked.pop(number, None)
            ended[number] = end.value

    def work() -> tuple[Found, dict[int, float]]:
        numbers, found, took = list(asked), dict[tuple[int, int], Any](), dict[int, float]()
        mine = [(numbers[at], trial) for at, trial in deal([asked[number].costs for number in numbers], processes)[rank]]
        for number in numbers:
            if trials := sorted(trial for of, trial in mine if of == number):
                began = time.perf_counter()
                begins(number)
                given = asked[number].work(trials)
                found |= {(number, trial): one for trial, one in zip(trials, given, strict=True)}
                took[number] = time.perf_counter() - began
        return found, took

    for number in range(len(searches)):
        goes_on(number, None)
    while asked:
        parts = share(work)
        found = {at: one for part, _ in parts for at, one in part.items()}
        for number, trials in list(asked.items()):
            seconds[number] += sum(took.get(number, 0.0) for _, took in parts)
            goes_on(number, [found[number, trial] for trial in range(len(trials.costs))])
    return [Searched(ended[number], seconds[number]) for number in range(len(searches))]
