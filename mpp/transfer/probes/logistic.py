"""Multinomial logistic regression with an L2 penalty, at several strengths on one path: a linear probe without a learning rate.

The objective is scikit-learn's `LogisticRegression(C)` on standardised features: C x the summed cross-entropy + |W|^2 / 2, the bias free, whatever the
number of classes, and with class_weight="balanced" where that is asked for.
It is minimised by L-BFGS (Nocedal and Wright 2006, algorithm 7.5) in coordinates in which the penalised second moments of the features are
the identity: features of one encoder are strongly correlated, and plain L-BFGS then takes ten times as many passes over them.

Letters: n images, W columns of a feature table, D columns of a variant, K classes, L strengths.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mpp.base.progress import Progress, tracked
from mpp.config.schema import Positive
from mpp.transfer.features import EPSILON, sliced
from mpp.transfer.grid import Axis, search
from mpp.transfer.probes.contract import Answers, Fitted, Measured, Picture, Probe, Said, Train, of_logits, score_of, side_by_side

CHUNK = 4096  # images a product: what a core's cache holds
LIMITS = 1e-9, 1e6  # of C
MEMORY = 20  # steps L-BFGS remembers
WHOLE = 1024  # columns up to which all coordinates are computed; an eigendecomposition of more takes longer than all passes
DIRECTIONS, ITERATIONS = 256, 3  # of the coordinates beyond
SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo; Nocedal and Wright's choice)
ROUNDING = 1e-6  # of the objective, whose products are float32 (the approximate Wolfe condition: Hager and Zhang 2005)
HALVINGS = 30  # of a step before the search is given up


class LogisticProbe(Probe):
    """L-BFGS to the minimum, on standardised features; C is scikit-learn's: the inverse of the penalty, on the scale of a sum over images."""

    key, title, takes_weights = "logistic", "logistic", True

    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = (
        1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0,
    )  # fmt: skip  # C, widened tenfold at its ends within 1e-9 to 1e6; DINOv2 takes 45 from 1e-6 to 1e5; []: none
    tolerance: Annotated[float, Field(gt=0)] = (
        1e-4  # norm of the gradient relative to that of zero weights (scikit-learn's tol is of the same size)
    )
    passes: Positive = 1000  # over the images at most, for each strength

    def memory(self, widths: Sequence[int], classes: int, processes: int = 1) -> tuple[int, str]:
        """The steps and gradients that L-BFGS remembers, a solution each strength, and some scratch; float32.  Of the variant asked for alone."""
        copies = 2 * MEMORY + len(self.strengths) + 8
        words = f"{2 * MEMORY} remembered steps of {widths[0]:,} columns x {classes:,} classes; set logistic.strengths=[] to do without"
        return (4 * widths[0] * classes * copies if self.strengths else 0), words

    def fit(self, train: Train) -> "FittedLogistic | None":
        if not self.strengths:
            return None
        steps: dict[float, dict[str, Any]] = {}
        coordinates: Coordinates | None = None

        def path_on(rows: np.ndarray, strengths: Sequence[float]) -> LogisticPath:
            return fit_path(
                train.features.values,
                rows,
                train.labels,
                len(train.classes),
                train.features.layout.columns(train.own),
                strengths,
                weights=train.class_weights(rows),
                tolerance=self.tolerance,
                most_passes=self.passes,
                coordinates=coordinates,
                device=train.device,
            )

        def evaluate(values: list[list[float]]) -> np.ndarray:
            nonlocal coordinates
            path = path_on(train.split.fit, values[0])
            coordinates = path.coordinates
            score = train.on_holdout(path.predict(train.features.values, train.split.choose)[0])
            for *known, reached in zip(path.strengths, score.tolist(), path.passes, path.gradient, path.converged, strict=True):
                steps[known[0]] = dict(zip(("strength", "holdout_score", "passes", "gradient"), known, strict=True)) | {
                    "converged": reached
                }
            return score.numpy()

        found = search([Axis("C", sorted(self.strengths), 10, *LIMITS)], evaluate, train.widen)
        # The weaker strengths on the way warm it up: fewer passes in all than from zero.
        fitted = path_on(train.split.both, found.values[0][: found.best[0] + 1])
        about = {
            "holdout_score": found.score,
            "chosen": {"strength": found.chosen(0), "passes": fitted.passes[-1], "converged": fitted.converged[-1]},
            "edge": found.edges,
            "metric": train.metric,
            "labels": len(train.split.both),
            "path": [steps[strength] for strength in found.values[0]],
        }
        return FittedLogistic(about, fitted)

    @classmethod
    def pictures(cls, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], images: int) -> Iterator[Picture]:
        from mpp.transfer import plots

        steps = {name: [(step["strength"], step["holdout_score"]) for step in figures["path"]] for name, figures in rows.items()}
        best = {name: figures["chosen"]["strength"] for name, figures in rows.items()}
        title = f"Logistic regression, on the hold-out of train ({images} images)"
        yield "regularisation.png", plots.along_path(steps, best, title, "C (weaker penalty to the right); ring: chosen", score_of(rows))


