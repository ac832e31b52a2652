"""What a probing is asked for: its encoder and baselines, its images and who sees which, and every refusal that needs no image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpp.base import text
from mpp.base.errors import ConfigError, of_this_rank
from mpp.base.machine import allow_open_files, free_memory
from mpp.base.rng import INIT, seed_of
from mpp.base.text import sized
from mpp.config.probe import ProbeConfig
from mpp.config.schema import flat
from mpp.data.labelled import LabelledImages, check_splits, is_array, open_labelled
from mpp.data.shard_cache import caching
from mpp.disk.files import make_folder
from mpp.interop.loaded_encoder import LoadedEncoder, digest_of
from mpp.interop.read_encoder import read_encoder
from mpp.processes.agreement import agree, agree_on_weights
from mpp.processes.peers import Peers, meet
from mpp.processes.world import World, join_processes, together
from mpp.transfer.extraction import Extracted, extract
from mpp.transfer.extractors import PixelExtractor
from mpp.transfer.ledger import Reads
from mpp.transfer.overlap import Overlap
from mpp.transfer.probes.divided import DividedProbe
from mpp.transfer.results import RESULTS, find_results
from mpp.transfer.rows import Line, Row, encoder_row
from mpp.transfer.split import CHOOSE, REPORT, Split, hold_out, subset
from mpp.transfer.table import PIXELS, PRETRAINED, RANDOM

PROGRAM = "mpp/linear_probe.py"  # as command lines are noted
TOLD_MEMORY = 1e9  # bytes from which on it is said what a probe takes


@dataclass(frozen=True)
class Division:
    """Who sees which images: rows of the features of train."""

    samples: np.ndarray  # int64 [n], ids of train: the images used
    pool: np.ndarray  # int64: rows that may be looked at before everything is chosen
    reported: np.ndarray  # int64: rows that figures are on (none with a test split)
    splits: list[Split]  # of the pool, one a repeat; none for the rank alone

    def __str__(self) -> str:
        return f"{len(self.splits[0].both):,} labels" + (f", drawn {len(self.splits)} times" if len(self.splits) > 1 else "")


@dataclass
class Probing:
    """What is measured on what, and by whom."""

    config: ProbeConfig
    words: Sequence[str]  # the command line
    out: Path
    cache: Path
    world: World
    loaded: LoadedEncoder
    train: LabelledImages
    test: LabelledImages | None
    division: Division
    rows: dict[str, Row]  # by name, in order
    lines: dict[str, Line] = field(default_factory=dict)  # of the table, in order, once figures are known
    about: dict[str, Any] = field(default_factory=dict)  # for results.json
    reads: Reads | None = None  # of the test split
    overlap: Overlap | None = None  # in rank 0: which of the images that figures are on have been seen before

    @property
    def samples(self) -> np.ndarray:
        return self.division.samples

    @property
    def labels(self) -> np.ndarray:
        """integers [n]."""
        return self.train.labels[self.samples]

    def extract(self, images: LabelledImages, samples: np.ndarray) -> dict[str, Extracted]:
        """Collective: by row, each image once, over all processes."""
        extractors = {name: row.extractor for name, row in self.rows.items()}
        return extract(images, samples, extractors, self.config.features, self.cache, self.world)

    def say(self, line: str) -> None:
        if self.world.first:
            text.say(line)


@dataclass
class Reported:
    """The images that figures are on."""

    images: LabelledImages
    samples: np.ndarray  # int64, ids: a row of the tables each
    rows: np.ndarray  # int64 [m]: those that count
    tables: dict[str, Extracted]

    @property
    def ids(self) -> np.ndarray:
        return self.samples[self.rows]

    @property
    def truth(self) -> torch.Tensor:
        """int64 [m]."""
        return torch.from_numpy(self.images.labels[self.ids].astype(np.int64))


def prepare(config: ProbeConfig, words: Sequence[str]) -> Probing:
    out = Path(config.out) if config.out else default_out(config.encoder, config.train)
    caching.use(config.shard_cache, config.shard_cache_gb)
    peers = meet(config.patience_slow_seconds)
    agree(peers, PROGRAM, flat(config.model_dump(mode="json")))
    allow_open_files()
    loaded = read_encoder(config.encoder)
    beside = {source: read_encoder(source) for source in config.beside}
    agree_on_weights(peers, {"encoder": loaded.digest, **{f"beside.{source}": each.digest for source, each in beside.items()}})
    train, test = open_splits(config, peers)
    world = join_processes(config.patience_seconds, config.patience_slow_seconds, out, peers=peers)
    cache = Path(config.features.cache) if config.features.cache else out / "features"
    together(world, lambda: refuse_other_images(out, train, test) if world.first and config.out is None else None)
    together(world, lambda: make_folder(out, "out") if world.first else None)
    # Who sees which images, before any is looked at: what too few labels forbid is told now.
    division = divide(train.labels, train.classes, test is not None, config)
    job = Probing(config, words, out, cache, world, loaded, train, test, division, table_rows(config, loaded, beside, world))
    main_row = job.rows[PRETRAINED]
    job.say(f"encoder   {loaded.source} ({config.encoder}), {main_row.about['parameters']:,} parameters")
    job.say(f"features  {main_row.own} of {main_row.extractor.spec.resolution} px, {config.features.precision}, {world.device.type}")
    job.about |= {"train_images": len(job.samples), "repeats": config.repeats, "metric": config.metric, "class_weight": config.class_weight}
    return job


def open_splits(config: ProbeConfig, peers: Peers) -> tuple[LabelledImages, LabelledImages | None]:
    """Collective.  Raises DataError for what cannot be probed on."""
    train = open_labelled(config.train, "train", peers)
    test = open_labelled(config.test, "test", peers) if config.test and not config.rank_only else None
    if not config.rank_only:
        check_splits(train, test, "; without labels only the feature rank can be had: rank_only=true")
    return train, test


def table_rows(config: ProbeConfig, loaded: LoadedEncoder, beside: Mapping[str, LoadedEncoder], world: World) -> dict[str, Row]:
    """What the lines of the table are made of, in order: baselines, the encoder, those beside it."""
    row_of = lambda line, net, digest, predictor, found: encoder_row(
        line, net, digest, predictor, found, config.cached(), config.features, world
    )
    encoders = {PRETRAINED: loaded, **beside}
    rows = {name: row_of(name, found.net, found.digest, found.predictor, found) for name, found in encoders.items()}
    if not config.baselines:
        return rows
    spec = rows[PRETRAINED].extractor.spec
    pixels = PixelExtractor(spec.resolution, spec.crop, spec.mean, spec.std, config.features.pixel_side)
    about = {"feature_spec": pixels.spec.as_dict(), "features": str(pixels.variant), "parameters": 0}
    baselines = {PIXELS: Row(PIXELS, pixels, pixels.variant, about)}
    for seed in range(config.seed, config.seed + config.random_inits):
        fresh = loaded.fresh(seed_of(seed, INIT, 0)).eval()  # as a run with this seed starts
        predictor = loaded.predictor and loaded.predictor.fresh(seed_of(seed, INIT, 1))
        row = row_of(RANDOM, fresh, digest_of(fresh), predictor, loaded)
        row.about["source"] = f"random initialisation, seed {seed}"
        baselines[RANDOM if seed == config.seed else f"{RANDOM}, seed {seed}"] = row
    return baselines | rows


def divide(labels: np.ndarray, classes: Sequence[str], tested: bool, config: ProbeConfig) -> Division:
    """labels: integers, of all of train.  Raises DataError, naming the classes, where some have too few images.

    Each repeat draws its own train_samples of train and its own hold-out to choose on; figures are on the same images in all of them.
    """
    count, seeds = config.train_samples, range(config.seed, config.seed + config.repeats)
    first = subset(len(labels), min(config.rank_samples, count or len(labels)) if config.rank_only else count, config.seed)
    everything = np.arange(len(first))
    if config.rank_only:
        return Division(first, everything, np.arange(0), [])
    remedies = ["give more images of them"]
    if not tested:
        remedies.append("give a test split (test=), which saves one hold-out")
    if count is not None:
        remedies.append(f"raise train_samples={count}")
    remedy = ", ".join(remedies)
    kept, reported = everything, np.arange(0)
    if not tested:
        kept, reported = hold_out(labels[first], config.holdout_fraction, config.seed, REPORT, classes, remedy)
    free = np.setdiff1d(np.arange(len(labels)), first[reported])  # ids that a repeat may draw
    drawn = [first[kept], *(free[subset(len(free), len(kept), seed)] for seed in seeds[1:])]
    samples = np.unique(np.concatenate([*drawn, first[reported]]))
    left = "" if tested else " left, once those that figures are reported on are apart,"
    splits = []
    for ids, seed in zip(drawn, seeds, strict=True):
        fit, chosen_on = hold_out(labels[ids], config.holdout_fraction, seed, CHOOSE, classes, remedy, left)
        rows = np.searchsorted(samples, ids)
        splits.append(Split(rows[fit], rows[chosen_on]))
    reported = np.searchsorted(samples, first[reported])
    return Division(samples, np.setdiff1d(np.arange(len(samples)), reported), reported, splits)


def undone(job: Probing) -> list[str]:
    """What the probes have to say about these labels.  Raises DataError."""
    config, probes = job.config, (*job.config.cached(), *job.config.online())
    said = [probe.remark(job.labels[split.fit], job.train.classes) for split in job.division.splits for probe in probes]
    if config.class_weight and (unweighted := [probe.title for probe in probes if not probe.takes_weights]):
        said.append(f"class_weight={config.class_weight} means nothing to {', '.join(unweighted)}")
    return list(dict.fromkeys(filter(None, said)))


def memory_of(job: Probing) -> dict[str, tuple[int, str]]:
    """By probe: what fitting it takes in a process, of the row that takes most; bytes, and in words."""
    found = {}
    for probe in job.config.cached():
        each = []
        for row in job.rows.values():
            variants = [row.own] if row.backbone is None else probe.variants(row.own, row.backbone)
            widths = [len(row.extractor.layout.columns(variant)) for variant in variants]
            each.append(probe.memory(widths, len(job.train.classes), job.world.size))
        found[probe.key] = max(each)
    return found


def state_memory(job: Probing) -> None:
    """Collective: say what the probes take where that is much, before hours of extraction.  Raises ConfigError where it does not fit."""
    # All processes search for these at the same time.
    divided = [probe.key for probe in job.config.cached() if isinstance(probe, DividedProbe)]
    for key, (needed, words) in memory_of(job).items():
        beside = job.world.local_size if key in divided else min(job.world.local_size, len(job.rows) * len(job.division.splits))
        what, _, remedy = words.partition("; ")
        if needed >= TOLD_MEMORY:
            job.say(f"memory    {key}: {sized(needed)} a process: {what}")
        together(job.world, partial(_refuse_beyond, job, needed, beside, key, what, remedy))


def _refuse_beyond(job: Probing, needed: int, beside: int, key: str, what: str, remedy: str) -> None:
    """beside: processes of a machine that take so much at the same time."""
    device = job.world.device
    if device.type == "cuda":
        free, beside = torch.cuda.mem_get_info(device)[0], 1
    else:
        free = free_memory()
    if needed * beside > free:
        times = f" in each of {beside} processes of a machine" if beside > 1 else ""
        raise of_this_rank(
            ConfigError(f"{key}: {what} take {sized(needed)}{times}, and {sized(free)} of {device.type} memory are free; {remedy}")
        )


def default_out(encoder: str, train: str) -> Path:
    """RUN/transfer/DATA, for RUN itself and for RUN/encoder; for encoders that lie elsewhere runs/NAME/transfer/DATA."""
    data = train
    if not is_array(train):
        parts = Path(train).resolve().parts
        data = parts[-2] if parts[-1] in ("train", "val", "test") else parts[-1]
    return run_folder_of(encoder) / "transfer" / plain_name(data)


def run_folder_of(encoder: str) -> Path:
    """Where what is measured on it goes: RUN, for RUN itself and for RUN/encoder; for encoders that lie elsewhere runs/NAME."""
    path = Path(encoder)
    if path.is_dir():
        return path.parent if path.name == "encoder" else path
    return Path("runs") / plain_name(encoder)


def refuse_other_images(out: Path, train: LabelledImages, test: LabelledImages | None) -> None:
    """Raises ConfigError where `out`, not asked for, holds a probe of other data, whose folder has the same name: its figures would be lost."""
    if not (out / RESULTS).exists():
        return
    data = find_results([str(out / RESULTS)])[0].about.get("data") or {}
    for key, images in (("train", train), ("test", test)):
        before = data.get(key)
        if before and images is not None and before["identity"] != images.identity:
            raise ConfigError(
                f"out={out} holds figures of {key}={before['path']}, other images than {key}={images.path}; "
                "give out= another folder, or delete that one"
            )


def plain_name(words: str) -> str:
    return re.sub(r"[^\w.-]+", "-", words).strip("-.") or "data"
