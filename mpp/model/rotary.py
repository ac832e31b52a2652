"""Rotary positions at given coordinates: a query and a key are turned by where they lie, so that their product tells how far apart that is.

After CAPI (arXiv 2502.08769; the numbers are of the authors' code): coordinates run from 0 to 1 along each axis of the grid, frequencies are fixed
and geometric, rows turn one half of a head's pairs and columns the other, and a pair is one number of the head's first half and one of its second.
Letters: B batch, h heads, T tokens, N patches of a grid of rows x columns, P prefix tokens, d width of a head.
"""

import math

import torch
from torch import Tensor

HIGHEST, LOWEST = 7.0, 7e-4  # frequencies, in turns from one side of the grid to the other (CAPI)
Turn = tuple[Tensor, Tensor]  # cosines and sines float32 [B, 1, T, d / 2]


def grid_coordinates(grid: tuple[int, int]) -> Tensor:
    """float32 [N, 2]: row and column of each patch, from 0 to 1 (CAPI)."""
    rows, columns = (torch.linspace(0, 1, side) for side in grid)
    return torch.cartesian_prod(rows, columns)


def edge_coordinates(count: int) -> Tensor:
    """float32 [P, 2]: evenly along the edge of the unit square, from its first corner on: down, across, up and back (CAPI, for 16 registers)."""
    side, along = (torch.arange(count) * 4 / max(1, count)).floor(), (torch.arange(count) * 4 / max(1, count)) % 1
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    start, end = corners[side.long()], corners[side.long() + 1]
    return start + along[:, None] * (end - start)


def within(box: Tensor, edge: Tensor) -> Tensor:
    """Coordinates [B, K, 2], of the unit square's edge [P, 2] -> [B, P, 2]: the same on the edge of the box that holds them all (CAPI)."""
    low, high = box.amin(1, keepdim=True), box.amax(1, keepdim=True)
    return low + edge * (high - low)


def turns(coordinates: Tensor, width: int) -> Turn:
    """Coordinates float32 [B, T, 2] -> by which angles the pairs of a head are turned.  width: d, a multiple of 4."""
    frequencies = HIGHEST * (HIGHEST / LOWEST) ** -torch.linspace(0, 1, width // 4, device=coordinates.device)
    angles = (2 * math.pi * coordinates[..., None] * frequencies).flatten(2)[:, None]
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, turn: Turn) -> Tensor:
    """Queries or keys [B, h, T, d] -> turned; in float32 whatever the autocast, as bfloat16 knows no angle to better than a degree."""
    (cosine, sine), (first, second) = turn, heads.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(heads.dtype)
