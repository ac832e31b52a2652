"""Plausible bugs, planted one by one by tests/test_mutations.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plant:
    """By name, which outlives a change of the code around it: `name`, such as "mpp.data.order:Order.place", becomes what the expression `code` says,
    in which `real` is the real one."""

    bug: str
    name: str
    code: str
    tests: str  # "file::test file::test"
    in_libjpeg: bool = False  # shows only where mpp.data._jpeg was built

    @property
    def file(self) -> str:
        return self.name.partition(":")[0].replace(".", "/") + ".py"

    def sown(self, source: str) -> str:
        """The module's source with the bug in it."""
        attribute = self.name.partition(":")[2]
        return f"{source}\n\n{attribute} = (lambda real: {self.code})({attribute})\n"


@dataclass(frozen=True)
class Row:
    """In the source, where no name stands for what a slip of the hand would change."""

    bug: str
    file: str
    old: str
    new: str
    tests: str  # "file::test file::test"
    in_libjpeg: bool = False  # shows only where mpp.data._jpeg was built

    def sown(self, source: str) -> str:
        """The file's text with the bug in it."""
        assert source.count(self.old) == 1, f"{self.file} has moved on: bring this row up to date"
        return source.replace(self.old, self.new)
