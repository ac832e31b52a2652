"""From images to feature tables on the disk: each image once, by any number of processes, and never again while nothing has changed.

    FOLDER/<data>-<key>/features.npy   float32 [n, W]
                        labels.npy     int32 [n]        samples.npy   int64 [n], the ids of the images
                        features.json  FeatureSpec, columns, data, versions, sha256 by stretch; written last: without it the table does not exist
The key is a hash of everything that a feature depends on.  A table is compared with a few features computed afresh, at another batch size,
whenever it is used.
"""

import hashlib
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpp.base.errors import CheckpointError, ConfigError, DataError, UserError, of_this_rank
from mpp.base.machine import usable_cores
from mpp.base.progress import Progress
from mpp.base.text import counted, sized
from mpp.data.augment import Centre
from mpp.data.crop_dataset import Batch, CropDataset
from mpp.data.images import LabelledImages
from mpp.data.loader import batches, default_workers
from mpp.data.order import FIXED, Parts
from mpp.data.pixels import StoredPixels
from mpp.disk.files import HASHED, make_folder, sync_path, write_atomically
from mpp.disk.locks import lock_folder
from mpp.processes.world import World, from_all, from_first, together, total
from mpp.transfer.extractors import Extractor
from mpp.transfer.features import FeatureConfig, Features, FeatureSpec

FORMAT = 2
FILES = "features.npy", "labels.npy", "samples.npy"
STRETCH = 1 << 28  # bytes that are hashed as one, by one thread of one process
HASHERS = 8  # threads of a process at most
CHECKED_IMAGES, CHECK_BATCH = 8, 3  # of the self-check: so many images, recomputed so many at a time
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative difference of one image's features; a wrong image or row is off by 0.1 or more
VERSIONS = ("torch", "timm", "pillow", "numpy")
BUSY = "another probe is extracting features to {folder}; wait for it, or give another features.cache"
LOCK_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Extracted:
    """A table and how it came about."""

    features: Features
    images: int
    repeated: int
    cached: bool  # read from the disk
    seconds: float  # of extraction
    processes: int
    folder: Path

    def __str__(self) -> str:
        how = (
            "from the cache"
            if self.cached
            else f"{self.images / max(self.seconds, 1e-9):.0f} images/s by {counted(self.processes, 'process', 'processes')}"
        )
        return f"{self.images} of {len(self.features.values)} images, {self.repeated} repeated, {how}"


def extract(
    images: LabelledImages, samples: np.ndarray, extractors: Mapping[str, Extractor], config: FeatureConfig, folder: Path, world: World
) -> dict[str, Extracted]:
    """Collective: features of the samples (int64 [n], ids) by every extractor, in one pass over the images for each input size.

    Raises DataError for an image that cannot be read (none is left out), CheckpointError for features that are not finite, ConfigError where
    the comparison fails, UserError for a disk that is too full.
    """
    tables = {name: folder / f"{images.path.name}-{key_of(images, samples, e, world)[:20]}" for name, e in extractors.items()}
    with _locked(folder) if world.first else nullcontext():
        together(world, lambda: None)  # nobody looks before rank 0 holds the lock
        return _extract(images, samples, extractors, tables, config, world)


def _extract(
    images: LabelledImages,
    samples: np.ndarray,
    extractors: Mapping[str, Extractor],
    tables: Mapping[str, Path],
    config: FeatureConfig,
    world: World,
) -> dict[str, Extracted]:
    stored = _stored(tables, world)
    passes: dict[tuple[int, float], list[str]] = defaultdict(list)  # of the same crops
    for name, extractor in extractors.items():
        if not stored[name]:
            passes[extractor.spec.resolution, extractor.spec.crop].append(name)
    for names in passes.values():
        _one_pass(images, samples, {name: extractors[name] for name in names}, {name: tables[name] for name in names}, config, world)
    made = {}
    for name, extractor in extractors.items():
        about = json.loads((tables[name] / "features.json").read_text())
        values = torch.from_numpy(np.load(tables[name] / "features.npy", mmap_mode="r+"))  # torch wants a writable map; nobody writes
        features = Features(extractor.spec, extractor.layout, values)
        numbers = (about["images"], about["repeated"], stored[name], about["seconds"], about["processes"])
        made[name] = Extracted(features, *numbers, tables[name])
    together(world, lambda: _check(images, samples, extractors, made, config, world) if world.first else None)
    return made


