"""One file behind a URL: fetched once into the scratch folder, then a source like any local one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpp.prep.remote import download, last_name
from mpp.prep.sources.base import FETCHED, Bar, Source
from mpp.prep.stores import Info


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
