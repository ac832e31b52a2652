"""Few-shot probing: closed-form regularised least squares to targets in {-1, 1}^K (ViT 4.1).

As the ViT authors' `fewshot_lsr.py` (big_vision): features are standardised with the labelled images alone, one factorisation serves the
whole l2 grid, and the smaller of D x D and n x n is factorised.  Three things are ours: float64 throughout; the intercept is left
out of the penalty exactly, by centring (theirs is the weight of a constant column of 100, so shrunk by 1 / (1 + l2 / (10^4 n)), for every class alike
when all have the same number of images: the class predicted is then the same); and l2, 2^10 in their configs, comes from a hold-out of train.
Scores are no probabilities, so a few-shot probe has no confidence and no calibration error.  All classes have as many labels, so none weighs more.

Letters: n labelled images, D columns, K classes, L values of l2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mpp.base.errors import DataError
from mpp.base.progress import tracked
from mpp.base.rng import PROBE, Draws
from mpp.config.schema import Positive
from mpp.transfer.grid import Axis, search
from mpp.transfer.probes.contract import Answers, Fitted, Measured, Probe, Train, stacked
from mpp.transfer.split import SHOTS, name_of

LIMITS = 1e-6, 1e9  # of l2
EPSILON = 1e-5  # added to a standard deviation (big_vision)


class FewShotProbe(Probe):
    """Closed-form regularised least squares to targets in {-1, 1}^K (ViT 4.1)."""

    key, title = "few_shot", "few-shot"

    shots: Annotated[tuple[Positive, ...], Field(strict=False)] = (1, 5, 10, 25)  # labelled images a class (big_vision)
    trials: Positive = 5  # draws of the labelled images
    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] = (
        1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5,
    )  # fmt: skip  # the grid, on the scale of a sum over images (ours); widened tenfold, 1e-6 to 1e9

    def remark(self, labels: np.ndarray, classes: Sequence[str]) -> str:
        return self.usable_shots(labels, classes)[1]

    def usable_shots(self, labels: np.ndarray, classes: Sequence[str]) -> tuple[list[int], str]:
        """Those of the default shots that every class with images has enough of, and why the others are left out (empty where none is).

        labels: integers [n], to draw from.  Shots that were asked for are never left out: raises DataError where a class has fewer.
        """
        counts = np.bincount(labels, minlength=len(classes))
        present = np.flatnonzero(counts)
        smallest = int(present[counts[present].argmin()])
        kept = [count for count in self.shots if count <= counts[smallest]]
        if len(kept) == len(self.shots):
            return kept, ""
        left_out = [count for count in self.shots if count not in kept]
        name, images = name_of(smallest, classes), int(counts[smallest])
        if "shots" in self.model_fields_set:
            refuse_shots(max(left_out), name, images)
        return kept, f"{', '.join(map(str, left_out))} shots are left out: class {name} has {images} images to draw from"

    def fit(self, train: Train) -> "FittedFewShot":
        own = train.features.of(train.own)
        shots, _ = self.usable_shots(train.labels[train.split.fit], train.classes)
        return FittedFewShot(
            train, {count: self._fit(train, own, count) for count in tracked(shots, "shots", len(shots), "numbers of shots")}
        )

    def _fit(self, train: Train, own: Tensor, count: int) -> "Shots":
        """own: float32 [n, D]."""
        drawn = [draw_shots(train.labels, train.split.fit, train.classes, count, train.seed, trial) for trial in range(self.trials)]
        on = lambda rows, l2: fit(own[rows], train.truth(rows), len(train.classes), l2, train.device)
        held = own[train.split.choose]

        def evaluate(values: list[list[float]]) -> np.ndarray:
            return torch.stack([train.on_holdout(on(rows, values[0]).predict(held)[0]) for rows in drawn]).mean(dim=0).numpy()  # [L]

        found = search([Axis("l2", sorted(self.l2), 10, *LIMITS)], evaluate, train.widen)
        l2 = found.chosen(0)
        about = {
            "holdout_score": found.score,
            "chosen": {"l2": l2},
            "edge": found.edges,
            "labels": len(drawn[0]),
            "path": [{"l2": value, "holdout_score": score} for value, score in zip(found.values[0], found.scores.tolist(), strict=True)],
        }
        return Shots(about, [on(rows, [l2]) for rows in drawn])

    @classmethod
    def columns(cls, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        shots = sorted({count for figures in rows.values() for count in figures}, key=int)
        return {f"{count}-shot": {name: figures[count] for name, figures in rows.items() if count in figures} for count in shots}


@dataclass(frozen=True)
class FittedFewShot(Fitted):
    """Several draws for each number of shots."""

    train: Train
    by_shots: "dict[int, Shots]"

    def summary(self) -> str:
        return "; ".join(f"{count}-shot l2 {found.about['chosen']['l2']:g}" for count, found in self.by_shots.items())

    def parts(self, images: Measured) -> dict[str, tuple[dict[str, Any], Answers]]:
        own = images.features.of(self.train.own)[images.rows]

        def said(trial: LeastSquares) -> Answers:
            predicted, score = trial.predict(own)
            return Answers(predicted[0], None, None if score is None else score[0])

        return {str(count): (found.about, stacked([said(trial) for trial in found.trials])) for count, found in self.by_shots.items()}


@dataclass(frozen=True)
class Shots:
    about: dict[str, Any]
    trials: "list[LeastSquares]"  # with the chosen l2 alone, one a draw


@dataclass(frozen=True)
class LeastSquares:
    weight: Tensor  # float64 [L, D, K], of raw features
    bias: Tensor  # float64 [L, K]

    def predict(self, features: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor | None]:
        """float32 [m, D] -> int64 [L, m], and of two classes how much more speaks for the second, float32 [L, m]."""
        flat, two = self.weight.permute(1, 0, 2).flatten(1), self.bias.shape[1] == 2  # [D, L K]
        predicted, score = [], []
        for part in features.split(chunk):
            said = (part.to(flat).mm(flat).unflatten(1, self.bias.shape) + self.bias).cpu()
            predicted.append(said.argmax(dim=2).T)
            score.append((said[..., -1] - said[..., 0]).T.float())
        return torch.cat(predicted, dim=1), torch.cat(score, dim=1) if two else None


def fit(features: Tensor, labels: Tensor, classes: int, grid: Sequence[float], device: torch.device) -> LeastSquares:
    """argmin |X W + b - Y|^2 + l2 |W|^2 for every l2 > 0 of the grid, X float32 [n, D] standardised, Y in {-1, 1}^K from labels int64 [n]."""
    x = features.to(device).double()
    mean, deviation = x.mean(0), x.std(0, correction=0) + EPSILON
    x = (x - mean) / deviation
    y = torch.full((len(x), classes), -1.0, dtype=torch.float64, device=device)
    y[torch.arange(len(x), device=device), labels.to(device)] = 1.0
    middle = y.mean(0)
    y = y - middle  # x and y centred: an intercept without penalty
    l2 = torch.tensor(grid, dtype=torch.float64, device=device).view(-1, 1, 1)
    wide = x.shape[1] > x.shape[0]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = values.clamp_min(0).unsqueeze(-1)  # rounding may leave -1e-12
    left = x.T @ vectors if wide else vectors
    right = vectors.T @ y if wide else vectors.T @ (x.T @ y)
    weight = (left @ (right / (values + l2))) / deviation.unsqueeze(-1)
    return LeastSquares(weight, middle - (mean @ weight))


def draw_shots(labels: np.ndarray, rows: np.ndarray, classes: Sequence[str], shots: int, seed: int, trial: int) -> np.ndarray:
    """int64, ascending: `shots` rows of every class that has any, drawn at random from `rows` by (seed, shots, trial).

    labels: integers [n].  Raises DataError for a class that has some, but fewer.  A class without images is never predicted: its targets are all
    -1, so is its score, and the scores of the K' others, whose targets sum to 2 - K', cannot all be as low.
    """
    order = rows[Draws(seed, PROBE, SHOTS, shots * 1_000_000 + trial).permutation(len(rows))]
    drawn = []
    for label, name in enumerate(classes):
        members = order[labels[order] == label]
        if not len(members):
            continue
        if len(members) < shots:
            refuse_shots(shots, repr(name), len(members))
        drawn.append(members[:shots])
    return np.sort(np.concatenate(drawn))


def refuse_shots(shots: int, name: str, images: int) -> NoReturn:
    raise DataError(
        f"few_shot.shots={shots}: class {name} has {images} labelled images to draw from, once images to choose on are held out; "
        "give more images (train_samples=) or fewer shots, few_shot.shots=[] for none"
    )
