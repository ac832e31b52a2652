"""Which samples a run trains on and which it holds out, opened and checked."""

import hashlib
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.data.augment import Augment
from mpp.data.batch_plan import BatchPlan
from mpp.data.crop_dataset import CropDataset
from mpp.data.decode import require_codecs
from mpp.data.images import Images
from mpp.data.in_hand import InHand
from mpp.data.joined_shards import JoinedShards, Opened, open_holdout, open_shards, within
from mpp.data.mixed_order import MixedOrder, exact_weights
from mpp.data.order import Order
from mpp.data.pixels import StoredPixels
from mpp.data.placement import placed
from mpp.data.shards import ShardSet, flat_channels
from mpp.data.streams import Kept, Stream, StreamDataset, StreamOrder, is_stream, open_stream, refuse_unsized
from mpp.processes.peers import ALONE, Peers
from mpp.recipe.masking import Masking


@dataclass(frozen=True)
class TrainingSet:
    training: CropDataset
    holdout: CropDataset
    samples_per_shard: np.ndarray  # int64, of those that are trained on; of a stream none is known
    masking: Masking
    manifests: dict[str, str]  # which shards -> sha256 of their manifest, or of what else they are known by
    trained_on: Opened | Stream  # of which training.pool are the ids
    held_out: Opened | Kept  # of which holdout.pool are the ids: the same, or data.holdout_shards

    def called(self, name: str) -> str:
        """What of `manifests` is meant, in messages."""
        return "the list of tars, or the hold-out, of data.shards" if name == "shards" and self.stream else f"the manifest of data.{name}"

    @property
    def stream(self) -> Stream | None:
        return self.trained_on if isinstance(self.trained_on, Stream) else None

    def order(self, config: PretrainConfig, plan: BatchPlan) -> Order | StreamOrder:
        """Raises ConfigError for too few images."""
        if self.stream:
            return StreamOrder(len(self.stream.tars), plan.samples)
        shards, weights, block = self.trained_on, config.data.weights, config.data.block
        if weights is None or not isinstance(shards, JoinedShards):
            return Order(self.samples_per_shard, plan.samples, plan.streams, config.seed, block)
        return MixedOrder(
            self.samples_per_shard,
            plan.samples,
            plan.streams,
            config.seed,
            block,
            shards=shards.shards_of_each,
            weights=exact_weights(weights),
            names=shards.names,
        )

    def sources_words(self, config: PretrainConfig, order: Order | StreamOrder) -> list[str]:
        """Of several sources, a line: how many images each has, its share, and how often a run sees them."""
        shards = self.trained_on
        if not isinstance(shards, JoinedShards) or isinstance(order, StreamOrder):
            return []
        samples = config.optim.total_samples / config.data.views
        last = [
            f"{len(source) - count:,} of {name}" for name, source, count in zip(shards.names, shards.sources, shards.trained, strict=True)
        ]
        held = f"held out: {', '.join(last)}" if self.held_out is shards else f"held out: of {self.held_out.path}"
        if isinstance(order, MixedOrder):
            passes = order.passes(config.optim.total_samples // config.data.views)
            each = [
                f"{name} {float(weight):.2%} of each step, its {count:,} seen {times:.1f} times"
                for name, weight, count, times in zip(shards.names, order.weights, shards.trained, passes, strict=True)
            ]
            return [f"sources by weight: {'; '.join(each)} | {held}"]
        each = [f"{name} {count:,} ({count / order.samples:.2%})" for name, count in zip(shards.names, shards.trained, strict=True)]
        return [f"sources by size: {', '.join(each)}; each image once an epoch, {samples / order.samples:.1f} times in all | {held}"]

    @property
    def remarks(self) -> list[str]:
        """What is unusual about the images that are trained on."""
        if isinstance(self.trained_on, Stream):
            return [self.trained_on.said]
        flat = flat_channels(self.trained_on.std)
        shared = self.trained_on.remarks if isinstance(self.trained_on, JoinedShards) else []
        return [*([f"note: {flat}"] if flat else []), *shared]

    def some_training(self, count: int) -> tuple[CropDataset, np.ndarray]:
        """Images that are trained on, to look at before training, and their ids: evenly from the set, or of a stream the first ones."""
        if self.stream:
            kept = self.stream.first_images(count)
            return replace(self.holdout, pixels=StoredPixels(kept, self.stream.max_pixels), pool=range(len(kept))), np.arange(len(kept))
        return self.training, self.training.spread(count)

    def in_hand(self, order: Order | StreamOrder, world: int, local_world: int) -> InHand | None:
        """What this machine reads from at a time, where it is fetched first.  local_world: of the `world` processes of the job, those of this machine."""
        if isinstance(self.trained_on, Stream) or isinstance(order, StreamOrder):
            return None
        return self.trained_on.in_hand(order, world, local_world)

    def fetched_words(self, hand: InHand | None) -> list[str]:
        """How far the cache is, for the start of a run."""
        return [] if hand is None or isinstance(self.trained_on, Stream) else [self.trained_on.fetched_words(hand)]

    def placed(self, config: PretrainConfig, device: torch.device, local_world: int, first_step: int = 0) -> CropDataset:
        """The training images where system.images wants them.  local_world: processes of this machine, each with a copy of its own.  first_step: of this
        start of the run, with which a stream begins anew."""
        if self.stream:
            self.stream.first_step = first_step
            return self.training
        return placed(self.training, config.system, device, local_world)


def open_training_set(config: PretrainConfig, peers: Peers = ALONE) -> TrainingSet:
    """peers: who opens it together; collective.  Raises ConfigError and DataError for anything that cannot be trained on."""
    require_codecs()
    data = config.data
    if is_stream(data.shards):
        return _open_stream_set(config, peers)
    shards = open_shards(data.shards, peers, 0 if data.holdout_shards else data.holdout_samples)
    holdout_shards = open_holdout(data.holdout_shards, peers, data.holdout_samples) if data.holdout_shards else shards
    if data.holdout_shards and (both := set(manifests_of("", shards).values()) & set(manifests_of("", holdout_shards).values())):
        which = [str(each.path) for each in sets_of(holdout_shards) if each.manifest_hash in both]
        raise ConfigError(
            f"data.holdout_shards={', '.join(which)} are the images that are trained on; leave it out to keep the last "
            f"{data.holdout_samples} of them apart, or give others"
        )
    _refuse_few(data.holdout_samples, holdout_shards)
    manifests = manifests_of("shards", shards) | (manifests_of("holdout_shards", holdout_shards) if data.holdout_shards else {})
    trained_on = without_last(shards.samples_per_shard, 0 if data.holdout_shards else data.holdout_samples)
    held_out = range(data.holdout_samples) if data.holdout_shards else range(int(trained_on.sum()), len(shards))
    masking = _masking(config)
    training = _crops(CropDataset, config, masking, shards, range(int(trained_on.sum())))
    holdout = _crops(CropDataset, config, masking, holdout_shards, held_out)
    return TrainingSet(training, holdout, trained_on, masking, manifests, shards, holdout_shards)


def _open_stream_set(config: PretrainConfig, peers: Peers) -> TrainingSet:
    data, system = config.data, config.system
    refuse_unsized(data.shards, {"fit": config.fit, "budget": config.budget, "optim.epochs": config.optim.epochs})
    for key, value, usual in (
        ("system.images", system.images, "shards"),
        ("system.decode", system.decode, "cpu"),
        ("data.block", data.block, None),
        ("data.weights", data.weights, None),
    ):
        if value != usual:
            raise ConfigError(
                f"{key}={value} is for a set of shards whose images can be read in any order, and data.shards is a stream; leave it out"
            )
    masking = _masking(config)
    holdout_shards = open_holdout(data.holdout_shards, peers, data.holdout_samples) if data.holdout_shards else None
    if holdout_shards:
        _refuse_few(data.holdout_samples, holdout_shards)
    apart = 0 if holdout_shards else data.holdout_samples
    stream, kept = open_stream(data.shards, config.seed, data.shuffle_buffer, data.max_pixels, apart, peers)
    held_out = holdout_shards or kept
    assert held_out is not None
    known = hashlib.sha256(f"{stream.identity} {kept.identity if kept else ''}".encode()).hexdigest()
    manifests = {"shards": known} | ({"holdout_shards": holdout_shards.manifest_hash} if holdout_shards else {})
    training = _crops(StreamDataset, config, masking, stream, range(0))
    holdout = _crops(CropDataset, config, masking, held_out, range(data.holdout_samples))
    return TrainingSet(training, holdout, np.empty(0, np.int64), masking, manifests, stream, held_out)


def _masking(config: PretrainConfig) -> Masking:
    masking = Masking(config.model.grid, config.mask, config.corruption)
    if not masking.counts.masked:
        raise ConfigError(
            f"the corruption section masks none of the {masking.counts.hidden} hidden patches, on which skill is measured; raise corruption.mask"
        )
    return masking


def _crops(kind: type[CropDataset], config: PretrainConfig, masking: Masking, source: Images | Stream, pool: range) -> CropDataset:
    data = config.data
    augment = Augment(config.model.image_size, data.crop_scale, data.crop_ratio, data.flip, data.vertical_flip, data.turns)
    pixels = StoredPixels(cast(Images, source), data.max_pixels)  # of which it asks size, place and bytes alone
    return kind(pixels, augment, config.seed, pool, data.views, data.views_differ_in, masking=masking)


def _refuse_few(holdout_samples: int, holdout_shards: Opened) -> None:
    if holdout_samples >= len(holdout_shards):
        raise ConfigError(
            f"data.holdout_samples={holdout_samples} must be fewer than the {len(holdout_shards)} samples of {holdout_shards.path}; lower it"
        )


def sets_of(opened: Opened) -> tuple[ShardSet, ...]:
    return opened.sources if isinstance(opened, JoinedShards) else (opened,)


def manifests_of(key: str, opened: Opened) -> dict[str, str]:
    """sha256 of each set's manifest: of several first that of each, as KEY[0] and so on, then one over all, in their order."""
    each = {f"{key}[{number}]": source.manifest_hash for number, source in enumerate(sets_of(opened))}
    return (each if len(each) > 1 else {}) | {key: opened.manifest_hash}


def without_last(samples_per_shard: np.ndarray, holdout: int) -> np.ndarray:
    """int64: samples_per_shard without the last `holdout` samples of the set, which are then never trained on."""
    return within(samples_per_shard, 0, int(np.sum(samples_per_shard)) - holdout)
