"""What every decoder answers to.  Letters: B samples, K visible, M predicted, P prefix tokens, D encoder dimensions, O outputs a patch."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from mpp.config.schema import Section
from mpp.recipe.places import Grid


@dataclass(frozen=True)
class Given:
    """What a decoder may depend on beside its own section."""

    width: int  # of the encoder's tokens
    outputs: int  # O, of the target
    prefix: int  # P, class tokens and registers before the patches
    grid: Grid
    depth: int  # of the encoder, in blocks
    groups: int = 1  # sets of equal size that the predicted patches consist of
    fused_attention: bool | None = None


class DecoderSection(Section):
    """What every decoder's section answers to."""

    name: str  # of the choice, and the first of its keys

    def fits(self, drops: bool) -> None:
        """Raises ValueError where it cannot follow a corruption that does, or does not, drop the hidden patches."""

    @property
    def reads_blocks(self) -> bool:
        """Whether it is given what enters the encoder's first block and what leaves each, [depth + 1] tensors, instead of its normalised tokens."""
        return False

    def build(self, given: Given) -> nn.Module:
        """The `Decoder`, freshly initialised from torch's global generator."""
        raise NotImplementedError


class Decoder(Protocol):
    def __call__(self, tokens: Tensor, places: Tensor | None, predicted: Tensor) -> Tensor:
        """tokens [B, P + K, D] of the patches `places` [B, K] (None: of all, in order), predicted [B, M] -> [B, M, O]."""
