"""mpp's own loader, from the local disk or from a store through its node's cache.  Interface in store_child.py.

The order is shuffled within blocks of 1024.  Of a store, its keeper fetches shards whole into the cache and compares their sha256.  Masks and a CRC-32 of every image are included, as in loader_mpp.py.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from loader_child import CROP
from store_child import SHUFFLED, StoredSet, main

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.data.loader import batches
from mpp.data.order import OrderSampler
from mpp.data.shard_cache import caching
from mpp.data.training_set import open_training_set

CONFIG = Path(__file__).parents[2] / "configs" / "mpp_b16.yaml"
CACHE_GB = 50


def stream(stored: StoredSet, workers: int, epochs: int, first_batch: int, block: int = SHUFFLED) -> Iterator[torch.Tensor]:
    where = [f"data.shards={stored.served / 'mpp'}"]
    if stored.endpoint:
        where = [f"data.shards=s3://{stored.bucket}/mpp", f"system.cache={stored.cache}", f"system.cache_gb={CACHE_GB}"]
    words = [
        *where, "data.holdout_samples=1", f"data.global_batch={stored.batch}", "data.streams=1", f"data.block={block}",
        f"system.micro_batch_max={stored.batch}", f"model.image_size={stored.side}", "model.patch_size=16",
    ]  # fmt: skip
    config = load(PretrainConfig, CONFIG, words)
    assert (config.data.crop_scale, config.data.crop_ratio) == (CROP["scale"], CROP["ratio"])
    caching.use(config.system.cache, config.system.cache_gb)
    sets = open_training_set(config)
    plan = plan_batch(config.data.global_batch, config.data.streams, 1, config.system.micro_batch_max)
    order = sets.order(config, plan)
    sampler = OrderSampler(order, plan, 0, 1, first_batch, epochs * order.steps_per_epoch)
    hand = sets.trained_on.in_hand(order, 1, 1)
    for batch in batches(sets.training, sampler, workers, pin_memory=False, hand=hand.bytes if hand else 0):
        yield batch["image"]


if __name__ == "__main__":
    main(["mpp", "torch", "pillow"], stream, resumes=True)
