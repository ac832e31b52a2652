"""The learning rate as a function of samples seen: the same clock as everything else, so a resumed run cannot be off by one."""

import math

from mpp.config import OptimConfig


def peak_rate(optim: OptimConfig, global_batch: int) -> float:
    return optim.base_lr * (global_batch / optim.lr_batch if optim.lr_batch else 1.0)


def learning_rate(samples_seen: int, optim: OptimConfig, global_batch: int) -> float:
    """Of the step that begins after `samples_seen` samples: linear warm-up from 0, then half a cosine to final_lr at total_samples."""
    peak = peak_rate(optim, global_batch)
    if samples_seen < optim.warmup_samples:
        return peak * samples_seen / optim.warmup_samples
    rest = max(1, optim.total_samples - optim.warmup_samples)
    progress = min(1.0, (samples_seen - optim.warmup_samples) / rest)
    return optim.final_lr + (peak - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
