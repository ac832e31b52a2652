"""Which patches are hidden.  A mask is one file here, and one name in the line at the end: what it answers to stands in base.MaskSection."""

from typing import Annotated

from pydantic import Field

from mpp.recipe.masks.all import AllMask
from mpp.recipe.masks.block import BlockMask
from mpp.recipe.masks.inverse_block import InverseBlockMask
from mpp.recipe.masks.multi_block import MultiBlockMask
from mpp.recipe.masks.random import RandomMask
from mpp.recipe.masks.turn import TurnMask

MaskConfig = Annotated[RandomMask | BlockMask | MultiBlockMask | InverseBlockMask | AllMask | TurnMask, Field(discriminator="name")]
