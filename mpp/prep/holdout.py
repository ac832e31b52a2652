"""Which images --val keeps apart: so many of each class as the whole has, and the images of one thing (--group) never in both splits.

By class alone the counts are those of the largest remainder, so no class is off by an image; a class keeps one image for train at least.
With things to keep together, things are put into val and taken out again one by one, in an order that the seed gives, as long as that brings
the classes' counts nearer to those; what came out is said.  The result depends on the names, labels and groups of the images and on the seed.
(scikit-learn's splitters hold every label in memory, and where they keep groups together they do not keep counts.)
Memory: a number for each class; with --group some 300 bytes for each thing.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpp.base.errors import UserError
from mpp.base.text import counted
from mpp.prep.shuffle import order_lines, rewrite_order
from mpp.prep.source import Item

SWEEPS = 20  # over all things, at most
PATTERN = "re:"  # --group re:REGEX
SCAN = "scan"  # the field of tiles that says which things they show


class Grouping(NamedTuple):
    """What --group names."""

    text: str  # as it was given
    level: int = 0  # of the folders in an image's name, from 1
    pattern: str = ""  # its first group in an image's name, or else all that it matches
    field: str = ""  # which the source reads

    @classmethod
    def parse(cls, text: str) -> "Grouping":
        """Raises ValueError, with the reason."""
        if text.isdecimal():
            if not int(text):
                raise ValueError("folder levels count from 1, the topmost")
            return cls(text, level=int(text))
        if text.startswith(PATTERN):
            try:
                re.compile(text.removeprefix(PATTERN))
            except re.error as error:
                raise ValueError(f"is no regular expression ({error})") from error
            return cls(text, pattern=text.removeprefix(PATTERN))
        if not text:
            raise ValueError("is empty")
        return cls(text, field=text)

    def of(self, item: Item) -> str:
        """Which thing an image shows; empty where that is not told."""
        if self.field:
            return item.group
        if self.level:
            folders = [part for part in item.name.split("/")[:-1] if part not in ("", ".")]
            return folders[self.level - 1] if len(folders) >= self.level else ""
        found = re.search(self.pattern, item.name)
        return (found[1] if found.re.groups else found[0]) or "" if found else ""

    def thing(self, item: Item) -> str:
        """`of` it.  Raises UserError where that is not told."""
        if found := self.of(item):
            return found
        raise UserError(f"--group {self.text}: {item.name} has none, so it may be of any; mend that, or leave out --group")

    def of_tiles(self) -> "Grouping":
        """The same of tiles, whose group is what their scan shows (tiles.py)."""
        return Grouping(self.text, field=SCAN)


def asked(val: float | int, count: int) -> int:
    """Images for val.  Raises UserError where one of the splits would be empty."""
    kept_apart = val if isinstance(val, int) else round(val * count)
    if not 0 < kept_apart < count:
        remedy = f"give a number from 1 to {count - 1}" if count > 1 else "give more images, or leave out --val"
        raise UserError(f"--val {val} of {counted(count, 'image')} is {kept_apart}, and val and train need one at least; {remedy}")
    return kept_apart


def divide(
    folder: Path,
    split: str,
    val: float | int,
    seed: int,
    class_of: Callable[[Item], int] | None,
    grouping: Grouping | None,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Write a split's order anew: first what stays in train, then val, each as it was shuffled.  Returns what came out, for `describe`.

    class_of: the number of an image's class, in `classes`; None without labels.  Raises UserError where it cannot be done.
    """
    secret = seed.to_bytes(8, "little")
    counts: Counter[int] = Counter()
    groups: dict[bytes, Counter[int]] = {}

    def digest(text: str) -> bytes:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=secret, digest_size=16).digest()

    def items() -> Iterator[tuple[bytes, int, bytes]]:
        """(line, class, thing)"""
        for line in order_lines(folder, split):
            item = Item(*json.loads(line))
            thing = b""
            if grouping:
                thing = digest(grouping.thing(item))
            yield line, class_of(item) if class_of else 0, thing

    for _, number, thing in items():
        counts[number] += 1
        if grouping:
            groups.setdefault(thing, Counter())[number] += 1
    wanted = asked(val, counts.total())
    apart: set[bytes] = set()
    stay: dict[int, int] = {}  # by class, images before those of val
    if grouping:
        apart = choose(groups, counts, wanted, grouping)
    else:
        chosen = quotas(counts, wanted, lambda number: digest(str(number)))
        stay = {number: count - chosen[number] for number, count in counts.items()}
    kept: Counter[int] = Counter()

    def lines(of_val: bool) -> Iterator[bytes]:
        seen: Counter[int] = Counter()
        for line, number, thing in items():
            seen[number] += 1
            if (thing in apart if grouping else seen[number] > stay[number]) == of_val:
                kept[number] += of_val
                yield line

    rewrite_order(folder, split, (line for of_val in (False, True) for line in lines(of_val)))
    report: dict[str, Any] = {"asked": wanted, "images": kept.total(), "of": counts.total()}
    if grouping:
        report |= {"group": grouping.text or SCAN, "things": len(apart), "of_things": len(groups)}
    if class_of:
        report |= _spread(counts, kept, classes)
    return report


