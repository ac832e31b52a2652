"""What becomes of the hidden patches on their way into the encoder.  A corruption is one file here, and one name in the line at the end: what it
answers to stands in base.CorruptionSection."""

from typing import Annotated

from pydantic import Field

from mpp.recipe.corruptions.drop import DropCorruption
from mpp.recipe.corruptions.grey import GreyCorruption
from mpp.recipe.corruptions.replace import ReplaceCorruption
from mpp.recipe.corruptions.rotate import RotateCorruption

CorruptionConfig = Annotated[ReplaceCorruption | DropCorruption | GreyCorruption | RotateCorruption, Field(discriminator="name")]
