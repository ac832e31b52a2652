"""Claims that several papers make alike, and the arithmetic that gives what a figure has to be.

IMAGENET epochs are turned into samples, as everything in mpp counts samples.  Letters: N patches, T tokens, D width, L blocks, M predicted patches.
"""

import math
from collections.abc import Sequence

from mpp.claims import masks, model, targets, training
from mpp.claims.claim import Claim
from mpp.claims.training import images

VIT, ARITHMETIC = "ViT table 1", "arithmetic from the paper's sizes"
SIZES = {"B": (12, 768, 12, 86e6), "L": (24, 1024, 16, 307e6), "H": (32, 1280, 16, 632e6)}  # blocks, width, heads, parameters (ViT table 1)
OWN_TOKEN = Claim("a prediction is made from", "the patch's own token", model.predicted_from, "a linear head on it")
FROM_ALL = Claim("a prediction is made from", "all tokens of the encoder", model.predicted_from, "attention")
BEFORE_POSITIONS = "in place of embeddings, before positions are added"
DROPPED = "nowhere: the encoder sees the visible patches alone"


def encoder(size: str, source: str = VIT) -> list[Claim]:
    blocks, width, heads, parameters = SIZES[size]
    return [
        Claim("encoder: blocks, width, heads", (blocks, width, heads), model.encoder_size, source),
        Claim("parameters of the encoder", parameters, model.encoder_parameters, source, near=0.02),
        Claim("of them decay in full: its matrices", 12 * blocks * width**2, training.decaying, ARITHMETIC, near=0.01),
    ]


def schedule(
    source: str,
    *,
    batch: int,
    total: int,
    warmup: int,
    peak: float,
    start: float = 0.0,
    end: float = 0.0,
    cut: float = 1.0,
    end_source: str = "",
) -> list[Claim]:
    """Linear warm-up, then half a cosine; total, warmup: samples; cut: the share of the half cosine that is gone through."""
    curve = lambda share: end + (peak - end) * (1 + math.cos(math.pi * cut * share)) / 2
    return [
        Claim("batch", batch, training.batch, source),
        Claim("epochs of ImageNet", total / training.IMAGENET, training.epochs, source, near=1e-3),
        Claim("peak learning rate", peak, training.peak, source),
        Claim("rate of the first step", start, training.rate_at(0), source),
        Claim("rate half-way through warm-up", (start + peak) / 2, training.rate_at(warmup // 2), source, near=1e-5),
        Claim("rate at the end of warm-up", peak, training.rate_at(warmup), source),
        Claim("rate half-way from there to the end", curve(0.5), training.rate_at((warmup + total) // 2), source, near=1e-4),
        Claim("rate at the end", curve(1.0), training.rate_at_end, end_source or source, within=peak * 1e-6),
    ]


def adamw(source: str, betas: tuple[float, float], decay: float, clip: float, norms: float = 0.0) -> list[Claim]:
    return [
        Claim("optimiser", "AdamW", training.optimiser, source),
        Claim("betas", betas, training.betas, source),
        Claim("weight decay of matrices, biases, norms, tokens", (decay, 0.0, norms, 0.0), training.decays, source),
        Claim("gradient clipped to (0: not)", clip, training.clip, source),
    ]


def crops(source: str, low: float, flip: bool, flip_source: str = "") -> list[Claim]:
    return [
        Claim("crops, share of the area", (low, 1.0), training.crop_areas, source, within=0.03),
        Claim(
            "share of views flipped, otherwise turned",
            (0.5 if flip else 0.0, 0.0),
            training.flipped,
            flip_source or source,
            within=0.04 if flip else 0,
        ),
    ]


def normalised(source: str, mean: float, std: float) -> Claim:
    """mean, std: of red."""
    return Claim("black and white at the input, in red", (-mean / std, (1 - mean) / std), model.input_range, source, near=1e-4)


def imagenet(source: str) -> Claim:
    return normalised(source, 0.485, 0.229)


def replaced(hidden: int, source: str, kinds: tuple[int, int, int] | None = None) -> list[Claim]:
    """Hidden patches stay in the encoder; kinds: of them masked, swapped and kept; None: all are masked."""
    kinds = kinds or (hidden, 0, 0)
    covered = ", ".join(f"{count} {word}" for count, word in zip(kinds, ("masked", "swapped", "kept"), strict=True) if count)
    return [
        Claim("patches hidden", hidden, masks.hidden, source),
        Claim("of them masked, swapped, kept", kinds, masks.kinds, source),
        Claim("the mask token enters", BEFORE_POSITIONS, model.mask_token_enters, source),
        Claim("the loss covers", covered, model.loss_covers, source),
    ]


def dropped(patches: int, visible: int, source: str, predicted: int | None = None) -> list[Claim]:
    """Hidden patches are left out; predicted: None: all of them."""
    covered = patches - visible if predicted is None else predicted
    return [
        Claim("patches hidden", patches - visible, masks.hidden, source),
        Claim("patches that the encoder is given", visible, model.encoder_tokens, source),
        Claim("the mask token enters the encoder", DROPPED, model.mask_token_enters, source),
        Claim("the loss covers", f"{covered} dropped", model.loss_covers, source),
    ]


def normalised_pixels(source: str, patch: int) -> list[Claim]:
    values = 3 * patch**2
    return [
        Claim("values predicted for a patch", values, targets.outputs, source),
        Claim("a goal depends on", "its own patch", targets.looks_at, source),
        Claim("goal: mean, variance (unbiased) of a patch", (0.0, 1.0), targets.statistics, source, near=2e-4, within=2e-4),
        Claim("loss where every value is off by 3", 9.0, targets.loss_of(3.0), source, near=1e-4),
    ]


def xavier_start(width: int, outputs: int) -> float:
    """Variance of a prediction by a head that begins as Xavier has it, of normed vectors of so many numbers."""
    return 2 * width / (width + outputs)


def smooth_l1(variance: float, beta: float) -> float:
    """Its mean over normal errors."""
    sigma, step = math.sqrt(variance), 1e-3
    points = [(i + 0.5) * step for i in range(int(10 / step))]
    cost = lambda error: error**2 / (2 * beta) if error < beta else error - beta / 2
    return sum(2 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * cost(sigma * z) * step for z in points)


def blocks_cost(blocks: int, width: int, tokens: int) -> float:
    """Multiply-adds of so many transformer blocks."""
    return blocks * (12 * width**2 * tokens + 2 * tokens**2 * width)


def cross_cost(blocks: int, width: int, queries: int, keys: int, keys_width: int) -> float:
    """Of blocks of cross-attention, whose keys and values are made of tokens of another width."""
    return blocks * (10 * width**2 * queries + 2 * keys_width * width * keys + 2 * queries * keys * width)


def gigaflop(multiply_adds: float, once: float = 0.0, near: float = 0.015) -> Claim:
    """Of a training step: twice forward, four times backward; once: forward alone, of a teacher."""
    return Claim("GFLOP of a training step, an image", (6 * multiply_adds + 2 * once) / 1e9, model.gigaflop, ARITHMETIC, near=near)


def first_loss(theory: float, source: str, near: float = 1e-5) -> Claim:
    return Claim("loss of the first step", theory, model.initial_loss, source, near=near)


def ema(source: str, steps: Sequence[tuple[int, float]]) -> list[Claim]:
    return [Claim(f"teacher keeps, step {step:,}", decay, training.teacher_decay(step), source, near=2e-7) for step, decay in steps]


def epochs(count: float) -> int:
    return images(count)
