"""A predictor of the predicted places alone: each is a query that reads what the encoder has seen, and queries never see each other.

CrossMAE (arXiv 2401.14391) and CAPI (arXiv 2502.08769) share it.  In CAPI every block reads the encoder's normalised last tokens.  In CrossMAE each
block reads its own learned weighted sum of what enters the encoder's first block and what leaves each, under its own norm.
Letters: B batch, N patches, K visible, M predicted, Q places that are asked for, P prefix tokens, D encoder dimensions, W predictor width, h heads,
O outputs a patch.
"""

import copy
from functools import partial
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mpp.config.schema import Fraction, Positive
from mpp.model.rotary import Turn, edge_coordinates, grid_coordinates, rotate, turns, within
from mpp.model.tokens import choose_attention, initialise_linear, resized_positions
from mpp.recipe.decoders.base import DecoderSection, Given, add_positions, refuse_width
from mpp.recipe.places import Grid


class CrossAttentionDecoder(DecoderSection):
    name: Literal["cross_attention"] = "cross_attention"
    depth: Positive = 12  # CrossMAE, CAPI
    width: Positive = 512  # CrossMAE (ViT-S: 256); CAPI: 1024
    heads: Positive = 16  # CrossMAE (ViT-S: 8), CAPI
    mlp_ratio: Annotated[float, Field(ge=1)] = 4.0  # inner width of an MLP / width (CrossMAE, CAPI)
    memory: Literal["last", "blocks"] = "last"  # what blocks read: the encoder's last tokens (CAPI), or sums of all its blocks' (CrossMAE)
    position: Literal["sincos2d", "learned", "rotary"] = (
        "sincos2d"  # of the queries, fixed (CrossMAE) or learned; or rotary, of what they read too (CAPI)
    )
    drop_path: Fraction = 0.0  # stochastic depth, the same rate in every block (CAPI: 0.2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse_width(self.width, self.heads, self.position)
        return self

    @property
    def reads_blocks(self) -> bool:
        return self.memory == "blocks"

    @property
    def has_feature(self) -> bool:
        return True

    def build(self, given: Given) -> "CrossAttention":
        return CrossAttention(given, self)


