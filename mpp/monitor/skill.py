"""Skill: how much better than trivial the predictions are, 1 - loss / baseline, on masked patches only (kept ones show their answer).

Three trivial predictors, each shrunk towards the first by a weight fitted on a training sample:
    constant   the colour histogram (add-one smoothed) of the sample, or its mean value
    visible    the histogram, or mean value, of the visible patches of the same image
    nearest    the nearest cell of the nearest visible patch
(Where no patch is visible, as of images that lost their colour or were turned, the first alone.)
They see no more than the model does, where a goal is told by its own patch.  Where it looks beyond (a frozen encoder's features, in which each patch has
read all others; by a pixel, histograms of gradients), the goals of visible patches tell of hidden ones, too: skill is then too low, never too high, and
what is below such a rule is judged beside the first predictor alone.
The best of them on that sample is the baseline, once for the run; skill divides by its loss on the hold-out with fixed masks.  Skills of
different targets are not comparable.  Its standard error is over the images of the hold-out; the baseline's loss counts as a given number, though
it is of the same images: what makes an image hard for both cancels, so the true error is rather smaller.  Where the baseline leaves nothing to predict, as on a hold-out whose images are of one colour each,
no skill is defined: the ratio would be of rounding errors.  Nor is there one for a target without trivial predictors, such as a teacher's
features, which move.
Letters: B batch, N patches, g cells a side, V values a cell.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mpp.monitor import collapse
from mpp.recipe.baselines import Baselines
from mpp.recipe.places import MASKED, VISIBLE

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
    looks_beyond: bool = False  # whether goals tell of more than their own patch (recipe/targets/base.py)

    @property
    def knows_more(self) -> bool:
        """Than the model does: goals of visible patches that tell of hidden ones."""
        return self.looks_beyond and self.name != "constant"

    @property
    def defines_skill(self) -> bool:
        return self.loss is not None and math.isfinite(self.loss) and self.loss >= LEAST_LOSS

    def skill(self, loss: float) -> float | None:
        """None where the baseline leaves nothing to predict, or there is none."""
        return 1 - loss / self.loss if self.loss is not None and self.defines_skill else None

    def skill_error(self, sums: "ImageSums") -> float | None:
        """The standard error of that skill; None without a skill, and for a single image."""
        error = sums.loss_error()
        return error / self.loss if error is not None and self.loss is not None and self.defines_skill else None

    def said(self, images: int) -> str:
        """What it is, in words, and whether there is a skill; images: of the hold-out."""
        if self.loss is None:
            return "no trivial baseline: this target moves with its teacher, so no skill is defined"
        words = f"trivial baseline: {self.name}, loss {self.loss + 0.0:.4f} on {images:,} held-out images"
        if self.knows_more:
            words += "; goals of this target tell of other patches, too, so it knows more than the model, and skill is rather too low"
        return (
            words if self.defines_skill else f"{words}: it leaves nothing to predict (are they of one colour each?), so no skill is defined"
        )

    def as_dict(self) -> dict:
        return asdict(self)


NONE = Baseline("none", 0.0, None, {})


@dataclass(frozen=True)
class ImageSums:
    """Over the images of a hold-out, each with l, the sum of its masked patches' losses, and m, their number."""

    images: float
    loss: float  # of l
    patches: float  # of m
    loss_loss: float  # of l * l
    loss_patches: float
    patches_patches: float

    def loss_error(self) -> float | None:
        """The standard error of the loss a patch, sum(l) / sum(m), as that of a ratio (Cochran, Sampling Techniques, 1977, 2.11)."""
        if not (self.images > 1 and self.patches > 0):
            return None
        mean = self.loss / self.patches
        squares = self.loss_loss - 2 * mean * self.loss_patches + mean**2 * self.patches_patches
        return math.sqrt(max(0.0, squares) * self.images / (self.images - 1)) / self.patches


@dataclass(frozen=True)
class Verdict:
    """What the hold-out says of a run in the end."""

    learned: Literal["yes", "not shown", "no"] | None  # more than the best trivial predictor knows; None: the hold-out cannot tell
    words: str
    figures: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"learned": self.learned, "words": self.words} | self.figures


