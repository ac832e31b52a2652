"""CAPI (arXiv 2502.08769, and the authors' config): its mask and predictor, on plain features and on clusters."""

import math

from mpp.claims import masks, model, targets, training
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import (
    FROM_ALL,
    adamw,
    blocks_cost,
    crops,
    cross_cost,
    dropped,
    ema,
    encoder,
    first_loss,
    gigaflop,
    imagenet,
    schedule,
    smooth_l1,
    xavier_start,
)

CONFIG, BATCH = "CAPI's config", 16384
NORMS, BIASES = "root-mean-square norms", "layers without bias"


def method(patches: int, visible: int, source: str) -> list[Claim]:
    """Mask and predictor, at every scale; 8 patches are predicted."""
    return [
        *dropped(patches, visible, f"{CONFIG}: 65 %", predicted=8),
        Claim("pieces of the visible part", 1, masks.visible_pieces, "CAPI 3.4: one block, inverse"),
        Claim("the visible block lies", "across the border, too", masks.rolled, "CAPI 3.4: rolled"),
        Claim("least hidden place, in the mean", 1.0, masks.evenness, "CAPI 3.4: rolled", within=0.25),
        Claim("tokens of the predictor", 8, model.decoder_tokens, source),
        Claim("its blocks read", "the encoder's last tokens", model.memory, "CAPI 3.1"),
        FROM_ALL,
        Claim("the teacher sees", "all patches", targets.teacher_sees, "CAPI 3.1"),
        Claim("gradients of the goal", "none", targets.no_gradient, "CAPI 3.3"),
    ]


def frame(outputs: int, clustering: float = 0.0) -> list[Claim]:
    """outputs: of the student's head; clustering: multiply-adds of the teacher's."""
    return [
        Claim("patches", 256, masks.patches, "CAPI: 224 px, patch 14"),
        *method(256, 90, "CAPI 3.4: 5 % of the hidden"),
        Claim("predictor: blocks, width, heads", (12, 1024, 16), model.decoder_size, CONFIG),
        Claim("class tokens, registers", (0, 16), model.prefix, CONFIG),
        Claim("positions", "rotary", model.position, CONFIG),
        Claim("norms", "RMSNorm", model.norm_kind, CONFIG, ours="LayerNorm", left_out=NORMS),
        Claim("rates of stochastic depth", (0.2, 0.2), model.drop_path, f"{CONFIG}: the same in all blocks"),
        *encoder("L"),
        gigaflop(
            256 * 588 * 1024 * 2 / 3 + blocks_cost(24, 1024, 106) + cross_cost(12, 1024, 8, 106, 1024) + 8 * 1024 * outputs,
            once=256 * 588 * 1024 + blocks_cost(24, 1024, 272) + 2 * clustering,  # its input has no gradient near=0.02,
        ),
        *schedule(
            CONFIG, batch=BATCH, total=500_000 * BATCH, warmup=50_000 * BATCH, peak=1e-3, cut=0.8, end_source=f"{CONFIG}: a cosine cut at 80 %"
        ),
        *ema("CAPI: 1 - learning rate", [(25_001, 1 - 5e-4), (50_001, 1 - 1e-3)]),
        *adamw(CONFIG, (0.9, 0.95), 0.1, 0.0, norms=0.01),
        Claim("rate of the patch embedding, in the rest's", 0.2, training.patch_embedding_rate, CONFIG),
        *crops(CONFIG, 0.6, True),
        imagenet(CONFIG),
    ]  # fmt: skip


def features(width: int, predictor_width: int, near: float) -> list[Claim]:
    return [
        Claim("goal", "last block's output under its final norm, layer-normed", targets.features, "ours, as I-JEPA"),
        Claim("loss where every value is off by 3", 2.5, targets.loss_of(3.0), "ours, as I-JEPA", near=1e-4),
        first_loss(smooth_l1(1 + xavier_start(predictor_width, width), 1.0), "smooth l1 of normal errors", near=near),
    ]


def clusters(count: int, source: str, predictor_width: int, decay: float, near: float) -> list[Claim]:
    head = 1 / (2 * predictor_width * 0.12**2)
    return [
        Claim("numbers predicted for a patch", count, targets.outputs, source),
        Claim("shares of a goal sum to", (1.0, 1.0), targets.shares, "CAPI 3.3: Sinkhorn", near=1e-4),
        Claim(
            "clusters: rate in the rest's, decay",
            (0.5, decay),
            training.clusters_rate_and_decay,
            "CAPI's code: half the rate, a tenth of the decay",
        ),
        first_loss(math.log(count) + head, f"uniform: ln {count}, and what the head adds", near=near),
    ]


OURS = "8 ours: of 42 hidden ones 5 % are 2"
CLAIMS = {
    "capi_l14": [*frame(1024), *features(1024, 1024, 0.1)],
    "capi_clusters_l14": [*frame(16384, clustering=256 * 1024 * 16384), *clusters(16384, f"{CONFIG}: 16384 clusters", 1024, 0.01, 0.005)],
    "cifar_capi": [*method(64, 22, OURS), *features(128, 96, 0.25)],
    "cifar_capi_clusters": [*method(64, 22, OURS), *clusters(512, "ours", 96, 0.005, 0.01)],
}
