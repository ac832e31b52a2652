"""The probes of one row of the table: first everything is chosen and fitted on train, then figures are read on images not seen so far.

`choose` never gets the images that `report` reads, so no hyper-parameter can depend on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.config import FewShotConfig, KnnConfig, LinearProbeConfig
from mpp.transfer import few_shot, heads, neighbours
from mpp.transfer.features import Features, Variant
from mpp.transfer.intervals import student, wilson
from mpp.transfer.split import Split


@dataclass(frozen=True)
class Linear:
    variant: Variant
    learning_rate: float
    holdout_accuracy: float
    grid: list[dict[str, Any]]  # every head: {features, learning_rate, holdout_accuracy}
    head: heads.Grid  # the winner alone, trained again on all of fit and choose with the same epochs


@dataclass(frozen=True)
class Knn:
    k: int
    holdout_accuracy: float
    temperature: float
    bank: Tensor  # float32 [n, D]: all of fit and choose
    labels: Tensor  # int64 [n]


@dataclass(frozen=True)
class FewShot:
    shots: int
    l2: float
    holdout_accuracy: float  # mean over trials
    trials: list[few_shot.LeastSquares]  # with the chosen l2 alone


@dataclass(frozen=True)
class Chosen:
    """One row, ready to be reported."""

    variant: Variant  # the spec's own features: what k-NN and few-shot use
    linear: Linear
    knn: Knn
    few_shot: list[FewShot]


def choose(
    features: Features,
    labels: np.ndarray,
    classes: Sequence[str],
    split: Split,
    variants: Sequence[Variant],
    *,
    linear: LinearProbeConfig,
    knn: KnnConfig,
    shots: FewShotConfig,
    seed: int,
    device: torch.device,
) -> Chosen:
    """Fit every probe on `split.fit`, choose on `split.choose`; the linear winner and the k-NN bank then get both.

    features, labels (integers [n]): of train.  variants: what the linear probe may choose from; the first is what k-NN and few-shot use.
    Ties go to the earlier of the grid.
    """
    return Chosen(
        variants[0],
        _choose_linear(features, labels, len(classes), split, variants, linear, seed, device),
        _choose_knn(features.of(variants[0]), labels, len(classes), split, knn, device),
        [_choose_few_shot(features.of(variants[0]), labels, classes, split, shots, count, seed, device) for count in shots.shots],
    )


def report(chosen: Chosen, features: Features, labels: np.ndarray) -> dict[str, Any]:
    """Top-1 accuracies (shares of 1) on images that `choose` has not seen, with 95 % intervals, beside what was chosen.

    features: the same columns as given to `choose`; labels: integers [m].
    """
    truth = torch.from_numpy(labels.astype(np.int64))
    everything = np.arange(len(labels))
    linear, knn, own = chosen.linear, chosen.knn, features.of(chosen.variant)
    predicted = linear.head.predict(features.values, everything)[0][0]
    voted = neighbours.classify(own, knn.bank, knn.labels, int(knn.labels.max()) + 1, [knn.k], knn.temperature, linear.head.mean.device)[0]
    figures: dict[str, Any] = {
        "linear": {
            **_accuracy(predicted, truth),
            "holdout_accuracy": linear.holdout_accuracy,
            "chosen": {"features": str(linear.variant), "learning_rate": linear.learning_rate},
            "grid": linear.grid,
        },
        "knn": {**_accuracy(voted, truth), "holdout_accuracy": knn.holdout_accuracy, "chosen": {"k": knn.k}},
        "few_shot": {},
    }
    for few in chosen.few_shot:
        trials = [float((fitted.predict(own)[0] == truth).double().mean()) for fitted in few.trials]
        mean, half = student(trials)
        figures["few_shot"][str(few.shots)] = {
            "accuracy": mean,
            "ci95": None if half is None else [mean - half, mean + half],
            "ci95_kind": "Student's t over draws of the labelled images",
            "trials": trials,
            "holdout_accuracy": few.holdout_accuracy,
            "chosen": {"l2": few.l2},
        }
    return figures


def _accuracy(predicted: Tensor, truth: Tensor) -> dict[str, Any]:
    right = int((predicted == truth).sum())
    return {"accuracy": right / len(truth), "ci95": list(wilson(right, len(truth))), "ci95_kind": "Wilson", "images": len(truth)}


def _choose_linear(
    features: Features,
    labels: np.ndarray,
    classes: int,
    split: Split,
    variants: Sequence[Variant],
    config: LinearProbeConfig,
    seed: int,
    device: torch.device,
) -> Linear:
    def train(rows: np.ndarray, columns: list[Tensor], rates: Sequence[float]) -> heads.Grid:
        return heads.train_heads(
            features.values,
            rows,
            labels,
            classes,
            columns,
            rates,
            epochs=config.epochs,
            batch=config.batch,
            weight_decay=config.weight_decay,
            seed=seed,
            device=device,
        )

    rates = config.learning_rates
    grid = train(split.fit, [features.columns[v] for v in variants], rates)
    truth = torch.from_numpy(labels[split.choose].astype(np.int64))
    accuracy = torch.stack([(p == truth).double().mean(dim=1) for p in grid.predict(features.values, split.choose)])  # [variants, R]
    variant, rate = divmod(int(accuracy.argmax()), len(rates))
    rows = [
        {"features": str(v), "learning_rate": r, "holdout_accuracy": float(accuracy[i, j])}
        for i, v in enumerate(variants)
        for j, r in enumerate(rates)
    ]
    winner = train(split.both, [features.columns[variants[variant]]], [rates[rate]])
    return Linear(variants[variant], rates[rate], float(accuracy[variant, rate]), rows, winner)


def _choose_knn(own: Tensor, labels: np.ndarray, classes: int, split: Split, config: KnnConfig, device: torch.device) -> Knn:
    truth = torch.from_numpy(labels.astype(np.int64))
    grid = neighbours.usable_k(config.k, len(split.fit))
    voted = neighbours.classify(own[split.choose], own[split.fit], truth[split.fit], classes, grid, config.temperature, device)
    accuracy = (voted == truth[split.choose]).double().mean(dim=1)
    best = int(accuracy.argmax())
    return Knn(grid[best], float(accuracy[best]), config.temperature, own[split.both], truth[split.both])


def _choose_few_shot(
    own: Tensor,
    labels: np.ndarray,
    classes: Sequence[str],
    split: Split,
    config: FewShotConfig,
    count: int,
    seed: int,
    device: torch.device,
) -> FewShot:
    truth = torch.from_numpy(labels.astype(np.int64))
    queries = own[split.choose]
    fitted = []
    for trial in range(config.trials):
        rows = few_shot.draw_shots(labels, split.fit, classes, count, seed, trial)
        fitted.append(few_shot.fit(own[rows], truth[rows], len(classes), config.l2, device))
    accuracy = torch.stack([(f.predict(queries) == truth[split.choose]).double().mean(dim=1) for f in fitted]).mean(dim=0)  # [L]
    best = int(accuracy.argmax())
    alone = [few_shot.LeastSquares(f.weight[best : best + 1], f.bias[best : best + 1]) for f in fitted]
    return FewShot(count, config.l2[best], float(accuracy[best]), alone)
