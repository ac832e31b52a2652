"""A claim: what a paper says of a recipe, and how that is measured; and what comes out when the two are held side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mpp.claims.subject import Subject

Value = str | float | int | Sequence[Any]  # words, a number, or several
EXACT = 1e-6  # relative, of numbers that went through floating point
OK, DIFFERS, DECLARED, LEFT_OUT = "ok", "differs", "differs as declared", "left out"


@dataclass(frozen=True)
class Claim:
    what: str
    says: Value
    measure: Callable[[Subject], Value]
    source: str  # paper and section, or table
    near: float = EXACT  # relative: how far a measured number may lie off
    within: float = 0.0  # the same, absolute
    ours: Value | None = None  # what is measured where mpp differs knowingly
    because: str = ""  # why it does
    left_out: str = ""  # words of the YAML's header that say it is not there

    def __post_init__(self) -> None:
        if (self.ours is None) == bool(self.because or self.left_out):
            raise ValueError(f"{self.what}: a deviation needs the value that is ours, and its reason or the header's words")


class Finding(NamedTuple):
    what: str
    says: str
    measured: str
    source: str
    verdict: str
    note: str = ""


def hold(claim: Claim, subject: Subject) -> Finding:
    """Measure, and compare."""
    found = claim.measure(subject)
    verdict, note = DIFFERS, ""
    if agrees(claim, claim.says, found):
        verdict = OK  # also where a deviation is declared that is no longer there: nothing is wrong then
    elif claim.ours is not None and agrees(claim, claim.ours, found):
        if not claim.left_out:
            verdict, note = DECLARED, claim.because
        elif claim.left_out in subject.header:
            verdict, note = LEFT_OUT, claim.left_out
        else:
            note = f"the head of the YAML does not say: {claim.left_out}"
    return Finding(claim.what, shown(claim.says), shown(found), claim.source, verdict, note)


def agrees(claim: Claim, says: Value, found: Value) -> bool:
    if isinstance(says, str) or isinstance(found, str):
        return says == found
    if isinstance(says, Sequence) and isinstance(found, Sequence):
        return len(says) == len(found) and all(agrees(claim, a, b) for a, b in zip(says, found, strict=True))
    if isinstance(says, Sequence) or isinstance(found, Sequence):
        return False
    return math.isclose(says, found, rel_tol=claim.near, abs_tol=max(claim.within, 1e-12))


def shown(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(shown(each) for each in value)
    if isinstance(value, int) or (float(value).is_integer() and 1 <= abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"
