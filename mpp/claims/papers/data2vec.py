"""data2vec for images (arXiv 2202.03555, and the authors' command for ViT-B)."""

from mpp.claims import model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers import beit
from mpp.claims.papers.shared import (
    OWN_TOKEN,
    adamw,
    blocks_cost,
    crops,
    ema,
    encoder,
    epochs,
    first_loss,
    gigaflop,
    imagenet,
    replaced,
    schedule,
    smooth_l1,
)
from mpp.claims.training import teacher_decay

COMMAND, HEAD = "the authors' command", 0.02


def method(hidden: int, patches: int, width: int, blocks: int, source: str) -> list[Claim]:
    """blocks: of the teacher, whose mean is the goal."""
    return [
        *replaced(hidden, "data2vec 4.1: 60 %; its code 120 of 196"),
        *beit.blocks(hidden, patches, "data2vec 4.1, as BEiT"),
        OWN_TOKEN,
        Claim("goal", f"mean of the last {blocks} blocks' outputs, each layer-normed, layer-normed", targets.features, source),
        Claim("the teacher sees", "all patches", targets.teacher_sees, "data2vec 3.2"),
        Claim("gradients of the goal", "none", targets.no_gradient, "data2vec 3.2"),
        Claim("loss where every value is off by 3", 2.0, targets.loss_of(3.0), "data2vec 3.4: smooth l1, beta 2", near=1e-4),
        Claim("loss where every value is off by .5", 0.0625, targets.loss_of(0.5), "data2vec 3.4: smooth l1, beta 2", near=1e-4),
        Claim(
            "deviation of the head's first weights",
            HEAD,
            model.head_deviation,
            "the authors' code: .02, cut off; not cut off ours",
            near=0.02,
        ),
        first_loss(smooth_l1(1 + width * HEAD**2, 2.0), "smooth l1 of normal errors", near=0.1),
    ]


CLAIMS = {
    "data2vec_b16": [
        *method(120, 196, 768, 6, "data2vec 3.3; the authors' code"),
        Claim("positions", "a shared relative bias", model.position, COMMAND, ours="learned", left_out="relative positions"),
        Claim("layer scale begins at", 1e-4, model.layer_scale, COMMAND),
        Claim("rates of stochastic depth", (0.0, 0.25), model.drop_path, COMMAND),
        Claim(
            "teacher keeps, step 1", 0.999, teacher_decay(1), "data2vec: .999 to .9998", near=2e-7, ours=0.9998,
            because="the authors' command for ViT-B has .9998 from the first step",
        ),
        *ema("data2vec: .9998", [(500_000, 0.9998)]),
        *encoder("B"),
        gigaflop(196 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 197) + 120 * 768 * 768, once=196 * 768 * 768 + blocks_cost(12, 768, 197)),
        *schedule("data2vec 4.1", batch=2048, total=epochs(800), warmup=epochs(10), peak=2e-3, end=1e-5, end_source="the authors' code"),
        *adamw("data2vec 4.1; what decays ours", (0.9, 0.999), 0.05, 3.0),
        *crops("the authors' code: timm's range", 0.08, True),
        imagenet("data2vec"),
    ],
    "cifar_data2vec": method(38, 64, 128, 3, "data2vec 3.3: half of the blocks"),
}  # fmt: skip
