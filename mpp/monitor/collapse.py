"""Whether a moving target still tells images apart: what can go wrong where the loss alone looks best.

A teacher that gives every image the same features makes the loss small, and so do goals that code the place and not the content (CAPI, arXiv
2502.08769, calls this positional collapse).  Neither shows in the loss.
Letters: B batch, n images, N patches, V values of a goal, D the teacher's dimensions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpp.monitor.rank import COLLAPSED, spread

MOSTLY = 0.9  # of the goals' variance explained by the place: what is left for the content is less than a tenth


class Goals:
    """Sums over images, of which any part may be added anywhere: `sums` are to be added up over processes."""

    def __init__(self, patches: int, values: int, device: torch.device):
        self.sums = torch.zeros(patches * values + 2, dtype=torch.float64, device=device)  # by place; of squares; of images
        self.features: list[Tensor] = []

    def add(self, goals: Tensor, features: Tensor) -> None:
        """goals [B, N, V] of all patches, B may be 0; features [B, D]: of the whole images, by the teacher."""
        by_place, squares = goals.sum(0, dtype=torch.float64), goals.square().sum(dtype=torch.float64)
        self.sums += torch.cat([by_place.flatten(), squares[None], by_place.new_tensor([len(goals)])])
        self.features.append(features.float().cpu())


def figures(sums: Tensor, features: Tensor, grid: tuple[int, int]) -> dict[str, float]:
    """sums: of `Goals`, and features [n, D], of all processes.

    target/position   the share of the goals' variance that the place alone explains, 0..1 (of chance: about 1 / n)
    teacher/rank, teacher/mean_cosine, teacher/deviation   of the teacher's mean features, as monitor/rank.py has them
    """
    patches = grid[0] * grid[1]
    by_place, squares, images = sums[:-2].view(patches, -1), sums[-2], sums[-1]
    mean = by_place.sum(0) / (images * patches)
    total = squares - images * patches * mean.square().sum()
    explained = images * (by_place / images - mean).square().sum()
    found = spread(features)
    return {
        "target/position": float(explained / total) if total > 1e-6 * squares else 1.0,
        "teacher/rank": found["rank"],
        "teacher/mean_cosine": found["mean_cosine"],
        "teacher/deviation": found["deviation"],
    }


def words(last: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the target has collapsed, and what there is to say; "" where nothing was measured.  last, first: of a run's looks at the hold-out."""
    share, deviation = last.get("target/position"), last.get("teacher/deviation")
    if share is None or deviation is None:
        return False, ""
    said = (
        f"the place alone explains {share:.0%} of the target ({first.get('target/position', share):.0%} at {first['samples']:,} samples), the "
        f"teacher's features have rank {last['teacher/rank']:.1f} and deviation {deviation:.2g}"
    )
    if deviation < COLLAPSED:
        return True, f"{said}: the teacher gives all images the same features, it has collapsed"
    if share > MOSTLY:
        return True, f"{said}: the target codes the place and hardly the content, a positional collapse"
    return False, said
