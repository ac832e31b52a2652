"""Images by id, wherever they lie: encoded bytes, size and place of each, and where there are labels those too.

Shards (shards.py), folders of classes and arrays (labelled.py) have this one face; what gives their pixels is pixels.py.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mpp.base.errors import BadSample, DataError, UserError, of_this_rank
from mpp.base.machine import usable_cores
from mpp.data.order import Sampler
from mpp.processes.watch import watch
from mpp.remote.urls import Url

Found = TypeVar("Found")
READERS = 8  # threads at most, which mostly wait for a disk
STRETCH = 256  # images a thread reads before it asks for more


class Images(Protocol):
    """Ids are 0 to len - 1."""

    @property
    def path(self) -> Path | Url: ...

    def __len__(self) -> int: ...

    @property
    def samples_per_shard(self) -> Sequence[int] | np.ndarray:
        """How the ids lie on the disk, for the order of training."""
        ...

    @property
    def identity(self) -> str:
        """sha256 of what the set is, the same on every machine: joins results."""
        ...

    @property
    def stamp(self) -> str:
        """Changes whenever a file changes, also where `identity` does not look: for caches."""
        ...

    @property
    def remedy(self) -> str:
        """What to do about an image that cannot be read, for messages."""
        ...

    @property
    def prints(self) -> np.ndarray:
        """uint64 [n]: what each image is, byte for byte (fingerprints.py).  Raises as `read`, where nothing else tells."""
        ...

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height) in pixels, upright.  Raises as `read` where only the image tells."""
        ...

    def where(self, sample: int) -> str:
        """Its place, for messages."""
        ...

    def name_of(self, sample: int) -> str:
        """What it is called within the set."""
        ...

    def read(self, sample: int) -> bytes:
        """Encoded as JPEG, PNG or WebP.  Raises BadSample for bad content, DataError for a disk that fails."""
        ...

    def ahead(self, samples: Sequence[int]) -> None:
        """These are read next: who has to wait for a disk or a server asks for all of them at once."""
        ...

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        """This process will read these micro-batches, in order: what lies elsewhere is fetched ahead.  hand: bytes of the shards that it has in hand at
        most.  What is given is told how many micro-batches are done with, -1 for all.  Raises DataError where there is no room."""
        ...


class ReadInPlace:
    """What images answer of which nothing has to be fetched before it is read."""

    def ahead(self, samples: Sequence[int]) -> None:
        pass

    def expects(self, sampler: Sampler, hand: int = 0) -> Callable[[int], None]:
        return lambda done: None


class LabelledImages(Images, Protocol):
    classes: list[str]

    @property
    def labels(self) -> np.ndarray:
        """int32 [n], -1 for none."""
        ...

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """int32 [m]: of these alone."""
        ...

    @property
    def labelled(self) -> bool: ...


def unreadable(images: Images, sample: int, reason: object) -> UserError:
    """What a measurement, a probe among them, raises for an image that cannot be read."""
    return of_this_rank(DataError(f"{images.where(sample)}: {reason}; a measurement leaves no image out, so {images.remedy}"))


def read_each(images: Images, ids: Sequence[int] | np.ndarray, work: Callable[[bytes], Found]) -> list[Found]:
    """What `work` makes of each image's bytes, in the order of the ids, by several threads.  Raises DataError for one that cannot be read."""

    def some(first: int) -> list[Found]:
        found = []
        for sample in ids[first : first + STRETCH]:
            try:
                found.append(work(images.read(int(sample))))
            except BadSample as error:
                raise unreadable(images, int(sample), error) from error
        watch.moved()
        return found

    reading = watch.slowly(f"reading {images.path}", len(ids), "images")
    with reading as bar, ThreadPoolExecutor(min(READERS, 2 * usable_cores())) as pool:
        try:
            found: list[Found] = []
            for part in pool.map(some, range(0, len(ids), STRETCH)):
                found += part
                bar.update(len(part))
            return found
        finally:
            pool.shutdown(cancel_futures=True)  # after an error nobody waits for the rest
