"""MaskFeat (arXiv 2112.09133, and the authors' config)."""

from mpp.claims import model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers import beit
from mpp.claims.papers.shared import (
    OWN_TOKEN,
    SIZES,
    adamw,
    blocks_cost,
    crops,
    encoder,
    epochs,
    first_loss,
    gigaflop,
    imagenet,
    replaced,
    schedule,
)

CONFIG, HEAD = "MaskFeat's config", 0.02


def method(hidden: int, patches: int, width: int, outputs: int, source: str) -> list[Claim]:
    return [
        *replaced(hidden, "MaskFeat 4.1: 40 %"),
        *beit.blocks(hidden, patches, "MaskFeat 3.1"),
        OWN_TOKEN,
        Claim("positions", "learned", model.position, "MaskFeat, as ViT"),
        Claim("a goal depends on", "its own patch, and the rims beside it", targets.looks_at, "MaskFeat 3.2: gradients of the image"),
        Claim("numbers predicted for a patch", outputs, targets.outputs, source),
        Claim(
            "ramps right, down: bin and value", (4, 1.0, 0, 1.0), targets.hog_of_ramp, "MaskFeat 3.2; bins as the authors' code", near=1e-4
        ),
        Claim("loss where every value is off by 3", 9.0, targets.loss_of(3.0), "MaskFeat 3.2: l2", near=1e-4),
        Claim("deviation of the head's first weights", HEAD, model.head_deviation, "the authors' code: .02", near=0.02),
        first_loss(1 / 9 + width * HEAD**2, "1 / bins, and what the head adds", near=0.25),
    ]


def paper(size: str) -> list[Claim]:
    blocks, width, *_ = SIZES[size]
    return [
        *method(78, 196, width, 108, "MaskFeat 3.2: 9 bins, 2 x 2 cells, RGB"),
        *encoder(size),
        gigaflop(196 * width * 768 * 2 / 3 + blocks_cost(blocks, width, 197) + 78 * width * 108),
        *schedule("MaskFeat A", batch=2048, total=epochs(300), warmup=epochs(30), peak=1.6e-3, end=1e-6, end_source=CONFIG),
        *adamw("MaskFeat A; what decays ours", (0.9, 0.999), 0.05, 0.02),
        *crops("MaskFeat A", 0.5, True),
        imagenet(CONFIG),
    ]


CLAIMS = {
    "maskfeat_b16": paper("B"),
    "maskfeat_l16": paper("L"),
    "cifar_maskfeat": method(26, 64, 128, 27, "MaskFeat 3.2: 9 bins, RGB; one cell ours"),
}
