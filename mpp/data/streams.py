"""Streams: WebDataset tars that nobody has indexed, read through the package webdataset front to back, again and again.

    data.shards='pipe:aws s3 cp s3://b/{000..099}.tar -'    /data/laion/{00000..00999}.tar    [a.tar, https://host/b.tar]

webdataset expands what a word names, opens it (files, URLs, pipes), reads tars, groups files by key and shuffles through a buffer.  Here is what
training needs beside that: which tars a reader takes in a pass, that a tar is whole, and a number for each sample, by which it is cropped and masked
as any other (crop_dataset.py).

A reader is a loader process of a rank.  It passes over its tars without end, so every rank has its share of every step, whatever the tars hold.
In pass p the tars are shuffled by (seed, first step of this start, p), alike in all readers, and dealt out to ranks, and a rank's to its loader
processes.  Where there are fewer tars than ranks or processes, those who have one together each take every k-th sample of it.

What a set of shards has and a stream has not: an order that is the same on any cluster, equal epochs, a size, an exact resume, checksums.
"""

import hashlib
import itertools
import json
import os
import random
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from torch.utils.data import get_worker_info

from mpp.base.errors import BadSample, ConfigError, DataError, of_this_rank
from mpp.base.progress import tracked
from mpp.base.rng import SHARDS, STREAM, Draws, seed_of
from mpp.base.text import counted
from mpp.data.class_folders import IMAGE_SUFFIXES
from mpp.data.crop_dataset import BAD_IN_A_ROW, CropDataset, Key
from mpp.data.decode import check_header, decode, storable
from mpp.data.images import ReadInPlace
from mpp.data.order import places_of
from mpp.data.whole_tar import Torn, WholeTar
from mpp.processes.peers import ALONE, Peers
from mpp.remote.retries import hidden
from mpp.remote.urls import MAX_FILE_BYTES

Words = str | Sequence[str]
Taken = TypeVar("Taken")
ENDINGS = (".tar", ".tar.gz", ".tgz")
FIRST_FILLED = 100  # samples in the buffer before one is handed on: webdataset's own
ORPHAN_SECONDS = 1.0  # between two looks whether the rank still lives
PASSES = 1 << 24  # of one start, at most
INDEX = "python data_prep/index_shards.py FOLDER (tars on a disk), or data_prep/make_shards.py SOURCE OUT (also URLs), makes a set of known size of them"
REMEDY = "mend it or get it again, or leave it out of data.shards"
# What reading may raise for tars that are not there, damaged, or not as webdataset takes them.
_FAULTS = (Torn, tarfile.TarError, OSError, ValueError, EOFError, AssertionError)


def is_stream(words: Words) -> bool:
    """Whether data.shards names tars themselves: a pipe:, braces, or what ends in .tar, .tar.gz or .tgz; or a list of these.

    Raises ConfigError for a list that names folders of shards as well.
    """
    if isinstance(words, str):
        path = re.split(r"[?#]", words)[0] if "://" in words else words
        return words.startswith("pipe:") or bool(re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}", words)) or path.lower().endswith(ENDINGS)
    streams = [is_stream(word) for word in words]
    if any(streams) and not all(streams):
        raise ConfigError(
            f"data.shards names tars ({hidden(words[streams.index(True)])}) and a folder of shards ({hidden(words[streams.index(False)])}); give "
            f"either, or index the tars: {INDEX}"
        )
    return bool(streams) and all(streams)


def refuse_stream(words: Words, why: str) -> None:
    """why: a program takes none.  Raises ConfigError."""
    if is_stream(words):
        raise ConfigError(f"data.shards={in_words(words)} is a stream of tars without an index, and {why}; {INDEX}")


def in_words(words: Words) -> str:
    return hidden(words) if isinstance(words, str) else f"[{', '.join(map(hidden, words))}]"


def refuse_unsized(words: Words, asked: dict[str, Any]) -> None:
    """asked: keys that need the number of images, and their values.  Raises ConfigError where one is given of a stream."""
    given = [f"{key}={value}" for key, value in asked.items() if value is not None]
    if given and is_stream(words):
        raise ConfigError(
            f"{' and '.join(given)} must know how many images there are, and data.shards={in_words(words)} is a stream of tars, which does not say; "
            f"give optim.total_samples=, or index the tars: {INDEX}"
        )


