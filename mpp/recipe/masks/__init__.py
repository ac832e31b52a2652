"""Which patches are hidden.  A mask is one file here, and one name in the line at the end.

Its section has the knobs, and:
    fits(grid, corruption)         ValueError where it leaves nothing visible, or nothing to predict
    draw(grid, corruption, draws)  the places of B samples, each a pure function of its own key
Letters: B samples, N patches of a grid of rows x columns, H hidden, K visible, M predicted.
"""

from typing import Annotated

from pydantic import Field

from mpp.recipe.masks.block import BlockMask
from mpp.recipe.masks.random import RandomMask

MaskConfig = Annotated[RandomMask | BlockMask, Field(discriminator="name")]
