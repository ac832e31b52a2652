"""What becomes of the hidden patches on their way into the encoder.

A corruption is a section here, and one name in the line at the end:
    drops                       whether the encoder sees the visible patches only
    hidden(patches, ratio)      how many patches a share of them is
    parts(hidden)               how many of the hidden ones are masked, swapped and kept
    encode(encoder, embeddings, kind, source, visible, mask_token)  the tokens of what is left to see
    places(visible)             which patches these tokens are of; None: all, in order
Letters: B samples, N patches, K visible, P prefix tokens, D embedding dimensions.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mpp.config.schema import Fraction, Section

if TYPE_CHECKING:
    from mpp.model.encoder import Encoder

VISIBLE, MASKED, SWAPPED, KEPT = range(4)  # the kind of a patch


class ReplaceCorruption(Section):
    """Embeddings of the chosen patches are replaced; the encoder still sees every position (ViT B.1.2)."""

    name: Literal["replace"] = "replace"
    mask: Fraction = 0.8  # by the learnable [mask] embedding (ViT B.1.2)
    swap: Fraction = 0.1  # by the clean embedding of another patch of the image (ViT B.1.2; scope ours)
    keep: Fraction = 0.1  # left as they are, but predicted (ViT B.1.2)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.mask + self.swap + self.keep - 1) > 1e-9:
            raise ValueError(f"mask={self.mask} + swap={self.swap} + keep={self.keep} must sum to 1")
        return self

    @property
    def drops(self) -> bool:
        return False

    @property
    def caption(self) -> str:
        """What a picture of it says."""
        return "grey: [mask]" + ("; swapped patches show their source" if self.swap else "")

    def hidden(self, patches: int, ratio: float) -> int:
        """The nearest whole number, and neither none nor all."""
        return min(patches - 1, max(1, math.floor(patches * ratio + 0.5)))

    def parts(self, hidden: int) -> tuple[int, int, int]:
        masked, swapped, kept = largest_remainder(hidden, [self.mask, self.swap, self.keep])
        return masked, swapped, kept

    def encode(
        self, encoder: "Encoder", embeddings: Tensor, kind: Tensor, source: Tensor, visible: Tensor, mask_token: Tensor | None
    ) -> Tensor:
        """embeddings [B, N, D] -> tokens [B, P + N, D]."""
        assert mask_token is not None
        return encoder(corrupt(embeddings, kind, source, mask_token))

    def places(self, visible: Tensor) -> Tensor | None:
        return None


class DropCorruption(Section):
    """The encoder sees the visible patches only (MAE)."""

    name: Literal["drop"] = "drop"

    @property
    def drops(self) -> bool:
        return True

    @property
    def caption(self) -> str:
        return "hidden patches are dropped"

    def hidden(self, patches: int, ratio: float) -> int:
        """floor(N (1 - ratio)) are kept, and one at least (MAE)."""
        return patches - max(1, math.floor(patches * (1 - ratio) + 1e-9))

    def parts(self, hidden: int) -> tuple[int, int, int]:
        return hidden, 0, 0

    def encode(
        self, encoder: "Encoder", embeddings: Tensor, kind: Tensor, source: Tensor, visible: Tensor, mask_token: Tensor | None
    ) -> Tensor:
        """embeddings [B, N, D] -> tokens [B, P + K, D]."""
        return encoder(embeddings, visible)

    def places(self, visible: Tensor) -> Tensor | None:
        return visible


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


CorruptionConfig = Annotated[ReplaceCorruption | DropCorruption, Field(discriminator="name")]
