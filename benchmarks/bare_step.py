"""How fast the bare training step is, beside a plain torch loop, transformers' models of the same sizes, and the limit of matrix products.

    python benchmarks/bare_step.py [--shapes mae_ti4 mpp_ti4] [--batches 64 128] [--sides engine loop] [--rounds 7] [--steps 4] [--out FILE]

Each side takes optimiser steps on the same synthetic batch, in one process, turn by turn: in every round each takes `--steps` of them, and beside them
the rate of large matrix products is measured.  Quoted are medians over rounds.  Sides:
    engine    what mpp/pretrain.py runs: the DeepSpeed engine, clipping, the finite check's sum left out
    loop      the same model, optimiser and clipping without DeepSpeed
    peer      transformers' ViTMAEForPreTraining or ViTForMaskedImageModeling, with the same optimiser and clipping
    ...+c     the same with torch.compile
    engine+g  the same with CUDA graphs (on a GPU)
    products  no step, but its matrix products (and attention and convolutions) one after the other, in their own shapes and layouts, of random numbers that
              lie in the caches: nothing else of a step is done
The limit (`floor`): an image's FLOP (mpp/monitor/arithmetic.py) by that rate.  `products` is the nearer one, as small products run more slowly than large
ones.  Prints a table; --out has it as JSON with versions and commit.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import synthetic_batch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from mpp.base.errors import run_program
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.batch_plan import plan_batch
from mpp.mains.pretrain import flop_of
from mpp.model.normalise import normalise
from mpp.monitor.arithmetic import FUSED, matrix_rate
from mpp.processes.world import World
from mpp.recipe.decoders.transformer import TransformerDecoder
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.engine import Engine, start_distributed
from mpp.train.optim import build_optimiser
from mpp.train.run_folder import environment
from mpp.train.step import masked_images

CONFIGS = Path(__file__).parents[1] / "configs"
TI4 = ["model.depth=12", "model.width=192", "model.heads=3"]
S16 = ["model.arch=vit_small_patch16_224", "decoder.depth=4", "decoder.width=256", "decoder.heads=8"]
SHAPES: dict[str, tuple[str, list[str], int]] = {  # config, words, batch
    "mae_ti4": ("cifar_mae", TI4, 64),
    "mae_s16": ("mae_b16", S16, 16),
    "mae_b16": ("mae_b16", [], 8),
    "mpp_ti4": ("cifar_mpp", TI4, 64),
    "mpp_b16": ("mpp_b16", [], 8),
    "mae_l16": ("mae_l16", [], 4),
    "mpp_l16": ("mpp_b16", ["model.arch=vit_large_patch16_224"], 4),
}
SHOWN = ("mae_ti4", "mae_s16", "mae_b16", "mpp_ti4")
SIDES = ("engine", "loop", "peer", "engine+c", "loop+c", "peer+c", "engine+g", "products")
RATE = 1e-4
CPU = torch.device("cpu")
Take = Callable[[], None]  # a step
# A side's `how`: as it is written (""), compiled ("c"), with CUDA graphs ("g").
Inputs = Callable[[], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]  # what a model is given, on the device


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the bare step of several shapes beside its peers and its limit.")
    parser.add_argument("--shapes", nargs="+", default=list(SHOWN), choices=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, help="of every shape, in place of its own")
    parser.add_argument("--sides", nargs="+", default=[side for side in SIDES if side != "engine+g"], choices=SIDES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args(argv)
    world = start_distributed()
    sizes = [(name, batch) for name in options.shapes for batch in options.batches or [SHAPES[name][2]]]
    found = {
        f"{name} x {batch}" if options.batches else name: measure(name, batch, options.sides, options.rounds, options.steps, world)
        for name, batch in sizes
    }
    print(f"{'shape':14}{'batch':>6}{'GFLOP':>8}{'floor':>9}" + "".join(f"{side:>11}" for side in options.sides) + "   images/s")
    for name, row in found.items():
        figures = "".join(f"{row['images_per_second'].get(side, float('nan')):11.2f}" for side in options.sides)
        print(f"{name:14}{row['batch']:6}{row['gflop']:8.3f}{row['floor']:9.2f}{figures}")
    if options.out:
        Path(options.out).write_text(json.dumps({"shapes": found, "environment": environment()}, indent=1) + "\n")
    return 0


def measure(name: str, batch: int, sides: Sequence[str], rounds: int, steps: int, world: World) -> dict[str, Any]:
    """Medians over rounds of images a second, and the limit."""
    config_name, words, _ = SHAPES[name]
    config = load(
        PretrainConfig, str(CONFIGS / f"{config_name}.yaml"), [*words, "data.shards=none", f"data.global_batch={batch}", "data.streams=1"]
    )
    masking = Masking(config.model.grid, config.mask, config.corruption)
    inputs = synthetic_batch(config, masking, batch)
    prepared = lambda: masked_images(inputs, world.device)
    fused = world.device.type == "cuda"
    flop = flop_of(build_model(config, fused), config, masking, CPU)
    makers = {"engine": engine_side, "loop": loop_side, "peer": peer_side, "products": products_side}
    taken = {}
    for side in sides:
        try:
            take = makers[side.partition("+")[0]](config, prepared, world, side.partition("+")[2])
            take()
            take()  # what is compiled, allocated or cached at first is not timed
            taken[side] = take
        except torch.OutOfMemoryError as error:
            print(f"{name} x {batch}: {side} is left out: {str(error).partition('.')[0]}", flush=True)
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {side: [] for side in taken}
    rates = []
    for _ in range(rounds):
        for side, take in taken.items():
            began = time.perf_counter()
            for _ in range(steps):
                take()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            times[side].append((time.perf_counter() - began) / steps)
        rates.append(matrix_rate(world.device, torch.bfloat16))
    rate = float(np.median(rates))
    return {
        "config": config_name,
        "words": words,
        "batch": batch,
        "gflop": flop / 1e9,
        "matrix_gflops": rate / 1e9,
        "floor": rate / flop,
        "images_per_second": {side: batch / float(np.median(seconds)) for side, seconds in times.items()},
        "seconds": times,
    }


def engine_side(config: PretrainConfig, inputs: Inputs, world: World, how: str) -> Take:
    system = config.system.model_copy(update={"compile": bool(how), "cuda_graphs": how == "g"})
    model = build_model(config, world.device.type == "cuda").to(world.device)
    plan = plan_batch(config.data.global_batch, 1, 1, config.data.global_batch)
    engine = Engine(model, build_optimiser(model, config.optim), plan, world, system, config.optim.clip_norm)

    def take() -> None:
        _, loss, *_ = engine.forward(*inputs())
        engine.backward(loss.mean())
        engine.update(RATE)

    return take


def loop_side(config: PretrainConfig, inputs: Inputs, world: World, how: str) -> Take:
    model = build_model(config, world.device.type == "cuda").to(world.device)
    return plain(model, lambda: model(*inputs())[1].mean(), config, world, how)


def peer_side(config: PretrainConfig, inputs: Inputs, world: World, how: str) -> Take:
    model = peer_of(config, world.device)
    seen = lambda images: normalise(images, config.data.mean, config.data.std)
    if isinstance(config.decoder, TransformerDecoder):
        loss = lambda: model(seen(inputs()[0])).loss
    else:

        def loss() -> Tensor:
            images, kind, *_ = inputs()
            return model(seen(images), bool_masked_pos=kind > 0).loss

    return plain(model, loss, config, world, how)


def peer_of(config: PretrainConfig, device: torch.device) -> Any:
    """transformers' model of the same sizes."""
    from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

    encoder: Any = build_model(config).encoder  # for its sizes
    sizes: dict[str, Any] = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.vit.blocks[0].attn.num_heads,
        "intermediate_size": 4 * encoder.width,
        "image_size": config.model.image_size,
        "patch_size": config.model.patch_size,
        "attn_implementation": "sdpa" if device.type == "cuda" else "eager",  # the faster one there
        "layer_norm_eps": 1e-6,
    }
    decoder = config.decoder
    if not isinstance(decoder, TransformerDecoder):
        return ViTForMaskedImageModeling(ViTConfig(**sizes, encoder_stride=config.model.patch_size)).to(device)
    of_decoder: dict[str, Any] = {
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
    }
    return ViTMAEForPreTraining(ViTMAEConfig(**sizes, **of_decoder, mask_ratio=0.75, norm_pix_loss=True)).to(device)


