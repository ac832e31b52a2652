"""What a check has found: one verdict, one line, and what to do where it is not well; and how the findings of many processes become one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from mpp.base.errors import UserError, disk_fault
from mpp.base.text import counted

Verdict = Literal["ok", "warning", "FAILED"]
WORST: tuple[Verdict, ...] = ("FAILED", "warning", "ok")
NAMED = 8  # findings of one check, or ranks of one finding, that are told
Made = TypeVar("Made")


@dataclass(frozen=True)
class Finding:
    name: str  # of the check
    verdict: Verdict
    found: str  # one line, with the figure
    fix: str = ""  # of what is not ok, as words that work
    figure: float | None = None  # the larger the better: of several processes that are well, the least is told
    ranks: tuple[int, ...] = ()  # whose it is; empty: the job's

    def __post_init__(self) -> None:
        assert (self.verdict == "ok") == (not self.fix), self  # a fix for each that is not well

    @classmethod
    def refused(cls, name: str, error: UserError) -> "Finding":
        """Of an error as a program would end with: what it says behind its last semicolon is what to do."""
        found, _, fix = " ".join(str(error).split()).rpartition("; ")
        return cls(name, "FAILED", found or fix, fix if found else "see what it says")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def lines(self) -> list[str]:
        first = f"{self.verdict:8} {self.name:14} {self.found}"
        return [first, f"{'':8} {'':14} -> {self.fix}"] if self.fix else [first]


def attempt(name: str, work: Callable[[], Finding | Made]) -> Finding | Made:
    """What it gives, or the finding that it was refused, or that a disk has failed."""
    try:
        return work()
    except UserError as error:
        return Finding.refused(name, error)
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        found, _, fix = fault.partition(": ")
        return Finding(name, "FAILED", found, fix)


def merged(found: Sequence[Sequence[dict[str, Any]]], called: Callable[[int], str]) -> list[Finding]:
    """found: by rank, the findings of each as dicts, which may lack checks that others have -> in their order, one of a check where all are well, or
    none knows better, else one for each way in which ranks differ, the worst first, with the ranks named."""
    said: list[Finding] = []
    by_rank = [[Finding(**{**each, "ranks": (rank,)}) for each in findings] for rank, findings in enumerate(found)]
    for name in dict.fromkeys(each.name for findings in by_rank for each in findings):
        of_ranks = [each for findings in by_rank for each in findings if each.name == name]
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for each in of_ranks:
            groups.setdefault((each.verdict, each.found if each.verdict != "ok" else "", each.fix), []).append(each)
        told = [_told(group, len(groups) == 1 and len(group) == len(found), called) for group in groups.values()]
        told.sort(key=lambda each: WORST.index(each.verdict))
        said += told[:NAMED]
        if more := told[NAMED:]:
            said.append(replace(more[0], found=f"{counted(len(more), 'further finding')} of this kind, the first: {more[0].found}"))
    return said


def _told(group: list[Finding], of_all: bool, called: Callable[[int], str]) -> Finding:
    """One finding of several ranks with the same verdict."""
    ranks = tuple(rank for each in group for rank in each.ranks)
    least = min(group, key=lambda each: float("inf") if each.figure is None else each.figure)
    if len({each.found for each in group}) > 1:
        words = f"{least.found} (the least of {len(group)}, {called(least.ranks[0])})"
    else:
        words = least.found
    if not of_all:
        words = f"{_names(ranks, called)}: {words}"
    return replace(least, found=words, ranks=() if of_all else ranks)


def _names(ranks: Sequence[int], called: Callable[[int], str]) -> str:
    more = f" and {len(ranks) - NAMED} more" if ranks[NAMED:] else ""
    return ", ".join(map(called, ranks[:NAMED])) + more


def amount(value: float) -> str:
    """Three digits of it, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def status(findings: Iterable[Finding]) -> int:
    """Exit status."""
    return int(any(each.verdict == "FAILED" for each in findings))
