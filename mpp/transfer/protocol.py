"""The probes of one row of the table: first everything is chosen and fitted on train, then figures are read on images not seen so far.

`choose` never gets the images that `report` reads, so no hyper-parameter can depend on them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpp.config.probe import FewShotConfig, KnnConfig, LinearProbeConfig, LogisticConfig, ProbeConfig
from mpp.transfer import few_shot, heads, logistic, metrics, neighbours
from mpp.transfer.features import Features, Variant, refuse_other_features
from mpp.transfer.split import Split, name_of


@dataclass(frozen=True)
class Linear:
    variant: Variant
    learning_rate: float
    holdout_accuracy: float
    grid: list[dict[str, Any]]  # every head: {features, layers, pooling, learning_rate, holdout_accuracy}
    head: heads.Grid  # the winner alone, trained again on all of fit and choose with the same epochs


@dataclass(frozen=True)
class Logistic:
    strength: float
    holdout_accuracy: float
    path: list[dict[str, Any]]  # every strength: {strength, holdout_accuracy, passes, gradient, converged}
    fitted: logistic.LogisticPath  # on all of fit and choose, the chosen strength last


@dataclass(frozen=True)
class Knn:
    k: int
    temperature: float
    holdout_accuracy: float
    grid: list[dict[str, Any]]  # {k, temperature, holdout_accuracy}
    rows: np.ndarray  # int64: the neighbours, all of fit and choose


@dataclass(frozen=True)
class FewShot:
    shots: int
    l2: float
    holdout_accuracy: float  # mean over trials
    trials: list[few_shot.LeastSquares]  # with the chosen l2 alone


@dataclass(frozen=True)
class Chosen:
    """One row, ready to be reported."""

    train: Features
    labels: np.ndarray  # integers [n], of train
    classes: int
    variant: Variant  # the row's own features: what all but the linear probe use
    linear: Linear
    logistic: Logistic | None
    knn: Knn
    few_shot: list[FewShot]
    seconds: dict[str, float]  # by probe

    def summary(self) -> str:
        parts = [f"linear on {self.linear.variant}, lr {self.linear.learning_rate:g}"]
        if self.logistic:
            parts.append(f"logistic C {self.logistic.strength:g}")
        parts.append(f"k {self.knn.k}, temperature {self.knn.temperature:g}")
        took = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return "; ".join([*parts, *(f"{few.shots}-shot l2 {few.l2:g}" for few in self.few_shot)]) + f" (seconds: {took})"


@dataclass(frozen=True)
class Answers:
    """What a probe says of m images."""

    predicted: Tensor  # int64 [m]
    confidence: Tensor  # float32 [m]: probability, or share of votes, of that class


def choose(
    features: Features,
    labels: np.ndarray,
    classes: Sequence[str],
    split: Split,
    variants: Sequence[Variant],
    config: ProbeConfig,
    device: torch.device,
) -> Chosen:
    """Fit every probe on `split.fit`, choose on `split.choose`; what was chosen then gets both.

    features, labels (integers [n]): of train.  variants: what the linear probe may choose from; the first is what all others use.
    Ties go to the earlier of the grid.
    """
    own, seconds = variants[0], {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = round(now - began, 3), now

    linear = _choose_linear(features, labels, len(classes), split, variants, config.linear, config.seed, device)
    lap("linear")
    regression = (
        _choose_logistic(features, own, labels, len(classes), split, config.logistic, device) if config.logistic.strengths else None
    )
    lap("logistic")
    knn = _choose_knn(features, own, labels, len(classes), split, config.knn, device)
    lap("knn")
    shots, _ = usable_shots(config.few_shot, labels[split.fit], classes)
    few = [_choose_few_shot(features.of(own), labels, classes, split, config.few_shot, n, config.seed, device) for n in shots]
    lap("few_shot")
    return Chosen(features, labels, len(classes), own, linear, regression, knn, few, seconds)


def report(chosen: Chosen, features: Features, rows: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], dict[str, Answers]]:
    """Figures with 95 % intervals on images that `choose` has not seen, beside what was chosen; and every answer, for comparison.

    rows: int64 [m] of `features`, whose spec must be that of the training features (else ConfigError); labels: integers [m].
    """
    refuse_other_features(chosen.train.spec, features.spec)
    truth, device = torch.from_numpy(labels.astype(np.int64)), chosen.linear.head.mean.device
    own = features.of(chosen.variant)[rows]
    linear, knn = chosen.linear, chosen.knn
    answers = {"linear": _first(linear.head.predict(features.values, rows)[0])}
    about: dict[str, dict[str, Any]] = {
        "linear": {
            "holdout_accuracy": linear.holdout_accuracy,
            "chosen": {"features": str(linear.variant), "learning_rate": linear.learning_rate},
            "grid": linear.grid,
        }
    }
    if chosen.logistic:
        answers["logistic"] = _first(chosen.logistic.fitted.predict(features.values, rows), -1)
        last = {"passes": chosen.logistic.fitted.passes[-1], "converged": chosen.logistic.fitted.converged[-1]}
        about["logistic"] = {
            "holdout_accuracy": chosen.logistic.holdout_accuracy,
            "chosen": {"strength": chosen.logistic.strength} | last,
            "path": chosen.logistic.path,
        }
    similarity, index = neighbours.nearest(own, chosen.train.values, knn.rows, chosen.train.layout.columns(chosen.variant), knn.k, device)
    voters = torch.from_numpy(chosen.labels[knn.rows].astype(np.int64))[index]
    voted, share = neighbours.vote(similarity, voters, chosen.classes, [knn.k], [knn.temperature])
    answers["knn"] = Answers(voted[0, 0], share[0, 0])
    about["knn"] = {
        "holdout_accuracy": knn.holdout_accuracy,
        "chosen": {"k": knn.k, "temperature": knn.temperature},
        "grid": knn.grid,
    }
    figures: dict[str, Any] = {
        name: metrics.figures(given.predicted, truth, chosen.classes, given.confidence) | about[name] for name, given in answers.items()
    }
    figures["few_shot"] = {}
    for few in chosen.few_shot:
        trials = [float((fitted.predict(own)[0] == truth).double().mean()) for fitted in few.trials]
        figures["few_shot"][str(few.shots)] = few_shot.over_draws(trials) | {
            "holdout_accuracy": few.holdout_accuracy,
            "chosen": {"l2": few.l2},
        }
    figures["seconds"] = chosen.seconds
    return figures, answers


def usable_shots(config: FewShotConfig, labels: np.ndarray, classes: Sequence[str]) -> tuple[list[int], str]:
    """Those of the default shots that every class with images has enough of, and why the others are left out (empty where none is).

    labels: integers [n], to draw from.  Shots that were asked for are never left out: raises DataError where a class has fewer.
    """
    counts = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    smallest = int(present[counts[present].argmin()])
    kept = [count for count in config.shots if count <= counts[smallest]]
    if len(kept) == len(config.shots):
        return kept, ""
    left_out = [count for count in config.shots if count not in kept]
    if "shots" in config.model_fields_set:
        few_shot.refuse_shots(max(left_out), name_of(smallest, classes), int(counts[smallest]))
    said = (
        f"{', '.join(map(str, left_out))} shots are left out: class {name_of(smallest, classes)} has {counts[smallest]} images to draw from"
    )
    return kept, said


def _first(answers: tuple[Tensor, Tensor], place: int = 0) -> Answers:
    return Answers(answers[0][place], answers[1][place])


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
    grid = train(split.fit, [features.layout.columns(v) for v in variants], rates)
    truth = torch.from_numpy(labels[split.choose].astype(np.int64))
    accuracy = torch.stack([(p == truth).double().mean(dim=1) for p, _ in grid.predict(features.values, split.choose)])  # [variants, R]
    variant, rate = divmod(int(accuracy.argmax()), len(rates))
    rows = [
        {"features": str(v), "layers": list(v.layers), "pooling": v.pooling, "learning_rate": r, "holdout_accuracy": float(accuracy[i, j])}
        for i, v in enumerate(variants)
        for j, r in enumerate(rates)
    ]
    winner = train(split.both, [features.layout.columns(variants[variant])], [rates[rate]])
    return Linear(variants[variant], rates[rate], float(accuracy[variant, rate]), rows, winner)


def _choose_logistic(
    features: Features, own: Variant, labels: np.ndarray, classes: int, split: Split, config: LogisticConfig, device: torch.device
) -> Logistic:
    def fit(rows: np.ndarray, strengths: Sequence[float]) -> logistic.LogisticPath:
        return logistic.fit_path(
            features.values,
            rows,
            labels,
            classes,
            features.layout.columns(own),
            strengths,
            tolerance=config.tolerance,
            most_passes=config.passes,
            device=device,
        )

    path = fit(split.fit, config.strengths)
    truth = torch.from_numpy(labels[split.choose].astype(np.int64))
    accuracy = (path.predict(features.values, split.choose)[0] == truth).double().mean(dim=1)
    best = int(accuracy.argmax())
    rows = [
        {
            "strength": path.strengths[i],
            "holdout_accuracy": float(accuracy[i]),
            "passes": path.passes[i],
            "gradient": path.gradient[i],
            "converged": path.converged[i],
        }
        for i in range(len(path.strengths))
    ]
    # The weaker strengths on the way warm it up: fewer passes in all than from zero.
    return Logistic(path.strengths[best], float(accuracy[best]), rows, fit(split.both, path.strengths[: best + 1]))


def _choose_knn(
    features: Features, own: Variant, labels: np.ndarray, classes: int, split: Split, config: KnnConfig, device: torch.device
) -> Knn:
    truth = torch.from_numpy(labels.astype(np.int64))
    ks = neighbours.usable_k(config.k, len(split.fit))
    queries = features.of(own)[split.choose]
    similarity, index = neighbours.nearest(queries, features.values, split.fit, features.layout.columns(own), max(ks), device)
    voted, _ = neighbours.vote(similarity, truth[split.fit][index], classes, ks, config.temperatures)
    accuracy = (voted == truth[split.choose]).double().mean(dim=2)  # [T, K]
    t, k = divmod(int(accuracy.argmax()), len(ks))
    grid = [
        {"k": ks[j], "temperature": temperature, "holdout_accuracy": float(accuracy[i, j])}
        for i, temperature in enumerate(config.temperatures)
        for j in range(len(ks))
    ]
    return Knn(ks[k], config.temperatures[t], float(accuracy[t, k]), grid, split.both)


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
