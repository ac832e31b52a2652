"""From the encoder's tokens to one prediction for each predicted patch.  A decoder is one file here, and one name in the line at the end: what it
answers to stands in base.DecoderSection and base.Decoder."""

from typing import Annotated

from pydantic import Field

from mpp.recipe.decoders.cross_attention import CrossAttentionDecoder
from mpp.recipe.decoders.linear import LinearDecoder
from mpp.recipe.decoders.pooled import PooledDecoder
from mpp.recipe.decoders.transformer import TransformerDecoder

DecoderConfig = Annotated[LinearDecoder | TransformerDecoder | CrossAttentionDecoder | PooledDecoder, Field(discriminator="name")]
