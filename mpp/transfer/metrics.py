"""What is said about one probe's answers, and about two probes' answers to the same images.

Letters: m images, C classes.  Intervals are 95 %.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.rng import PROBE, Draws
from mpp.transfer.intervals import NORMAL, wilson
from mpp.transfer.split import RESAMPLE

BINS = 15  # of confidence (Guo et al. 2017, arXiv 1706.04599)
RESAMPLES = 10_000


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
    images = len(correct_a)
    a_only, b_only = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    differ = a_only + b_only
    bits = Draws(seed, PROBE, RESAMPLE)
    first, second = bits.uniform(RESAMPLES), bits.uniform(RESAMPLES)
    differing = _binomial(images, differ / images, first)
    ahead = np.zeros(RESAMPLES, np.int64)
    for count in np.unique(differing):
        here = differing == count
        ahead[here] = _binomial(int(count), a_only / differ if differ else 0.0, second[here])
    margin = 2 * ahead - differing
    low, high = np.quantile(margin / images, (0.025, 0.975))
    tail = float(np.exp(_log_binomial(differ, 0.5)[: min(a_only, b_only) + 1]).sum())
    return {
        "difference": (a_only - b_only) / images,
        "ci95": [float(low), float(high)],
        "ci95_kind": f"paired bootstrap, {RESAMPLES} resamples",
        "share_a_ahead": float((np.sign(margin) + 1).mean() / 2),
        "mcnemar_p": min(1.0, 2 * tail),
        "images": images,
        "a_only": a_only,
        "b_only": b_only,
    }


def _log_binomial(count: int, share: float) -> np.ndarray:
    """float64 [count + 1]: logarithms of the probabilities of 0..count successes."""
    of_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    ways = of_factorial[-1] - of_factorial - of_factorial[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        successes = np.arange(count + 1)
        logs = ways + np.where(successes, successes * np.log(share), 0.0)
        return logs + np.where(count - successes, (count - successes) * np.log1p(-share), 0.0)


def _binomial(count: int, share: float, uniform: np.ndarray) -> np.ndarray:
    """Successes int64, by inverting the distribution at numbers of [0, 1): the same on every version of every library."""
    if share <= 0 or share >= 1:
        return np.full(len(uniform), count if share >= 1 else 0, np.int64)
    reached = np.cumsum(np.exp(_log_binomial(count, share)))
    return np.minimum(np.searchsorted(reached, uniform * reached[-1], side="right"), count).astype(np.int64)