def verdict(baseline: Baseline, course: Sequence[Mapping[str, Any]], images: int) -> Verdict | None:
    """Conservative: a skill counts as other than 0, or than the first one, beyond Student's 95 % interval from its standard error.

    course: in order, a row for each look at the hold-out, {"samples", "holdout/loss", and where defined "holdout/skill", "holdout/skill_error"}, None
    for what is not finite; images: of the hold-out.  None where nobody has looked.
    """
    if not course:
        return None
    from scipy.special import stdtrit  # here, because it takes a quarter of a second

    first, last = course[0], course[-1]
    figures: dict[str, Any] = {
        name: {key.removeprefix("holdout/"): value for key, value in row.items()} for name, row in (("first", first), ("last", last))
    }
    made = lambda learned, words: Verdict(learned, words, figures | {"baseline": baseline.name, "images": images})
    look = "look at optim.base_lr and at the run's pictures"
    skill = last.get("holdout/skill")
    if last["holdout/loss"] is None or ("holdout/skill" in last and skill is None):
        return made("no", f"the hold-out loss is not finite: this run has diverged; lower optim.base_lr, {look}")
    if skill is None:
        why = "this target moves with its teacher" if baseline.loss is None else "the hold-out leaves nothing to predict"
        probe = "mpp/linear_probe.py encoder=RUN train=SHARDS (without labels with rank_only=true, for its rank and spread)"
        collapsed, known = collapse.words(last, first)
        if collapsed:
            return made("no", f"{known}; lower optim.base_lr, raise target.ema_start and target.ema_end, or hide more")
        seen = f"; {known}" if known else ""
        return made(None, f"no skill is defined ({why}), and a low loss alone may be a collapse: judge by a probe, {probe}{seen}")
    error, rule = last.get("holdout/skill_error"), f"the trivial predictor '{baseline.name}'"
    if error is None:
        why = "an earlier version noted no standard error with it" if images > 1 else "of one image: raise data.holdout_samples"
        return made(None, f"hold-out skill {skill:+.3f} (0: {rule}; 1: no error), from which nothing is concluded: {why}")
    margin = float(stdtrit(images - 1, 0.975)) * error
    said = f"hold-out skill {skill:+.3f} ± {margin:.3f}"
    figures["last"]["skill_margin"] = margin
    if skill > margin:
        best = max((row for row in course if row.get("holdout/skill") is not None), key=lambda row: row["holdout/skill"])
        fell = best["holdout/skill"] - skill > margin
        past = f"; it was {best['holdout/skill']:+.3f} at {best['samples']:,} samples: the end has lost some of it" if fell else ""
        return made("yes", f"{said} (0: {rule}; 1: no error): this run predicts better than any trivial rule{past}")
    if baseline.knows_more and last["holdout/loss"] < baseline.losses["constant"]:
        return made(
            "not shown",
            f"{said}: no better than {rule}, which knows more than the model, as goals of this target tell of other patches, too; better than a "
            "constant prediction. So skill cannot tell: judge by a probe, mpp/linear_probe.py encoder=RUN train=SHARDS",
        )
    if skill >= -margin:
        return made("not shown", f"{said}: no better than {rule}, and nothing is shown to be learned beyond it; train longer, or {look}")
    began, before = first.get("holdout/skill"), first.get("holdout/skill_error")
    since = f"at {first['samples']:,} samples"
    if first is last or began is None:
        return made("no", f"{said}: worse than {rule}; train longer, or {look}")
    if skill - began > math.hypot(margin, float(stdtrit(images - 1, 0.975)) * (before or 0.0)):
        return made("not shown", f"{said}: still worse than {rule}, but better than {since} ({began:+.3f}): it is learning; train longer")
    better = "not shown to be better" if skill > began else "no better"  # it may have risen, by less than the margins
    return made(
        "no",
        f"{said}, worse than {rule} and {better} than {since} ({began:+.3f}): this run has learned nothing that it does not know; train longer, or {look}",
    )


def fit_baseline(
    baselines: Baselines, grid: tuple[int, int], sample: Callable[[], Cells], holdout: Callable[[], Cells], looks_beyond: bool = False
) -> Baseline:
    """baselines, looks_beyond: of the target.  sample, holdout: give batches of (cells of all patches [B, N, g, g(, V)], kind [B, N]) afresh at each call;
    the first fits and chooses, the second is quoted."""
    constant = baselines.constant(cells[kind == MASKED] for cells, kind in sample())
    best: dict[str, tuple[float, float]] = {}  # predictor -> (loss on the sample, weight)
    for name, row in _losses(baselines, grid, constant, sample()).items():
        weights = (0.0,) if name == "constant" else WEIGHTS
        best[name] = min((float(row[WEIGHTS.index(weight)]), weight) for weight in weights)
    on_holdout = {name: float(row[WEIGHTS.index(best[name][1])]) for name, row in _losses(baselines, grid, constant, holdout()).items()}
    chosen = min(best, key=lambda name: best[name][0])
    return Baseline(chosen, best[chosen][1], on_holdout[chosen], on_holdout, looks_beyond)


def _losses(baselines: Baselines, grid: tuple[int, int], constant: Tensor, batches: Cells) -> dict[str, Tensor]:
    """For each predictor, its mean loss over the masked patches at each of WEIGHTS [21]."""
    totals: dict[str, Tensor] = {}
    masked_patches = 0
    for cells, kind in batches:
        masked = kind == MASKED
        masked_patches += int(masked.sum())
        truth = cells[masked]
        guesses: dict[str, Tensor | None] = {
            "constant": None,
        }
        if (kind == VISIBLE).any():  # else there is nothing to guess from
            guesses |= {"visible": baselines.visible(cells, kind == VISIBLE)[masked], "nearest": _nearest(cells, kind, grid)[masked]}
        for name, guess in guesses.items():
            for i, weight in enumerate(WEIGHTS if guess is not None else WEIGHTS[:1]):
                totals.setdefault(name, torch.zeros(len(WEIGHTS), dtype=torch.float64))[i] += baselines.loss(constant, guess, weight, truth)
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