class Calls(TorchDispatchMode):
    """Notes each call of what FLOP are counted of, forward and backward, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple[Any, ...] = (), words: dict[str, Any] | None = None) -> Any:
        if function.overloadpacket in flop_registry or function.overloadpacket in FUSED:
            self.made.append((function, arguments, words or {}))
        return function(*arguments, **(words or {}))


def products_side(config: PretrainConfig, inputs: Inputs, world: World, how: str) -> Take:
    model = build_model(config, world.device.type == "cuda").to(world.device)
    with Calls() as calls, torch.autocast(world.device.type, torch.bfloat16):
        model(*inputs())[1].mean().backward()
    made: dict[tuple[Any, ...], Tensor] = {}

    def like(value: Any) -> Any:
        """Random numbers in its layout, the same ones for every tensor of that layout."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        layout = (value.shape, value.stride(), value.dtype)
        if layout not in made:
            made[layout] = torch.empty_strided(*layout[:2], dtype=value.dtype, device=value.device).normal_()
        return made[layout]

    replayed = [(function, tree_map(like, arguments), tree_map(like, words)) for function, arguments, words in calls.made]

    @torch.no_grad()
    def take() -> None:
        for function, arguments, words in replayed:
            function(*arguments, **words)

    return take


def plain(model: nn.Module, loss: Callable[[], Tensor], config: PretrainConfig, world: World, how: str) -> Take:
    """Steps of a plain torch loop, of what the engine does: autocast, clipping by the global norm, fused AdamW."""
    model.train()
    if how:
        model.compile()
    optimiser = build_optimiser(model, config.optim)
    for group in optimiser.param_groups:
        group["lr"] = RATE

    def take() -> None:
        with torch.autocast(world.device.type, torch.bfloat16):
            found = loss()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return take


if __name__ == "__main__":
    run_program(main)
