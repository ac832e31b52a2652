"""Every knob of fitting a codebook, typed: default, unit, source.  What is shared with the run that learns from it are the same sections."""

from typing import Annotated, Literal

from pydantic import Field

from mpp.config.pretrain import DataConfig
from mpp.config.schema import Count, Positive, Section
from mpp.config.sections import ModelConfig
from mpp.recipe.targets import PixelsTarget, TargetConfig


class CodebookConfig(Section):
    out: str = "codebook.safetensors"  # the file to be written; target.path of the run that learns from it
    clusters: Annotated[int, Field(ge=2)] = 8192  # centres (BEiT's tokens)
    of: TargetConfig = PixelsTarget(normalise=True)  # whose goals: a target's own section; pixels, hog, chroma or frozen (ours)
    patches: Positive = 1_000_000  # about how many the centres are fitted to (ours)
    patches_an_image: Positive = 16  # of each image; more where there are too few images (ours)
    init: Literal["kmeans++", "random"] = "kmeans++"  # on so many patches a centre, see mains/fit_codebook.py; random: patches
    iterations: Positive = 100  # of Lloyd's at most (ours)
    tolerance: Annotated[float, Field(ge=0)] = 1e-4  # it ends when an iteration lowers the error by a smaller share (ours)
    batch: Positive = 256  # images at once
    workers: Count | None = None  # loader processes; null: the cores less one, at most 16
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of crops, patches and first centres
    model: ModelConfig = ModelConfig()  # of which image_size and patch_size count
    data: DataConfig = DataConfig()  # the hold-out is not fitted to
