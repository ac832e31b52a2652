"""The images before there is a run: whether they are there, suffice, leave anything to predict, and come as fast as they are trained on."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mpp.base.errors import BadSample
from mpp.base.text import counted, sized
from mpp.checks.finding import Finding, amount
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import listed
from mpp.data.batch_plan import BatchPlan
from mpp.data.crop_dataset import CropDataset
from mpp.data.joined_shards import JoinedShards, Opened
from mpp.data.loader import fixed_batches
from mpp.data.mixed_order import MixedOrder
from mpp.data.order import Order, SampleOrder
from mpp.data.shards import ShardSet
from mpp.data.streams import Tar
from mpp.data.training_set import TrainingSet
from mpp.mains.loader_speed import alone, with_workers
from mpp.monitor.skill import fit_baseline
from mpp.recipe.baselines import ClassBaselines
from mpp.recipe.model import PretrainingModel
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import everywhere
from mpp.train.step import masked_images

LOOKED_AT, LOOK_SECONDS = 256, 8.0  # images that are looked at, at most, and for how long
LIGHTER = "make shards with --resize, or take data.views=2 or more"
NAMES_THEM = "python data_prep/verify_shards.py {} names them"
ONE_CLASS = 0.8  # share of all patches in one class, from which on a constant solves most of the task (judged)
FEW_STEPS = 4  # an epoch, below which a batch is a large part of the set (judged)
TIMED_SECONDS = 1.0  # of the loader, for each of its rates twice
TIMED_VIEWS = 64  # of a batch that is timed, at most: each loader process makes one before time counts


def shards(opened: Opened, peers_size: int) -> Finding:
    """Of a set that was opened, and so checked."""
    seen = f", seen by all {peers_size} processes" if peers_size > 1 else ""
    return Finding(
        "shards", "ok", f"{opened.path}: {counted(len(opened), 'image')} in {counted(len(opened.shard_bytes), 'shard')}, {sized(sum(opened.shard_bytes.tolist()))}, as the manifest says{seen}"
    )  # fmt: skip


def stream(tars: list[Tar]) -> Finding:
    """Of tars without an index, which are not opened to count them."""
    return Finding(
        "shards", "ok", f"{counted(len(tars), 'tar')} as a stream, from {tars[0].name} on; nothing says what they hold until they are read"
    )


def stream_samples(sets: TrainingSet, workers: int) -> Finding:
    """What is weaker than with an indexed set."""
    assert sets.stream is not None
    words = sets.stream.said.removeprefix("note: ")
    if shared := sets.stream.shared_words(workers):
        return Finding("samples", "warning", f"{words}; {shared.removeprefix('note: ')}", "give more tars, or lower system.workers")
    return Finding("samples", "ok", words)


def samples(order: Order, total: int, views: int = 1) -> Finding:
    """Enough for a step and for streams, as `Order` and `plan_batch` make sure of; and not too few.  total: of the run, so many views each."""
    passes = total / views / order.samples
    seen = f"{amount(passes)} passes"
    if isinstance(order, MixedOrder):
        each = order.passes(total // views)
        seen = f"passes by weight: {', '.join(f'{name} {amount(times)}' for name, times in zip(order.names, each, strict=True))}"
    found = f"{order.samples:,} training images, {counted(order.steps_per_epoch, 'step')} of {order.batch:,} an epoch in {counted(order.streams, 'stream')}, {seen}"
    if order.steps_per_epoch < FEW_STEPS:
        batch = max(1, order.samples // FEW_STEPS * views)
        return Finding(
            "samples", "warning", f"{found}: a step sees a large part of the set", f"take data.global_batch={batch} or less, or more images"
        )
    return Finding("samples", "ok", found)


def target(model: PretrainingModel, config: PretrainConfig, sets: TrainingSet) -> Finding:
    """What there is to predict on some hundred images: of classes their entropy and the share of the most frequent; of all what trivial rules know."""
    baselines, name = model.target.baselines, config.target.name
    if baselines is None:
        return Finding("target", "ok", f"{name}: made by a model, so there is nothing to count before training")
    cells: list[tuple[Tensor, Tensor]] = []
    bad, looked, began = 0, 0, time.monotonic()
    training, ids = sets.some_training(LOOKED_AT)
    with torch.no_grad():
        for batch, weight in fixed_batches(training, ids, batch=32):
            real = weight > 0
            images, *masks = (part[real] for part in masked_images(batch, torch.device("cpu")))
            cells.append((model.target(images, everywhere(Masks(*masks)), model.teacher), batch["kind"][real]))
            bad, looked = bad + len(batch["bad"]), looked + len(images)
            if time.monotonic() - began > LOOK_SECONDS:
                break
    baseline = fit_baseline(baselines, config.model.grid, lambda: cells, lambda: cells)
    found, one_class = f"{name}, on {counted(looked, 'image')}: ", False
    if isinstance(baselines, ClassBaselines):
        counts = torch.bincount(torch.cat([goals.flatten() for goals, _ in cells]), minlength=baselines.classes).double()
        shares = counts[counts > 0] / counts.sum()
        entropy, most = float(-(shares * shares.log2()).sum()), float(shares.max())
        found += (
            f"{len(shares):,} of {baselines.classes:,} classes, entropy {abs(entropy):.2f} of {math.log2(baselines.classes):.2f} bits, "
            f"{most:.0%} in the most frequent one; "
        )
        one_class = most > ONE_CLASS
    found += f"the best trivial rule is '{baseline.name}', loss {abs(baseline.loss or 0.0):.4f}"
    if bad:
        fix = "mend them, or leave their tars out" if sets.stream else NAMES_THEM.format(" and ".join(listed(config.data.shards)))
        return unreadable("target", bad, looked, fix)
    if not baseline.defines_skill:
        return Finding(
            "target", "FAILED", f"{found}: it leaves nothing to predict", "give images of more than one colour (python data_prep/inspect_shards.py shows them), or another target"
        )  # fmt: skip
    flat = [] if sets.stream else sets.remarks  # of a stream they say what it is
    if one_class or flat:
        why = f"{found}: nearly all patches are alike" if one_class else flat[0].removeprefix("note: ")
        return Finding(
            "target", "warning", why, "give images with more colours, or a target of structure, such as target.name=pixels or hog"
        )
    return Finding("target", "ok", found)


def unreadable(name: str, bad: int, looked: int, fix: str) -> Finding:
    return Finding(name, "FAILED", f"{bad} of {looked} images that were looked at cannot be read", fix)


@dataclass(frozen=True)
class LoaderRate:
    """Views a second."""

    core: float  # of one core
    rank: float  # that reach a training process
    workers: int


def loader_rate(dataset: CropDataset, order: SampleOrder, plan: BatchPlan, workers: int) -> LoaderRate:
    """All ranks of a machine at the same time, as in training.  Raises UserError."""
    views = max(plan.views, min(plan.micro_batch, TIMED_VIEWS) // plan.views * plan.views)
    timed = replace(plan, micro_batch=views)
    core = alone(dataset, order, timed, TIMED_SECONDS)
    return LoaderRate(core, with_workers(dataset, order, timed, TIMED_SECONDS, workers) if workers else core, workers)


def loader(rate: LoaderRate, step: float, lighter: str = LIGHTER) -> Finding:
    """step: views a second that a rank trains on.  lighter: by what an image takes less of a core, in words."""
    found = (
        f"{amount(rate.rank)} views/s reach a rank from {counted(rate.workers, 'loader process', 'loader processes')} ({amount(rate.core)} a core), "
        f"its step takes {amount(step)}"
    )
    if rate.rank < step:
        needed = math.ceil(step / rate.core)
        return Finding(
            "loader", "warning", f"{found}: training would wait {1 - rate.rank / step:.0%} of its time",
            f"give a rank {needed + 1} cores and leave system.workers null or {needed} (srun --cpus-per-task), or {lighter}",
        )  # fmt: skip
    return Finding("loader", "ok", found, figure=rate.rank / step)


def loader_of_a_node(core: float, step: float, per_node: int, cores: int, lighter: str = LIGHTER) -> Finding:
    """As `loader`, of machines that are not this one.  core, step: views a second, of a core here and of a GPU there."""
    needed = math.ceil(per_node * step / core) + per_node
    found = f"{amount(core)} views/s a core, measured here: {per_node} GPUs that take {amount(step)} each need {needed:,} cores a node, of {cores}"
    if needed > cores:
        return Finding("loader", "warning", found, f"{lighter}, or take system.decode=device, or more cores")
    return Finding("loader", "ok", found)


def unmeasured(where: str, training: CropDataset, local_size: int, free: Callable[[], int]) -> Finding:
    """Of images that are decoded once and stay in memory: whether that has room for them.  where: system.images.  free: bytes of RAM."""
    needed = 3 * pixels_of(training) * local_size
    found = f"system.images={where}: decoded images take {sized(needed)} of {sized(free())} free"
    if needed > 0.8 * free():
        return Finding("loader", "FAILED", found, "take system.images=shards, or make shards with --resize")
    return Finding("loader", "ok", f"{found}; no step waits for a disk")


def pixels_of(training: CropDataset) -> int:
    """Of all its images; where no index has their sizes, by those of some, evenly from the set, whose headers are read."""
    source, ids = training.pixels.source, training.ids
    if isinstance(source, ShardSet | JoinedShards):
        index = source.index[training.pool]
        return int((index["width"].astype(np.int64) * index["height"]).sum())
    some = list[int]()
    for sample in ids[np.linspace(0, len(ids) - 1, min(LOOKED_AT, len(ids))).astype(np.int64)].tolist():
        with suppress(BadSample):
            some.append(math.prod(source.size_of(sample)))
    return round(len(ids) * sum(some) / max(1, len(some)))
