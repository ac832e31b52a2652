"""Hidden patches are replaced, and the encoder still sees every position (ViT B.1.2)."""

import math
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from mpp.config.schema import Fraction
from mpp.recipe.corruptions.base import CorruptionSection
from mpp.recipe.patches import gather_patches, patchify, unpatchify
from mpp.recipe.places import KEPT, MASKED, SWAPPED, Masks

HALF = 127.5  # of the range of colours, 0..255


class ReplaceCorruption(CorruptionSection):
    name: Literal["replace"] = "replace"
    mask: Fraction = 0.8  # by the learnable [mask] embedding (ViT B.1.2)
    swap: Fraction = 0.1  # by the clean embedding of another patch of the image (ViT B.1.2; scope ours)
    keep: Fraction = 0.1  # left as they are, but predicted (ViT B.1.2)
    at: Literal["embeddings", "pixels"] = (
        "embeddings"  # pixels: before the patch embedding, for backbones without tokens; [mask] is then a learnable patch
    )

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.mask + self.swap + self.keep - 1) > 1e-9:
            raise ValueError(f"mask={self.mask} + swap={self.swap} + keep={self.keep} must sum to 1")
        return self

    @property
    def caption(self) -> str:
        hidden = [("[mask]", self.mask), ("another patch of the image", self.swap), ("themselves", self.keep)]
        shares = ", ".join(f"{share:.0%} {what}" for what, share in hidden if share)
        return f"hidden patches show {shares}" + ("" if self.at == "embeddings" else "; [mask] is drawn as it is learned")

    @property
    def legend(self) -> dict[int, str]:
        return {MASKED: "[mask]", SWAPPED: "shows another patch", KEPT: "kept, but predicted"}

    def parts(self, hidden: int) -> tuple[int, int, int]:
        masked, swapped, kept = largest_remainder(hidden, [self.mask, self.swap, self.keep])
        return masked, swapped, kept

    def token(self, width: int, patch_size: int) -> tuple[int, ...]:
        return (width,) if self.at == "embeddings" else (3, patch_size, patch_size)

    def pixels(self, images: Tensor, masks: Masks[Tensor], mask_token: Tensor | None) -> Tensor:
        """[mask] is counted from mid-grey, in halves of the range: at 0 it is grey (ours)."""
        if self.at == "embeddings":
            return images
        assert mask_token is not None
        side = mask_token.shape[-1]
        grid = images.shape[2] // side, images.shape[3] // side
        shown = gather_patches(patchify(images, side), masks.source)
        patch = HALF * (1 + mask_token.to(shown.dtype))
        return unpatchify(torch.where((masks.kind == MASKED)[:, :, None, None, None], patch, shown), grid)

    def embeddings(self, embeddings: Tensor, masks: Masks[Tensor], mask_token: Tensor | None) -> Tensor:
        if self.at == "pixels":
            return embeddings
        assert mask_token is not None
        return corrupt(embeddings, masks.kind, masks.source, mask_token)

    def picture(self, images: Tensor, masks: Masks[Tensor], patch_size: int, mask_token: Tensor | None) -> Tensor:
        if self.at == "pixels":
            return self.pixels(images, masks, mask_token).clamp(0, 255)
        return super().picture(images, masks, patch_size, mask_token)


def corrupt(embeddings: Tensor, kind: Tensor, source: Tensor, mask_token: Tensor) -> Tensor:
    """embeddings [B, N, D], kind [B, N], source [B, N], mask_token [D] -> corrupted embeddings [B, N, D] (ViT B.1.2).

    Swapped patches show the clean embedding of their source, whatever became of the source itself.
    """
    shown = embeddings.gather(1, source.unsqueeze(-1).expand_as(embeddings))
    return torch.where((kind == MASKED).unsqueeze(-1), mask_token.to(shown.dtype), shown)


def largest_remainder(total: int, shares: list[float]) -> list[int]:
    """Whole numbers that sum to `total`, as near to `total * shares` as can be (Hamilton's method; ties to the earlier share)."""
    exact = [total * share for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (round(counts[i] - exact[i], 9), i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
