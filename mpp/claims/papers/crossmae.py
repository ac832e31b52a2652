"""CrossMAE (arXiv 2401.14391, and the authors' readme)."""

from mpp.claims import model
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import (
    FROM_ALL,
    adamw,
    blocks_cost,
    crops,
    cross_cost,
    dropped,
    encoder,
    epochs,
    first_loss,
    gigaflop,
    imagenet,
    normalised_pixels,
    schedule,
    xavier_start,
)


def method(patches: int, patch: int, maps: int, width: int) -> list[Claim]:
    """A quarter is seen, a quarter predicted."""
    values = 3 * patch**2
    return [
        *dropped(patches, patches // 4, "CrossMAE: 75 %, as MAE", predicted=patches // 4),
        Claim("tokens of the decoder", patches // 4, model.decoder_tokens, "CrossMAE: the predicted ones, a quarter of all"),
        Claim("its blocks read", f"learned sums of {maps} maps", model.memory, "CrossMAE: of every block, and the input"),
        FROM_ALL,
        *normalised_pixels("CrossMAE, as MAE", patch),
        first_loss((values - 1) / values + xavier_start(width, values), "(n - 1) / n, and what a Xavier head adds", near=0.1),
    ]


CLAIMS = {
    "crossmae_b16": [
        *method(196, 16, 13, 512),
        Claim("decoder: blocks, width, heads", (12, 512, 16), model.decoder_size, "CrossMAE"),
        Claim("positions", "fixed 2-D sine-cosine", model.position, "CrossMAE"),
        *encoder("B"),
        gigaflop(
            196 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 50) + cross_cost(12, 512, 49, 50, 768) + 49 * 512 * 768 + 12 * 13 * 50 * 768,
            near=0.02,
        ),
        *schedule("CrossMAE's readme", batch=4096, total=epochs(800), warmup=epochs(40), peak=2.4e-3),
        *adamw("CrossMAE's readme; betas MAE", (0.9, 0.95), 0.05, 0.0),
        *crops("MAE", 0.2, True),
        imagenet("MAE"),
    ],
    "cifar_crossmae": method(64, 4, 7, 96),
}
