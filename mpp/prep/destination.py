"""OUT: where shards go, and where it is noted which of them are finished.  On a file system, or in an object store.

An object store has no locks: the same part must not run twice at a time.  Should it, the result is still right: an object appears
whole or not at all, and both runs put the same bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpp.base.errors import DataError
from mpp.data.shard_format import MANIFEST, REMAKE, Manifest, manifest_in, read_manifest
from mpp.data.shards import ShardSet
from mpp.disk.files import TEMPORARY, write_atomically, write_stream
from mpp.remote.retries import Refused, unless_absent
from mpp.remote.stores import Info, store_for
from mpp.remote.urls import WEB, split_url

WORK = ".work"
PLAN = f"{WORK}/plan.json"
LOCK = "lock"  # of whoever works alone here, in the scratch folder


def destination(out: Path | str, scratch: Path | None, plan: dict) -> "Destination":
    """OUT at a path or URL.  plan: what is to be made there; a local folder of half-done work serves no other plan.

    scratch: where that folder is made; None: in the user's cache.
    """
    if isinstance(out, Path):
        return Destination(out)
    return StoreDestination(out, scratch_of("shards", out, scratch, plan))


def scratch_of(what: str, url: str, scratch: Path | None, plan: dict) -> Path:
    """The folder on this machine that belongs to such work on a URL; `scratch` and `plan` as in `destination`."""
    base = scratch or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpp"
    key = hashlib.sha256(json.dumps([url.rstrip("/"), plan]).encode()).hexdigest()[:16]
    return base.resolve() / f"{what}-{key}"


class Destination:
    """OUT on a file system.  Small and picklable: worker processes get it."""

    def __init__(self, out: Path):
        self.shown: Path | str = out
        self.folder_of_all = out.resolve()
        self.scratch = self.folder_of_all / WORK  # a local folder for what only an unfinished run needs

    @property
    def name(self) -> str:
        """Of OUT itself."""
        return self.folder_of_all.name

    def where(self, *names: str) -> str:
        """A place below OUT, for messages."""
        return str(Path(self.shown, *names))

    def begun(self) -> bool:
        """Whether OUT was begun before.  Raises DataError where it is something else than a new or begun OUT."""
        if not self.folder_of_all.is_dir() and self.folder_of_all.exists():
            raise DataError(f"{self.shown}: is a file; choose another OUT")
        begun = self.get(PLAN) is not None
        if not begun and self._holds_other_things():
            raise DataError(f"{self.shown}: is not empty and was not begun by make_shards.py; choose another OUT")
        return begun

    def _holds_other_things(self) -> bool:
        return self.folder_of_all.is_dir() and any(path.name != WORK for path in self.folder_of_all.iterdir())

    def sweep(self) -> None:
        """Remove what killed runs left unfinished; only while no other run is at work."""
        for folder in (self.folder_of_all, *self.folder_of_all.glob("*/")):
            for leftover in folder.glob(TEMPORARY):
                leftover.unlink()

    def abandon(self) -> None:
        """Leave nothing behind of a new OUT that came to nothing."""
        remove_scratch(self.scratch)
        with suppress(OSError):  # not empty: another run has begun it anew; of an OUT in a store it is gone already
            self.folder_of_all.rmdir()

    def forget(self) -> None:
        """No plan is there yet: forget the listing of a run that came to nothing, or of an earlier OUT of this name."""
        (self.scratch / "listing.json").unlink(missing_ok=True)

    def look(self) -> None:
        """Find out anew what is published; `state` and `get` may go by it until the next look.  A file system knows."""

    def folder(self, split: str) -> Path:
        """The local folder in which a split's files are made."""
        return self.folder_of_all / split

    def publish(self, split: str, name: str) -> None:
        """A file was made in `folder(split)`: put it where it belongs, whole or not at all.  On a file system it is there."""

    def state(self, split: str, shard: str) -> list | None:
        """What tells a published shard from a changed one without reading it; None where there is none."""
        try:
            status = (self.folder_of_all / split / shard).stat()
        except FileNotFoundError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def discard(self, split: str, shard: str) -> None:
        """Remove a shard, if it is there."""
        (self.folder_of_all / split / shard).unlink(missing_ok=True)

    def read(self, split: str, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a published shard."""
        with (self.folder_of_all / split / shard).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def get(self, name: str) -> bytes | None:
        """A small file below OUT; None where there is none."""
        try:
            return (self.folder_of_all / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write a small file below OUT, whole or not at all."""
        self.put_stream(name, [data])

    def put_stream(self, name: str, chunks: Iterable[bytes]) -> None:
        """As `put`, for what need not fit into memory."""
        path = self.folder_of_all / name
        path.parent.mkdir(exist_ok=True)
        write_stream(path, chunks)

    def manifest(self, split: str) -> Manifest:
        """Of a finished split.  Raises DataError."""
        return read_manifest(self.folder_of_all / split)[0]

    def check(self, split: str) -> None:
        """Raises DataError where a finished split is not whole, as far as can be told without reading its shards."""
        try:
            ShardSet.open(self.folder_of_all / split)
        except DataError as error:
            said = str(error).removesuffix(f"; {REMAKE}")
            raise DataError(f"{said}; put back what is missing, or remove {self.shown} and make it again") from error

    def clean(self) -> None:
        """OUT is complete: remove what only an unfinished run needs, but the plan and the locks, which another run may be waiting for."""
        empty(self.scratch, "plan.json", LOCK, "lock-plan")


class StoreDestination(Destination):
    """OUT below a prefix: shards are made in a local folder and uploaded; what is finished is noted in the store, for every machine.

    `look` keeps one line a shard in memory.
    """

    needs = "OUT is listed, read, written and deleted from"  # for messages: the access that is needed

    def __init__(self, url: str, scratch: Path):
        protocol, path = split_url(url)
        if protocol in WEB:
            raise DataError(f"{url}: a web server cannot be written to; give s3://bucket/prefix, gs://bucket/prefix or a folder")
        self.shown, self.scratch = url.rstrip("/"), scratch
        self.folder_of_all = scratch / "made"
        self.store, self.root = store_for(protocol), path.strip("/")
        self._seen: dict[str, Info] | None = None  # by name below OUT, as of the last look

    def __getstate__(self) -> dict:
        return vars(self) | {"_seen": None}

    @property
    def name(self) -> str:
        return self.root.rpartition("/")[2]

    def where(self, *names: str) -> str:
        return "/".join((str(self.shown), *(name for name in names if name != ".")))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _listed(self) -> Iterator[tuple[str, Info]]:
        """(name below OUT, info) of every object."""
        with self._access():
            for info in self.store.items(self.root):
                yield info.path.lstrip("/")[len(self.root) + 1 :], info

    @contextmanager
    def _access(self) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            raise DataError(f"{self.shown}: {error}; check the bucket and your access to it: {self.needs}") from error

    def _holds_other_things(self) -> bool:
        return any(not name.startswith(f"{WORK}/") for name, _ in self._listed())

    def sweep(self) -> None:
        for leftover in self.scratch.rglob(TEMPORARY):
            leftover.unlink()

    def look(self) -> None:
        self._seen = dict(self._listed())

    def publish(self, split: str, name: str) -> None:
        self._upload(_below(split, name), self.folder(split) / name)

    def _upload(self, name: str, local: Path) -> None:
        with self._access():
            info = self.store.put_file(self._path(name), local)
        self._seen = (self._seen or {}) | {name: info}
        local.unlink()

    def state(self, split: str, shard: str) -> list | None:
        info = (self._seen or {}).get(_below(split, shard))
        return [info.size, info.tag] if info else None

    def discard(self, split: str, shard: str) -> None:
        self.store.remove([self._path(f"{split}/{shard}")])
        (self._seen or {}).pop(f"{split}/{shard}", None)

    def read(self, split: str, shard: str, offset: int, size: int) -> bytes:
        with self._access():
            return self.store.read(self._path(f"{split}/{shard}"), offset, offset + size)

    def get(self, name: str) -> bytes | None:
        """Records are kept in `scratch` under their tag: each is asked for several times."""
        if not name.endswith(".done") or self._seen is None:
            return self._fetch(name)
        info = self._seen.get(name)
        if info is None:
            return None
        kept = self.scratch / "records" / f"{hashlib.sha256(json.dumps(info).encode()).hexdigest()[:32]}"
        if info.tag and kept.exists():
            return kept.read_bytes()
        data = self._fetch(name)
        if data is not None:
            kept.parent.mkdir(exist_ok=True)
            write_atomically(kept, data)
        return data

    def _fetch(self, name: str) -> bytes | None:
        def whole() -> bytes | None:
            info = self.store.info(self._path(name))
            return self.store.read(self._path(name), 0, info.size) if info else None

        with self._access():
            return unless_absent(whole)

    def put(self, name: str, data: bytes) -> None:
        with self._access():
            self.store.put(self._path(name), data)

    def put_stream(self, name: str, chunks: Iterable[bytes]) -> None:
        local = self.scratch / name
        write_stream(local, chunks)
        self._upload(name, local)

    def manifest(self, split: str) -> Manifest:
        data = self._fetch(f"{split}/{MANIFEST}")
        try:
            return manifest_in(data or b"", self.where(split, MANIFEST))
        except DataError as error:
            raise DataError(f"{self.where(split, MANIFEST)}: is missing or damaged; remove {self.shown} and make it again") from error

    def check(self, split: str) -> None:
        manifest = self.manifest(split)
        self.look()
        for name, size in [(manifest.index.name, manifest.index.bytes), *((entry.name, entry.bytes) for entry in manifest.shards)]:
            found = (self._seen or {}).get(f"{split}/{name}")
            if found is None or found.size != size:
                has = f"has {found.size} bytes" if found else "is missing"
                raise DataError(f"{self.where(split, name)}: {has}, the manifest says {size} bytes; remove {self.shown} and make it again")

    def clean(self) -> None:
        self.look()
        self.store.remove([self._path(name) for name in self._seen or {} if name.startswith(f"{WORK}/") and name != PLAN])
        super().clean()


def _below(split: str, name: str) -> str:
    """A file's name below OUT; the split "." is OUT itself."""
    return name if split == "." else f"{split}/{name}"


def empty(folder: Path, *kept: str) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def remove_scratch(scratch: Path) -> None:
    """Remove it, the lock that this run holds last: from then on another run may be making it anew, and what it makes stays."""
    empty(scratch, LOCK)
    (scratch / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        scratch.rmdir()
