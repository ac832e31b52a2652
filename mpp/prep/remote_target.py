"""OUT in an object store: shards are made in a local folder and uploaded; what is finished is noted in the store, for every machine.

An object store has no locks: the same part must not run twice at a time.  Should it, the result is still right: an object appears
whole or not at all, and both runs put the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from mpp.data.shard_format import MANIFEST, IndexEntry, Manifest, ShardEntry
from mpp.errors import DataError
from mpp.files import TEMPORARY, write_atomically, write_stream
from mpp.prep.remote import WEB, split_url
from mpp.prep.retries import Refused
from mpp.prep.stores import Info, store_for
from mpp.prep.target import PLAN, WORK, LocalTarget, Target, clean_scratch, remove_scratch


def target_at(out: Path | str, scratch: Path | None, plan: dict) -> Target:
    """The target at a path or URL.  plan: what is to be made there; a local folder of half-done work serves no other plan.

    scratch: where that folder is made; None: in the user's cache.
    """
    if isinstance(out, Path):
        return LocalTarget(out)
    base = scratch or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpp"
    key = hashlib.sha256(json.dumps([out.rstrip("/"), plan]).encode()).hexdigest()[:16]
    return RemoteTarget(out, base.resolve() / f"shards-{key}")


class RemoteTarget:
    """OUT below a prefix.  `look` keeps one line a shard in memory."""

    def __init__(self, url: str, scratch: Path):
        protocol, path = split_url(url)
        if protocol in WEB:
            raise DataError(f"{url}: a web server cannot be written to; give s3://bucket/prefix, gs://bucket/prefix or a folder")
        self.shown = url.rstrip("/")
        self.store = store_for(protocol)
        self.root = path.strip("/")
        self.scratch = scratch
        self._seen: dict[str, Info] | None = None  # by name below OUT, as of the last look

    def __getstate__(self) -> dict:
        return vars(self) | {"_seen": None}

    def where(self, *names: str) -> str:
        return "/".join((self.shown, *names))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _name(self, info: Info) -> str:
        return info.path.lstrip("/")[len(self.root) + 1 :]

    def _denied(self, error: Refused) -> DataError:
        return DataError(f"{self.shown}: {error}; check the bucket and your access to it: OUT is listed, read, written and deleted from")

    def begun(self) -> bool:
        begun = self.get(PLAN) is not None
        try:
            if not begun and any(not self._name(info).startswith(f"{WORK}/") for info in self.store.items(self.root)):
                raise DataError(f"{self.shown}: is not empty and was not begun by make_shards.py; choose another OUT")
        except Refused as error:
            raise self._denied(error) from error
        return begun

    def sweep(self) -> None:
        for leftover in self.scratch.rglob(TEMPORARY):
            leftover.unlink()

    def abandon(self) -> None:
        remove_scratch(self.scratch)

    def forget(self) -> None:
        (self.scratch / "listing.json").unlink(missing_ok=True)

    def look(self) -> None:
        try:
            self._seen = {self._name(info): info for info in self.store.items(self.root)}
        except Refused as error:
            raise self._denied(error) from error

    def folder(self, split: str) -> Path:
        return self.scratch / "made" / split

    def publish(self, split: str, name: str) -> None:
        local = self.folder(split) / name
        self._upload(f"{split}/{name}", local)
        local.unlink()

    def _upload(self, name: str, local: Path) -> None:
        try:
            info = self.store.put_file(self._path(name), local)
        except Refused as error:
            raise self._denied(error) from error
        if self._seen is None:
            self._seen = {}
        self._seen[name] = info

    def state(self, split: str, shard: str) -> list | None:
        info = (self._seen or {}).get(f"{split}/{shard}")
        return [info.size, info.tag] if info else None

    def discard(self, split: str, shard: str) -> None:
        self.store.remove([self._path(f"{split}/{shard}")])
        (self._seen or {}).pop(f"{split}/{shard}", None)

    def read(self, split: str, shard: str, offset: int, size: int) -> bytes:
        try:
            return self.store.read(self._path(f"{split}/{shard}"), offset, offset + size)
        except Refused as error:
            raise self._denied(error) from error

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
        try:
            info = self.store.info(self._path(name))
            return self.store.read(self._path(name), 0, info.size) if info else None
        except Refused as error:
            if error.absent:
                return None
            raise self._denied(error) from error

    def put(self, name: str, data: bytes) -> None:
        try:
            self.store.put(self._path(name), data)
        except Refused as error:
            raise self._denied(error) from error

    def put_stream(self, name: str, chunks: Iterable[bytes]) -> None:
        local = self.scratch / name
        write_stream(local, chunks)
        self._upload(name, local)
        local.unlink()

    def check(self, split: str) -> None:
        data = self._fetch(f"{split}/{MANIFEST}")
        try:
            manifest = Manifest.model_validate_json(data or b"")
        except ValidationError as error:
            raise DataError(f"{self.where(split, MANIFEST)}: is missing or damaged; remove {self.shown} and make it again") from error
        self.look()
        entries: list[IndexEntry | ShardEntry] = [manifest.index, *manifest.shards]
        for entry in entries:
            found = (self._seen or {}).get(f"{split}/{entry.name}")
            if found is None or found.size != entry.bytes:
                has = f"has {found.size} bytes" if found else "is missing"
                raise DataError(
                    f"{self.where(split, entry.name)}: {has}, the manifest says {entry.bytes} bytes; remove {self.shown} and make it again"
                )

    def clean(self) -> None:
        self.look()
        self.store.remove([self._path(name) for name in self._seen or {} if name.startswith(f"{WORK}/") and name != PLAN])
        clean_scratch(self.scratch)
