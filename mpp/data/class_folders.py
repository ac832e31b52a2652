"""Which files may be images, which folders are classes or splits, and how classes are numbered: one rule for every source and program.

* An image is what one of decode.FORMATS or CONVERTED is by its content.  Only files with one of IMAGE_SUFFIXES are looked at.
* Hidden folders, and those that systems leave behind (SYSTEM_FOLDERS), are no classes; neither is a folder without images.
* The class of an image is one of the folders above it, the first unless the layout says otherwise; how deep it lies below does not matter.
* Folders named train, val, test and the like are splits and no classes (`FolderLevels.layout`).
* Classes are numbered in the order of their sorted names, as torchvision's ImageFolder does; labels of digits in a table are the numbers.

Levels: folders above an image are counted from 1, the outermost.
"""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from mpp.base.errors import DataError

# JPEG, PNG and WebP are kept as they are; CONVERTED (Pillow's names) become PNG without loss, of the first frame.
CONVERTED = ("GIF", "BMP", "TIFF", "PPM")
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
SPLITS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "holdout": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}  # word of a name -> the split it means
FILLERS = {"", "set", "data", "dataset", "split", "folder", "image", "images", "img", "imgs", "photos", "pictures", "samples"}
MAX_CLASSES = 1_000_000
SPARSE_CLASSES, SPARSE_TIMES = 1000, 10  # more class numbers than both this, and this many times those that occur, are no class numbers
MAX_DEPTH = 200  # folders in folders; each is held open while those below it are listed
LEVELS = 32  # of folders that are looked at for splits
NAMED = 3  # folders or classes that a message names


# ---------------------------------------------------------------- files


class Found(NamedTuple):
    """A file that may be an image."""

    name: str  # below the root, "/" between the parts
    size: int  # bytes; -1 for a link that leads nowhere
    changed_ns: int


def is_hidden(folder: str) -> bool:
    """Whether a folder of this name is none of the user's own."""
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def reason_to_ignore(parts: Iterable[str]) -> str:
    """Of a file's name: empty for one that may be an image, otherwise why it is none."""
    *folders, last = parts
    if ".." in folders or last == "..":
        return "(names with ..)"
    if last.startswith(".") or any(map(is_hidden, folders)):
        return "(hidden)"
    suffix = os.path.splitext(last)[1].lower()  # noqa: PTH122 (names of archives are no paths of this machine)
    if suffix in IMAGE_SUFFIXES:
        return ""
    common = len(suffix) <= 10 and not suffix[1:].isdigit()  # numbered files would each have a suffix of their own
    return (suffix or "(no suffix)") if common else "(other suffixes)"


def walk(root: Path, ignored: Counter, leave_out: Path | None = None) -> Iterator[Found]:
    """Every file below a folder that may be an image, in any order; links are followed, never round in a circle.

    leave_out: a folder not to descend into.  What is left out is counted by suffix or reason.  Raises DataError for a tree without end.
    """
    top = root.stat()
    yield from _descend(root, str(root), "", frozenset({(top.st_dev, top.st_ino)}), ignored, leave_out)


def _descend(root: Path, folder: str, prefix: str, above: frozenset, ignored: Counter, leave_out: Path | None) -> Iterator[Found]:
    if len(above) > MAX_DEPTH:
        raise DataError(f"{root}: is more than {MAX_DEPTH} folders deep; give a folder further down")
    empty = True
    with os.scandir(folder) as entries:  # a stream: one folder may hold millions
        for entry in entries:
            name = prefix + entry.name
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                status = None  # a link that leads nowhere, through a file, or to itself
            if status and stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if is_hidden(entry.name):
                    ignored["(hidden folders)"] += 1
                elif identity in above:
                    ignored["(links in a circle)"] += 1
                elif Path(entry.path).resolve() == leave_out:
                    empty = False
                else:
                    for found in _descend(root, entry.path, name + "/", above | {identity}, ignored, leave_out):
                        empty = False
                        yield found
            elif reason := reason_to_ignore([entry.name]):
                ignored[reason] += 1
            elif status and not stat.S_ISREG(status.st_mode):
                ignored["(devices and pipes)"] += 1
            else:
                empty = False
                yield Found(name, status.st_size, status.st_mtime_ns) if status else Found(name, -1, 0)
    if empty and prefix:
        ignored["(folders without images)"] += 1