class Tar(NamedTuple):
    name: str  # as it was written, braces expanded, without credentials: for people, and for the numbers of samples
    url: str  # what webdataset opens

    @property
    def file(self) -> str:
        """The part that stays when tars move."""
        found = re.findall(r"[^/\s'\"]+(?:" + "|".join(map(re.escape, ENDINGS)) + ")", self.name, re.IGNORECASE)
        return found[-1] if found else self.name


class Passed(NamedTuple):
    """A sample as it lies in a tar."""

    tar: Tar
    key: str
    data: bytes

    @property
    def id(self) -> int:
        """63 bits of (the tar's name, key)."""
        return int.from_bytes(hashlib.blake2b(f"{self.tar.name}\0{self.key}".encode("utf-8", "replace"), digest_size=8).digest()) >> 1

    @property
    def where(self) -> str:
        return f"{self.tar.name}: {self.key}"


def tars_of(words: Words) -> list[Tar]:
    """As webdataset expands them: braces, `::` between several, ${NAME} of the environment's WDS_NAME.  Raises ConfigError."""
    import braceexpand
    from webdataset.gopen import gopen_schemes
    from webdataset.shardlists import expand_urls

    tars: list[Tar] = []
    for word in [words] if isinstance(words, str) else words:
        try:
            names = [name for part in word.split("::") for name in braceexpand.braceexpand(part)]
            tars += [Tar(hidden(name), url) for name in names for url in expand_urls(name)]
        except (AssertionError, ValueError) as error:
            missing = re.search(r"environment variable \w+", str(error))
            what = f"needs the {missing[0].replace('wds_WDS_', 'WDS_')}" if missing else "has braces that do not close"
            raise ConfigError(f"data.shards={hidden(word)} {what}; set it, or write the name out") from None
    for tar in tars:
        try:
            scheme = "pipe" if tar.url.startswith("pipe:") else urlsplit(tar.url).scheme
        except ValueError:
            raise ConfigError(
                f"data.shards: {tar.name} is no address (a :: stands between two of them, so of one by IPv6 write all eight parts, as in "
                "http://[0:0:0:0:0:0:0:1]/0.tar)"
            ) from None
        if scheme not in ("", "file", *gopen_schemes):
            raise ConfigError(
                f"data.shards: {tar.name} is no file, and the package webdataset opens no {scheme}://; give a command that writes the tar, such as "
                f"'pipe:aws s3 cp {tar.name} -'"
            )
    if not tars:
        raise ConfigError("data.shards names no tar; give one, or a folder of shards")
    return tars


def refuse_absent(tars: Iterable[Tar]) -> None:
    """Raises DataError for files that are not there."""
    for tar in tars:
        scheme, path = urlsplit(tar.url).scheme, tar.url
        if tar.url.startswith("pipe:") or scheme not in ("", "file"):
            continue
        path = unquote(urlsplit(tar.url).path) if scheme else tar.url
        if not Path(path).is_file():
            raise of_this_rank(DataError(f"data.shards: {tar.name} is not there, or no file; give tars that are, or mount their disk here"))


