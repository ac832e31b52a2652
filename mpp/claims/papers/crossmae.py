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

CLAIMS = {
    "crossmae_b16": [
        *dropped(196, 49, "CrossMAE: 75 %, as MAE", predicted=49),
        Claim("tokens of the decoder", 49, model.decoder_tokens, "CrossMAE: the predicted ones, a quarter of all"),
        Claim("decoder: blocks, width, heads", (12, 512, 16), model.decoder_size, "CrossMAE"),
        Claim("its blocks read", "learned sums of 13 maps", model.memory, "CrossMAE: of every block, and the input"),
        FROM_ALL,
        Claim("positions", "fixed 2-D sine-cosine", model.position, "CrossMAE"),
        *normalised_pixels("CrossMAE, as MAE", 16),
        first_loss(767 / 768 + xavier_start(512, 768), "(n - 1) / n, and what a Xavier head adds", near=0.1),
        *encoder("B"),
        gigaflop(
            196 * 768 * 768 * 2 / 3 + blocks_cost(12, 768, 50) + cross_cost(12, 512, 49, 50, 768) + 49 * 512 * 768 + 12 * 13 * 50 * 768,
            near=0.02,
        ),
        *schedule("CrossMAE's readme", batch=4096, total=epochs(800), warmup=epochs(40), peak=2.4e-3),
        *adamw("CrossMAE's readme; betas MAE", (0.9, 0.95), 0.05, 0.0),
        *crops("MAE", 0.2, True),
        imagenet("MAE"),
    ]
}
