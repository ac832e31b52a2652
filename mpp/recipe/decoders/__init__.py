"""From the encoder's tokens to one prediction for each predicted patch.  A decoder is one file here, and one name in the line at the end.

Its section has the knobs, and:
    fits(drops)                                           ValueError where it cannot follow such a corruption
    build(width, outputs, prefix, grid, fused_attention)  the module, freshly initialised: (tokens, places, predicted) -> [B, M, O]
"""

from typing import Annotated

from pydantic import Field

from mpp.recipe.decoders.linear import LinearDecoder
from mpp.recipe.decoders.transformer import TransformerDecoder

DecoderConfig = Annotated[LinearDecoder | TransformerDecoder, Field(discriminator="name")]
