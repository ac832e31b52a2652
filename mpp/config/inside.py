"""Every knob of looking inside an encoder (mpp/inside.py), typed: default, unit, source."""

from typing import Annotated

from pydantic import Field

from mpp.config.schema import Count, Positive, Section
from mpp.config.sections import Sides


class InsideConfig(Section):
    encoder: str = ""  # a run folder (its newest commit), an encoder/ folder, a checkpoint, timm:NAME, timm:NAME@random
    images: str = ""  # a folder of images, with or without folders in it; of shards; or cifar10 and the like (cifar10:ROOT)
    out: str | None = None  # folder of the pictures and inside.json; null: RUN/inside, for encoders that lie elsewhere runs/NAME/inside
    count: Positive = 128  # images that attention and patch tokens are averaged over (the ViT paper's 128)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of which images these are
    maps: Positive = 8  # of these, the images that are drawn
    show: Annotated[
        tuple[Count, ...], Field(strict=False)
    ] = ()  # the images that are drawn, by number in the set from 0, instead of `maps`
    filters: Positive = 28  # principal components of the patch embedding (ViT fig. 7: 28)
    random_init: Count | None = 0  # seed of the same architecture at random initialisation, which is drawn beside; null: not drawn
    resolution: Positive | Sides | None = None  # pixels a side, or [height, width]; null: as pretrained
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # the centre of this share of the image, in the shape of `resolution`, is resized to it
    batch: Positive = 32  # images at a time, fewer where their attention would not fit; changes nothing but speed and memory
    max_pixels: Positive = 100_000_000  # a larger image is an error
