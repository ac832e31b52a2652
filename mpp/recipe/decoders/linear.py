"""One linear map of each predicted patch's own representation (ViT B.1.2)."""

from typing import Literal

from torch import Tensor, nn

from mpp.model.tokens import gather_tokens, initialise_linear
from mpp.recipe.decoders.base import DecoderSection, Given


class LinearDecoder(DecoderSection):
    name: Literal["linear"] = "linear"

    def fits(self, drops: bool) -> None:
        if drops:
            raise ValueError(
                "corruption.name=drop needs decoder.name=transformer or cross_attention: a linear decoder has no token for a dropped patch"
            )

    def build(self, given: Given) -> "Linear":
        return Linear(given)


class Linear(nn.Module):
    """Letters: B batch, N patches, M predicted, P prefix tokens, D encoder dimensions, O outputs a patch."""

    def __init__(self, given: Given):
        super().__init__()
        self.prefix = given.prefix
        self.head = given.head(given.width)
        self.apply(initialise_linear)

    def forward(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + N, D], places None (all of them), predicted [B, M] -> [B, M, O]."""
        return self.head(gather_tokens(tokens[:, self.prefix :], predicted))
