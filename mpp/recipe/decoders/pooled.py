"""One linear map of the mean of all patches' tokens, for what is told of an image and not of a patch: the rotation (ours; RotNet has a pooled head too)."""

from typing import Literal

from torch import Tensor, nn

from mpp.model.tokens import initialise_linear
from mpp.recipe.decoders.base import DecoderSection, Given


class PooledDecoder(DecoderSection):
    name: Literal["pooled"] = "pooled"

    def build(self, given: Given) -> "Pooled":
        return Pooled(given)


class Pooled(nn.Module):
    """Letters: B batch, K patches that the encoder sees, M predicted, P prefix tokens, D encoder dimensions, O outputs."""

    def __init__(self, given: Given):
        super().__init__()
        self.prefix = given.prefix
        self.head = given.head(given.width)
        self.apply(initialise_linear)

    def forward(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D], predicted [B, M] -> [B, M, O], the same at every place: of the mean of the patches' tokens."""
        return self.head(tokens[:, self.prefix :].mean(1, keepdim=True)).expand(-1, predicted.shape[1], -1)
