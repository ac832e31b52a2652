"""Links in archives: an archive holds what its folder would hold if it were unpacked."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mpp.base.errors import DataError
from mpp.data.class_folders import MAX_DEPTH, reason_to_ignore

HARD, SYMBOLIC = "hard", "symbolic"
NOWHERE = -1  # the size of a link that leads to no file of the archive
MAX_LINKS = 40  # that one name may lead through, as on Linux
MAX_LINKED = 10_000_000  # files that an archive's links to folders may give: each may lead to all others


class Member(NamedTuple):
    """One member of an archive: a file, or a link to one."""

    parts: tuple[str, ...]  # of its name, without "." and empty ones
    size: int  # bytes; NOWHERE for a link that leads to no file of the archive
    place: tuple
    link: str = ""  # HARD or SYMBOLIC; empty for a file.  After `with_links`: by which it was reached
    target: str = ""  # of a link, as it is written there

    @property
    def name(self) -> str:
        return "/".join(self.parts)


def name_parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def with_links(members: Callable[[], Iterable[Member]], archive: str, ignored: Counter) -> Iterator[Member]:
    """Every file, in the order of the members, as if the archive had been unpacked and its folder were listed: a link is the file that it
    leads to, a symbolic link to a folder all files below it, under the link's name, never round in a circle.

    A hard link leads to what its target was just before it, or else to the next of that name.  A link with an image's name that leads to
    no file of the archive has the size NOWHERE; another is counted.  Memory: nothing without links; otherwise the links, and the members
    that they lead to.  Raises DataError, naming the archive, for a tree without end.
    """
    links: Links | None = None
    for number, member in enumerate(members()):
        if not member.link:
            yield member
            continue
        links = links or Links(members, archive)
        yield from links.followed(number, member, ignored)


class Links:
    """Where an archive's links lead: found in two more passes over its members."""

    def __init__(self, members: Callable[[], Iterable[Member]], archive: str):
        self._archive, self._given = archive, 0
        self._symbolic: dict[str, str] = {}  # name -> target, of those that no later member replaces
        hard: dict[str, list[int]] = {}  # target's name -> numbers of the links to it
        for number, member in enumerate(members()):
            name = member.name
            if max(len(member.parts), member.target.count("/")) > MAX_DEPTH:
                raise DataError(
                    f"{archive}: holds links, and a name more than {MAX_DEPTH} folders deep; unpack it yourself and give the folder"
                )
            self._symbolic.pop(name, None)
            if member.link == SYMBOLIC:
                self._symbolic[name] = member.target
            elif member.link == HARD:
                hard.setdefault("/".join(name_parts(member.target)), []).append(number)
        roots = {found for name in (*self._symbolic, *hard) if (found := self._real(name)) is not None}
        wanted = {*hard, *roots}
        files: dict[str, Member] = {}  # of the names in `wanted` and of those below them, as they are when so many members were unpacked
        self._hard: dict[int, Member] = {}  # a link's number -> the file
        early: dict[str, list[tuple[int, str]]] = {}  # target -> links to it that came before it, and their names
        for number, member in enumerate(members()):
            file = None if member.link else member
            if member.link == HARD:
                target = "/".join(name_parts(member.target))
                file = files.get(target)
                if file is None:
                    early.setdefault(target, []).append((number, member.name))
            reached = [] if file is None else [(number, member.name)]
            while file and reached:  # it, and the links that waited for it
                at, name = reached.pop()
                if at != number or member.link:
                    self._hard[at] = file
                if name in wanted or any(above in wanted for above in _above(name)):
                    files[name] = file
                reached += early.pop(name, [])
        self._files = {name: file for name, file in files.items() if name not in self._symbolic}
        self._below: dict[str, set[str]] = {}  # folder -> names in it
        for name in (*self._files, *self._symbolic):
            inside = name
            for folder in _above(name):
                self._below.setdefault(folder, set()).add(inside)
                inside = folder

    def followed(self, number: int, member: Member, ignored: Counter) -> Iterator[Member]:
        """The files that one link, the archive's member of this number, gives under its name."""
        found: Member | None = None
        if member.link == HARD:
            found, real = self._hard.get(number), self._real(member.target)  # the latter where the target is a symbolic link
        else:
            real = self._real(member.name) if member.name in self._symbolic else None
            if real is not None and real not in self._files and real in self._below:
                above = frozenset(filter(None, (self._real(folder) for folder in _above(member.name)))) | {""}
                yield from self._descend(real, member.parts, above, ignored)
                return
        found = found or self._files.get(real or "")
        if found is not None:
            yield Member(member.parts, found.size, found.place, member.link)
        elif reason_to_ignore(member.parts):
            ignored["(links that lead nowhere)"] += 1
        else:
            yield Member(member.parts, NOWHERE, (0,), member.link)

    def _descend(self, folder: str, parts: tuple[str, ...], above: frozenset[str], ignored: Counter) -> Iterator[Member]:
        if folder in above:
            ignored["(links in a circle)"] += 1
            return
        self._given += 1
        if len(above) > MAX_DEPTH or self._given > MAX_LINKED:
            raise DataError(f"{self._archive}: its links to folders make a tree without end; unpack it yourself and give the folder")
        for name in sorted(self._below.get(folder, ())):
            here, real = (*parts, name.rpartition("/")[2]), self._real(name)
            if real is not None and real in self._files:
                found = self._files[real]
                self._given += 1
                yield Member(here, found.size, found.place, SYMBOLIC)
            elif real is not None and real in self._below:
                yield from self._descend(real, here, above | {folder}, ignored)
            elif reason_to_ignore(here):
                ignored["(links that lead nowhere)"] += 1
            else:
                yield Member(here, NOWHERE, (0,), SYMBOLIC)

    def _real(self, name: str) -> str | None:
        """The name without symbolic links in it, also none in its folders; None where it leads out of the archive or round in a circle."""
        done: list[str] = []
        todo, links = name.split("/")[::-1], 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    return None
                done.pop()
                continue
            done.append(part)
            target = self._symbolic.get("/".join(done))
            if target is not None:
                links += 1
                if links > MAX_LINKS or target.startswith("/"):
                    return None
                done.pop()
                todo += target.split("/")[::-1]
        return "/".join(done)


def _above(name: str) -> Iterator[str]:
    """ "a/b/c" -> "a/b", "a", and "" for the archive itself."""
    while name:
        name = name.rpartition("/")[0]
        yield name
