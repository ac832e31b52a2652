"""mpp's own loader, as mpp/pretrain.py feeds it to the step, masks included.  Interface in loader_child.py.

Beside the pixels each batch has masks (half of the patches, the recipe of configs/mpp_b16.yaml), a pose for the device to do, sample ids and
a note of replaced samples; every image's CRC-32 is checked.  Of a JPEG only the part that the crop needs is decoded, by libjpeg-turbo.  It resumes
at any step by arithmetic.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from loader_child import CROP, ImageSet, main

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.data.loader import batches
from mpp.data.order import OrderSampler
from mpp.data.training_set import open_training_set

CONFIG = Path(__file__).parents[2] / "configs" / "mpp_b16.yaml"


def stream(images: ImageSet, workers: int, epochs: int, first_batch: int) -> Iterator[torch.Tensor]:
    patch = 16 if images.side == 224 else 4  # pixels a side
    words = [
        f"data.shards={images.folder / 'shards'}", "data.holdout_samples=1", f"data.global_batch={images.batch}",
        f"system.micro_batch_max={images.batch}", f"model.image_size={images.side}", f"model.patch_size={patch}",
    ]  # fmt: skip
    config = load(PretrainConfig, CONFIG, words)
    assert (config.data.crop_scale, config.data.crop_ratio) == (CROP["scale"], CROP["ratio"])
    sets = open_training_set(config)
    plan = plan_batch(config.data.global_batch, config.data.streams, 1, config.system.micro_batch_max)
    order = sets.order(config, plan)
    sampler = OrderSampler(order, plan, 0, 1, first_batch, epochs * order.steps_per_epoch)
    for batch in batches(sets.training, sampler, workers, pin_memory=False):
        yield batch["image"]


if __name__ == "__main__":
    main(["mpp", "torch", "pillow"], stream, resumes=True)
