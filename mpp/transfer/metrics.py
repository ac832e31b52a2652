"""What is said about one probe's answers, and about two probes' answers to the same images.

Distributions are scipy's, imported where they are needed: that takes a second.  Letters: m images, C classes.  Intervals are 95 %.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.rng import PROBE, Draws
from mpp.transfer.split import RESAMPLE

BINS = 15  # of confidence (Guo et al. 2017, arXiv 1706.04599)
RESAMPLES = 10_000
NORMAL = 1.959963984540054  # the normal distribution's 97.5 % point


def figures(predicted: Tensor, truth: Tensor, classes: int, confidence: Tensor | None = None) -> dict[str, Any]:
    """Accuracy, overall, balanced and by class, and calibration where there is a confidence; all of it fits into JSON.

    predicted, truth: int64 [m], m > 0; confidence: float [m] in 0..1, of the predicted class.  Balanced accuracy is the mean over the classes
    that have images; a class without any has no figures of its own (None).
    """
    confusion = confusion_matrix(predicted, truth, classes)
    images, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    balanced, interval = balanced_accuracy(right, images)
    found: dict[str, Any] = {
        "accuracy": sum(right) / len(truth),
        "ci95": list(wilson(sum(right), len(truth))),
        "ci95_kind": "Wilson",
        "images": len(truth),
        "balanced_accuracy": balanced,
        "balanced_ci95": list(interval),
        "balanced_ci95_kind": "normal, classes as strata, Agresti-Coull variances",
        "per_class": {
            "accuracy": [r / n if n else None for r, n in zip(right, images, strict=True)],
            "ci95": [list(wilson(r, n)) if n else None for r, n in zip(right, images, strict=True)],
            "images": images,
        },
    }
    if confidence is not None:
        found["calibration"] = calibration(predicted == truth, confidence)
    return found


def wilson(right: int, total: int) -> tuple[float, float]:
    """The score interval of `right` out of `total` > 0 (Wilson 1927), as shares of 1: the uncertainty from the images alone."""
    share, z2 = right / total, NORMAL**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return 0.0 if right == 0 else middle - half, 1.0 if right == total else middle + half  # exact at the ends, whatever rounding does


def student(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of Student's t interval of the mean; no half-width from a single value."""
    from scipy.stats import t

    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return mean, None
    return mean, float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 [C, C]: images of each true class (rows) by the class predicted (columns)."""
    return torch.bincount(truth.cpu().long() * classes + predicted.cpu().long(), minlength=classes**2).view(classes, classes)


def balanced_accuracy(right: list[int], images: list[int]) -> tuple[float, tuple[float, float]]:
    """The mean of the classes' accuracies, each class with images counting the same, and its interval.

    The variance is that of a mean of independent shares.  Each share's is taken after two right and two wrong answers were added (Agresti and
    Coull 1998, z^2 = 3.84 of them): a class without a mistake is not certain either.
    """
    present = [(r, n) for r, n in zip(right, images, strict=True) if n]
    mean = math.fsum(r / n for r, n in present) / len(present)
    variance = 0.0
    for r, n in present:
        share = (r + NORMAL**2 / 2) / (n + NORMAL**2)
        variance += share * (1 - share) / (n + NORMAL**2)
    half = NORMAL * math.sqrt(variance) / len(present)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def calibration(right: Tensor, confidence: Tensor) -> dict[str, Any]:
    """Expected calibration error: |accuracy - mean confidence| averaged over images, in bins of confidence.

    right: bool [m].  `ece`: 15 bins of equal width, each without its lower edge and with its upper one (Guo et al. 2017); `adaptive_ece`: 15 bins
    of equally many images (Nguyen and O'Connor 2015, arXiv 1508.05154).  `bins`: images, accuracy and confidence of the former, None for empty ones.
    """
    hit, sure = right.cpu().double(), confidence.cpu().double()
    place = (sure * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    images = torch.bincount(place, minlength=BINS)
    hits = torch.bincount(place, hit, minlength=BINS)
    sures = torch.bincount(place, sure, minlength=BINS)
    order = sure.argsort(stable=True)
    parts = zip(hit[order].tensor_split(BINS), sure[order].tensor_split(BINS), strict=True)
    return {
        "ece": float((hits - sures).abs().sum()) / len(hit),
        "adaptive_ece": sum(abs(float(h.sum() - s.sum())) for h, s in parts) / len(hit),
        "mean_confidence": float(sure.mean()),
        "bins": {
            "images": images.tolist(),
            "accuracy": [float(h) / n if n else None for h, n in zip(hits, images.tolist(), strict=True)],
            "confidence": [float(s) / n if n else None for s, n in zip(sures, images.tolist(), strict=True)],
        },
    }


def paired_bootstrap(correct_a: np.ndarray, correct_b: np.ndarray, seed: int) -> dict[str, Any]:
    """How much more accurate a is than b on the same images.

    correct_a, correct_b: bool [m].  The interval holds the middle 95 % of the differences in 10,000 resamples of the images; only how many images
    a alone and b alone got right matters, so those counts are drawn.  `share_a_ahead`: of the resamples, ties as halves.
    `mcnemar_p`: the exact two-sided test that neither is better (McNemar 1947, binomial form).
    """
    from scipy.stats import binom, binomtest

    images = len(correct_a)
    a_only, b_only = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    differ = a_only + b_only
    bits = Draws(seed, PROBE, RESAMPLE)  # numbers of [0, 1), at which the binomial distributions are inverted
    differing = np.maximum(binom.ppf(bits.uniform(RESAMPLES), images, differ / images), 0)  # at 0 scipy gives -1
    ahead = np.maximum(binom.ppf(bits.uniform(RESAMPLES), differing, a_only / max(differ, 1)), 0)
    margin = 2 * ahead - differing
    low, high = np.quantile(margin / images, (0.025, 0.975))
    return {
        "difference": (a_only - b_only) / images,
        "ci95": [float(low), float(high)],
        "ci95_kind": f"paired bootstrap, {RESAMPLES} resamples",
        "share_a_ahead": float((np.sign(margin) + 1).mean() / 2),
        "mcnemar_p": float(binomtest(a_only, differ).pvalue) if differ else 1.0,
        "images": images,
        "a_only": a_only,
        "b_only": b_only,
    }
