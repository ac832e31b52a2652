"""The attention of an encoder over many images: what each layer's heads do on average, and for a few images where their output comes from.

Letters: B batch, H heads, N patches, T tokens, L layers of attention.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpp.model.attention_maps import Layer, are_probabilities, attention_layers, watched_attention
from mpp.monitor.attention import Rollout, Spread, SpreadSums, asked, uniform_distance

LARGEST = 2**25  # probabilities of one layer at once: 128 MB of float32, of which there are a handful of copies


@dataclass(frozen=True)
class Patches:
    """How an encoder's tokens lie in its images."""

    grid: tuple[int, int]  # rows and columns
    cell: tuple[float, float]  # pixels, (height, width) of a patch
    prefix: int  # tokens before the patches
    class_tokens: int  # of these, the first

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class LayerSpread:
    layer: Layer
    spread: Spread
    patches: int  # among which attention is shared out: all, or those of a window
    uniform: float  # pixels: the mean distance of a head that looks everywhere alike
    every_token: bool = True  # whether class tokens and registers, where there are any, take part

    def scalars(self) -> dict[str, float | None]:
        """Means over heads: distance in pixels, entropy as a share of what looking everywhere alike has; None where no head gave anything to a patch."""
        known = {"distance": self.spread.distance, "entropy": self.spread.entropy / max(math.log(self.patches), 1e-12)}
        return {name: float(mean) if math.isfinite(mean := values.nanmean().item()) else None for name, values in known.items()}


class SpreadByLayer:
    """Adds up, batch after batch."""

    def __init__(self, net: nn.Module, patches: Patches):
        self.net, self.patches = net, patches
        self._sums: dict[str, SpreadSums] = {}
        self._facts: dict[str, tuple[Layer, int, float, bool]] = {}
        self.absent: dict[str, str] = {}  # layer, and why its attention is not told

    @contextmanager
    def watching(self, images: int) -> Iterator[None]:
        """One forward pass of so many images."""
        with watched_attention(self.net, lambda layer, attention: self._see(layer, attention, images)):
            yield

    def _see(self, layer: Layer, attention: Tensor, images: int) -> None:
        if layer.name in self.absent:
            return
        if reason := fault(layer, attention, images, self.patches):
            self.absent[layer.name] = reason
            self._sums.pop(layer.name, None)
            return
        if layer.name not in self._sums:
            # Where a class token comes in late (ConViT) the first layers have the patches alone.
            prefix = 0 if layer.window else attention.shape[-1] - self.patches.count
            grid = layer.window or self.patches.grid
            cell = (float(layer.reduction or 1),) * 2 if layer.window else self.patches.cell
            self._sums[layer.name] = SpreadSums(grid, cell, prefix)
            self._facts[layer.name] = (layer, grid[0] * grid[1], uniform_distance(grid, cell), prefix == self.patches.prefix)
        self._sums[layer.name].add(attention)

    def found(self) -> list[LayerSpread]:
        """In the order of the forward pass."""
        told = [(self._facts[name], sums.found()) for name, sums in self._sums.items()]
        return [LayerSpread(layer, spread, patches, uniform, whole) for (layer, patches, uniform, whole), spread in told]


def fault(layer: Layer, attention: Tensor, images: int, patches: Patches) -> str:
    """Why these probabilities are not between patches that lie in a known place; "" where they are."""
    allowed = [layer.window[0] * layer.window[1]] if layer.window else [patches.count, patches.prefix + patches.count]
    square = attention.ndim == 4 and attention.shape[-2] == attention.shape[-1]
    if not square or attention.shape[-1] not in allowed or (not layer.window and len(attention) != images):
        return "its attention is not between all patches"
    if layer.window and layer.reduction is None:
        return "how large its tokens are is not known"
    return "" if are_probabilities(attention) else "what weighs its values are no probabilities"


def one_a_block(net: Any, layers: Sequence[LayerSpread]) -> bool:
    """Whether the blocks of a plain stack have one layer of attention each, between all patches, so that they can be multiplied."""
    blocks = getattr(net, "blocks", ())
    return len(layers) == len(blocks) > 0 and all(
        each.layer.window is None and each.every_token and each.layer.name.startswith(f"blocks.{number}.")
        for number, each in enumerate(layers)
    )


@dataclass(frozen=True)
class Maps:
    """Of B images, each row of N sums to 1."""

    rollout: Tensor  # [B, N]
    last: Tensor  # [B, H, N], of the last block


class MapsOfBatch:
    """Of the images of one forward pass, through an encoder of which `one_a_block` holds."""

    def __init__(self, net: nn.Module, patches: Patches):
        self.net, self.patches = net, patches
        self._rollout = Rollout()
        self._last: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        with watched_attention(self.net, self._see):
            yield

    def _see(self, _layer: Layer, attention: Tensor) -> None:
        self._rollout.add(attention)
        self._last = asked(attention, self.patches.prefix, self.patches.class_tokens)

    def found(self) -> Maps:
        assert self._last is not None
        return Maps(asked(self._rollout.found(), self.patches.prefix, self.patches.class_tokens).cpu(), self._last.cpu())


def images_at_once(net: nn.Module, patches: Patches, most: int) -> int:
    """As many as keep a layer's probabilities below LARGEST, at most `most`."""
    heads = max((int(getattr(module, "num_heads", 1)) for _, module in attention_layers(net)), default=1)
    return max(1, min(most, LARGEST // (heads * (patches.prefix + patches.count) ** 2)))


def board_rows(layers: Sequence[LayerSpread]) -> Mapping[str, float | None]:
    """attention/distance/block_03 and the like, in pixels and shares, and their means."""
    rows: dict[str, float | None] = {}
    for quantity in ("distance", "entropy") if layers else ():
        values = [each.scalars()[quantity] for each in layers]
        rows |= {f"attention/{quantity}/block_{number:02}": value for number, value in enumerate(values, 1)}
        known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        rows[f"attention/{quantity}/mean"] = float(known.mean()) if len(known) else None
    return rows
