"""What the weights of an encoder look like: the filters of its patch embedding, its positions of every kind; and its patch tokens as colours.

Sources: the ViT paper's figure 7 (arXiv 2010.11929) for filters and positions; DINOv2 (arXiv 2304.07193) for patch tokens as colours.

Letters: D dimensions, N patches of a grid (rows, columns), V values of a filter, H heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Components:
    """Principal directions, each with the sign in which its largest entry is positive: the other sign says the same."""

    directions: Tensor  # [k, V], orthonormal rows
    explained: Tensor  # [min(rows, V)], share of the variance, falling

    def first(self, count: int) -> float:
        """Share of the variance that the first `count` explain."""
        return float(self.explained[:count].sum())

    def enough(self, share: float = 0.9) -> int:
        """The fewest that explain this share of the variance."""
        return int((self.explained.cumsum(0) < share).sum()) + 1


def components(covariance: Tensor, count: int) -> Components:
    """Of a covariance [V, V], up to a factor."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).T
    total = values.sum()
    directions = vectors[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return Components(directions * torch.where(largest < 0, -1, 1), values / total if total > 0 else values)


def filter_layer(net: nn.Module) -> nn.Conv2d | None:
    """The convolution that colours pass first: the patch embedding of a Vision Transformer, the stem of a convolutional network."""
    return next((module for module in net.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3), None)


def is_grey(images: Tensor) -> bool:
    """uint8 [B, 3, H, W]: whether no pixel has a colour."""
    return bool((images[:, 1:] == images[:, :1]).all())


def principal_filters(weight: Tensor, count: int, grey: Sequence[float] | None = None) -> Components:
    """Filters [D, 3, h, w] -> their principal components about their mean, of V = 3 h w values each; at most `count`.

    grey: the three deviations that colours are divided by, for images without colours: of V = h w values, what a filter does to a grey patch.  The rest
    of it never mattered, and is what it was at random initialisation.
    """
    weight = weight.detach().double()
    if grey is not None:
        weight = (weight / torch.tensor(grey, dtype=torch.float64, device=weight.device)[:, None, None]).sum(1)
    flat = weight.flatten(1)
    flat = flat - flat.mean(0)
    return components(flat.T @ flat, count)


def absolute_positions(net: Any, grid: tuple[int, int]) -> Tensor | None:
    """Those of the patches [N, D], learned or fixed, without those of class tokens; None where nothing is added to the patches."""
    positions = getattr(net, "pos_embed", None)
    if not isinstance(positions, Tensor) or positions.ndim not in (3, 4):
        return None
    flat, patches = positions.detach().flatten(0, -2).float(), grid[0] * grid[1]
    if len(flat) < patches or not bool(flat[-patches:].any()):
        return None
    return flat[-patches:]


def cosines(rows: Tensor) -> Tensor:
    """[N, D] -> cosine similarity of each to all, [N, N]."""
    unit = nn.functional.normalize(rows.float(), dim=1)
    return unit @ unit.T


def rotary_kernel(net: Any, grid: tuple[int, int]) -> Tensor | None:
    """How much of a query's product with an equal key is left when their places differ, [N, N]: the mean over all pairs of dimensions, and over heads and
    blocks where each has its own frequencies, of cos(frequency * offset).  None without rotary positions."""
    rope = getattr(net, "rope", None)
    if rope is None or not hasattr(rope, "get_embed"):
        return None
    found = rope.get_embed(shape=list(grid))
    parts = torch.cat(found, dim=-1) if isinstance(found, tuple) else torch.stack(list(found)) if isinstance(found, list) else found
    turns = parts.detach().float()  # [..., N, sines, then as many cosines]
    if turns.shape[-2] != grid[0] * grid[1]:
        return None
    kernels = turns @ turns.transpose(-1, -2) / (turns.shape[-1] // 2)
    return kernels.reshape(-1, *kernels.shape[-2:]).mean(0)


def by_offset(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """[N, N] -> [2 rows - 1, 2 columns - 1]: the mean over all pairs whose second place is so far below and to the right of the first; no offset in the
    middle."""
    rows, columns = grid
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2)
    offset = place[None] - place[:, None] + torch.tensor([rows - 1, columns - 1])  # [N, N, 2]
    flat = (offset[..., 0] * (2 * columns - 1) + offset[..., 1]).flatten()
    size = (2 * rows - 1) * (2 * columns - 1)
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, flat, kernel.cpu().double().flatten())
    return (sums / torch.bincount(flat, minlength=size)).reshape(2 * rows - 1, 2 * columns - 1).float()


@dataclass(frozen=True)
class RelativeBias:
    name: str  # of the module
    bias: Tensor  # [H, 2 rows - 1, 2 columns - 1]: what is added for a key so far below and to the right of the query (the middle: itself)


def relative_biases(net: nn.Module) -> Iterator[RelativeBias]:
    """Learned biases by offset (BEiT, Swin, timm's relpos models), without the entries of class tokens."""
    for name, module in net.named_modules():
        each: Any = module
        table, window = getattr(each, "relative_position_bias_table", None), getattr(each, "window_size", None)
        if isinstance(table, Tensor) and window:
            rows, columns = 2 * window[0] - 1, 2 * window[1] - 1
            # The table is of query minus key; the key's offset from the query is the other way round.
            bias = table.detach().float()[: rows * columns].T.reshape(-1, rows, columns).flip(1, 2)
            yield RelativeBias(name.removesuffix(".attn"), bias)


class TokenSums:
    """Adds up patch tokens batch after batch, for their principal components."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, tokens: Tensor) -> None:
        """[B, N, D]."""
        flat = tokens.double().flatten(0, 1)
        if self._sum is None or self._products is None:  # about the first batch's mean, so that little cancels
            self._about = flat.mean(0)
            self._sum, self._products = torch.zeros_like(self._about), flat.new_zeros(flat.shape[1], flat.shape[1])
        flat = flat - self._about
        self.count += len(flat)
        self._sum += flat.sum(0)
        self._products += flat.T @ flat

    def found(self) -> tuple[Tensor, Components]:
        """Mean [D] and the first three components."""
        assert self._sum is not None and self._products is not None
        mean = self._sum / self.count
        return mean + self._about, components(self._products / self.count - torch.outer(mean, mean), 3)


def as_colours(tokens: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Patch tokens [B, N, D] -> [B, N, 3] in 0..1: the components, each from its 1st to its 99th percentile over all that is shown."""
    found = (tokens.double() - mean) @ directions.T
    flat = found.flatten(0, 1)
    low, high = torch.quantile(flat, 0.01, dim=0), torch.quantile(flat, 0.99, dim=0)
    return ((found - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
