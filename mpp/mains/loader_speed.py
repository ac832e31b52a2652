"""What mpp/loader_speed.py does: times the loader's own code on the samples of the first steps, in training order, stage by stage."""

import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mpp.base import text
from mpp.base.errors import BadSample, DataError
from mpp.base.machine import allow_open_files, usable_cores
from mpp.base.progress import Progress, tracked
from mpp.base.rng import CROP, MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.data.batch_plan import BatchPlan, plan_batch
from mpp.data.crop import decode_parts, jpeg_decoder, resize, turned
from mpp.data.crop_dataset import CropDataset
from mpp.data.decode import decode
from mpp.data.joined_shards import JoinedShards
from mpp.data.loader import batches, default_workers
from mpp.data.order import OrderSampler, SampleOrder
from mpp.data.shard_cache import caching
from mpp.data.shards import ShardSet
from mpp.data.streams import Stream, in_words
from mpp.data.training_set import open_training_set
from mpp.mains.settling import Again, settle_unmeasured
from mpp.recipe.masking import Masking

RATES = (500.0, 1000.0, 2000.0, 4000.0)  # views a second, of GPUs nobody has named
HELD = 1000  # images that are also decoded whole, at most
LOOKED_AT = 4096  # images, evenly from the set, whose medians stand for all
WAITING = 0.2  # share of a read's time beyond its CPU time from which on the disk is the limit


@dataclass
class Stage:
    """Seconds spent in one stage, as a context."""

    cpu: float = 0.0
    wall: float = 0.0

    def __enter__(self) -> None:
        self.cpu -= time.process_time()
        self.wall -= time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()


@dataclass
class Stages:
    read: Stage = field(default_factory=Stage)
    decode: Stage = field(default_factory=Stage)  # of what the crops need
    augment: Stage = field(default_factory=Stage)  # draws, resizing and masking
    decode_whole: Stage = field(default_factory=Stage)  # for comparison
    images: int = 0


