"""What a URL names: a file, fetched once into the scratch folder and then a source like any local one, or a prefix of an object store."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpp.base.errors import DataError, UserError
from mpp.data.class_folders import reason_to_ignore
from mpp.prep.source import FETCHED, Item, Reader, Source, SourceOptions, check_size, first_folder
from mpp.remote.retries import Refused
from mpp.remote.stores import Info, Store, store_for
from mpp.remote.urls import Bar, download, last_name, split_url, stat


def open_url(url: str, leave_out: str, options: SourceOptions, opener: Callable[[Path], Source]) -> Source:
    """A file is fetched first; a prefix of an object store is read in place."""
    info = stat(url)
    if info is None:
        if options.checksum or options.format not in (None, "folder"):
            raise DataError(f"{url}: is no file but a prefix, which is read as a folder of images; leave out --checksum and --format")
        if options.group_field:
            raise UserError(
                f"--group {options.group_field}: {url} is a prefix and has no fields; give the level of a folder, such as --group 1"
            )
        return Bucket(url, leave_out)
    return Fetched(url, info, opener)


@dataclass(frozen=True)
class Fetched(Source):
    """What kind it is shows when it is here."""

    url: str
    info: Info
    opener: Callable[[Path], Source]
    kind = ""

    @property
    def name(self) -> str:
        return last_name(self.url)

    def identity(self) -> str:
        return f"{self.info.size} {self.info.tag}"

    def fetch(self, scratch: Path, bar: Bar) -> Source:
        path = scratch / FETCHED / self.name
        download(self.url, self.info, path, bar)
        return self.opener(path)


@dataclass(frozen=True)
class Bucket(Source):
    """Listed as a stream: memory holds one page of 1000 objects of s3:// and gs://, one folder of other stores."""

    url: str
    leave_out: str = ""  # a URL below which nothing is taken (the output may lie inside the source)
    kind = "folder"

    @property
    def name(self) -> str:
        return last_name(self.url)

    def identity(self) -> str:
        return ""  # nothing but a listing tells

    def _place(self) -> tuple[Store, str]:
        protocol, path = split_url(self.url)
        return store_for(protocol), path.strip("/")

    def items(self, ignored: Counter) -> Iterator[Item]:
        store, prefix = self._place()
        try:
            for info in store.items(prefix):
                path = info.path.lstrip("/")
                name = path[len(prefix) + 1 :]
                if self.leave_out and store.url(path).startswith(self.leave_out.rstrip("/") + "/"):
                    continue
                if reason := reason_to_ignore(name.split("/")):
                    ignored[reason] += 1
                else:
                    yield Item(name, info.size, (info.tag,), first_folder(name))
        except Refused as error:
            raise DataError(f"{self.url}: {error}; check the address and your access to it") from error

    def reader(self) -> "BucketReader":
        return BucketReader(*self._place())


@dataclass(frozen=True)
class BucketReader(Reader):
    store: Store
    prefix: str

    def read(self, item: Item) -> bytes:
        check_size(item)
        path = f"{self.prefix}/{item.name}"
        try:
            data = self.store.read_listed(Info(path, item.size, item.place[0]))
        except Refused as error:
            raise DataError(f"{self.store.url(path)}: {error}; check your access to it, then run the same command again") from error
        if data is None:
            raise DataError(
                f"{self.store.url(path)}: has changed since it was listed ({item.size} bytes then); "
                "remove OUT and start again, and leave the source alone meanwhile"
            )
        return data
