"""One linear map of each predicted patch's own representation (ViT B.1.2)."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from mpp.model.tokens import gather_tokens, initialise_linear
from mpp.recipe.decoders.base import DecoderSection, Given


class LinearDecoder(DecoderSection):
    name: Literal["linear"] = "linear"
    head_std: Annotated[float, Field(ge=0)] = (
        0.0  # of its weights at the start, normal; 0: zeros, as heads in the ViT code (BEiT, MaskFeat, data2vec: 0.02), so that all outputs begin at 0
    )

    def fits(self, drops: bool) -> None:
        if drops:
            raise ValueError(
                "corruption.name=drop needs decoder.name=transformer or cross_attention: a linear decoder has no token for a dropped patch"
            )

    def build(self, given: Given) -> "Linear":
        return Linear(given, self.head_std)


class Linear(nn.Module):
    """Letters: B batch, N patches, M predicted, P prefix tokens, D encoder dimensions, O outputs a patch."""

    def __init__(self, given: Given, head_std: float):
        super().__init__()
        self.prefix = given.prefix
        self.head = given.head(given.width)
        self.apply(initialise_linear)
        if isinstance(self.head, nn.Linear):  # not one of the target's own
            nn.init.normal_(self.head.weight, std=head_std)

    def forward(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + N, D], places None (all of them), predicted [B, M] -> [B, M, O]."""
        return self.head(gather_tokens(tokens[:, self.prefix :], predicted))
