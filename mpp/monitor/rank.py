"""How many directions the features use, and whether images differ in them at all.

Two ranks, since either alone misleads.  RankMe's is of the features as they are: one direction that all images share, such as a large mean, takes
most of the singular values' sum and hides the others.  About the mean, the same features may use many.  Beside them stand the mean cosine, which
shows such a direction, and the spread, which shows whether anything but it is there.
Letters: n images, D features of each.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

EXPLAINED = (
    "counts the directions that features use about their mean; uncentred: RankMe, the mean included; cosine: mean similarity of two images; "
    "spread: 0 where all images have the same features, 1 where they point every way alike"
)
APART = 1.5  # times the uncentred rank: a centred one beyond that says something else
COLLAPSED = 1e-4  # a spread below this is that of rounding (bf16 and fp32 networks), not of images


def spread(features: Tensor) -> dict[str, float]:
    """features: [n, D], any float.  All four are finite and know no scale; computed in float64.

    rank            exp of the entropy of the singular values as shares of their sum, 0..min(n - 1, D), of the features less their mean
    rank_uncentred  the same, 0..min(n, D), of the features themselves: RankMe (arXiv 2210.02885, eq. 1)
    mean_cosine     the mean over all pairs of two different images, -1 / (n - 1)..1; of a single image 1
    deviation       the mean over features of their standard deviation once each image's are scaled to length 1 / sqrt(D) of it: SimSiam's measure
                    of collapse (arXiv 2011.10566, 4.1: 1 / sqrt(D) there is 1 here); 0 where all images agree, 1 where they lie about 0 evenly

    The ranks grow with n while n is near D, so compare them at equal n.  Directions no larger than the rounding of the features given (float32:
    2^-23 of their size) count as none: all images alike have a rank of 0, and one of 1 uncentred; features that are all zero have 0, and a cosine of 0.
    """
    rounding = torch.finfo(features.dtype).eps
    matrix = features.double()
    matrix = matrix / matrix.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)  # squares of any numbers fit then
    images, width = matrix.shape
    # As large as the greatest singular value of independent errors of one rounding in every number.
    least = rounding * float(matrix.square().mean().sqrt()) * (math.sqrt(images) + math.sqrt(width))
    lengths = matrix.norm(dim=1, keepdim=True)
    directions = torch.where(lengths > 0, matrix / lengths, 0.0)
    pairs, count = images * (images - 1), (lengths > 0).sum()
    cosine = float((directions.sum(0).square().sum() - count) / pairs) if pairs else 1.0
    return {
        "rank": _effective_rank(_centred(matrix), least),
        "rank_uncentred": _effective_rank(matrix, least),
        "mean_cosine": min(1.0, max(-1.0, cosine)),
        "deviation": float(_centred(directions).square().mean(0).sqrt().mean()) * math.sqrt(width),
    }


def words(row: Mapping[str, float]) -> str:
    """What a reader of one row, as `spread` gives it, must be told lest the ranks mislead; nothing where they agree."""
    rank, uncentred, cosine = row["rank"], row["rank_uncentred"], row["mean_cosine"]
    if row["deviation"] < COLLAPSED:
        return f"all images have the same features but for {row['deviation']:.1g} of their size: they are collapsed, whatever the ranks say"
    if rank > APART * uncentred:
        return (
            f"uncentred {uncentred:.1f}, centred {rank:.1f}: a direction common to all images (mean cosine {cosine:.3f}) hides the rest; "
            "judge by the centred one"
        )
    return ""


def notes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for below a table: what its columns are, and by row what must be said; rows: name -> figures.  A bare number is an uncentred rank."""
    ranked = {name: row["feature_rank"] for name, row in rows.items() if "feature_rank" in row}
    found = {name: rank for name, rank in ranked.items() if isinstance(rank, Mapping)}
    lines = [f"rank      {EXPLAINED}"] if found else []
    lines += [f"rank      {name}: {said}" for name, rank in found.items() if (said := words(rank))]
    if older := [name for name in ranked if name not in found]:
        lines.append(
            f"rank      {', '.join(older)}: uncentred only, which a direction common to all images lowers; measure again for the others"
        )
    return lines


def _centred(matrix: Tensor) -> Tensor:
    """Less its rows' mean; a column of equal numbers is exactly 0, whose mean's rounding would have a rank of its own."""
    shifted = matrix - matrix[:1]
    return shifted - shifted.mean(0)


def _effective_rank(matrix: Tensor, least: float) -> float:
    """float64 [n, D]; singular values up to `least` are none."""
    images, width = matrix.shape
    values = torch.linalg.eigvalsh(matrix.T @ matrix if images > width else matrix @ matrix.T).clamp_min(0)  # a tenth of an SVD's time
    lost = torch.finfo(torch.float64).eps * max(images, width) * values.amax()  # of the squares' own rounding
    singular = torch.where(values > lost, values.sqrt(), 0.0)
    singular = torch.where(singular > least, singular, 0.0)
    total = singular.sum()
    if not total > 0:
        return 0.0
    share = singular / total
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
