"""Learning rate and weight decay as functions of samples seen: the same clock as everything else, so a resumed run cannot be off by one.

    cosine     warm-up, then half a cosine to final_lr, of which the run may go through a share only (CAPI, arXiv 2502.08769: "cut at 80 %")
    wsd        warm-up, stable, decay (MiniCPM, arXiv 2404.06395): the peak, and in the last cooldown_samples down to final_lr.  1 - sqrt is the
               better of the shapes that Haegele et al. compare (arXiv 2405.18392), and so the default
    constant   warm-up, then the peak: wsd without a cool-down

Until its cool-down a run of wsd or constant does not know where it ends: it is a trunk, from whose checkpoints branches leave (train/resume.py).
"""

import math
from collections.abc import Mapping
from typing import Any

from mpp.config.sections import OptimConfig

SMALL_BATCH, SMALL_RATE = 512, 1e-4  # below both, a rate that was scaled down from a large batch is said to be small (ours)


def learning_rate(samples_seen: int, optim: OptimConfig, global_batch: int, began: int = 0) -> float:
    """Of the step that begins after `samples_seen` samples: linear warm-up from start_lr, then by the schedule to final_lr at total_samples.

    began: samples seen when a finished run was last extended; from there on the same again, up from final_lr and in at most a tenth of what was added
    (train/resume.py).
    """
    peak, start, warmup = optim.peak_rate(global_batch), optim.start_lr, optim.warmup_samples
    if began:
        start, warmup = optim.final_lr, min(warmup, (optim.total_samples - began) // 10)
    done = samples_seen - began
    if done < warmup:
        return start + (peak - start) * done / warmup
    if optim.schedule == "cosine":
        rest = max(1, optim.total_samples - began - warmup)
        progress = optim.cosine_share * min(1.0, (done - warmup) / rest)
        return optim.final_lr + (peak - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    since = samples_seen - (optim.total_samples - optim.cooldown_samples)
    if since <= 0 or not optim.cooldown_samples:
        return peak
    cooled = min(1.0, since / optim.cooldown_samples)
    return optim.final_lr + (peak - optim.final_lr) * (1 - (cooled if optim.cooldown_shape == "linear" else math.sqrt(cooled)))


def weight_decay(samples_seen: int, optim: OptimConfig, began: int = 0) -> float:
    """Of the same step, for a group whose decay_scale is 1: half a cosine to final_weight_decay from the first step on, warm-up included (I-JEPA's
    and DINO's code), over weight_decay_samples or the present cycle."""
    if optim.final_weight_decay is None:
        return optim.weight_decay
    first, last = (0, optim.weight_decay_samples) if optim.weight_decay_samples else (began, optim.total_samples)
    progress = min(1.0, (samples_seen - first) / max(1, last - first))
    return optim.final_weight_decay + (optim.weight_decay - optim.final_weight_decay) * 0.5 * (1 + math.cos(math.pi * progress))


def stable_until(optim: Mapping[str, Any]) -> int:
    """optim: such a section as a dict.  Samples up to which no rate depends on where the run ends; 0 of a schedule that always does."""
    if optim.get("schedule", "cosine") == "cosine":
        return 0
    return optim["total_samples"] - optim["cooldown_samples"]


def rate_words(optim: OptimConfig, global_batch: int) -> str:
    """The peak, and how it came about."""
    scaled = f" = base_lr {optim.base_lr:g} x batch {global_batch} / {optim.lr_batch}" if optim.lr_batch else " (base_lr, at any batch)"
    return f"peak learning rate {optim.peak_rate(global_batch):.3g}{scaled}"


def small_rate_note(optim: OptimConfig, global_batch: int) -> str | None:
    """What to say where scaling by a small batch has left a rate that hardly learns."""
    peak = optim.peak_rate(global_batch)
    if optim.lr_batch is None or global_batch >= SMALL_BATCH or peak >= SMALL_RATE:
        return None
    return (
        f"note: optim.base_lr={optim.base_lr:g} is meant for batches of {SMALL_BATCH} to 4096; scaled to this batch of {global_batch} it is {peak:.2g}, "
        f"at which a run of usual length learns next to nothing and its pictures stay noise. Take data.global_batch={SMALL_BATCH} or more (it is "
        f"accumulated in micro-batches and needs no more memory), or set the rate itself: optim.lr_batch=null optim.base_lr=5e-4"
    )
