"""Masked autoencoders (MAE, arXiv 2111.06377, and the authors' code)."""

from mpp.claims import masks, model
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import (
    FROM_ALL,
    adamw,
    crops,
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


def autoencoder(patches: int, visible: int, patch: int, width: int) -> list[Claim]:
    values = 3 * patch**2
    return [
        *dropped(patches, visible, "MAE 3, A.1: 75 %"),
        Claim("least hidden place, in the mean", 1.0, masks.evenness, "MAE 3: uniform", within=0.25),
        Claim("tokens of the decoder", patches + 1, model.decoder_tokens, "MAE 3: all, with mask tokens"),
        FROM_ALL,
        Claim("class tokens, registers", (1, 0), model.prefix, "MAE A.1"),
        *normalised_pixels("MAE 3; the authors' code", patch),
        first_loss((values - 1) / values + xavier_start(width, values), "(n - 1) / n, and what a Xavier head adds", near=0.1),
    ]


def paper(size: str, patch: int, patches: int, visible: int, gflop: float) -> list[Claim]:
    return [
        *autoencoder(patches, visible, patch, 512),
        Claim("positions", "fixed 2-D sine-cosine", model.position, "MAE A.1"),
        *encoder(size),
        Claim("decoder: blocks, width, heads", (8, 512, 16), model.decoder_size, "MAE A.1, table 1"),
        gigaflop(gflop * 1e9 / 6),
        *schedule("MAE table 8", batch=4096, total=epochs(800), warmup=epochs(40), peak=2.4e-3),
        *adamw("MAE table 8; what decays ours", (0.9, 0.95), 0.05, 0.0),
        *crops("MAE table 8; code: (.2, 1)", 0.2, True, "the authors' code"),
        Claim("rates of stochastic depth", (0.0, 0.0), model.drop_path, "MAE A.1: none"),
        imagenet("the authors' code"),
    ]


CLAIMS = {
    "mae_b16": paper("B", 16, 196, 49, 58.7),
    "mae_l16": paper("L", 16, 196, 49, 124.5),
    "mae_h14": paper("H", 14, 256, 64, 291),
    "cifar_mae": autoencoder(64, 16, 4, 96),
}
