"""BEiT (arXiv 2106.08254, and the authors' command for ViT-B), with a codebook of one's own."""

import math

from mpp.claims import masks, model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import (
    OWN_TOKEN,
    adamw,
    blocks_cost,
    crops,
    encoder,
    epochs,
    first_loss,
    gigaflop,
    normalised,
    replaced,
    schedule,
)

CODE, HEAD = "BEiT's code", 0.02


def blocks(hidden: int, patches: int, source: str = "BEiT algorithm 1") -> list[Claim]:
    """What tells a block-wise mask from a random one, which has the share of hidden patches among a hidden one's neighbours, too."""
    return [
        Claim(
            "hidden among a hidden one's neighbours",
            0.85,
            masks.hidden_neighbours,
            f"{source}: blocks; by chance {hidden / patches:.2f}",
            within=0.1,
        )
    ]


def method(hidden: int, patches: int, width: int) -> list[Claim]:
    return [
        *replaced(hidden, "BEiT 2.3; its code: 75 of 196"),
        *blocks(hidden, patches),
        OWN_TOKEN,
        Claim("class tokens, registers", (1, 0), model.prefix, "BEiT 2.3"),
        Claim("numbers predicted for a patch", 8192, targets.outputs, "BEiT: 8192 tokens; ours as many as are fitted"),
        Claim("answers a patch asks for", 1, targets.goals_a_patch, "BEiT 2.3"),
        Claim("deviation of the head's first weights", HEAD, model.head_deviation, f"{CODE}: .02, cut off; not cut off ours", near=0.02),
        first_loss(math.log(8192) + width * HEAD**2 / 2, "uniform: ln 8192, and what the head adds", near=0.05),
    ]


CLAIMS = {
    "beit_b16": [
        *method(75, 196, 768),
        Claim("positions", "a shared relative bias", model.position, CODE, ours="learned", left_out="relative positions"),
        Claim("layer scale begins at", 0.1, model.layer_scale, "BEiT: .1"),
        Claim("rates of stochastic depth", (0.0, 0.1), model.drop_path, "BEiT: .1"),
        *encoder("B"),
        gigaflop(196 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 197) + 75 * 768 * 8192),
        *schedule("BEiT", batch=2048, total=epochs(800), warmup=epochs(10), peak=1.5e-3, end=1e-5, end_source=CODE),
        *adamw("BEiT; what decays ours", (0.9, 0.999), 0.05, 3.0),
        *crops(f"{CODE}: timm's range", 0.08, True),
        normalised("timm's beit_base_patch16_224", 0.5, 0.5),
    ],
    "cifar_beit": method(24, 64, 128),
}
