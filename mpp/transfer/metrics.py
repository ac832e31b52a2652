"""What is said about one probe's answers, and about two probes' answers to the same images.

One rule for every interval.  Answers come from S networks (seeds) x T draws of the labels x m images; their mean varies with each of the three.
Each source of chance has a margin of its own, from the variance that the marginal means over the other two show (crossed random effects; what two
sources share is counted for both, as in the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1(2)) and Student's distribution with its
own degrees of freedom; the margin of the mean is the root of the sum of their squares (MOVER: Zou and Donner 2008, Statistics in Medicine 27).  It
mostly errs to the wide side, where Satterthwaite's single degree of freedom errs to the narrow one (simulated in tests/transfer/test_metrics.py).
Of what there is one of alone nothing is known: `covers` names what an interval covers.  Images are taken to be independent: of several views of one
thing the intervals are too narrow.

Distributions are scipy's, imported where they are needed: that takes a second.  Letters: S seeds, T draws, m images, C classes.  Intervals are 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Metric = Literal["accuracy", "balanced_accuracy"]

BINS = 15  # of confidence (Guo et al. 2017, arXiv 1706.04599)
LEVEL = 0.05
SMALLEST = -99.0  # power of ten, of a p
NORMAL = 1.959963984540054  # the normal distribution's 97.5 % point
WILSON, CROSSED = "Wilson", "crossed effects, MOVER"
IMAGES, DRAWS, SEEDS = "test images", "draws of the labels", "seeds of the network"  # what an interval may cover

# Answers that are added before a variance is taken: how many, their mean, their mean square.  A probe without a mistake is not certain either.
OF_SHARES = (NORMAL**2, 0.5, 0.5)  # as many right as wrong (Agresti and Coull 1998)
OF_DIFFERENCES = (2.0, 0.0, 0.5)  # half an image in each of the four cells (Agresti and Min 2005)


def figures(
    predicted: Tensor, truth: Tensor, classes: int, confidence: Tensor | None = None, score: Tensor | None = None
) -> dict[str, Any]:
    """Accuracy, overall, balanced and by class; of two classes the ROC curve and average precision; calibration where there is a confidence.

    predicted: int64 [m], [T, m] or [S, T, m], m > 0; truth: int64 [m]; confidence: float, as predicted, in 0..1, of the class predicted; score:
    likewise, how much it speaks for the second of two classes (where there is none, the confidence tells).  All of it fits into JSON.  Balanced
    accuracy is the mean over the classes that have images; a class without any has no figures of its own (None).
    """
    given, real = runs_of(predicted), truth.cpu().numpy()
    right = given == real
    seeds, draws, _ = right.shape
    images = np.bincount(real, minlength=classes)
    overall, balanced = estimate(right), estimate(right, real)
    by_class = [estimate(right[:, :, real == c]) if images[c] else None for c in range(classes)]
    by_draw = right.mean((0, 2))
    found: dict[str, Any] = {
        "accuracy": overall.value,
        "ci95": list(overall.interval),
        "ci95_kind": overall.kind,
        "ci95_covers": overall.covers,
        "images": len(real),
        "seeds": seeds,
        "draws": draws,
        "by_run": right.mean(2).tolist(),
        "spread": float(np.std(by_draw, ddof=1)) if draws > 1 else None,
        "balanced_accuracy": balanced.value,
        "balanced_ci95": list(balanced.interval),
        "balanced_ci95_kind": balanced.kind,
        "per_class": {
            "accuracy": [one.value if one else None for one in by_class],
            "ci95": [list(one.interval) if one else None for one in by_class],
            "images": images.tolist(),
        },
    }
    if classes == 2 and images.all() and (confidence is not None or score is not None):
        found |= of_two_classes(runs_of(score) if score is not None else preference(given, runs_of(confidence)), real)  # type: ignore[arg-type]
    if confidence is not None:
        found["calibration"] = calibration(torch.from_numpy(right).flatten(), confidence.flatten())
    return found


def runs_of(values: Tensor) -> np.ndarray:
    """[m] or [T, m] as [S, T, m]."""
    array = values.cpu().numpy()
    return array.reshape((1,) * (3 - array.ndim) + array.shape)


def preference(predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The probability of the second of two classes, float64, from that of the one predicted."""
    sure = confidence.astype(np.float64)
    return np.where(predicted == 1, sure, 1 - sure)


