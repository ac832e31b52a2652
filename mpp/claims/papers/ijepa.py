"""I-JEPA (arXiv 2301.08243, A.1, and the authors' configs), and SALT (arXiv 2509.24317), whose rows for images are laid out like it."""

from mpp.claims import masks, model, targets
from mpp.claims.claim import Claim
from mpp.claims.papers.shared import (
    DROPPED,
    FROM_ALL,
    adamw,
    blocks_cost,
    crops,
    ema,
    encoder,
    epochs,
    first_loss,
    gigaflop,
    imagenet,
    schedule,
    smooth_l1,
    xavier_start,
)
from mpp.claims.training import decay_at, decay_at_end, last_step_decay

A1, CODE, SALT, SEEN, BLOCK = "I-JEPA A.1", "I-JEPA's configs", "SALT, as I-JEPA A.1", 59, 34
ENCODER = 196 * 768 * 768 + blocks_cost(12, 768, 196)
STEPS = epochs(600) // 2048


def method(source: str, seen: int, block: int, width: int, predictor_width: int, class_tokens: int) -> list[Claim]:
    """What both have at every scale; seen: patches of the context; block: of a predicted block."""
    return [
        Claim("blocks predicted, patches in each", (4, block), masks.target_blocks, f"{source}: 4, of .15 to .2; size ours"),
        Claim("height / width of the blocks", (0.75, 1.5), masks.block_sides, f"{source}, and a row that is cut", within=0.36),
        Claim("patches that the encoder is given", seen, model.encoder_tokens, "ours: what 4 blocks that do not overlap leave"),
        Claim("the mask token enters the encoder", DROPPED, model.mask_token_enters, source),
        Claim("the loss covers", f"{4 * block} dropped", model.loss_covers, source),
        Claim("tokens of the predictor", class_tokens + seen + block, model.decoder_tokens, f"{source}: the context and one block"),
        FROM_ALL,
        Claim("goal", "last block's output under its final norm, layer-normed", targets.features, "I-JEPA's code"),
        Claim("the teacher sees", "all patches", targets.teacher_sees, "I-JEPA 3"),
        Claim("gradients of the goal", "none", targets.no_gradient, "I-JEPA 3"),
        Claim("loss where every value is off by 3", 2.5, targets.loss_of(3.0), "I-JEPA's code: smooth l1, beta 1", near=1e-4),
        Claim("loss where every value is off by .5", 0.125, targets.loss_of(0.5), "I-JEPA's code: smooth l1, beta 1", near=1e-4),
        first_loss(smooth_l1(1 + xavier_start(predictor_width, width), 1.0), "smooth l1 of normal errors", near=0.1),
    ]


def predictor(source: str) -> list[Claim]:
    """What both have at a paper's scale."""
    return [
        *method(source, SEEN, BLOCK, 768, 384, 0),
        Claim("predictor: blocks, width, heads", (6, 384, 12), model.decoder_size, f"{source}: for ViT-B"),
        Claim("class tokens, registers", (0, 0), model.prefix, CODE),
        Claim("positions", "fixed 2-D sine-cosine", model.position, "I-JEPA's code"),
        *encoder("B"),
        gigaflop(
            196 * 768 * 768 * 2 / 3
            + blocks_cost(12, 768, SEEN)
            + SEEN * 768 * 384
            + 4 * blocks_cost(6, 384, SEEN + BLOCK)
            + 4 * BLOCK * 384 * 768,
            once=ENCODER,
        ),
        *crops(CODE, 0.3, False),
        imagenet("I-JEPA's code"),
    ]


CLAIMS = {
    "ijepa_b16": [
        *predictor(A1),
        *schedule(f"{A1}; {CODE}", batch=2048, total=epochs(600), warmup=epochs(40), peak=1e-3, start=2e-4, end=1e-6),
        Claim("weight decay of the first step", 0.04, decay_at(0), A1),
        Claim("weight decay at half the run", 0.22, decay_at(epochs(300)), f"{A1}: on a cosine", near=1e-4),
        Claim("weight decay at the end", 0.4, decay_at_end, A1),
        *ema(f"{A1}: .996 to 1", [(1, 0.996), (STEPS // 2 + 1, 0.998)]),
        Claim("teacher keeps, last step", 1.0, last_step_decay, f"{A1}: .996 to 1", near=1e-6),
        *adamw("I-JEPA's code", (0.9, 0.999), 0.04, 0.0),
    ],
    "salt_b16": [
        *predictor(SALT),
        *schedule("ours: as I-JEPA", batch=2048, total=epochs(600), warmup=epochs(40), peak=1e-3, end=1e-6),
        *adamw("ours", (0.9, 0.999), 0.05, 0.0),
    ],
    "cifar_ijepa": method(A1, 19, 11, 128, 96, 1),
    "cifar_salt": method(SALT, 19, 11, 128, 96, 1),
}
