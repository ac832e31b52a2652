"""Which folders of a source are classes and which are splits, and what is unusual about its labels: found, told, and refused where in doubt."""

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from mpp.base.errors import DataError, UserError
from mpp.data.class_folders import FolderLevels, Layout, folder_at, listed_names, split_named
from mpp.prep.shuffle import AS_LISTED, Listed
from mpp.prep.source import Around, Item, Source
from mpp.prep.sources.folder import Folder
from mpp.prep.sources.lists import ROWS

TREES = ("folder", "zip", "tar")  # kinds whose labels are folders


@dataclass(frozen=True)
class LaidOut(Around):
    """The images of another source, under the same names."""

    class_level: int  # of the folder that is the class, in a source of TREES
    split_level: int  # of the folder that is the split; 0: as the source has it
    label_names: bool = False  # labels in digits are names and no class numbers

    @property
    def numbered(self) -> bool:
        return self.source.numbered and not self.label_names

    @property
    def digits_are_numbers(self) -> bool:
        return self.source.digits_are_numbers and not self.label_names

    @property
    def unlabelled(self) -> str:
        in_folders = self.source.kind in TREES
        return f"lies in no class folder (folder level {self.class_level})" if in_folders else self.source.unlabelled

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

    def class_names(self, labels: Collection[str]) -> list[str]:
        if not self.label_names:
            return self.source.class_names(labels)
        return sorted(labels, key=lambda label: (int(label) if label.isdecimal() and len(label) < 20 else 10**20, label))

    def class_number(self, label: str, numbers: dict[str, int]) -> int:
        return numbers[label] if self.label_names else self.source.class_number(label, numbers)


@dataclass(frozen=True)
class _Watched(Around):
    """Its names are noted while it is listed."""

    levels: FolderLevels

    def items(self, ignored: Counter) -> Iterator[Item]:
        for item in self.source.items(ignored):
            self.levels.add(item.name)
            yield item


def laid_out(source: Source, levels: Sequence[int], label_names: bool = False) -> Source:
    """The source with the class and the split at these folder levels."""
    return source if tuple(levels) == AS_LISTED and not label_names else LaidOut(source, levels[0], levels[1], label_names)


def as_laid_out(source: Source, args: argparse.Namespace, listing: Callable[[Source], Listed]) -> tuple[Source, Listed]:
    """The source as its folders are laid out, or as --class-level and --split-level say, and its listing, which knows that layout.

    listing: lists a source and puts it in order; called again where folders turn out to be splits.  Raises DataError where it cannot be told
    which folders are classes and which are splits, and labels depend on it.
    """
    in_folders = source.kind in TREES
    if args.class_level and not in_folders:
        raise UserError(
            f"--class-level {args.class_level}: is for folders, zips and tars, and the labels of {args.source} are no folders; leave it out"
        )
    if args.label_names and not (source.numbered or source.digits_are_numbers):
        raise UserError(f"--label-names: {args.source} has names for its classes; leave it out")
    levels = FolderLevels()
    listed = listing(_Watched(source, levels))
    if not (in_folders or source.kind in (*ROWS, "webdataset")) or set(listed.counts) != {"train"}:
        if args.split_level:
            raise UserError(f"--split-level {args.split_level}: {args.source} has its own splits; leave it out")
        return laid_out(source, AS_LISTED, args.label_names), listed
    layout = levels.layout(args.labels and in_folders, args.class_level, args.split_level)
    if layout.doubt and ((args.labels and in_folders) or args.split_level):
        raise DataError(f"{args.source}: {layout.doubt}; {_choices(layout, args, source.kind)}")
    remarks = [layout.remark, layout.doubt and f"{layout.doubt}, so all are taken for one split; {_choices(layout, args, source.kind)}"]
    split_level = layout.split_level
    if split_level and source.kind in ROWS and args.split_level is None:
        remarks.append(f"the list names images of {_folders(layout)}, and all go to OUT/train; --split-level {split_level} divides them")
        split_level = 0
    elif split_level and args.split_level is None:
        classes = f" and the folders at level {layout.class_level} for classes" if args.labels and in_folders else ""
        pooled = f" --class-level {layout.class_level}" if classes and layout.class_level > 1 else ""
        remarks.append(f"{_folders(layout)} are taken for splits{classes}; --split-level 0{pooled} takes them for one")
    if in_folders and args.labels and not split_level and len(listed.labels) == 1 and layout.class_level == 1 and levels.names_at(2):
        remarks.append(
            f"below the first folder level lie {listed_names(levels.names_at(2))}; if these are the classes, give --class-level 2"
        )
    source = laid_out(source, (layout.class_level if in_folders and args.labels else 1, split_level), args.label_names)
    if isinstance(source, LaidOut) and (source.class_level, source.split_level) != AS_LISTED:
        listed = listing(source)
        listed.levels = [source.class_level, source.split_level]
    listed.remarks = [f"{args.source}: {remark}" for remark in remarks if remark]
    return source, listed


