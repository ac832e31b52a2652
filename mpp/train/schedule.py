"""The learning rate as a function of samples seen: the same clock as everything else, so a resumed run cannot be off by one."""

import math

from mpp.config.sections import OptimConfig


def peak_rate(optim: OptimConfig, global_batch: int) -> float:
    return optim.base_lr * (global_batch / optim.lr_batch if optim.lr_batch else 1.0)


def learning_rate(samples_seen: int, optim: OptimConfig, global_batch: int, began: int = 0) -> float:
    """Of the step that begins after `samples_seen` samples: linear warm-up from 0, then half a cosine to final_lr at total_samples.

    began: samples seen when a finished run was last extended; from there on the same again, up from final_lr and in at most a tenth of what was added
    (train/resume.py).
    """
    peak, start, warmup = peak_rate(optim, global_batch), 0.0, optim.warmup_samples
    if began:
        start, warmup = optim.final_lr, min(warmup, (optim.total_samples - began) // 10)
    done = samples_seen - began
    if done < warmup:
        return start + (peak - start) * done / warmup
    rest = max(1, optim.total_samples - began - warmup)
    progress = min(1.0, (done - warmup) / rest)
    return optim.final_lr + (peak - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