@dataclass(frozen=True)
class FittedLogistic(Fitted):
    about: dict[str, Any]
    path: "LogisticPath"  # on all of fit and choose, the chosen strength last

    def summary(self) -> str:
        return f"logistic C {self.about['chosen']['strength']:g}"

    def answer(self, images: Measured) -> Answers:
        predicted, confidence, score = self.path.predict(images.features.values, images.rows)
        return Answers(predicted[-1], confidence[-1], None if score is None else score[-1])


@dataclass(frozen=True)
class LogisticPath:
    """The minimum for every strength C, of raw features; strengths ascend, as they were solved: from strong regularisation to weak."""

    columns: Tensor  # int64 [D] of the feature table
    strengths: list[float]  # C, the inverse of the penalty, on the scale of a sum over images
    weight: Tensor  # float32 [L, K, D]; zeros for a class without images
    bias: Tensor  # float32 [L, K]; -inf for a class without images, which is never answered
    passes: list[int]  # over the images, for each strength
    gradient: list[float]  # norm at the end, relative to that of zero weights
    converged: list[bool]  # whether it reached the tolerance
    coordinates: "Coordinates"  # in which it was solved

    def predict(self, values: Tensor, rows: np.ndarray, batch: int = CHUNK) -> Said:
        """Of rows of float32 [n, W]; a head each strength."""
        flat, device = self.weight.flatten(0, 1), self.weight.device
        where = sliced(self.columns.to(values.device))
        found = []
        for chosen in torch.from_numpy(rows).split(batch):
            x = _read(values, chosen, where).to(device)
            found.append(of_logits((flat @ x.T).unflatten(0, self.bias.shape) + self.bias.unsqueeze(-1)))
        return side_by_side(found)


@dataclass(frozen=True)
class Coordinates:
    """Directions in which the standardised features vary most, and how much: what steps are scaled by.  Any will do; good ones save passes."""

    spectrum: Tensor  # float64 [R], variances
    directions: Tensor  # float64 [D, R], orthonormal
    rest: float  # variance in every other direction, in the mean

    def scaled(self, gradient: Tensor, curvature: float, decay: float) -> Tensor:
        """[K, D] times the inverse of curvature x second moments + decay."""
        inside = gradient @ self.directions
        scale = 1 / (curvature * self.spectrum + decay)
        outside = 1 / (curvature * self.rest + decay)
        return gradient * outside + (inside * (scale - outside)) @ self.directions.T