def describe(ignored: Counter) -> str:
    """ ".txt 12, (hidden) 3": the most frequent first."""
    kinds = [f"{kind} {count}" for kind, count in sorted(ignored.items(), key=lambda pair: (-pair[1], pair[0]))]
    return ", ".join(kinds[:8]) + (f", {len(kinds) - 8} more kinds" if len(kinds) > 8 else "")


# ---------------------------------------------------------------- folders


def folder_at(name: str, level: int) -> str:
    """The folder of a file at a level; empty where it lies in none."""
    folders = name.split("/")[:-1]
    return folders[level - 1] if 0 < level <= len(folders) else ""


def split_named(folder: str) -> str:
    """train, val or test where a folder's name, or a tar's, says no more than that it is this split; empty for any other name.

    In any case, with numbers and FILLERS: Train, val2017, test_images, trainset.  Of a tar's name one word suffices: imagenet-train-000.tar.
    """
    stem = folder.lower().removesuffix(".tar")
    words = [word for word in re.split(r"[^a-z]+", stem) if word not in FILLERS]
    if stem != folder.lower():
        said = {SPLITS[word] for word in words if word in SPLITS}
        return said.pop() if len(said) == 1 else ""
    if len(words) != 1:
        return ""
    return SPLITS.get(words[0]) or SPLITS.get(re.sub("(set|data|images?|imgs?)$", "", words[0]), "")


@dataclass
class _Level:
    splits: dict[str, list[str]] = field(default_factory=dict)  # train, val, test -> names of folders, the first NAMED
    others: list[str] = field(default_factory=list)  # names of the first folders that are no splits
    deep: str = ""  # a folder named like a split with folders of images in it


@dataclass(frozen=True)
class Layout:
    """What the folders above the images mean."""

    class_level: int  # of the folder that is the class
    split_level: int = 0  # of the folder that is the split; 0 for none
    splits: tuple[str, ...] = ()  # the folders that are splits, some of each
    wrapped_in: str = ""  # the lone folders above the splits or classes, with a "/" behind each
    doubt: str = ""  # why it cannot be told which folders are classes and which are splits
    doubt_of: Literal["", "some", "flat", "inside", "told"] = (
        ""  # some are splits; without classes in them; within classes; what the user said
    )
    level: int = 0  # of the folders in doubt
    remark: str = ""  # what is unusual


