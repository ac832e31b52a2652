"""Tars of an object store, each fetched whole into a scratch folder for as long as it is looked at; what is found out is put beside them.

Ranges of them could be read in place, but whoever hashes a tar reads all of it, and what walks local ones need not know of stores then.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

from mpp.base.errors import DataError
from mpp.base.text import counted, sized
from mpp.data.shard_format import MANIFEST
from mpp.disk.files import write_atomically, writing
from mpp.disk.locks import lock_folder
from mpp.prep.destination import PLAN, WORK, StoreDestination
from mpp.prep.workers import Stopped, Tick
from mpp.remote.retries import Refused, shown, unless_absent
from mpp.remote.stores import Info, store_for
from mpp.remote.urls import WEB, download, split_url

TRIES = 3  # of a tar that comes otherwise than the store says it is
WORKERS_LOCK = "lock-workers"  # in the scratch folder: shared by those that fetch


@contextmanager
def fetched(url: str, expected: Info, folder: Path, tick: Tick) -> Iterator[Path]:
    """The object, as it was listed, in `folder` under its own name for as long as it is looked at.  tick: is told of bytes as they come.

    What a killed run had fetched of it is taken over, and an interrupted one leaves it.  Raises DataError where it changes meanwhile or cannot be had.
    """
    path = folder / expected.path.rpartition("/")[2]
    note = path.with_name(f".{path.name}.json")  # of `download`
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WORKERS_LOCK).open("w") as lock:
        lock_folder(lock, f"{url}: another program fetches into {folder}; wait for it or stop it", shared=True)
        for _ in range(TRIES):
            with writing(path):
                download(url, expected, path, lambda what, total: nullcontext(SimpleNamespace(update=tick)))
            if not (wrong := store_for(split_url(url)[0]).differs(expected.path, path)):
                break
            path.unlink()
        else:
            raise DataError(f"{shown(url)}: {wrong}, {TRIES} times; check the network and the store, then run the same command again")
        done = True
        try:
            yield path
        except (KeyboardInterrupt, Stopped):
            done = False
            raise
        finally:
            if done:
                path.unlink(missing_ok=True)
                note.unlink(missing_ok=True)


def sweep(folder: Path, kept: Iterable[str] = ()) -> None:
    """Remove what a killed run has left in the folder, but what it had fetched of these; first its workers, which end by themselves, have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WORKERS_LOCK).open("w") as lock:
        lock_folder(lock, f"{folder}: another program fetches into it; wait for it or stop it")
    names = {WORKERS_LOCK, *(form for name in kept for form in (name, f".{name}.part", f".{name}.json"))}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def refuse_small_scratch(folder: Path, sizes: Iterable[int], workers: int) -> None:
    """Raises DataError where the largest `workers` of the tars, of these sizes in bytes, do not fit there at once."""
    largest = sorted(sizes, reverse=True)[:workers]
    there = sum(path.stat().st_size for path in folder.iterdir())  # of a killed run
    if (free := shutil.disk_usage(folder).free + there) >= sum(largest):
        return
    fit = max((count for count in range(len(largest)) if sum(largest[:count]) <= free), default=0)
    fewer = f", or --workers {fit}" if fit else ""
    raise DataError(
        f"{folder}: has {sized(free)} free, and {counted(len(largest), 'worker')} may take {sized(sum(largest))}, a tar each; "
        f"give --scratch on a larger disk{fewer}"
    )


def store_root(url: str, instead: str) -> tuple[str, str]:
    """(protocol, bucket/prefix).  Raises DataError for a web server, which lists nothing; instead: what to do then."""
    protocol, path = split_url(url)
    if protocol in WEB:
        raise DataError(
            f"{shown(url)}: a web server cannot be asked what it has; give s3://bucket/prefix, gs://bucket/prefix, or {instead}"
        )
    return protocol, path.strip("/")


def is_tar(name: str) -> bool:
    """As WebDataset.tars takes them."""
    return Path(name).suffix.lower() == ".tar" and not name.startswith(".")


class TarsInStore(StoreDestination):
    """A prefix with tars of any origin, to be indexed where they lie.  Small and picklable: worker processes get it.

    Records are noted in the store, for every machine, and in `scratch`, from where the same machine need not fetch them again.
    """

    needs = f"its tars are listed and read; {WORK}/, index.bin and {MANIFEST} are written beside them, and {WORK}/ is removed at the end"

    def __init__(self, url: str, scratch: Path):
        store_root(url, "fetch the tars and give their folder: there an index can be written beside them")
        super().__init__(url, scratch)
        self.folder_of_all = scratch / "tars"

    def _listed(self) -> Iterator[tuple[str, Info]]:
        """What lies at its top level, and our notes: a prefix may hold a million other things below."""
        with self._access():
            for info in self.store.items(self.root, deep=False):
                yield info.path.lstrip("/")[len(self.root) + 1 :], info
            for info in self.store.items(f"{self.root}/{WORK}", deep=False):
                yield info.path.lstrip("/")[len(self.root) + 1 :], info

    def look(self) -> None:
        self._seen = {name: info for name, info in self._listed() if is_tar(name) or name == MANIFEST or name.startswith(f"{WORK}/")}

    @property
    def tars(self) -> dict[str, Info]:
        """By name, in their order, as of the last look."""
        return {name: info for name, info in sorted((self._seen or {}).items()) if is_tar(name)}

    @property
    def notes(self) -> list[str]:
        """Records of tars that are in the store, as of the last look."""
        return [name for name in self._seen or {} if name.startswith(f"{WORK}/") and name.endswith(".done")]

    def refuse_read_only(self) -> None:
        """Raises DataError where nothing can be written, before anything is fetched."""
        name = f"{WORK}/writable"
        self.put(name, b"index_shards.py was here\n")
        self.forget_notes([name])

    def is_part_of_made(self) -> bool:
        """Whether it is a split of an OUT of make_shards.py that is not finished, or was."""
        above, _, _ = self.root.rpartition("/")
        with self._access():
            return bool(above) and unless_absent(lambda: self.store.info(f"{above}/{PLAN}")) is not None

    def forget_notes(self, names: list[str]) -> None:
        with self._access():
            self.store.remove([self._path(name) for name in names])

    @contextmanager
    def fetched(self, name: str, size: int, tag: str, tick: Tick) -> Iterator[Path]:
        """A tar, as it was listed, in `folder_of_all`.  Raises as `fetched`."""
        info = Info(self._path(name), size, tag)
        with fetched(self.where(name), info, self.folder_of_all, tick) as path:
            self._seen = self._seen or {}  # of a worker process
            self._seen[name] = info
            yield path

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        if name.endswith(".done"):
            (self.scratch / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.scratch / name, data)

    def get(self, name: str) -> bytes | None:
        if name.endswith(".done") and (self.scratch / name).exists():
            return (self.scratch / name).read_bytes()
        return super().get(name)

    def clean(self) -> None:
        """Only the notes: the scratch folder is removed by whoever holds it."""
        self.look()
        self.forget_notes(self.notes)


def listing_of(url: str) -> Iterator[tuple[str, Info]]:
    """(name below the URL, info) of every object of a store there.  Raises DataError."""
    protocol, root = store_root(url, "copy the set to a folder and give that")
    try:
        for info in store_for(protocol).items(root):
            yield info.path.lstrip("/")[len(root) + 1 :], info
    except Refused as error:
        raise DataError(f"{shown(url)}: {error}; check the address and your access to it") from error