class Reading:
    """These tars, one after the other, once."""

    def __init__(self, tars: Sequence[Tar]):
        self.tars = tars
        self._tar = tars[0]
        self._whole: WholeTar | None = None
        self._images, self._others = 0, dict[str, None]()  # of the tar in hand: samples, and fields of other kinds

    def __iter__(self) -> Iterator[Passed]:
        """Raises DataError for a tar that cannot be opened, is cut, damaged or without images, and for a key with several images."""
        from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

        files = tar_file_expander(self._seen_whole(url_opener(self._sources())), select_files=self._is_image)
        try:
            for sample in group_by_keys(files):
                fields = [name for name in sample if not name.startswith("__")]
                if len(fields) > 1:
                    raise Torn(
                        f"has {len(fields)} images under the key {sample['__key__']} ({', '.join(sorted(fields)[:4])}), and which one to take it does not say; "
                        f"index the tars with --image-field {sorted(fields)[0]} (data_prep/index_shards.py)"
                    )
                self._images += 1
                yield Passed(self._tar, sample["__key__"], sample[fields[0]])
        except _FAULTS as error:
            raise of_this_rank(DataError(f"{self._tar.name} {self._told(error)}")) from None  # its words may hold credentials
        finally:
            if self._whole:
                self._whole.close()

    def kill(self) -> None:
        """End the command that is read, while another thread reads it."""
        if self._whole:
            self._whole.kill()

    def _sources(self) -> Iterator[dict[str, Any]]:
        for tar in self.tars:
            self._tar, self._images, self._whole = tar, 0, None
            self._others.clear()
            yield {"url": self._tar.url}

    def _seen_whole(self, opened: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for source in opened:
            source["stream"] = self._whole = whole = WholeTar(source["stream"], self._refuse_large)
            yield source
            whole.check_end()
            whole.close()
            if not self._images:
                seen = f"it has {', '.join(list(self._others)[:5])}" if self._others else "it has no files"
                raise Torn(f"holds no image ({seen})")

    def _refuse_large(self, member: tarfile.TarInfo) -> None:
        """What would be read into memory."""
        if member.size > MAX_FILE_BYTES and self._is_image(member.name):
            raise Torn(f"holds {member.name} of {member.size:,} bytes, and an image has {MAX_FILE_BYTES:,} at most")

    def _is_image(self, name: str) -> bool:
        if name.lower().endswith(IMAGE_SUFFIXES):
            return True
        if len(self._others) < 5:
            self._others[Path(name).suffix or name] = None
        return False

    def _told(self, error: Exception) -> str:
        if self._whole and self._whole.ended and not isinstance(error, Torn):
            error = Torn(f"is cut at a header: it ends at byte {self._whole.at:,}, without its end mark")
        if isinstance(error, Torn):
            return error.told if "; " in error.told else f"{error.told}; {REMEDY}"
        if isinstance(error, FileNotFoundError) and error.filename and "/" not in str(error.filename) and "://" in self._tar.url:
            return f"needs the program {error.filename}, which is not installed here; install it, or give a command that writes the tar (pipe:)"
        if isinstance(error, OSError):
            return f"cannot be read ({error.strerror or type(error).__name__}); mend the disk or the way to it, and give the same command again"
        words = str(error.args[0] if error.args else type(error).__name__).partition(" @ <")[0]  # webdataset adds the stream
        return f"is no tar of samples as webdataset reads them ({hidden(words.replace(self._tar.url, self._tar.name))}); {REMEDY}"


def share(tars: Sequence[Taken], reader: int, readers: int) -> tuple[list[Taken], int, int]:
    """(those that one of so many readers takes, which of those who share them it is, and how many share them): every n-th of them as webdataset splits them,
    or where there are fewer, one together with others."""
    if len(tars) >= readers:
        return list(tars[reader::readers]), 0, 1
    own = reader % len(tars)
    return [tars[own]], reader // len(tars), len(range(own, readers, len(tars)))


def every(samples: Iterable[Taken], nth: int, of: int) -> Iterable[Taken]:
    return itertools.islice(samples, nth % of, None, of) if of > 1 else samples


@dataclass(eq=False)
class Stream(ReadInPlace):
    """Samples that pass by.  Known by their ids are those that were taken since `let_go`, of this process."""

    words: Words  # as data.shards names them
    tars: Sequence[Tar]  # that are trained on
    seed: int
    buffer: int  # samples that a reader shuffles in
    max_pixels: int
    rank: int = 0
    ranks: int = 1
    first_step: int = 0  # of this start of the run
    held_out_tars: int = 0
    _in_hand: dict[int, Passed] = field(default_factory=dict, init=False, repr=False)
    _reader: tuple[tuple[int, int], Iterator[tuple[int, Passed]]] | None = field(default=None, init=False, repr=False)

    _reading: "Reading | None" = field(default=None, init=False, repr=False)

    remedy = "mend that image, or leave its tar out of data.shards"

    @property
    def path(self) -> Path:
        return Path(in_words(self.words))

    @property
    def identity(self) -> str:
        """sha256 of how the tars that are trained on are called: of what is in them nothing is known."""
        return hashlib.sha256(json.dumps([tar.file for tar in self.tars]).encode()).hexdigest()

    def keep_open(self, shards: int) -> int:
        """As a set of shards; a reader has one tar open."""
        return shards

    def reader(self, worker: int, workers: int) -> Iterator[tuple[int, Passed]]:
        """(pass, sample), without end, of one loader process of this rank.  Raises DataError."""
        from webdataset.filters import shuffle

        for number in itertools.count():
            order = Draws(self.seed, SHARDS, self.first_step, number).permutation(len(self.tars))
            of_rank, rank_nth, rank_of = share([self.tars[place] for place in order], self.rank, self.ranks)
            own, nth, of = share(of_rank, worker, workers)
            self._reading = reading = Reading(own)
            of_rank_alone = every(reading, rank_nth + number, rank_of)
            samples = every(of_rank_alone, nth + number // rank_of, of)  # in turn, so that all see all of a tar
            start = seed_of(self.seed, STREAM, self.first_step, number, self.rank) ^ worker
            mixed = shuffle(self.buffer, initial=FIRST_FILLED, rng=random.Random(start))
            for sample in mixed(iter(samples)):
                yield number, sample

    def take(self) -> tuple[int, int]:
        """(epoch, id) of the next sample of this process, which is in hand from now on."""
        found = get_worker_info()
        worker, workers = (found.id, found.num_workers) if found else (0, 1)
        if self._reader is None or self._reader[0] != (os.getpid(), worker):  # a fork begins its own
            self._reader = (os.getpid(), worker), self.reader(worker, workers)
            if found:
                threading.Thread(target=self._end_with, args=(os.getppid(),), name="orphan", daemon=True).start()
        number, sample = next(self._reader[1])
        self._in_hand[sample.id] = sample
        return self.first_step * PASSES + number, sample.id  # so that what comes again after a resume is cropped otherwise

    def _end_with(self, parent: int) -> None:
        """A loader process that waits for a server would wait on when its rank was killed, and its command with it."""
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        if self._reading:
            self._reading.kill()
        os._exit(1)

    def let_go(self) -> None:
        self._in_hand.clear()

    def size_of(self, sample: int) -> tuple[int, int]:
        """(width, height) in pixels, upright.  Raises BadSample."""
        found = self._in_hand[sample]
        data = storable(found.data)
        self._in_hand[sample] = found._replace(data=data)
        return check_header(data, self.max_pixels)[1:]

    def where(self, sample: int) -> str:
        return self._in_hand[sample].where

    def read(self, sample: int) -> bytes:
        return self._in_hand[sample].data

    def first_images(self, count: int) -> "Kept":
        """The first readable ones of the tars as they are written, `count` if there are so many."""
        return first_images(self.tars, count, self.max_pixels, "training images to begin with")[0]

    @property
    def said(self) -> str:
        """What is weaker than with a set of shards, at the start of a run."""
        apart = f" ({counted(self.held_out_tars, 'more', 'more')} held out)" if self.held_out_tars else ""
        return (
            f"note: {counted(len(self.tars), 'tar')}{apart} as a stream, without an index: the order of samples depends on ranks x loader processes, passes "
            "are not equal, bytes have no checksums, and a resume begins new passes (some images come again, others later)"
        )

    def shared_words(self, workers: int) -> str:
        """What is to be said where there are fewer tars than readers; else empty."""
        readers = self.ranks * max(1, workers)
        if len(self.tars) >= readers:
            return ""
        return (
            f"note: {counted(len(self.tars), 'tar')} for {readers} readers ({counted(self.ranks, 'rank')} x {counted(max(1, workers), 'loader process', 'loader processes')}): "
            "those of one tar each read all of it and take every k-th sample; more tars, or a lower system.workers, read less"
        )


@dataclass(frozen=True)
class StreamDataset(CropDataset):
    """CropDataset of a stream: keys say positions, and the samples are those that come next."""

    @property
    def stream(self) -> Stream:
        return cast(Stream, self.pixels.source)

    def drawn(self, keys: list[Key]) -> list[Key]:
        self.stream.let_go()
        return [(*self.stream.take(), position) for _, _, position in keys]

    def candidates(self, sample: int) -> Iterator[int]:
        yield sample
        for _ in range(BAD_IN_A_ROW - 1):
            yield self.stream.take()[1]


@dataclass(frozen=True)
class StreamOrder:
    """Positions of a run, of which nobody knows beforehand what stands there.  batch: samples a step."""

    tars: int
    batch: int

    def places(self, step: int, rank: int, world: int) -> np.ndarray:
        return places_of(self.batch, step, rank, world)

    def shards_in_reach(self, world: int) -> int:
        return 1  # a reader has one tar open

    def sample_ids(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(places), np.zeros_like(places)

    @property
    def words(self) -> str:
        return f"{counted(self.tars, 'tar')} of unknown size"


@dataclass(eq=False)
class Kept(ReadInPlace):
    """The first images of a stream, in memory: encoded bytes, by id from 0 on."""

    path: Path
    samples: list[Passed]
    sizes: list[tuple[int, int]]

    remedy = Stream.remedy
    labelled = False

    def __post_init__(self) -> None:
        self.classes: list[str] = []
        self.labels = np.full(len(self.samples), -1, np.int32)
        self.samples_per_shard = [len(self.samples)]

    def __len__(self) -> int:
        return len(self.samples)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        return self.labels[ids]

    @property
    def identity(self) -> str:
        """sha256 of the images' bytes."""
        known = hashlib.sha256()
        for sample in self.samples:
            known.update(hashlib.sha256(sample.data).digest())
        return known.hexdigest()

    @property
    def stamp(self) -> str:
        return self.identity

    @property
    def prints(self) -> np.ndarray:
        from mpp.data.fingerprints import read_prints

        return read_prints(self)

    def size_of(self, sample: int) -> tuple[int, int]:
        return self.sizes[sample]

    def where(self, sample: int) -> str:
        return self.samples[sample].where

    def name_of(self, sample: int) -> str:
        return f"{self.samples[sample].tar.file}/{self.samples[sample].key}"

    def read(self, sample: int) -> bytes:
        return self.samples[sample].data


def first_images(tars: Sequence[Tar], count: int, max_pixels: int, what: str) -> tuple[Kept, int]:
    """Up to `count` images that can be decoded, in the order of the tars and in theirs, and how many tars they were found in.  Raises DataError."""
    samples: list[Passed] = []
    sizes: list[tuple[int, int]] = []
    used = 0
    reading = iter(Reading(tars))
    last: Tar | None = None
    for sample in tracked(_until(reading, lambda: len(samples) >= count), f"reading {what}", None, "images", at_once=True):
        used, last = used + (sample.tar is not last), sample.tar
        try:
            data = storable(sample.data)
            height, width = decode(data, max_pixels).shape[:2]
        except BadSample:
            continue
        samples.append(sample._replace(data=data))
        sizes.append((width, height))
    if not samples:
        raise of_this_rank(
            DataError(f"{tars[0].name} and {len(tars) - 1} further tars of data.shards hold no image that can be decoded; give others")
        )
    return Kept(Path(tars[0].name), samples, sizes), used


def _until(samples: Iterator[Taken], enough: Callable[[], bool]) -> Iterator[Taken]:
    try:
        while not enough() and (sample := next(samples, None)) is not None:
            yield sample
    finally:
        samples.close()  # type: ignore[attr-defined]  # a command that is still writing is ended


def open_stream(words: Words, seed: int, buffer: int, max_pixels: int, hold_out: int, peers: Peers = ALONE) -> tuple[Stream, Kept | None]:
    """The tars that are trained on, and the images that are held out.

    hold_out: how many; 0: they come from elsewhere.  peers: who opens it together; collective.  Raises ConfigError and DataError.
    """
    tars = peers.together(lambda: tars_of(words))
    peers.together(lambda: refuse_absent(tars) if peers.first_of_host else None)
    kept, used = None, 0
    if hold_out:
        kept, used = peers.together(lambda: _held_out(tars, hold_out, max_pixels))
        digests = peers.gather(kept.identity)
        if other := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise DataError(
                f"data.shards: {peers.called(other[0])} reads other images in the first tars than rank 0; give all hosts the same tars"
            )
    return Stream(words, tars[used:], seed, buffer, max_pixels, peers.rank, peers.size, held_out_tars=used), kept


def _held_out(tars: Sequence[Tar], count: int, max_pixels: int) -> tuple[Kept, int]:
    kept, used = first_images(tars, count, max_pixels, "images to hold out")
    if len(kept) < count or used >= len(tars):
        raise ConfigError(
            f"data.holdout_samples={count} would be held out from the first of {counted(len(tars), 'tar')}, which are then not trained on: {len(kept):,} "
            f"readable images are in the first {used}, and nothing is left; lower data.holdout_samples, give more tars, or data.holdout_shards= (a set of "
            "shards of its own)"
        )
    return kept, used