def time_loader(asked: PretrainConfig, run_dir: Path, again: Again, seconds: float, wanted_rate: float | None) -> int:
    """asked, again: the config, and how to have it anew with what it leaves open; run_dir: of the run, which is not begun (mains/settling.py).  seconds: about how
    long each stage is timed.  wanted_rate: views a second that a GPU trains at, if it is known.  Raises UserError."""
    allow_open_files()
    torch.set_num_threads(1)  # as in a loader process
    caching.use(asked.system.cache, asked.system.cache_gb)
    config = settle_unmeasured(asked, again, run_dir)
    sets = open_training_set(config)
    plan = plan_batch(config.data.global_batch, config.data.streams, 1, config.system.micro_batch_max, config.data.views)
    order = sets.order(config, plan)
    dataset, views = sets.training, config.data.views
    workers = config.system.workers if config.system.workers is not None else default_workers(1)
    describe(dataset, config)

    stages = by_stage(dataset, sets.masking, order, plan, seconds, config.data.max_pixels)
    placed = sets.placed(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"), 1)
    rate = alone(placed, order, plan, seconds)
    timed = stages.images * views
    text.say()
    text.say(f"one core                 views/s   us/view   ({timed:,} views timed)")
    for name, stage in (("read", stages.read), ("decode", stages.decode), ("augment", stages.augment)):
        text.say(f"{name:24}{timed / stage.cpu:8,.0f}   {1e6 * stage.cpu / timed:7,.0f}")
    text.say(f"{'whole':24}{rate:8,.0f}   {1e6 / rate:7,.0f}   {placed.pixels.decoder}")
    text.say(
        f"{'decode, whole images':24}{timed / stages.decode_whole.cpu:8,.0f}   {1e6 * stages.decode_whole.cpu / timed:7,.0f}   for comparison"
    )
    if workers:
        together = with_workers(placed, order, plan, seconds, workers)
        text.say()
        text.say(
            f"{text.counted(workers, 'loader process', 'loader processes'):24}{together:8,.0f} views/s reach the trainer, {together / rate:.2f} x one core"
        )
        rate = min(rate, together / workers)  # handing over costs too
    text.say()
    text.say(f"cores for the loader of a GPU (of {usable_cores()} here):")
    for wanted in [wanted_rate] if wanted_rate else RATES:
        text.say(f"  {wanted:8,.0f} views/s   {text.counted(math.ceil(wanted / rate), 'core')}")
    text.say()
    text.say(f"limit: {limit(stages, config)}")
    return 0


def describe(dataset: CropDataset, config: PretrainConfig) -> None:
    source = dataset.pixels.source
    if isinstance(source, Stream):
        text.say(f"{in_words(source.words)}: {text.counted(len(source.tars), 'tar')} as a stream")
    else:
        assert isinstance(source, ShardSet | JoinedShards)  # so open_training_set made them
        index = source.index[dataset.spread(LOOKED_AT)]
        width, height, size = (np.median(index[name]) for name in ("width", "height", "size"))
        text.say(f"{source.path}: {len(dataset.pool):,} training samples, median {width:.0f}x{height:.0f} pixels, {size / 1000:.1f} kB")
    text.say(
        f"crops of {config.model.image_size} pixels, {text.counted(config.data.views, 'view')} of each image | JPEGs decoded by {jpeg_decoder()}"
    )


def sampler_of(dataset: CropDataset, order: SampleOrder, plan: BatchPlan) -> OrderSampler:
    """Of as many steps as are timed."""
    chosen = dataset.pool if isinstance(dataset.pool, np.ndarray) else None  # an order over these alone, as of fine-tuning
    return OrderSampler(order, plan, 0, 1, 0, 1_000_000, chosen)


def by_stage(dataset: CropDataset, masking: Masking, order: SampleOrder, plan: BatchPlan, seconds: float, max_pixels: int) -> Stages:
    """Each image through the loader's steps one by one, then decoded whole.  Raises DataError when none can be decoded."""
    shards, augment, stages, began = dataset.pixels.source, dataset.augment, Stages(), time.perf_counter()
    crops = dataset.views if dataset.differ_in == "crop" else 1
    timed, held = 0, deque[bytes](maxlen=HELD)  # images; bytes of the last ones
    for places in tracked(sampler_of(dataset, order, plan), "timing each stage", None, "micro-batches", at_once=True):
        with stages.read:
            keys = dataset.drawn(places)
        for epoch, sample, _ in keys:
            try:
                with stages.read:
                    data = shards.read(sample)
                width, height = shards.size_of(sample)  # of a stream from its header
                with stages.augment:
                    boxes = [augment.draw(Draws(dataset.seed, CROP, epoch, sample, view)).box(width, height) for view in range(crops)]
                with stages.decode:
                    parts, orientation = decode_parts(data, width, height, boxes, augment.size, max_pixels)
            except BadSample:
                continue
            with stages.augment:
                for part in parts:
                    turned(resize(part, augment.size), orientation)
            timed += 1
            held.append(data)
        with stages.augment:
            masking.draw_all([Draws(dataset.seed, MASK, epoch, sample, view) for epoch, sample, _ in keys for view in range(dataset.views)])
        if not timed:
            raise DataError(
                f"{shards.path}: none of the first {len(keys)} samples can be decoded; look at it with data_prep/verify_shards.py"
            )
        if time.perf_counter() - began > 3 * seconds:
            break
    stages.images = timed
    began, decoded = time.perf_counter(), 0
    with Progress("timing whole images", at_once=True) as bar:
        while decoded == 0 or (decoded < len(held) and time.perf_counter() - began < seconds):
            with stages.decode_whole:
                decode(held[decoded], max_pixels)
            decoded += 1
            bar.update()
    stages.decode_whole.cpu *= timed / decoded
    return stages


def alone(dataset: CropDataset, order: SampleOrder, plan: BatchPlan, seconds: float) -> float:
    """Views per CPU-second, as whole micro-batches in this process."""
    views, whole = 0, Stage()
    for keys in tracked(sampler_of(dataset, order, plan), "timing one core", None, "micro-batches", at_once=True):
        with whole:
            views += len(dataset.completed(dataset.batch(keys))["sample"])
        if whole.wall > seconds:
            break
    return views / whole.cpu


def with_workers(dataset: CropDataset, order: SampleOrder, plan: BatchPlan, seconds: float, workers: int) -> float:
    """Views a second that reach this process, after each worker's first batch."""
    stream = batches(dataset, sampler_of(dataset, order, plan), workers, pin_memory=False)
    with Progress(f"timing {text.counted(workers, 'loader process', 'loader processes')}", at_once=True):
        for _ in range(workers):
            next(stream)
        views, began = 0, time.perf_counter()
        while views == 0 or time.perf_counter() - began < 2 * seconds:
            views += len(next(stream)["sample"])
        return views / (time.perf_counter() - began)


def limit(stages: Stages, config: PretrainConfig) -> str:
    if config.system.images != "shards":
        return "cropping, masking and handing over, as the images lie decoded in memory"
    parts = {"read": stages.read, "decode": stages.decode, "augment": stages.augment}
    waited = stages.read.wall - stages.read.cpu
    if waited > WAITING * sum(stage.wall for stage in parts.values()):
        return f"the disk: of {stages.read.wall:.1f} s in reads {waited:.1f} s went by waiting; copy the shards to a faster one, or use more workers"
    slowest = max(parts, key=lambda name: parts[name].cpu)
    short_side = max(1, round(config.model.image_size * 256 / 224))
    remedy = {
        "read": f"reading and checking bytes, many for few pixels; shards made with --resize {short_side} hold fewer",
        "decode": f"decoding; shards made with --resize {short_side}, or data.views=2 or more, need less of it",
        "augment": "resizing and masking, which depends on the training size alone",
    }[slowest]
    return f"{remedy} ({parts[slowest].cpu / sum(stage.cpu for stage in parts.values()):.0%} of the time)"
