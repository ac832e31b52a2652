"""Where a split lies that is verified: in a folder, or in an object store.

Of one in a store the manifest and the index are fetched first, sizes are those of a listing, chosen images come one by one, and whole shards
through the scratch folder.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from mpp.base.errors import DataError, UserError
from mpp.base.progress import Progress
from mpp.data.shard_format import (
    Manifest,
)
from mpp.disk.files import writing
from mpp.disk.locks import hold_folder
from mpp.prep.destination import LOCK, remove_scratch, scratch_of
from mpp.prep.fetching import fetched, is_tar, refuse_small_scratch, store_root, sweep
from mpp.prep.splits import splits_in_store, splits_of
from mpp.prep.workers import Tick
from mpp.remote.retries import Refused
from mpp.remote.stores import Info, store_for
from mpp.remote.urls import Url, download


class Place:
    """A split in a folder, where its files are read."""

    def __init__(self, folder: Path):
        self.shown: Path | Url = folder
        self.folder = folder  # of the manifest, the index, and shards that are read whole
        self.elsewhere: Url | None = None

    def sizes(self, manifest: Manifest) -> dict[str, int] | None:
        """Bytes of shards that are not in `folder`, where they are not as many as the manifest says; -1: is not there."""
        return None

    def tars(self) -> list[tuple[str, int]]:
        """(name, bytes) of all that readers of *.tar would take for shards, hidden ones, too."""
        return [(path.name, path.stat().st_size) for path in sorted(self.folder.iterdir()) if path.suffix.lower() == ".tar"]

    def whole(self, name: str, tick: Tick) -> AbstractContextManager[Tick]:
        """A shard lies in `folder` meanwhile, if it is there at all.  Gives what is to be told of bytes that are read of it."""
        return nullcontext(tick)

    @contextmanager
    def reader(self, name: str) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
        """(bytes, read(size, offset)) of a shard.  Raises FileNotFoundError."""
        with (self.folder / name).open("rb") as file:
            yield os.fstat(file.fileno()).st_size, partial(os.pread, file.fileno())


class StorePlace(Place):
    """A split in a store.  Small enough to be sent to the worker processes: a line a shard."""

    def __init__(self, url: Url, objects: dict[str, Info], scratch: Path):
        """objects: of the split, by name."""
        self.shown = self.elsewhere = url
        self.folder, self.objects = scratch, objects
        self.protocol, _ = store_root(url, "")

    def fetch(self, name: str, quiet: bool) -> None:
        """A file that is small, or the index, to `folder`, if it is there at all."""
        if info := self.objects.get(name):
            bar = lambda what, total: Progress(what, total, "MB", scale=1e-6, quiet=quiet)
            with writing(self.folder / name):
                download(f"{self.shown}/{name}", info, self.folder / name, bar)

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        size_of = lambda name: self.objects[name].size if name in self.objects else -1
        return {entry.name: size for entry in manifest.shards if (size := size_of(entry.name)) != entry.bytes}

    def tars(self) -> list[tuple[str, int]]:
        return [(name, info.size) for name, info in sorted(self.objects.items()) if name.lower().endswith(".tar")]

    @contextmanager
    def whole(self, name: str, tick: Tick) -> Iterator[Tick]:
        if name not in self.objects:
            yield tick
            return
        with fetched(f"{self.shown}/{name}", self.objects[name], self.folder, tick):
            yield lambda count: tick(0)  # they were counted as they came

    @contextmanager
    def reader(self, name: str) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
        if (info := self.objects.get(name)) is None:
            raise FileNotFoundError(name)

        def read(size: int, offset: int) -> bytes:
            end = min(offset + size, info.size)
            try:
                return store_for(self.protocol).read(info.path, offset, end) if offset < end else b""
            except Refused as error:
                raise DataError(f"{self.shown}/{name}: {error}; check your access to it, then run the same command again") from error

        yield info.size, read


def places_of(where: Path | Url, args: argparse.Namespace) -> Iterator[Place]:
    """The splits at a path or URL, one after the other: what was fetched of one is gone before the next.  Raises DataError where there is none."""
    if not isinstance(where, Url):
        if args.scratch:
            raise UserError(f"--scratch {args.scratch}: is for shards of a URL; those of {where} are read where they lie")
        yield from (Place(folder) for folder in splits_of(where))
        return
    for url, objects in splits_in_store(where).items():
        scratch = scratch_of("verify", url, args.scratch, {})
        with hold_folder(scratch / LOCK, f"{url}: another verify_shards.py is at work on it; wait for it or stop it"):
            try:
                files = scratch / "files"
                sweep(files)
                refuse_small_scratch(
                    files, [info.size for name, info in objects.items() if is_tar(name)] if args.full else [], args.workers
                )
                yield StorePlace(url, objects, files)
            finally:
                remove_scratch(scratch)
