"""Plausible bugs, planted one by one by tests/test_mutations.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    bug: str
    file: str
    old: str
    new: str
    tests: str  # "file::test file::test"
    in_libjpeg: bool = False  # shows only where mpp.data._jpeg was built