@dataclass(frozen=True)
class Estimate:
    value: float
    interval: tuple[float, float]
    kind: str
    covers: list[str]


@dataclass(frozen=True)
class Part:
    """What one source of chance adds to the variance of a mean."""

    source: str
    variance: float
    freedom: float  # degrees of


def estimate(values: np.ndarray, strata: np.ndarray | None = None) -> Estimate:
    """The mean of values [S, T, m] in 0..1 over images, or of the means of `strata`, int [m], where each weighs the same."""
    means = run_means(values, strata)
    if strata is None and means.size == 1:
        return Estimate(float(means.mean()), wilson(round(float(values.sum())), values.shape[2]), WILSON, [IMAGES])
    parts = [*of_images(values.mean((0, 1)), strata, OF_SHARES), *of_runs(means)]
    return bounded(float(means.mean()), parts, 0.0)


def bounded(value: float, parts: Sequence[Part], lowest: float) -> Estimate:
    half = margin(parts, LEVEL)
    return Estimate(value, (max(lowest, value - half), min(1.0, value + half)), CROSSED, list(dict.fromkeys(part.source for part in parts)))


def margin(parts: Sequence[Part], level: float) -> float:
    """Half of the interval that leaves out the share `level`."""
    from scipy.stats import t

    quantiles = t.isf(level / 2, [part.freedom for part in parts])
    return math.sqrt(np.sum(np.square(quantiles) * [part.variance for part in parts]))


def p_value(value: float, parts: Sequence[Part]) -> float:
    """The level at which the interval ends at zero: two-sided."""
    from scipy.optimize import brentq

    off = lambda exponent: margin(parts, 10**exponent) - abs(value)
    if off(0.0) >= 0:
        return 1.0
    return 10 ** brentq(off, SMALLEST, 0.0) if off(SMALLEST) > 0 else 10**SMALLEST


def run_means(values: np.ndarray, strata: np.ndarray | None = None) -> np.ndarray:
    """float64 [S, T] of values [S, T, m]."""
    if strata is None:
        return values.mean(2, dtype=np.float64)
    return np.mean([values[:, :, strata == stratum].mean(2, dtype=np.float64) for stratum in np.unique(strata)], axis=0)


def of_images(means: np.ndarray, strata: np.ndarray | None, prior: tuple[float, float, float]) -> list[Part]:
    """Of each image's mean, float [m]; a part a stratum, each of which weighs the same."""
    weight, mean, square = prior
    groups = [means] if strata is None else [means[strata == stratum] for stratum in np.unique(strata)]
    parts = []
    for group in groups:
        count = len(group) + weight
        first, second = (group.sum() + weight * mean) / count, (np.square(group).sum() + weight * square) / count
        parts.append(Part(IMAGES, float(second - first**2) / count / len(groups) ** 2, count - 1))
    return parts


def of_runs(means: np.ndarray, one_more: bool = False) -> list[Part]:
    """Of seeds and draws, where there are several, from the means [S, T].  one_more: what is asked for is not the mean over the seeds, but how far
    one further seed lies from it."""
    seeds, draws = means.shape
    parts = []
    if draws > 1:
        parts.append(Part(DRAWS, float(means.mean(0).var(ddof=1)) / draws, draws - 1))
    if seeds > 1:
        parts.append(Part(SEEDS, float(means.mean(1).var(ddof=1)) * (1 / seeds + one_more), seeds - 1))
    return parts


