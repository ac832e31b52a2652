"""A light Vision Transformer over all positions (MAE): dropped patches enter as one learned mask token."""

from functools import partial
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mpp.config.schema import Positive
from mpp.model.tokens import choose_attention, gather_tokens, initialise_linear, sincos_positions
from mpp.recipe.decoders.base import DecoderSection, Given


class TransformerDecoder(DecoderSection):
    name: Literal["transformer"] = "transformer"
    depth: Positive = 8  # MAE
    width: Positive = 512  # MAE
    heads: Positive = 16  # MAE

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4 (sine-cosine positions) and of heads={self.heads}")
        return self

    def build(self, given: Given) -> "Transformer":
        return Transformer(given, self)


class Transformer(nn.Module):
    """Letters: B batch, N patches, K visible, M predicted, P prefix tokens, D encoder dimensions, W decoder width, O outputs a patch."""

    def __init__(self, given: Given, config: TransformerDecoder):
        super().__init__()
        from timm.models.vision_transformer import Block  # here, because it takes seconds

        self.prefix = given.prefix
        self.embed = nn.Linear(given.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        fixed = sincos_positions(config.width, given.grid)
        self.positions: Tensor
        self.register_buffer("positions", torch.cat([torch.zeros(given.prefix, config.width), fixed])[None], persistent=False)
        norm = partial(nn.LayerNorm, eps=1e-6)  # as the encoder's
        self.blocks = nn.Sequential(*(Block(config.width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)))  # type: ignore[arg-type]
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, given.outputs)
        self.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        choose_attention(self.blocks, given.fused_attention)

    def forward(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D] of the patches `places` [B, K] (None: of all), predicted [B, M] -> [B, M, O]."""
        tokens = self.embed(tokens)
        if places is not None:
            prefix, shown = tokens[:, : self.prefix], tokens[:, self.prefix :]
            everywhere = self.mask_token.to(shown.dtype).expand(len(shown), self.positions.shape[1] - self.prefix, -1)
            patches = everywhere.scatter(1, places.unsqueeze(-1).expand_as(shown), shown)
            tokens = torch.cat([prefix, patches], dim=1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        return self.head(gather_tokens(tokens[:, self.prefix :], predicted))
