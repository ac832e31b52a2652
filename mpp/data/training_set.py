"""Which samples a run trains on and which it holds out, opened and checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpp.config.pretrain import PretrainConfig
from mpp.data.augment import Augment
from mpp.data.crop_dataset import CropDataset
from mpp.data.decode import require_codecs
from mpp.data.joined_shards import JoinedShards, Opened, open_holdout, open_shards
from mpp.data.mixed_order import MixedOrder, exact_weights
from mpp.data.order import BatchPlan, Order
from mpp.data.pixels import StoredPixels
from mpp.data.placement import placed
from mpp.data.shards import ShardSet, flat_channels
from mpp.errors import ConfigError
from mpp.peers import ALONE, Peers
from mpp.recipe.masking import Masking


@dataclass(frozen=True)
class TrainingSet:
    training: CropDataset
    holdout: CropDataset
    samples_per_shard: tuple[int, ...]  # of those that are trained on
    masking: Masking
    manifests: dict[str, str]  # which shards -> sha256 of their manifest
    trained_on: Opened  # of which training.pool are the ids
    held_out: Opened  # of which holdout.pool are the ids: the same, or data.holdout_shards

    def order(self, config: PretrainConfig, plan: BatchPlan) -> Order:
        """Raises ConfigError for too few images."""
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

    def sources_words(self, config: PretrainConfig, order: Order) -> list[str]:
        """Of several sources, a line: how many images each has, its share, and how often a run sees them."""
        shards = self.trained_on
        if not isinstance(shards, JoinedShards):
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
        flat = flat_channels(self.trained_on.std)
        shared = self.trained_on.remarks if isinstance(self.trained_on, JoinedShards) else []
        return [*([f"note: {flat}"] if flat else []), *shared]

    def placed(self, config: PretrainConfig, device: torch.device, local_world: int) -> CropDataset:
        """The training images where system.images wants them.  local_world: processes of this machine, each with a copy of its own."""
        return placed(self.training, config.system, device, local_world)


def open_training_set(config: PretrainConfig, peers: Peers = ALONE) -> TrainingSet:
    """peers: who opens it together; collective.  Raises ConfigError and DataError for anything that cannot be trained on."""
    require_codecs()
    data = config.data
    shards = open_shards(data.shards, peers, 0 if data.holdout_shards else data.holdout_samples)
    holdout_shards = open_holdout(data.holdout_shards, peers, data.holdout_samples) if data.holdout_shards else shards
    if data.holdout_shards and (both := set(manifests_of("", shards).values()) & set(manifests_of("", holdout_shards).values())):
        which = [str(each.path) for each in sets_of(holdout_shards) if each.manifest_hash in both]
        raise ConfigError(
            f"data.holdout_shards={', '.join(which)} are the images that are trained on; leave it out to keep the last "
            f"{data.holdout_samples} of them apart, or give others"
        )
    if data.holdout_samples >= len(holdout_shards):
        raise ConfigError(
            f"data.holdout_samples={data.holdout_samples} must be fewer than the {len(holdout_shards)} samples of {holdout_shards.path}; lower it"
        )
    manifests = manifests_of("shards", shards) | (manifests_of("holdout_shards", holdout_shards) if data.holdout_shards else {})
    trained_on = without_last(shards.samples_per_shard, 0 if data.holdout_shards else data.holdout_samples)
    held_out = range(data.holdout_samples) if data.holdout_shards else range(sum(trained_on), len(shards))
    masking = Masking(config.model.grid, config.mask, config.corruption)
    if not masking.counts.masked:
        raise ConfigError(
            f"the corruption section masks none of the {masking.counts.hidden} hidden patches, on which skill is measured; raise corruption.mask"
        )
    augment = Augment(config.model.image_size, data.crop_scale, data.crop_ratio, data.flip, data.vertical_flip, data.turns)
    training, holdout = (
        CropDataset(StoredPixels(source, data.max_pixels), augment, config.seed, pool, data.views, data.views_differ_in, masking=masking)
        for source, pool in ((shards, range(sum(trained_on))), (holdout_shards, held_out))
    )
    return TrainingSet(training, holdout, trained_on, masking, manifests, shards, holdout_shards)


def sets_of(opened: Opened) -> tuple[ShardSet, ...]:
    return opened.sources if isinstance(opened, JoinedShards) else (opened,)


def manifests_of(key: str, opened: Opened) -> dict[str, str]:
    """sha256 of each set's manifest: of several first that of each, as KEY[0] and so on, then one over all, in their order."""
    each = {f"{key}[{number}]": source.manifest_hash for number, source in enumerate(sets_of(opened))}
    return (each if len(each) > 1 else {}) | {key: opened.manifest_hash}


def without_last(samples_per_shard: Sequence[int], holdout: int) -> tuple[int, ...]:
    """samples_per_shard without the last `holdout` samples of the set, which are then never trained on."""
    left = list(samples_per_shard)
    while holdout and left:
        taken = min(holdout, left[-1])
        left[-1] -= taken
        holdout -= taken
        if not left[-1]:
            left.pop()
    return tuple(left)