def of_two_classes(score: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """score: [S, T, m], how much it speaks for class 1; truth: [m], both classes present.  Means over runs.

    The area under the ROC curve has the interval of its placements (DeLong et al. 1988); average precision (the mean precision at each recall, no
    interpolation) is given with either class as the one looked for: by chance it is that class's share.
    """
    held = np.stack([[placements(run, truth) for run in seed] for seed in score])  # [S, T, m]
    areas, shares = held[:, :, truth == 1].mean(2), held.mean((0, 1))
    groups = [shares[truth == c] for c in (0, 1)]
    varies = all(len(group) > 1 for group in groups) and any(np.ptp(group) > 0 for group in groups)
    if varies:
        images = [Part(IMAGES, float(group.var(ddof=1)) / len(group), len(group) - 1) for group in groups]
    else:  # all in order, or too few to say
        images = [replace(part, variance=4 * part.variance) for part in of_images(shares, truth, OF_SHARES)]
    area = bounded(float(areas.mean()), [*images, *of_runs(areas)], 0.0)
    precision = [
        float(np.mean([[average_precision(s * sign, truth == c) for s in seed] for seed in score])) for c, sign in ((0, -1), (1, 1))
    ]
    return {
        "auroc": area.value,
        "auroc_ci95": list(area.interval),
        "auroc_ci95_kind": "DeLong" if areas.size == 1 and varies else area.kind,
        "average_precision": precision,
    }


def placements(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 [m]: of each image of class 1 the share of class 0 that has a lower score, of each of class 0 the share of class 1 that has a higher
    one; equal scores count half.  The mean over either class is the area under the ROC curve."""
    from scipy.stats import rankdata

    found, ranks = np.empty(len(score)), rankdata(score)
    for c in (0, 1):
        own = truth == c
        below = (ranks[own] - rankdata(score[own])) / np.count_nonzero(~own)  # of the other class
        found[own] = below if c else 1 - below
    return found


def average_precision(score: np.ndarray, wanted: np.ndarray) -> float:
    """score, wanted: [m]; images of equal score come at once.  scikit-learn's average_precision_score."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of a group of equal scores
    hits, seen = np.cumsum(wanted[order])[last], np.flatnonzero(last) + 1
    return float(np.sum(np.diff(hits, prepend=0) * hits / seen) / hits[-1])


def wilson(right: int, total: int) -> tuple[float, float]:
    """The score interval of `right` out of `total` > 0 (Wilson 1927), as shares of 1: the uncertainty from the images alone."""
    share, z2 = right / total, NORMAL**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return 0.0 if right == 0 else middle - half, 1.0 if right == total else middle + half  # exact at the ends, whatever rounding does


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 [C, C]: images of each true class (rows) by the class predicted (columns)."""
    return torch.bincount(truth.cpu().long() * classes + predicted.cpu().long(), minlength=classes**2).view(classes, classes)


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


def difference(
    a: Tensor, b: Tensor, truth: Tensor, metric: Metric = "accuracy", same_draws: bool = True, new_seed: bool = False
) -> dict[str, Any]:
    """How much better a is than b on the same images.

    a, b: int64 [m], [T, m] or [S, T, m], the classes predicted; truth: int64 [m].  same_draws: draw t of both had the same labels (else, or where
    they are not as many, the two vary on their own).  new_seed: whether a is more than one further seed of b's would be, rather than more than the
    mean of b's seeds.  `p` is two-sided, the level at which the interval would end at zero.  Of single answers to each image `mcnemar_p` is the exact
    test that neither is right more often (McNemar 1947, binomial form).
    """
    from scipy.stats import binomtest

    real = truth.cpu().numpy()
    strata = real if metric == "balanced_accuracy" else None
    ours, theirs = runs_of(a) == real, runs_of(b) == real
    means = run_means(ours, strata), run_means(theirs, strata)
    value = float(means[0].mean() - means[1].mean())
    parts = of_images(ours.mean((0, 1)) - theirs.mean((0, 1)), strata, OF_DIFFERENCES)
    if same_draws and means[0].shape[1] == means[1].shape[1]:
        parts += of_runs((means[0].mean(0) - means[1].mean(0))[None])
        means = means[0].mean(1, keepdims=True), means[1].mean(1, keepdims=True)
    parts += [*of_runs(means[0]), *of_runs(means[1], one_more=new_seed)]
    found: dict[str, Any] = {
        "metric": metric,
        "difference": value,
        "ci95": list(bounded(value, parts, -1.0).interval),
        "ci95_kind": CROSSED,
        "ci95_covers": list(dict.fromkeys(part.source for part in parts)),
        "p": p_value(value, parts),
        "images": len(real),
        "runs": [list(ours.shape[:2]), list(theirs.shape[:2])],
    }
    if ours.shape[:2] == theirs.shape[:2] == (1, 1):
        a_only, b_only = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
        exact = float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0
        found |= {"a_only": a_only, "b_only": b_only, "mcnemar_p": exact}
    return found


def share_right(predicted: Tensor, truth: Tensor, metric: Metric) -> Tensor:
    """float64 [...]: what a choice goes by, of int64 [..., m]; truth: int64 [m]."""
    right = (predicted == truth).double()
    if metric == "accuracy":
        return right.mean(dim=-1)
    return torch.stack([right[..., truth == c].mean(dim=-1) for c in truth.unique()]).mean(dim=0)