class FolderLevels:
    """What the folders above the images are called, level by level; gathered from a stream of names in bounded memory."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []
        self._ends: dict[int, str] = {}  # number of folders above an image -> such an image
        self._last: str | None = None

    def add(self, name: str) -> None:
        """name: of an image, "/" between the parts."""
        folder = name.rpartition("/")[0]
        if folder == self._last:
            return
        self._last = folder
        parts = folder.split("/")[:LEVELS] if folder else []
        self._ends.setdefault(len(parts), name)
        for at, part in enumerate(parts):
            if at == len(self._levels):
                self._levels.append(_Level())
            level = self._levels[at]
            if split := split_named(part):
                names = level.splits.setdefault(split, [])
                if at + 1 < len(parts):
                    level.deep = level.deep or part
            else:
                names = level.others
            if part not in names and len(names) < NAMED:
                names.append(part)

    def names_at(self, level: int) -> list[str]:
        """Some of the folders of a level, sorted."""
        found = self._at(level)
        return sorted([*found.others, *(name for names in found.splits.values() for name in names)])

    def layout(self, labels: bool, class_level: int | None = None, split_level: int | None = None) -> Layout:
        """Which level holds classes and which splits.  labels: whether the folders give the images their classes.

        class_level, split_level (0 for none): what the user says, which is taken at its word.  Otherwise

        * lone folders that wrap all others do not matter, but for one named like a split: the classes are the folders in it;
        * a level of folders that are all named like splits, of two kinds or more, divides the images; classes lie below it;
        * so does the level below the classes (CLASS/train/1.jpg, CLASS/val/2.jpg);
        * anything between that and none of it is in doubt, as are splits without classes in them where there must be labels.
        """
        wraps: list[str] = []
        while len(wraps) not in self._ends and len(names := self.names_at(len(wraps) + 1)) == 1 and self.names_at(len(wraps) + 2):
            wraps.append(names[0])
        outer, inner = len(wraps) + 1, len(wraps) + 2
        top, below = self._at(outer), self._at(inner)
        if split_level is not None:
            return self._as_told(class_level or (split_level + 1 if split_level else 1), split_level)
        last_named = max((at for at, name in enumerate(wraps, start=1) if split_named(name)), default=0)
        layout = Layout(class_level or last_named + 1, splits=_some(top), wrapped_in="".join(f"{name}/" for name in wraps), level=outer)
        if class_level != outer and top.splits and (len(top.splits) > 1 or top.deep or (labels and not top.others)):
            if top.others:
                return replace(layout, doubt=_mixed(top), doubt_of="some")
            if labels and not top.deep:
                return replace(layout, doubt=f"{_are(_some(top))} named like a split, and no folders of classes lie in it", doubt_of="flat")
            return replace(layout, class_level=class_level or outer + 1, split_level=outer if len(top.splits) > 1 else 0)
        if class_level != inner and len(below.splits) > 1:
            layout = replace(layout, splits=_some(below), level=inner)
            if below.others:
                return replace(layout, doubt=f"in its folders {_mixed(below)}", doubt_of="inside")
            if outer in self._ends:
                said = (
                    f"in its folders {_are(_some(below))} named like a split, but images such as {self._ends[outer]!r} lie in none of them"
                )
                return replace(layout, doubt=said, doubt_of="inside")
            return replace(layout, class_level=class_level or outer, split_level=inner)
        if not (top.splits and top.others):
            return layout
        taken = "for a class" if labels else "in"
        said = f"{_are(_some(top))} named like a split, but taken {taken} as the folders beside it, such as {_quoted(top.others[:1])}"
        return replace(layout, remark=said)

    def _as_told(self, class_level: int, split_level: int) -> Layout:
        level = self._at(split_level)
        doubt = ""
        if split_level and level.others:
            doubt = f"{_quoted(level.others)} at folder level {split_level} is named like no split ({', '.join(SPLITS)})"
        elif split_level and not level.splits:
            doubt = f"no folder lies at level {split_level}"
        return Layout(class_level, split_level, _some(level), doubt=doubt, doubt_of="told" if doubt else "")

    def _at(self, level: int) -> _Level:
        return self._levels[level - 1] if 0 < level <= len(self._levels) else _Level()


def _some(level: _Level) -> tuple[str, ...]:
    return tuple(sorted(name for names in level.splits.values() for name in names))


def _mixed(level: _Level) -> str:
    return f"{_are(_some(level))} named like a split, but {_quoted(level.others)} beside it is not"


def _are(names: Sequence[str]) -> str:
    """ "'train' is", "each of 'train', 'val' is" """
    return f"{'each of ' if len(names) > 1 else ''}{_quoted(names)} is"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


# ---------------------------------------------------------------- classes


def class_names(labels: Collection[str], source: str, *, numbers: bool) -> list[str]:
    """Class names in the order of their numbers, given every label that occurs.

    numbers: the labels are class numbers, and the names "0", "1", ... go up to the largest, so that a class may be empty.  Raises DataError, naming
    the source, for a label that is no class number, and for numbers of which hardly any occur: every head would be trained for all of them.
    """
    if not numbers:
        return sorted(labels)
    wrong = next((label for label in sorted(labels) if not (label.isdecimal() and len(label) < 20 and int(label) < MAX_CLASSES)), None)
    if wrong is not None:
        raise DataError(f"{source}: {wrong!r} is not a class number from 0 to {MAX_CLASSES - 1}; leave out --labels")
    present = set(map(int, labels))
    if reason := too_sparse(len(present), max(present)):
        raise DataError(f"{source}: {reason}; number the classes from 0, or give --label-names if these are names")
    return [str(number) for number in range(max(present) + 1)]


def too_sparse(present: int, largest: int) -> str:
    """Why class numbers up to `largest`, of which `present` occur, can be none; empty where they can."""
    classes = largest + 1
    if classes <= max(SPARSE_CLASSES, SPARSE_TIMES * present):
        return ""
    return f"its class numbers go up to {largest}, but only {present:,} of them occur, and {classes - present:,} classes would be empty"


def listed_names(names: Collection[str]) -> str:
    """ "'0', '7', '9' and 3 more": for messages."""
    some = list(names)[:NAMED]
    return _quoted(some) + (f" and {len(names) - len(some):,} more" if len(names) > len(some) else "")