def fit_path(
    values: Tensor,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    columns: Tensor,
    strengths: Sequence[float],
    *,
    weights: Tensor | None = None,
    tolerance: float = 1e-4,
    most_passes: int = 1000,
    resident_bytes: int = 8 << 30,
    coordinates: Coordinates | None = None,
    device: torch.device,
) -> LogisticPath:
    """Minimise for every C of `strengths`, each started from the next smaller one's minimum.

    values: float32 [n, W], read by rows; of the chosen rows and columns a float32 copy is kept on the device if it fits `resident_bytes`,
    otherwise they are read again in each pass.  labels: integers [n].  weights: float [K], of the images of each class.  tolerance: norm of the
    gradient, relative to that of zero weights.  coordinates: those of a path on much the same images.  Products are float32, sums over images float64.

    Classes without images take no part.  Two classes have one vector, as in scikit-learn: a softmax over two, w and -w, would be penalised half as
    much for the same odds, 2 |w|^2 / 2 beside |2 w|^2 / 2, so its penalty counts twice.
    """
    present = np.unique(labels[rows])
    data = _Standardised(
        values, rows, np.searchsorted(present, labels), columns, weights[present] if weights is not None else None, resident_bytes, device
    )
    coordinates = coordinates or data.coordinates()
    count = len(present)
    at = torch.zeros(count, len(columns) + 1, dtype=torch.float64, device=device)  # the last column is the bias
    scale = 0.0  # of the gradient
    curvature = (1 - 1 / count) / count if count > 1 else 1.0  # of the cross-entropy in one logit: mean p (1 - p)
    found, passes, gradients = [], [], []
    for strength in tracked(sorted(strengths), "regularisation", len(strengths), "strengths"):
        bar = Progress(f"C {strength:g}", unit="passes")
        decay = (2 if count == 2 else 1) / (strength * len(rows))  # the mean cross-entropy + decay |W|^2 / 2 has the same minimum

        def objective(point: Tensor, decay: float = decay, bar: Progress = bar) -> tuple[float, Tensor]:
            nonlocal curvature
            loss, gradient, curvature = data.cross_entropy(point)
            bar.update()
            gradient[:, :-1] += decay * point[:, :-1]
            return loss + decay / 2 * float(point[:, :-1].square().sum()), gradient

        def precondition(gradient: Tensor, curvature: float = curvature, decay: float = decay) -> Tensor:
            return torch.cat([coordinates.scaled(gradient[:, :-1], curvature, decay), gradient[:, -1:] / curvature], dim=1)

        with bar:
            if not scale:
                scale = float(objective(at)[1].norm())
            at, norm, evaluations = minimise(objective, at, precondition, tolerance * scale, most_passes)
        found.append(at)
        passes.append(evaluations)
        gradients.append(norm / scale if scale else 0.0)
    inside = torch.stack([part[:, :-1] for part in found]) * data.scale.double()
    weight = torch.zeros(len(found), classes, len(columns), device=device)
    bias = torch.full((len(found), classes), -torch.inf, device=device)
    weight[:, present] = inside.float()
    bias[:, present] = (torch.stack([part[:, -1] for part in found]) - inside @ data.mean.double()).float()
    converged = [norm <= tolerance for norm in gradients]
    return LogisticPath(columns.to(device), sorted(strengths), weight, bias, passes, gradients, converged, coordinates)


def minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    enough: float,
    most_passes: int,
) -> tuple[Tensor, float, int]:
    """L-BFGS for a convex function: the point, the norm of its gradient and how often the objective was evaluated.

    objective: point -> (value, gradient).  precondition: multiplies by a first guess of the inverse Hessian.  Ends when the gradient's norm
    is at most `enough`, after `most_passes`, or when rounding leaves no step that decreases the objective; the caller looks at the norm.
    """
    point, (value, gradient) = start, objective(start)
    count = 1
    pairs: list[tuple[Tensor, Tensor, float]] = []  # (step, change of the gradient, 1 / their product), the newest last
    while float(gradient.norm()) > enough and count < most_passes:
        direction = _direction(gradient, pairs, precondition)
        slope = float((direction * gradient).sum())
        length = 1.0
        for _ in range(HALVINGS):
            trial = point + length * direction
            new_value, new_gradient = objective(trial)
            count += 1
            new_slope = float((direction * new_gradient).sum())
            lower = new_value <= value + SUFFICIENT * length * slope
            # Near the minimum the decrease is lost in rounding, the slope is not.
            level = new_value <= value + ROUNDING * abs(value) and new_slope <= (2 * SUFFICIENT - 1) * slope
            if lower or level or count >= most_passes:
                break
            # The minimum of the parabola through both values and the slope, kept away from both ends.
            length *= min(0.5, max(0.1, -slope * length / (2 * (new_value - value - slope * length))))
        if not (lower or level):
            break
        step, change = trial - point, new_gradient - gradient
        product = float((step * change).sum())
        if product > 1e-12 * float(step.norm() * change.norm()):
            pairs = [*pairs, (step, change, 1 / product)][-MEMORY:]
        point, value, gradient = trial, new_value, new_gradient
    return point, float(gradient.norm()), count


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]], precondition: Callable[[Tensor], Tensor]) -> Tensor:
    """The two loops of L-BFGS."""
    left = gradient.clone()
    shares = []
    for step, change, inverse in reversed(pairs):
        share = inverse * (step * left).sum()
        left -= share * change
        shares.append(share)
    direction = precondition(left)
    if pairs:
        step, change, inverse = pairs[-1]
        direction *= 1 / (inverse * (change * precondition(change)).sum())
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction += step * (share - inverse * (change * direction).sum())
    return -direction