def key_of(images: LabelledImages, samples: np.ndarray, extractor: Extractor, world: World) -> str:
    """sha256, hexadecimal, over all that a feature depends on."""
    parts = {
        "format": FORMAT,
        "spec": extractor.spec.as_dict(),
        "columns": extractor.layout.as_list(),
        "data": images.stamp,
        "samples": hashlib.sha256(np.ascontiguousarray(samples, dtype=np.int64).tobytes()).hexdigest(),
        "versions": {package: version(package) for package in VERSIONS},
        "device": world.device.type,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def compare(name: str, stored: Tensor, fresh: Tensor, tolerance: float, where: str) -> None:
    """Raises ConfigError when a row of float32 [n, W] differs from its fresh one by more than `tolerance` of its norm."""
    off = float(((stored - fresh).norm(dim=1) / fresh.norm(dim=1).clamp_min(1e-12)).max())
    if not off <= tolerance:
        raise ConfigError(
            f"{name}: features computed afresh at another batch size differ from {where} by {off:.2g} of their norm (allowed {tolerance:g}); "
            "no figure would be right: delete that folder; if it happens again they depend on more than the image (try "
            "features.precision=fp32 and another features.batch)"
        )


def centre_crops(images: LabelledImages, samples: np.ndarray, spec: FeatureSpec, config: FeatureConfig) -> CropDataset:
    """What features of these samples (int64 [n], ids) are made of; nothing of it is drawn, so no seed matters."""
    centre = Centre(spec.resolution, spec.crop)
    return CropDataset(StoredPixels(images, config.max_pixels), centre, 0, samples, leaves_none_out=True)


def own_rows(count: int, batch: int, world: World) -> list[range]:
    """This process's stretch of so many rows, `batch` at a time: together the processes take every row once."""
    first, last = (count * rank // world.size for rank in (world.rank, world.rank + 1))
    return [range(row, min(row + batch, last)) for row in range(first, last, batch)]


def read(
    crops: CropDataset,
    parts: Sequence[Sequence[int] | np.ndarray],
    config: FeatureConfig,
    world: World,
    phase: str = "extracting features",
    epoch: int = FIXED,
) -> Iterator[Batch]:
    """A batch for each part, rows of `crops.ids`, which stand as its `position`.  Raises DataError for an image that cannot be read."""
    workers = config.workers if config.workers is not None else default_workers(world.local_size)
    return batches(crops, Parts(crops.ids, parts, epoch), workers, world.device.type == "cuda", world.local_size, phase)


def _one_pass(
    images: LabelledImages,
    samples: np.ndarray,
    extractors: Mapping[str, Extractor],
    tables: Mapping[str, Path],
    config: FeatureConfig,
    world: World,
) -> None:
    """Collective, for extractors of the same crops: each process takes a stretch of the rows and writes them where they belong; what each has
    written is counted."""
    count = len(samples)
    began = time.perf_counter()
    together(world, lambda: _make_room(images, samples, extractors, tables) if world.first else None)
    crops = centre_crops(images, samples, next(iter(extractors.values())).spec, config)
    written = np.zeros(count, dtype=np.int64)
    together(world, lambda: _write_rows(crops, extractors, tables, config, world, written))
    times = total(world, written)
    missing, repeated = int((times == 0).sum()), int((times > 1).sum())
    if missing or repeated:
        raise ConfigError(
            f"{count - missing} of {count} images were extracted and {repeated} of them more than once; no figure would be right"
        )
    seconds = time.perf_counter() - began
    hashes = hashes_of(list(tables.values()), world)
    known = {"images": count, "repeated": repeated, "seconds": round(seconds, 3)}
    together(world, lambda: _commit(images, extractors, tables, known, hashes, world) if world.first else None)


def _make_room(images: LabelledImages, samples: np.ndarray, extractors: Mapping[str, Extractor], tables: Mapping[str, Path]) -> None:
    """The files at their full size, so that a full disk is noticed now."""
    for name, extractor in extractors.items():
        table, shape = tables[name], (len(samples), extractor.layout.width)
        shutil.rmtree(table, ignore_errors=True)  # of an extraction that was killed
        make_folder(table, "features.cache")
        try:
            with (table / "features.npy").open("w+b") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                os.posix_fallocate(file.fileno(), 0, file.tell() + 4 * shape[0] * shape[1])
            np.save(table / "samples.npy", samples.astype(np.int64))
            np.save(table / "labels.npy", images.labels[samples].astype(np.int32))
        except OSError as error:
            shutil.rmtree(table, ignore_errors=True)
            raise UserError(
                f"{table}: no room for {len(samples)} x {shape[1]} features, {sized(4 * shape[0] * shape[1])} ({error.strerror}); "
                "give features.cache= on a larger disk, or fewer layers (linear.curve=false knn.curve=false)"
            ) from error


def _write_rows(
    crops: CropDataset,
    extractors: Mapping[str, Extractor],
    tables: Mapping[str, Path],
    config: FeatureConfig,
    world: World,
    written: np.ndarray,
) -> None:
    count, folder = len(written), next(iter(tables.values())).parent
    files = {name: (tables[name] / "features.npy").open("r+b") for name in extractors}
    starts = {name: os.fstat(file.fileno()).st_size - 4 * count * extractors[name].layout.width for name, file in files.items()}
    try:
        mine = own_rows(count, config.batch, world)
        with Progress(f"features of {crops.pixels.source.path}", sum(map(len, mine)), "images", at_once=True) as bar:
            for batch in read(crops, mine, config, world):
                rows, images = batch["position"].numpy(), batch["image"].to(world.device, non_blocking=True)
                for name, extractor in extractors.items():
                    values = extractor(images)
                    if not bool(torch.isfinite(values).all()):
                        raise CheckpointError(
                            f"{name}: the encoder gives features that are not finite; its training diverged, take an earlier checkpoint"
                        )
                    _write_at(files[name].fileno(), values.float().cpu().contiguous().numpy(), starts[name], rows)
                written[rows] += 1
                bar.update(len(rows))
        for file in files.values():
            os.fsync(file.fileno())
    except OSError as error:
        raise of_this_rank(
            UserError(f"features cannot be written to {folder} ({error}); mend the disk and run the same command")
        ) from error
    finally:
        for file in files.values():
            file.close()


def _write_at(handle: int, values: np.ndarray, start: int, rows: np.ndarray) -> None:
    """rows: neighbours, ascending."""
    data, offset = memoryview(values.tobytes()), start + int(rows[0]) * values.shape[1] * 4
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done


def _commit(
    images: LabelledImages,
    extractors: Mapping[str, Extractor],
    tables: Mapping[str, Path],
    counted: dict,
    hashes: Mapping[Path, Mapping[str, list[str]]],
    world: World,
) -> None:
    for name, extractor in extractors.items():
        table = tables[name]
        about = {
            "format": FORMAT,
            "spec": extractor.spec.as_dict(),
            "columns": extractor.layout.as_list(),
            "data": {"path": str(images.path), "identity": images.identity, "of": len(images)},
            **counted,
            "processes": world.size,
            "device": world.device.type,
            "versions": {package: version(package) for package in VERSIONS},
            "stretch": STRETCH,
            "files": hashes[table],
        }
        for file in FILES:
            sync_path(table / file)
        sync_path(table)
        write_atomically(table / "features.json", (json.dumps(about, indent=1) + "\n").encode())


def _stored(tables: Mapping[str, Path], world: World) -> dict[str, bool]:
    """Collective: which tables lie there, with the bytes that were committed.  Raises DataError for a damaged one."""
    said = from_first(world, lambda: {table: about for table in tables.values() if (about := _read_about(table)) is not None})
    found = hashes_of(list(said), world)
    for table, about in said.items():
        for file, hashes in about["files"].items():
            if found[table][file] != hashes:
                raise DataError(f"{table}/{file} is not what was written (sha256); delete {table}: it is made again")
    return {name: table in said for name, table in tables.items()}


def _read_about(table: Path) -> dict | None:
    """features.json; None where there is none.  Raises DataError for a damaged one."""
    try:
        return json.loads((table / "features.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{table}/features.json is damaged ({error}); delete {table}: it is made again") from error


def hashes_of(tables: Sequence[Path], world: World) -> dict[Path, dict[str, list[str]]]:
    """Collective: sha256, hexadecimal, of every STRETCH bytes of each file of these tables ([] of a missing or empty one).

    The stretches are dealt out to all processes, whose threads hash side by side: one after the other, 100 GB take minutes.
    """
    sizes = from_first(world, lambda: {table / file: _size_of(table / file) for table in tables for file in FILES})
    stretches = [(path, at, min(STRETCH, size - at)) for path, size in sizes.items() for at in range(0, size, STRETCH)]
    mine = stretches[world.rank :: world.size]
    found = from_all(world, together(world, lambda: _hash_stretches(mine, world)))
    by_path: dict[Path, list[str]] = {path: [] for path in sizes}
    for number, (path, *_) in enumerate(stretches):
        by_path[path].append(found[number % world.size][number // world.size])
    return {table: {file: by_path[table / file] for file in FILES} for table in tables}


def _hash_stretches(stretches: Sequence[tuple[Path, int, int]], world: World) -> list[str]:
    threads = max(1, min(HASHERS, usable_cores() // world.local_size))
    try:
        size, found = sum(size for *_, size in stretches), []
        with Progress("sha256 of feature tables", size, "MB", scale=1e-6) as bar, ThreadPoolExecutor(threads) as pool:
            for (*_, size), digest in zip(stretches, pool.map(lambda each: _hash_stretch(*each), stretches), strict=True):
                found.append(digest)
                bar.update(size)
            return found
    except OSError as error:
        raise of_this_rank(DataError(f"features cannot be read ({error}); check the disk of features.cache and try again")) from error


def _hash_stretch(path: Path, start: int, left: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (piece := file.read(min(HASHED, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(
    images: LabelledImages,
    samples: np.ndarray,
    extractors: Mapping[str, Extractor],
    made: Mapping[str, Extracted],
    config: FeatureConfig,
    world: World,
) -> None:
    rows = np.unique(np.linspace(0, len(samples) - 1, CHECKED_IMAGES).round().astype(np.int64))
    parts = np.array_split(rows, -(-len(rows) // CHECK_BATCH))
    with Progress("comparing features with fresh ones", len(extractors) * len(rows), "images") as bar:
        for name, extractor in extractors.items():
            crops = centre_crops(images, samples, extractor.spec, config)
            for batch in map(crops.batch, Parts(samples, parts)):
                fresh = extractor(batch["image"].to(world.device)).float().cpu()
                stored = made[name].features.values[batch["position"]]
                compare(name, stored, fresh, TOLERANCE[extractor.spec.precision], str(made[name].folder))
                bar.update(len(fresh))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One program at a time extracts to a folder."""
    make_folder(folder, "features.cache")
    with (folder / "lock").open("w") as lock:
        lock_folder(lock, BUSY.format(folder=folder), seconds=LOCK_SECONDS)
        yield
