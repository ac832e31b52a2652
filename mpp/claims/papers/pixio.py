"""Pixio (arXiv 2512.15715, tables 9 to 15)."""

from mpp.claims import masks, model
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import (
    FROM_ALL,
    adamw,
    blocks_cost,
    crops,
    dropped,
    encoder,
    first_loss,
    gigaflop,
    imagenet,
    normalised_pixels,
    schedule,
    xavier_start,
)

TABLES = "Pixio tables 9-15"


def method(patches: int, patch: int, unit: int, width: int, source: str, near: float) -> list[Claim]:
    """near: of the first loss, whose predictions are the more alike the fewer patches are seen."""
    values = 3 * patch**2
    return [
        *dropped(patches, patches // 4, f"{TABLES}: 75 %"),
        Claim("patches a side that are hidden together", unit, masks.unit, source),
        Claim("class tokens, registers", (8, 0), model.prefix, f"{TABLES}: 8 class tokens"),
        Claim("positions", "learned", model.position, "Pixio: as MAE, but learned"),
        Claim("tokens of the decoder", patches + 8, model.decoder_tokens, "Pixio: class tokens are fed in"),
        FROM_ALL,
        *normalised_pixels("Pixio: unbiased, eps 1e-6", patch),
        first_loss((values - 1) / values + xavier_start(width, values), "(n - 1) / n, and what a Xavier head adds", near=near),
    ]


CLAIMS = {
    "pixio_b16": [
        Claim("patches", 256, masks.patches, f"{TABLES}: 256 px, patch 16"),
        *method(256, 16, 4, 512, f"{TABLES}: 4 x 4 units at 256 px", 0.1),
        Claim("decoder: blocks, width, heads", (32, 512, 16), model.decoder_size, TABLES),
        *encoder("B"),
        gigaflop(256 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 72) + blocks_cost(32, 512, 264) + 192 * 512 * 768),
        Claim("rates of stochastic depth", (0.0, 0.4), model.drop_path, "Pixio: .4, linear, for its larger encoders"),
        *schedule("Pixio's ablations and ViT-H", batch=8192, total=642_000 * 8192, warmup=64_200 * 8192, peak=8e-4),
        *adamw("Pixio: none on 1-D parameters", (0.9, 0.95), 0.05, 0.0),
        *crops("Pixio: (.2, 1), no flip", 0.2, False),
        imagenet("MAE"),
    ],
    "cifar_pixio": method(64, 4, 2, 96, "Pixio's ablations: 2 x 2 units", 0.25),
}
