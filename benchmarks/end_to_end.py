"""How fast MAE trains from JPEGs, beside transformers' and lightly's, fed by torchvision's ImageFolder, and timm's supervised step fed likewise.

    python benchmarks/end_to_end.py --images FOLDER --shards SHARDS [--shape mae_ti4] [--rounds 5] [--steps 12] [--out FILE]

FOLDER: class folders of JPEGs; SHARDS: what data_prep/make_shards.py makes of it.  Every side has the same crops (scale, flip, size), batch, precision,
clipping, optimiser and number of loader processes, and takes its steps in one process, turn by turn; the first steps of a turn are not timed, as their
batches were made while others trained.  compiled: by torch.compile, as mpp's runs of 10,000 steps and more are.  timm's side encodes every patch: other
arithmetic for other labels, of the same images.  Prints a table.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from bare_step import CONFIGS, SHAPES, peer_of, plain
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from mpp.base.errors import run_program
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.data.loader import batches, default_workers
from mpp.data.order import OrderSampler
from mpp.data.training_set import open_training_set
from mpp.monitor.arithmetic import matrix_rate
from mpp.processes.world import World
from mpp.recipe.decoders.transformer import TransformerDecoder
from mpp.recipe.model import build_model
from mpp.train.engine import Engine, start_distributed
from mpp.train.optim import build_optimiser
from mpp.train.run_folder import environment
from mpp.train.step import masked_images

UNTIMED = 4  # steps of a turn: as many batches as a loader process has ready
RATE = 1e-4
Take = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time training from JPEGs beside peers.")
    parser.add_argument("--images", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--shape", default="mae_ti4", choices=[name for name in SHAPES if name.startswith("mae")])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="timed ones of a turn")
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args(argv)
    world = start_distributed()
    name, words, batch = SHAPES[options.shape]
    config = load(
        PretrainConfig,
        str(CONFIGS / f"{name}.yaml"),
        [*words, f"data.shards={options.shards}", f"data.global_batch={batch}", "data.streams=1", "data.holdout_samples=8"],
    )
    workers = default_workers(1)
    sides = {
        "mpp": mpp_side(config, workers, world),
        "mpp, compiled": mpp_side(config, workers, world, "c"),
        "transformers, ImageFolder": peer_side(config, options.images, workers, world),
        "transformers, compiled, ImageFolder": peer_side(config, options.images, workers, world, "c"),
        "timm supervised, ImageFolder": supervised_side(config, options.images, workers, world),
    }
    if importlib.util.find_spec("lightly"):
        sides["lightly, ImageFolder"] = lightly_side(config, options.images, workers, world)
    else:
        print("lightly is not installed, so its MAE is left out (pip install --no-deps lightly)")
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, take in sides.items():
            for _ in range(UNTIMED):
                take()
            began = time.perf_counter()
            for _ in range(options.steps):
                take()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            times[side].append((time.perf_counter() - began) / options.steps)
    rates = {side: batch / float(np.median(seconds)) for side, seconds in times.items()}
    for side, rate in rates.items():
        print(f"{side:38}{rate:10.1f} images/s{rates['mpp'] / rate:8.2f}")
    if options.out:
        found = {
            "shape": options.shape, "batch": batch, "loader_processes": workers, "images": Path(options.images).name, "images_per_second": rates,
            "seconds": times, "matrix_gflops": matrix_rate(world.device, torch.bfloat16) / 1e9, "environment": environment(),
        }  # fmt: skip
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
    return 0


def mpp_side(config: PretrainConfig, workers: int, world: World, how: str = "") -> Take:
    plan = plan_batch(config.data.global_batch, config.data.streams, 1, config.data.global_batch)
    sets = open_training_set(config)
    sampler = OrderSampler(sets.order(config, plan), plan, 0, 1, 0, 10**6)
    stream = batches(sets.placed(config, world.device, 1), sampler, workers, world.device.type == "cuda")
    model = build_model(config, world.device.type == "cuda").to(world.device)
    system = config.system.model_copy(update={"compile": bool(how)})
    engine = Engine(model, build_optimiser(model, config.optim), plan, world, system, config.optim.clip_norm)

    def take() -> None:
        _, loss, *_ = engine.forward(*masked_images(next(stream), world.device))
        engine.backward(loss.mean())
        engine.update(RATE)

    return take


def folder_stream(config: PretrainConfig, images: str, workers: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What torchvision's own training examples do."""
    data, side = config.data, config.model.image_size
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, data.crop_scale, data.crop_ratio, transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    loader = DataLoader(
        datasets.ImageFolder(images, prepare), data.global_batch, shuffle=True, num_workers=workers, drop_last=True,
        pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        for batch, labels in loader:
            yield batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def peer_side(config: PretrainConfig, images: str, workers: int, world: World, how: str = "") -> Take:
    stream, model = folder_stream(config, images, workers, world.device), peer_of(config, world.device)
    return plain(model, lambda: model(next(stream)[0]).loss, config, world, how)


def lightly_side(config: PretrainConfig, images: str, workers: int, world: World) -> Take:
    """lightly's modules put together as its MAE is: mask, encode what is kept, decode all, predict what was hidden."""
    from lightly.models import utils  # type: ignore[import-not-found, unused-ignore]
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM  # type: ignore[import-not-found, unused-ignore]

    stream, encoder, asked = folder_stream(config, images, workers, world.device), build_model(config).encoder, config.decoder
    assert isinstance(asked, TransformerDecoder)
    patch = config.model.patch_size
    vit = timm.create_model(
        config.model.arch, img_size=config.model.image_size, patch_size=patch, embed_dim=encoder.width, depth=encoder.depth,
        num_heads=encoder.vit.blocks[0].attn.num_heads, num_classes=0,
    )  # fmt: skip
    backbone = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches, patch_size=patch, embed_dim=encoder.width, decoder_embed_dim=asked.width, decoder_depth=asked.depth,
        decoder_num_heads=asked.heads, mlp_ratio=4.0, proj_drop_rate=0.0, attn_drop_rate=0.0,
    )  # fmt: skip
    model = torch.nn.ModuleList([backbone, decoder]).to(world.device)

    def loss() -> torch.Tensor:
        pixels = next(stream)[0]
        size = (len(pixels), backbone.sequence_length)
        kept, hidden = utils.random_token_mask(size=size, mask_ratio=0.75, device=world.device)
        known = decoder.embed(backbone.encode(images=pixels, idx_keep=kept))
        everywhere = utils.set_at_index(utils.repeat_token(decoder.mask_token, size), kept, known.type_as(decoder.mask_token))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(everywhere), hidden))
        goal = utils.get_at_index(utils.patchify(pixels, patch), hidden - 1)  # the class token counts as a place
        return torch.nn.functional.mse_loss(predicted, goal)

    return plain(model, loss, config, world, "")


def supervised_side(config: PretrainConfig, images: str, workers: int, world: World) -> Take:
    stream, encoder = folder_stream(config, images, workers, world.device), build_model(config).encoder
    depth, heads = len(encoder.vit.blocks), encoder.vit.blocks[0].attn.num_heads
    model = timm.create_model(
        config.model.arch, img_size=config.model.image_size, patch_size=config.model.patch_size, embed_dim=encoder.width, depth=depth, num_heads=heads,
        num_classes=len([path for path in Path(images).iterdir() if path.is_dir()]),
    ).to(world.device)  # fmt: skip

    def loss() -> torch.Tensor:
        batch, labels = next(stream)
        return torch.nn.functional.cross_entropy(model(batch), labels)

    return plain(model, loss, config, world, "")


if __name__ == "__main__":
    run_program(main)
