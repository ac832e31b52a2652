"""A prefix of an object store, taken as a folder tree of images."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mpp.errors import DataError
from mpp.prep.remote import last_name, split_url
from mpp.prep.retries import Refused
from mpp.prep.sources.base import Item, Source, check_size, first_folder, reason_to_ignore
from mpp.prep.stores import Info, Store, store_for


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
class BucketReader:
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

    def close(self) -> None:
        pass
