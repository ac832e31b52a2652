"""A light Vision Transformer over visible patches and mask tokens, which all see each other.

Of MAE (arXiv 2111.06377): a mask token at every place that the encoder does not see.  Pixio (arXiv 2512.15715): the same, deep, with learned
positions, of class tokens too.  I-JEPA (arXiv 2301.08243, 3 and appendix A.1): mask tokens at the places of one target block, beside the context,
and this once for each block.
"""

from functools import partial
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mpp.config.schema import Positive
from mpp.model.tokens import choose_attention, gather_tokens, initialise_linear
from mpp.recipe.decoders.base import DecoderSection, Given, add_positions, refuse_width


class TransformerDecoder(DecoderSection):
    name: Literal["transformer"] = "transformer"
    depth: Positive = 8  # MAE; Pixio: 32; I-JEPA: 12, for ViT-B 6
    width: Positive = 512  # MAE, Pixio; I-JEPA: 384
    heads: Positive = 16  # MAE, Pixio; I-JEPA: as many as the encoder
    position: Literal["sincos2d", "learned"] = "sincos2d"  # fixed, of patches alone (MAE, I-JEPA), or learned, of class tokens too (Pixio)
    tokens: Literal["hidden", "predicted"] = (
        "hidden"  # mask tokens at every place that the encoder does not see (MAE), or at the predicted ones alone, each target block apart (I-JEPA)
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse_width(self.width, self.heads, self.position)
        return self

    def build(self, given: Given) -> "Transformer":
        return Transformer(given, self)


class Transformer(nn.Module):
    """Letters: B batch, N patches, K visible, M predicted, G groups of them, P prefix tokens, D encoder dimensions, W decoder width, O outputs a patch."""

    def __init__(self, given: Given, config: TransformerDecoder):
        super().__init__()
        from timm.models.vision_transformer import Block  # here, because it takes seconds

        self.prefix, self.patches = given.prefix, given.grid[0] * given.grid[1]
        self.groups = given.groups if config.tokens == "predicted" else None
        self.embed = nn.Linear(given.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        norm = partial(nn.LayerNorm, eps=1e-6)  # as the encoder's
        self.blocks = nn.Sequential(*(Block(config.width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)))  # type: ignore[arg-type]
        self.norm = norm(config.width)
        self.head = given.head(config.width)
        self.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        self.pos_embed: Tensor
        add_positions(self, config.position == "learned", config.width, given.prefix, given.grid)
        choose_attention(self.blocks, given.fused_attention)

    def forward(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D] of the patches `places` [B, K] (None: of all), predicted [B, M] -> [B, M, O]."""
        tokens = self.embed(tokens)
        if self.groups:
            return self.head(self.norm(self._beside(tokens, places, predicted, self.groups)))
        if places is not None:
            prefix, shown = tokens[:, : self.prefix], tokens[:, self.prefix :]
            everywhere = self.mask_token.to(shown.dtype).expand(len(shown), self.patches, -1)
            patches = everywhere.scatter(1, places.unsqueeze(-1).expand_as(shown), shown)
            tokens = torch.cat([prefix, patches], dim=1)
        tokens = self.norm(self.blocks(tokens + self.pos_embed))
        return self.head(gather_tokens(tokens[:, self.prefix :], predicted))

    def _beside(self, tokens: Tensor, places: Tensor | None, predicted: Tensor, groups: int) -> Tensor:
        """Mask tokens beside what the encoder has seen, which is repeated for each group: of the predicted ones [B, M, W]."""
        batch, asked = predicted.shape
        if asked % groups:
            raise ValueError(f"{asked} predicted patches do not consist of {groups} groups of equal size")
        where = self.pos_embed[0]
        at = where.expand(batch, -1, -1)
        if places is not None:
            at = torch.cat([at[:, : self.prefix], where[self.prefix + places]], dim=1)
        seen = tokens + at
        # By indexing, as a place may be predicted several times: what a gather's gradient adds there comes in another order each time on a GPU.
        masked = (self.mask_token + where[self.prefix + predicted]).to(seen.dtype).reshape(batch * groups, asked // groups, -1)
        together = self.blocks(torch.cat([seen.repeat_interleave(groups, dim=0), masked], dim=1))
        return together[:, seen.shape[1] :].reshape(batch, asked, -1)