def _folders(layout: Layout) -> str:
    return f"the folders {', '.join(repr(layout.wrapped_in + name) for name in layout.splits)}"


def _choices(layout: Layout, args: argparse.Namespace, kind: str) -> str:
    """What to give instead, as commands."""
    if layout.doubt_of == "told":
        return "mend --split-level"
    words = []
    if kind == "folder" and layout.doubt_of != "inside":
        below = f"{str(args.source).rstrip('/')}/{layout.wrapped_in}"
        each = [f"make_shards.py {below}{name} OUT-{name}" for name in layout.splits[:2]]
        labels = " --labels" if args.labels and layout.doubt_of != "flat" else ""
        words.append(f"make each split by itself ({', '.join(command + labels for command in each)})")
    if args.labels and layout.doubt_of == "flat":
        words.append("leave out --labels")
    if layout.doubt_of == "inside":
        words.append("give --split-level 0, which takes them for no splits")
    elif args.labels:
        words.append(f"give --class-level {layout.level}, which takes them for classes")
    return ", or ".join(words) if words else "give an archive of each split"


def remarks_on_labels(source: Source, classes: Sequence[str], labels: Collection[str]) -> list[str]:
    """What is unusual about the classes that the labels make; empty without labels."""
    remarks = []
    if len(labels) == 1 and classes:
        remarks.append(f"--labels finds a single class, {min(labels)!r} (in a tree the first folder level is the class)")
    numbers = {name: number for number, name in enumerate(classes)}
    used = {source.class_number(label, numbers) for label in labels} if classes else set()
    empty = [name for number, name in enumerate(classes) if number not in used]
    if empty:
        names = listed_names(empty)
        said = f"{len(empty):,} of {len(classes):,} classes have no images: {names}"
        if source.numbered or source.digits_are_numbers:
            said += "; if the labels begin at 1, that is why" if empty[0] == "0" else ""
            said += "; --label-names makes classes of the labels that occur"
        remarks.append(f"{said}; probes leave them out")
    digits = [label for label in labels if label.isdecimal()]
    if classes and source.digits_are_numbers and 0 < len(digits) < len(labels):
        other = min(set(labels) - set(digits))
        remarks.append(
            f"labels such as {min(digits)!r} are numbers, but {other!r} is none, so all are names and numbered in the order of text"
        )
    return remarks


def other_format(source: Source, ignored: Counter) -> str:
    """Advice where a folder of images holds files that may have been meant instead; empty where it does not."""
    while isinstance(source, Around):
        source = source.source
    if not isinstance(source, Folder):
        return ""
    there = {entry.suffix.lower() for entry in source.path.iterdir()}
    if ignored[".tar"] and ".tar" not in there:
        tars = sorted(
            {path.parent.relative_to(source.path) for path in source.path.glob("*/*.tar")}
            | {path.parent.relative_to(source.path) for path in source.path.glob("*/*/*.tar")}
        )
        return f"its .tar files lie in {', '.join(map(repr, map(str, tars[:4])))}; give one of these folders" if tars else ""
    meant = [(suffix, kind) for suffix, kind in ((".tar", "webdataset"), (".parquet", "parquet")) if ignored[suffix] and suffix in there]
    if not meant:
        return ""
    return f"for its {ignored[meant[0][0]]} {meant[0][0]} files say --format {meant[0][1]}"
