"""Masked patch prediction of the Vision Transformer paper (arXiv 2010.11929, 4.6 and B.1.2)."""

import math

from mpp.claims import masks, model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers import beit
from mpp.claims.papers.shared import OWN_TOKEN, adamw, blocks_cost, crops, encoder, first_loss, gigaflop, normalised, replaced, schedule

B12 = "ViT B.1.2"


def corrupted(hidden: int, kinds: tuple[int, int, int]) -> list[Claim]:
    return [
        *replaced(hidden, f"{B12}: 50 %, of it 80 / 10 / 10 %", kinds),
        Claim(
            "a swapped patch shows",
            "any other place of the image, equally often",
            masks.swapped_from,
            f"{B12}: a random other patch; scope ours",
        ),
        OWN_TOKEN,
        Claim("class tokens, registers", (1, 0), model.prefix, "ViT 3.1"),
        Claim("positions", "learned", model.position, "ViT 3.1"),
        Claim("deviation of the head's first weights", 0.0, model.head_deviation, "ViT code: heads begin at zeros"),
    ]


def paper(hidden: int, kinds: tuple[int, int, int], outputs: int) -> list[Claim]:
    return [
        Claim("patches", 196, masks.patches, "ViT 3.1: 224 / 16"),
        *corrupted(hidden, kinds),
        *encoder("B"),
        gigaflop(196 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 197) + hidden * 768 * outputs),
        *schedule(B12, batch=4096, total=4096 * 10**6, warmup=4096 * 10**4, peak=2e-4),
        *adamw(f"{B12}: Adam; decay, clipping ours", (0.9, 0.999), 0.05, 1.0),
        *crops(f"{B12}: inception crop; range ours", 0.05, True),
        normalised("ViT code", 0.5, 0.5),
    ]


OF_ITS_OWN = Claim("a goal depends on", "its own patch", targets.looks_at, B12)
MEAN_COLOUR = [
    OF_ITS_OWN,
    Claim("numbers predicted for a patch", 512, targets.outputs, f"{B12} (1): 3 bits a channel"),
    Claim("answers a patch asks for", 1, targets.goals_a_patch, f"{B12} (1)"),
    Claim("class of the colour 200, 30, 100", [6 * 64 + 0 * 8 + 3], targets.class_of((200.0, 30.0, 100.0)), f"{B12} (1); bins ours"),
    Claim(
        "class of half black, half white",
        [3 * 64 + 3 * 8 + 3],
        targets.class_of((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
        f"{B12} (1): the mean",
    ),
    first_loss(math.log(512), "uniform: ln 512"),
]
GRID = [
    OF_ITS_OWN,
    Claim("numbers predicted for a patch", 16 * 512, targets.outputs, f"{B12} (2)"),
    Claim("answers a patch asks for", 16, targets.goals_a_patch, f"{B12} (2): 4 x 4 in parallel"),
    Claim("class of the colour 200, 30, 100", [387], targets.class_of((200.0, 30.0, 100.0)), f"{B12} (2); bins ours"),
    Claim("classes of half black, half white", [0, 511], targets.class_of((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)), f"{B12} (2)"),
    first_loss(math.log(512), "uniform: ln 512"),
]


def pixels(values: int, white: float = 1.0) -> list[Claim]:
    return [
        OF_ITS_OWN,
        Claim("numbers predicted for a patch", values, targets.outputs, f"{B12} (3)"),
        Claim("goal of a white patch", white, targets.of_white, "ours: as the encoder sees it", near=1e-5),
        Claim("loss where every value is off by 3", 9.0, targets.loss_of(3.0), f"{B12} (3): L2", near=1e-4),
        Claim("loss of the first step, in the mean square", 1.0, model.initial_over_zero, "a head of zeros", near=1e-5),
    ]


HALF, KINDS = 98, (78, 10, 10)
CLAIMS = {
    "mpp_b16": [*paper(HALF, KINDS, 512), *MEAN_COLOUR],
    "mpp_grid_b16": [*paper(HALF, KINDS, 16 * 512), *GRID],
    "mpp_l2_b16": [*paper(HALF, KINDS, 768), *pixels(768)],
    "mpp_block_b16": [*paper(75, (60, 8, 7), 512), *beit.blocks(75, 196), *MEAN_COLOUR],
    "cifar_mpp": [*corrupted(32, (26, 3, 3)), *MEAN_COLOUR],
    "cifar_grid": [*corrupted(32, (26, 3, 3)), *GRID],
    "cifar_l2": [*corrupted(32, (26, 3, 3)), *pixels(48, 1 / 0.247 - 0.491 / 0.247)],
}
