"""What attention probabilities say: how far a head looks, how widely, how much of it goes to tokens that are no patch, and what reaches the output.

Mean attention distance is figure 7 (right) and appendix D.7 of the ViT paper (arXiv 2010.11929): the distance from the query's patch to all others in
pixels, weighted by attention, averaged over queries and images.  What happens to the class token the paper leaves open; here class tokens and registers
are left out and the rest of each row is made one whole again, for distance and entropy alike, and what they had is told beside them.
Rollout is Abnar and Zuidema's (arXiv 2005.00928) as the ViT paper uses it (appendix D.8): heads averaged, half of every block the identity, for the
residual connection, and the blocks multiplied.

Letters: B batch, H heads, N patches, P prefix tokens (class tokens, then registers), T = P + N tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def places(grid: tuple[int, int], cell: tuple[float, float]) -> Tensor:
    """Centres of the cells of a grid (rows, columns), each (height, width) pixels: float32 [rows * columns, 2], row by row."""
    rows, columns = (torch.arange(count, dtype=torch.float32) * side for count, side in zip(grid, cell, strict=True))
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def over_patches(attention: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """[B, H, T, T] -> float32 [B, H, N, N], from patches to patches, rows that sum to 1 (or are 0 where nothing is left); [B, H, N], what each patch
    gives to prefix tokens."""
    rows = attention[..., prefix:, :].float()
    rows = rows / rows.sum(-1, keepdim=True)
    kept = rows[..., prefix:]
    whole = kept.sum(-1, keepdim=True)
    return torch.where(whole > 0, kept / whole.clamp_min(torch.finfo(torch.float32).tiny), kept), rows[..., :prefix].sum(-1)


def uniform_distance(grid: tuple[int, int], cell: tuple[float, float]) -> float:
    """Pixels: of a head that looks everywhere alike."""
    where = places(grid, cell)
    return float(torch.cdist(where, where).double().mean())


@dataclass(frozen=True)
class Spread:
    """Of one layer, by head: float64 [H] each; NaN of a head that never gave anything to a patch."""

    distance: Tensor  # pixels
    entropy: Tensor  # nats
    to_prefix: Tensor  # share of 1


class SpreadSums:
    """Adds up batch after batch what `Spread` is the mean of."""

    def __init__(self, grid: tuple[int, int], cell: tuple[float, float], prefix: int = 0):
        """cell: (height, width) of a patch in pixels."""
        self.prefix = prefix
        where = places(grid, cell)
        self._between = torch.cdist(where, where)  # [N, N]
        self._sums: Tensor | None = None

    def add(self, attention: Tensor) -> None:
        """Probabilities [B, H, T, T]."""
        shares, given = over_patches(attention, self.prefix)
        self._between = self._between.to(shares.device)
        there = shares.sum(-1) > 0  # [B, H, N]
        distance = torch.einsum("bhqk,qk->bhq", shares, self._between)
        entropy = torch.special.entr(shares).sum(-1)
        sums = torch.stack([part.double().sum((0, 2)) for part in (distance, entropy, there, given, torch.ones_like(given))])
        self._sums = sums if self._sums is None else self._sums + sums

    def found(self) -> Spread:
        assert self._sums is not None
        distance, entropy, counted, given, queries = self._sums.cpu()
        return Spread(distance / counted, entropy / counted, given / queries)  # 0 / 0 is NaN


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Probabilities of every block [B, H, T, T], first to last -> [B, T, T]: how much of each input token is in each output token."""
    mixed = Rollout()
    for attention in attentions:
        mixed.add(attention)
    return mixed.found()


class Rollout:
    """The same, block after block: no block's probabilities are kept."""

    def __init__(self) -> None:
        self._mixed: Tensor | None = None

    def add(self, attention: Tensor) -> None:
        heads = attention.float().mean(1)
        own = (heads + torch.eye(heads.shape[-1], device=heads.device)) / 2
        self._mixed = own if self._mixed is None else own @ self._mixed

    def found(self) -> Tensor:
        assert self._mixed is not None
        return self._mixed


def asked(attention: Tensor, prefix: int, class_tokens: int) -> Tensor:
    """[..., T, T] -> [..., N], rows of 1: where the class tokens look (their mean), or without one where the patches look on average; prefix tokens
    left out."""
    rows = attention[..., :class_tokens, :] if class_tokens else attention[..., prefix:, :]
    seen = rows.float().mean(-2)[..., prefix:]
    return seen / seen.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def diagonal(height: int, width: int) -> float:
    """Pixels: what distances are a share of."""
    return math.hypot(height, width)
