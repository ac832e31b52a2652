"""A source whose folders say more than the class: which split an image is of, and at which level its class stands."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mpp.data.class_folders import folder_at, split_named
from mpp.errors import DataError
from mpp.prep.source import Item, Reader, Source

TREES = ("folder", "zip", "tar")  # kinds whose labels are folders
AS_LISTED = (1, 0)  # levels of class and split: the first folder is the class, and none is a split


@dataclass(frozen=True)
class LaidOut(Source):
    """The images of another source, under the same names."""

    source: Source
    class_level: int  # of the folder that is the class, in a source of TREES
    split_level: int  # of the folder that is the split; 0: as the source has it
    label_names: bool = False  # labels in digits are names and no class numbers

    @property
    def kind(self) -> str:  # type: ignore[override]  # elsewhere a field
        return self.source.kind

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def unlabelled(self) -> str:
        in_folders = self.source.kind in TREES
        return f"lies in no class folder (folder level {self.class_level})" if in_folders else self.source.unlabelled

    def identity(self) -> str:
        return self.source.identity()

    def items(self, ignored: Counter) -> Iterator[Item]:
        in_folders = self.source.kind in TREES
        for item in self.source.items(ignored):
            label = folder_at(item.name, self.class_level) if in_folders else item.label
            yield item._replace(label=label, split=self._split(item) if self.split_level else item.split)

    def _split(self, item: Item) -> str:
        folder = folder_at(item.name, self.split_level)
        split = split_named(folder)
        if folder and not split:
            raise DataError(f"{self.name}: the folder {folder!r} of {item.name!r} is named like no split; mend --split-level")
        return split or item.split

    def reader(self) -> Reader:
        return self.source.reader()

    def class_names(self, labels: Collection[str]) -> list[str]:
        if not self.label_names:
            return self.source.class_names(labels)
        return sorted(labels, key=lambda label: (int(label) if label.isdecimal() and len(label) < 20 else 10**20, label))

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        return numbers[label] if self.label_names else self.source.class_number(label, numbers)