class _Standardised:
    """The chosen rows and columns with mean 0 and deviation 1, a chunk at a time, and sums over them."""

    def __init__(
        self,
        values: Tensor,
        rows: np.ndarray,
        labels: np.ndarray,
        columns: Tensor,
        weights: Tensor | None,
        resident_bytes: int,
        device: torch.device,
    ):
        self.values, self.rows, self.where, self.device = values, torch.from_numpy(rows), sliced(columns.to(values.device)), device
        self.labels = torch.from_numpy(labels[rows].astype(np.int64)).to(device)
        self.weights = None if weights is None else weights.to(device)[self.labels].double()
        self.width = len(columns)
        self.resident: list[Tensor] = []
        # Moments about a first guess of the mean: one reading gives both, without the cancellation of moments about zero.
        guess = self._read(self.rows[:CHUNK]).mean(0)
        total, square = (torch.zeros(self.width, dtype=torch.float64, device=device) for _ in range(2))
        keep = len(rows) * self.width * 4 <= resident_bytes
        for chosen in self.rows.split(CHUNK):
            x = self._read(chosen)
            if keep:
                self.resident.append(x)
            centred = (x - guess).double()
            total += centred.sum(0)
            square += centred.square_().sum(0)
        off = total / len(rows)
        variance = square / len(rows) - off.square()
        self.mean, self.scale = (guess + off).float(), (variance.clamp_min(0) + EPSILON).rsqrt().float()
        for x in self.resident:
            x.sub_(self.mean).mul_(self.scale)

    def coordinates(self) -> Coordinates:
        """All of them of up to WHOLE columns, else those that vary most, by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
        if self.width <= WHOLE:
            moments = torch.zeros(self.width, self.width, dtype=torch.float64, device=self.device)
            for x in self.chunks():
                moments += x.T @ x
            spectrum, directions = torch.linalg.eigh(moments / len(self.rows))
            return Coordinates(spectrum.clamp_min(0), directions, 0.0)  # rounding may leave -1e-12
        basis = torch.randn(self.width, DIRECTIONS, generator=torch.Generator().manual_seed(0)).to(self.device)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(self._times_moments(basis))[0].float()
        image = self._times_moments(basis)
        spectrum, turn = torch.linalg.eigh(basis.T.double() @ image)
        spectrum = spectrum.clamp_min(0)
        rest = max(float(self._variances().sum() - spectrum.sum()), 0.0) / (self.width - DIRECTIONS)
        return Coordinates(spectrum, basis.double() @ turn, rest)

    def _times_moments(self, basis: Tensor) -> Tensor:
        """float32 [D, R] -> second moments x it, float64."""
        total = torch.zeros(basis.shape, dtype=torch.float64, device=self.device)
        for x in self.chunks():
            total += x.T @ (x @ basis)
        return total / len(self.rows)

    def _variances(self) -> Tensor:
        return sum(
            (x.double().square().sum(0) for x in self.chunks()), torch.zeros(self.width, dtype=torch.float64, device=self.device)
        ) / len(self.rows)

    def _read(self, chosen: Tensor) -> Tensor:
        return _read(self.values, chosen, self.where).to(self.device)

    def chunks(self) -> Iterator[Tensor]:
        """float32 [at most CHUNK, D], standardised."""
        if self.resident:
            yield from self.resident
        else:
            for chosen in self.rows.split(CHUNK):
                yield self._read(chosen).sub_(self.mean).mul_(self.scale)

    def cross_entropy(self, point: Tensor) -> tuple[float, Tensor, float]:
        """point: float64 [K, D + 1].  Mean cross-entropy, its gradient float64 [K, D + 1], and the mean of p (1 - p) over images and classes."""
        weight, bias = point[:, :-1].float(), point[:, -1].float()
        gradient = torch.zeros_like(point)
        loss, spread, first = point.new_zeros(()), point.new_zeros(()), 0
        for x in self.chunks():
            here = slice(first, first + len(x))
            y, first = self.labels[here], first + len(x)
            logits = torch.addmm(bias, x, weight.T)
            log_probability = logits.log_softmax(dim=1)
            surprise = log_probability.gather(1, y.unsqueeze(1)).squeeze(1).double()
            residual = log_probability.exp_()
            free = (1 - residual.square().sum(dim=1)).double()
            residual[torch.arange(len(y), device=self.device), y] -= 1
            if self.weights is not None:
                surprise, free, residual = (
                    surprise * self.weights[here],
                    free * self.weights[here],
                    residual * self.weights[here, None].float(),
                )
            loss -= surprise.sum()
            spread += free.sum()
            gradient[:, :-1] += residual.T @ x
            gradient[:, -1] += residual.sum(0)
        count, classes = len(self.rows), len(point)
        return float(loss) / count, gradient / count, max(float(spread) / count, 1e-3) / classes


def _read(values: Tensor, rows: Tensor, where: slice | Tensor) -> Tensor:
    """A copy of those rows and columns; of neighbouring columns nothing else is read."""
    return values[:, where][rows] if isinstance(where, slice) else values[rows][:, where]
