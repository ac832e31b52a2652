"""From encoder tokens to one prediction for each predicted patch.

Letters: B batch, N patches, K visible, M predicted, P prefix tokens, D encoder dimensions, W decoder width, O outputs a patch.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mpp.config.pretrain import LinearDecoder as LinearConfig
from mpp.config.pretrain import TransformerDecoder as TransformerConfig
from mpp.model.encoder import choose_attention, gather_tokens, initialise_linear, sincos_positions


class LinearDecoder(nn.Module):
    """One linear map of each predicted patch's own representation (ViT B.1.2)."""

    def __init__(self, width: int, outputs: int, prefix: int):
        super().__init__()
        self.prefix = prefix
        self.head = nn.Linear(width, outputs)
        self.apply(initialise_linear)

    def forward(self, tokens: Tensor, visible: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + N, D], predicted [B, M] -> [B, M, O]."""
        return self.head(gather_tokens(tokens[:, self.prefix :], predicted))


class TransformerDecoder(nn.Module):
    """A light Vision Transformer over all positions (MAE): dropped patches enter as one learned mask token."""

    def __init__(
        self, width: int, outputs: int, prefix: int, grid: tuple[int, int], config: TransformerConfig, fused_attention: bool | None
    ):
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        fixed = sincos_positions(config.width, grid)
        self.positions: Tensor
        self.register_buffer("positions", torch.cat([torch.zeros(prefix, config.width), fixed])[None], persistent=False)
        norm = partial(nn.LayerNorm, eps=1e-6)  # as the encoder's
        self.blocks = nn.Sequential(*(Block(config.width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)))  # type: ignore[arg-type]
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, outputs)
        self.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        choose_attention(self.blocks, fused_attention)

    def forward(self, tokens: Tensor, visible: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D] with visible [B, K] (or all of them, visible None), predicted [B, M] -> [B, M, O]."""
        tokens = self.embed(tokens)
        if visible is not None:
            prefix, shown = tokens[:, : self.prefix], tokens[:, self.prefix :]
            everywhere = self.mask_token.to(shown.dtype).expand(len(shown), self.positions.shape[1] - self.prefix, -1)
            patches = everywhere.scatter(1, visible.unsqueeze(-1).expand_as(shown), shown)
            tokens = torch.cat([prefix, patches], dim=1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        return self.head(gather_tokens(tokens[:, self.prefix :], predicted))


def build_decoder(
    config: LinearConfig | TransformerConfig,
    width: int,
    outputs: int,
    prefix: int,
    grid: tuple[int, int],
    fused_attention: bool | None = None,
) -> LinearDecoder | TransformerDecoder:
    if isinstance(config, LinearConfig):
        return LinearDecoder(width, outputs, prefix)
    return TransformerDecoder(width, outputs, prefix, grid, config, fused_attention)