def quotas(counts: Counter[int], wanted: int, tie: Callable[[int], bytes]) -> Counter[int]:
    """How many images of each class make `wanted` by the largest remainder, where each class keeps one.  tie: orders equal remainders."""
    total, most = counts.total(), sum(count - 1 for count in counts.values())
    if wanted > most:
        raise UserError(
            f"--val {wanted} of {total} images of {len(counts)} classes leaves some class without an image for train; at most {most} can be kept apart"
        )
    chosen = Counter({number: wanted * count // total for number, count in counts.items()})
    while left := wanted - chosen.total():
        free = [number for number, count in counts.items() if chosen[number] < count - 1]
        free.sort(key=lambda number: (chosen[number] * total - wanted * counts[number], tie(number)))
        for number in free[:left]:
            chosen[number] += 1
    return chosen


def choose(groups: dict[bytes, Counter[int]], counts: Counter[int], wanted: int, grouping: Grouping) -> set[bytes]:
    """The things to keep apart: each class's count in val as near to its share of `wanted` as single steps bring it."""
    total = counts.total()
    goal = {number: wanted * count for number, count in counts.items()}  # in units of 1 / total
    held: Counter[int] = Counter()
    apart: set[bytes] = set()
    order = sorted(groups)  # by their digests under the seed

    def change(thing: bytes, sign: int) -> int:
        """Of the summed distance to the goal."""
        return sum(
            abs((held[number] + sign * count) * total - goal[number]) - abs(held[number] * total - goal[number])
            for number, count in groups[thing].items()
        )

    def fits(thing: bytes) -> bool:
        return all(held[number] + count < counts[number] for number, count in groups[thing].items())

    for _ in range(SWEEPS):
        before = set(apart)
        for thing in order:
            sign = -1 if thing in apart else 1
            if change(thing, sign) < 0 and (sign < 0 or fits(thing)):
                apart ^= {thing}
                for number, count in groups[thing].items():
                    held[number] += sign * count
        if apart == before:
            break
    if not apart:  # each is larger than twice of what is wanted: the one that is nearest
        alone = [(change(thing, 1), thing) for thing in order if fits(thing)]
        if not alone:
            found = f"finds {len(groups)} in {total} images, and each holds all images of a class, so none can be kept apart"
            if not grouping.text:
                raise UserError(f"--tile keeps a scan whole, and --val {found}; give more scans, or leave out --val")
            raise UserError(f"--group {grouping.text}: {found}; group by something else")
        apart.add(min(alone)[1])
    return apart


def _spread(counts: Counter[int], kept: Counter[int], classes: Sequence[str]) -> dict[str, Any]:
    """How far the classes' shares of val are from those of the whole."""
    total, of_val = counts.total(), kept.total()
    number = max(sorted(counts), key=lambda number: abs(kept[number] * total - counts[number] * of_val))
    shares = {"class": classes[number], "share_of_val": kept[number] / of_val, "share_of_all": counts[number] / total}
    return {"classes": len(counts), "classes_in_val": sum(count > 0 for count in kept.values()), "largest_difference": shares}


def describe(report: dict[str, Any]) -> str:
    """ "1,000 of 10,000 images, by class: ..." """
    said = f"{report['images']:,} of {report['of']:,} images"
    if report["images"] != report["asked"]:
        said += f" ({report['asked']:,} were asked for)"
    if "group" in report:
        things = "scans" if report["group"] == SCAN else f"things (--group {report['group']})"
        said += f", {report['things']:,} of {report['of_things']:,} {things}"
    if shares := report.get("largest_difference"):
        said += (
            f"; {report['classes_in_val']:,} of {report['classes']:,} classes, whose shares differ most for {shares['class']!r}: "
            f"{shares['share_of_val']:.2%} of val, {shares['share_of_all']:.2%} of all"
        )
    return said
