"""What every decoder answers to.  Letters: B samples, K visible, M predicted, P prefix tokens, D encoder dimensions, O outputs a patch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mpp.config.schema import Section
from mpp.model.tokens import sincos_positions
from mpp.recipe.places import Grid


@dataclass(frozen=True)
class Given:
    """What a decoder may depend on beside its own section."""

    width: int  # of the encoder's tokens
    outputs: int  # O, of the target
    prefix: int  # P, class tokens and registers before the patches
    grid: Grid
    depth: int  # of the encoder, in blocks
    groups: int = 1  # sets of equal size that the predicted patches consist of
    fused_attention: bool | None = None
    target_head: Callable[[int], nn.Module] | None = None  # the target's own way from a vector of so many numbers to O; None: linear

    def head(self, width: int) -> nn.Module:
        """From what the decoder makes of a patch, a vector of so many numbers, to O."""
        return self.target_head(width) if self.target_head else nn.Linear(width, self.outputs)


class DecoderSection(Section):
    """What every decoder's section answers to."""

    name: str  # of the choice, and the first of its keys

    def fits(self, drops: bool) -> None:
        """Raises ValueError where it cannot follow a corruption that does, or does not, drop the hidden patches."""

    @property
    def reads_blocks(self) -> bool:
        """Whether it is given what enters the encoder's first block and what leaves each, [depth + 1] tensors, instead of its normalised tokens."""
        return False

    @property
    def has_feature(self) -> bool:
        """Whether what it builds is a `Predictor`."""
        return False

    def build(self, given: Given) -> nn.Module:
        """The `Decoder`, freshly initialised from torch's global generator."""
        raise NotImplementedError


class Decoder(Protocol):
    def __call__(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D] of the patches `places` [B, K] (None: of all, in order), predicted [B, M] -> [B, M, O].  Of one that reads blocks,
        `tokens` is the list of those tensors."""


class Predictor(Decoder, Protocol):
    """A decoder whose first block is a feature of the whole image, too: its mean over all places (CAPI)."""

    width: int  # W
    reads_blocks: bool

    def first_block(self, tokens: Tensor | list[Tensor], places: Tensor | None, queries: Tensor) -> Tensor:
        """What leaves the first block at the places `queries` [B, Q]: [B, Q, W]; tokens, places: as of the decoder."""

    def at_grid(self, grid: Grid) -> nn.Module:
        """A copy for images of so many patches."""


def refuse_width(width: int, heads: int, position: str) -> None:
    """Raises ValueError where the width cannot be divided among so many heads, or does not take such positions."""
    fits, why = {
        "rotary": (4 * heads, f"4 x heads={heads}, as rotary positions turn the pairs of a head along two axes"),
        "sincos2d": (math.lcm(4, heads), f"4 (sine-cosine positions) and of heads={heads}"),
        "learned": (heads, f"heads={heads}"),
    }[position]
    if width % fits:
        raise ValueError(f"width={width} must be a multiple of {why}; the nearest that fits is {max(1, round(width / fits)) * fits}")


def add_positions(decoder: nn.Module, learned: bool, width: int, prefix: int, grid: Grid) -> None:
    """decoder.pos_embed [1, P + N, W]: learned, from N(0, .02), of every token (Pixio), or fixed sine-cosines, and none before the patches (MAE)."""
    if learned:
        decoder.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, prefix + grid[0] * grid[1], width), std=0.02))
    else:
        fixed = torch.cat([torch.zeros(prefix, width), sincos_positions(width, grid)])[None]
        decoder.register_buffer("pos_embed", fixed, persistent=False)