class CrossAttention(nn.Module):
    def __init__(self, given: Given, config: CrossAttentionDecoder):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)  # as the encoder's
        self.grid, self.width, self.reads_blocks = given.grid, config.width, config.reads_blocks
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mixture = Mixture(given.width, given.depth + 1, config.depth, norm) if config.reads_blocks else None
        self.turned = Turned(given.grid, given.prefix, config.width // config.heads) if config.position == "rotary" else None
        self.blocks = nn.ModuleList(Block(config, given.width, norm) for _ in range(config.depth))
        self.norm = norm(config.width)
        self.head = given.head(config.width)
        self.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.mixture:
            self.mixture.initialise()
        self.pos_embed: Tensor | None
        if config.position == "rotary":
            self.pos_embed = None
        else:
            add_positions(self, config.position == "learned", config.width, 0, given.grid)
        choose_attention(self.blocks, given.fused_attention)

    def forward(self, tokens: Tensor | list[Tensor], places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D] of the patches `places` [B, K] (None: of all, in order), or, of memory=blocks, what enters the encoder's first block
        and what leaves each; predicted [B, M] -> [B, M, O]."""
        return self.head(self._through(self.blocks, tokens, places, predicted))

    def first_block(self, tokens: Tensor | list[Tensor], places: Tensor | None, queries: Tensor) -> Tensor:
        """What leaves the first block at the places `queries` [B, Q], hidden or not, under the predictor's final norm: [B, Q, W].

        CAPI's global feature is its mean over all places, where the encoder has seen all of them (the authors' code).
        """
        return self._through(self.blocks[:1], tokens, places, queries)

    def at_grid(self, grid: Grid) -> "CrossAttention":
        """A copy for images of so many patches: positions that are added are resampled (timm), rotary ones lie in the same box."""
        copied = copy.deepcopy(self)
        if grid == self.grid:
            return copied
        copied.grid = grid
        if copied.turned:
            copied.turned.patches = grid_coordinates(grid).to(copied.turned.patches)
        if copied.pos_embed is not None:
            moved = resized_positions(copied.pos_embed.detach(), self.grid, grid)
            copied.pos_embed = nn.Parameter(moved) if isinstance(self.pos_embed, nn.Parameter) else moved
        return copied

    def _through(self, blocks: nn.ModuleList, tokens: Tensor | list[Tensor], places: Tensor | None, queries: Tensor) -> Tensor:
        memories = self.mixture(tokens) if self.mixture else [tokens] * len(blocks)
        turn = self.turned(places, queries) if self.turned else None
        asked = self.mask_token.expand(*queries.shape, -1)
        if self.pos_embed is not None:
            asked = asked + self.pos_embed[0, queries]
        for block, memory in zip(blocks, memories, strict=False):
            asked = block(asked, memory, turn)
        return self.norm(asked)


class Mixture(nn.Module):
    """For each block of the predictor a learned weighted sum of the encoder's [depth + 1] token maps, under a norm of its own (CrossMAE)."""

    def __init__(self, width: int, maps: int, blocks: int, norm: partial[nn.LayerNorm]):
        super().__init__()
        self.weights = nn.Linear(maps, blocks, bias=False)
        self.norms = nn.ModuleList(norm(width) for _ in range(blocks))

    def initialise(self) -> None:
        nn.init.normal_(self.weights.weight, std=self.weights.in_features**-0.5)  # CrossMAE

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[B, P + K, D] each -> the same, one for each block."""
        sums = self.weights(torch.stack(maps, dim=-1)).unbind(-1)
        return [norm(each) for norm, each in zip(self.norms, sums, strict=True)]


class Turned(nn.Module):
    """By how much queries and keys are turned.  Class tokens and registers lie along the edge of the box that holds the patches seen (CAPI)."""

    def __init__(self, grid: Grid, prefix: int, width: int):
        super().__init__()
        self.width = width
        self.patches: Tensor
        self.edge: Tensor
        self.register_buffer("patches", grid_coordinates(grid), persistent=False)
        self.register_buffer("edge", edge_coordinates(prefix), persistent=False)

    def forward(self, places: Tensor | None, queries: Tensor) -> tuple[Turn, Turn]:
        """places [B, K], queries [B, Q] -> of the queries, and of the P + K keys."""
        seen = self.patches.expand(len(queries), -1, -1) if places is None else self.patches[places]
        keys = torch.cat([within(seen, self.edge), seen], dim=1)
        return turns(self.patches[queries], self.width), turns(keys, self.width)


class Block(nn.Module):
    """Pre-norm of the queries; what is read is normed already."""

    def __init__(self, config: CrossAttentionDecoder, memory_width: int, norm: partial[nn.LayerNorm]):
        super().__init__()
        from timm.layers import DropPath, Mlp  # here, because it takes seconds

        drop = partial(DropPath, config.drop_path) if config.drop_path else nn.Identity
        self.norm1, self.norm2 = norm(config.width), norm(config.width)
        self.attention = Attention(config.width, memory_width, config.heads)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))
        self.drop_path1, self.drop_path2 = drop(), drop()

    def forward(self, asked: Tensor, memory: Tensor, turn: tuple[Turn, Turn] | None) -> Tensor:
        """asked [B, Q, W], memory [B, P + K, D] -> [B, Q, W]."""
        asked = asked + self.drop_path1(self.attention(self.norm1(asked), memory, turn))
        return asked + self.drop_path2(self.mlp(self.norm2(asked)))


class Attention(nn.Module):
    def __init__(self, width: int, memory_width: int, heads: int):
        super().__init__()
        from timm.layers import use_fused_attn

        self.heads, self.fused_attn = heads, bool(use_fused_attn())
        self.q, self.kv = nn.Linear(width, width), nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, asked: Tensor, memory: Tensor, turn: tuple[Turn, Turn] | None) -> Tensor:
        """asked [B, Q, W], memory [B, P + K, D] -> [B, Q, W]."""
        q = self.q(asked).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, h, Q, W / h]
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if turn:
            q, k = rotate(q, turn[0]), rotate(k, turn[1])
        if self.fused_attn:
            read = F.scaled_dot_product_attention(q, k, v)
        else:
            read = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(read.transpose(1, 2).flatten(2))
