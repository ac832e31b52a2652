"""k nearest neighbours by cosine similarity, votes weighted by exp(similarity / temperature).

Source: Wu et al. 2018 (arXiv 1805.01978) as DINO and DINOv2 use it: temperature .07, k from 10, 20, 100, 200; features are not centred.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mpp.errors import ConfigError


def usable_k(grid: Sequence[int], neighbours: int) -> list[int]:
    """The k of the grid that a bank of so many neighbours can serve.  Raises ConfigError when there is none."""
    usable = [k for k in grid if k <= neighbours]
    if not usable:
        raise ConfigError(
            f"knn.k={list(grid)}: there are only {neighbours} labelled images to be neighbours; set knn.k=[{neighbours}] or less"
        )
    return usable


def classify(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    classes: int,
    grid: Sequence[int],
    temperature: float,
    device: torch.device,
    chunk: int = 1024,
) -> Tensor:
    """int64 [len(grid), m]: the class of each query for each k; equal votes go to the lower class.

    queries: float32 [m, D]; bank: float32 [n, D] with labels int64 [n]; every k at most n.
    """
    known = normalize(bank.to(device), dim=1).T.contiguous()
    labels = labels.to(device)
    out = []
    for part in queries.split(chunk):
        similarity, index = (normalize(part.to(device), dim=1) @ known).topk(max(grid), dim=1)
        weight, voted = (similarity / temperature).exp(), labels[index]
        votes = [weight.new_zeros(len(part), classes).scatter_add_(1, voted[:, :k], weight[:, :k]) for k in grid]
        out.append(torch.stack([vote.argmax(dim=1) for vote in votes]).cpu())
    return torch.cat(out, dim=1)
