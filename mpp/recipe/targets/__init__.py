"""What a hidden patch must predict.  A target is one file here, and one name in the line at the end.

Its section (base.TargetSection; beside it teacher.TeacherKnobs or FrozenKnobs for one that asks for a teacher, codes.CodebookKnobs for one that
asks for a codebook) has the knobs and `build(given)`, the target itself as base.Target says: goals, loss, picture and trivial baselines.
"""

from typing import Annotated

from pydantic import Field

from mpp.recipe.targets.chroma import ChromaTarget
from mpp.recipe.targets.clusters import ClustersTarget
from mpp.recipe.targets.codebook import CodebookTarget
from mpp.recipe.targets.colors import ColorGridTarget, MeanColorTarget
from mpp.recipe.targets.features import FeaturesTarget, FrozenTarget
from mpp.recipe.targets.hog import HogTarget
from mpp.recipe.targets.pixels import PixelsTarget
from mpp.recipe.targets.rotation import RotationTarget

TargetConfig = Annotated[
    MeanColorTarget
    | ColorGridTarget
    | PixelsTarget
    | HogTarget
    | FeaturesTarget
    | FrozenTarget
    | RotationTarget
    | ChromaTarget
    | ClustersTarget
    | CodebookTarget,
    Field(discriminator="name"),
]
