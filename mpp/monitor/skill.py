"""Skill: how much better than trivial the predictions are, 1 - loss / baseline, on masked patches only (kept ones show their answer).

Three trivial predictors that see no more than the model does, each shrunk towards the first by a weight fitted on a training sample:
    constant   the colour histogram (add-one smoothed) of the sample, or its mean value
    visible    the histogram, or mean value, of the visible patches of the same image
    nearest    the nearest cell of the nearest visible patch
The best of them on that sample is the baseline, once for the run; skill divides by its loss on the hold-out with fixed masks.  Skills of
different targets are not comparable.  Where the baseline leaves nothing to predict, as on a hold-out whose images are of one colour each,
no skill is defined: the ratio would be of rounding errors.  Nor is there one for a target without trivial predictors, such as a teacher's
features, which move.
Letters: B batch, N patches, g cells a side, V values a cell.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mpp.recipe.baselines import Baselines
from mpp.recipe.corruption import MASKED, VISIBLE

Cells = Iterable[tuple[Tensor, Tensor]]
# In pixels of deviation 1 (the squared error of less than one level of 255, where 255 levels are four deviations), or nats a cell.
LEAST_LOSS = 1e-4
WEIGHTS = tuple(i / 20 for i in range(21))  # of the second and third predictor against the first


@dataclass(frozen=True)
class Baseline:
    name: str  # of the best trivial predictor
    weight: float
    loss: float | None  # on the hold-out, masked patches; None: the target has no trivial predictor
    losses: dict[str, float]  # of each predictor, on the hold-out

    @property
    def defines_skill(self) -> bool:
        return self.loss is not None and math.isfinite(self.loss) and self.loss >= LEAST_LOSS

    def skill(self, loss: float) -> float | None:
        """None where the baseline leaves nothing to predict, or there is none."""
        return 1 - loss / self.loss if self.loss is not None and self.defines_skill else None

    def said(self, images: int) -> str:
        """What it is, in words, and whether there is a skill; images: of the hold-out."""
        if self.loss is None:
            return "no trivial baseline: this target moves with its teacher, so no skill is defined"
        words = f"trivial baseline: {self.name}, loss {self.loss + 0.0:.4f} on {images:,} held-out images"
        return (
            words if self.defines_skill else f"{words}: it leaves nothing to predict (are they of one colour each?), so no skill is defined"
        )

    def as_dict(self) -> dict:
        return asdict(self)


NONE = Baseline("none", 0.0, None, {})


def fit_baseline(baselines: Baselines, grid: tuple[int, int], sample: Callable[[], Cells], holdout: Callable[[], Cells]) -> Baseline:
    """baselines: of the target.  sample, holdout: give batches of (cells of all patches [B, N, g, g(, V)], kind [B, N]) afresh at each call;
    the first fits and chooses, the second is quoted."""
    constant = baselines.constant(cells[kind == MASKED] for cells, kind in sample())
    best: dict[str, tuple[float, float]] = {}  # predictor -> (loss on the sample, weight)
    for name, row in _losses(baselines, grid, constant, sample()).items():
        weights = (0.0,) if name == "constant" else WEIGHTS
        best[name] = min((float(row[WEIGHTS.index(weight)]), weight) for weight in weights)
    on_holdout = {name: float(row[WEIGHTS.index(best[name][1])]) for name, row in _losses(baselines, grid, constant, holdout()).items()}
    chosen = min(best, key=lambda name: best[name][0])
    return Baseline(chosen, best[chosen][1], on_holdout[chosen], on_holdout)


def _losses(baselines: Baselines, grid: tuple[int, int], constant: Tensor, batches: Cells) -> dict[str, Tensor]:
    """For each predictor, its mean loss over the masked patches at each of WEIGHTS [21]."""
    totals = {name: torch.zeros(len(WEIGHTS), dtype=torch.float64) for name in ("constant", "visible", "nearest")}
    masked_patches = 0
    for cells, kind in batches:
        masked = kind == MASKED
        masked_patches += int(masked.sum())
        truth = cells[masked]
        guesses = {
            "constant": None,
            "visible": baselines.visible(cells, kind == VISIBLE)[masked],
            "nearest": _nearest(cells, kind, grid)[masked],
        }
        for name, guess in guesses.items():
            for i, weight in enumerate(WEIGHTS if guess is not None else WEIGHTS[:1]):
                totals[name][i] += baselines.loss(constant, guess, weight, truth)
    return {name: total / max(1, masked_patches) for name, total in totals.items()}


def _nearest(cells: Tensor, kind: Tensor, grid: tuple[int, int]) -> Tensor:
    """For each cell, the nearest cell of its patch's nearest visible patch (centre to centre; the first of equals).  Like cells."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    distance = ((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2).float()
    hidden = (kind != VISIBLE)[:, None, :]
    source = distance.expand(len(kind), -1, -1).masked_fill(hidden, float("inf")).argmin(-1)  # [B, N]
    g = cells.shape[2]
    inside = torch.arange(g)
    row = (inside + ((rows - rows[source]) * g)[..., None]).clamp(0, g - 1)  # [B, N, g]: this cell's row, seen from the source patch
    column = (inside + ((columns - columns[source]) * g)[..., None]).clamp(0, g - 1)
    batch = torch.arange(len(cells))[:, None, None, None]
    return cells[batch, source[:, :, None, None], row[:, :, :, None], column[:, :, None, :]]
