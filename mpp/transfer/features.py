"""The contract between the two sides of a probe: what a feature table holds, and that training and test tables hold the same.

Letters: n images, D width of a layer, W width of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mpp.base.errors import ConfigError
from mpp.config.schema import Count, Positive, Section
from mpp.model.backbone import Backbone

Pooling = Literal["mean", "cls", "both", "predictor"]
Part = Literal["cls", "mean"]
Place = tuple[Part, int]  # a pooled layer

EPSILON = 1e-6  # added to a variance that features are divided by the root of (MAE's BatchNorm before the head)


class FeatureConfig(Section):
    """How an image becomes one vector; the same for training and testing a probe."""

    layers: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (
        -1,
    )  # blocks passed: 0 enters the first, -1 leaves the last; concatenated.  What k-NN, few-shot, logistic regression and rank use
    pooling: Pooling = (
        "mean"  # of the patch tokens alone; cls: the class token, or the mean of several (Pixio); both: side by side; predictor: the mean
        # over all places of the first block of the decoder that a run was trained with (CAPI), no layer's
    )
    resolution: Positive | None = None  # pixels a side; null: as pretrained
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # the centre square of this share of the short side is resized to `resolution`
    precision: Literal["bf16", "fp32"] = "fp32"  # of the encoder's matrix products
    batch: Positive = 256  # images at a time; changes nothing but speed
    workers: Count | None = None  # loader processes for each rank; null: its share of the cores less one, at most 16
    max_pixels: Positive = 100_000_000  # a larger image stops the probe
    pixel_side: Positive = 32  # raw-pixel baseline: larger inputs are averaged down to this side
    cache: str | None = None  # folder of feature tables, used again while nothing has changed; null: <out>/features


@dataclass(frozen=True)
class FeatureSpec:
    """How an image becomes one row of a table; the same object for train and test, stored with every table and result.

    Bicubic centre crops as in the ViT, MAE and DINOv2 probes; they use the class token (DINOv2 also beside the mean), the mean alone is ours.
    """

    encoder: str  # sha256 of architecture and weights; "raw pixels, SxS" for the baseline
    layers: tuple[int, ...]  # blocks passed: 0 is what enters the first block
    poolings: tuple[Part, ...]  # of each layer: class token (the mean of several), mean of the patch tokens (no class tokens, no registers)
    resolution: int  # pixels a side
    crop: float  # share of the short side that the centre square keeps
    mean: tuple[float, float, float]  # of the input normalisation, colours in 0..1
    std: tuple[float, float, float]
    precision: Literal["fp32", "bf16"]  # of matrix products
    dtype: str = "float32"  # of the table
    interpolation: str = "bicubic, antialiased"
    masking: str = "off"
    token_norm: str = "on"  # the encoder's final norm on every layer's tokens, before pooling
    predictor: str | None = None  # sha256 of the decoder whose first block the table holds, too

    def as_dict(self) -> dict[str, Any]:
        """What is not there is left out, as it was before there was any."""
        known = asdict(self)
        return known if self.predictor else {name: value for name, value in known.items() if name != "predictor"}


@dataclass(frozen=True)
class Variant:
    """One choice of columns of a feature table."""

    layers: tuple[int, ...]
    pooling: str

    def __str__(self) -> str:
        if not self.layers:
            return self.pooling
        return f"{self.pooling} of layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"


PREDICTOR = Variant((), "mean of the predictor's first block")


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are which pooled layer: all class tokens by layer, then all means by layer."""

    starts: Mapping[Place, int]
    widths: Mapping[Place, int]
    whole: Mapping[Variant, tuple[int, int]] = field(default_factory=dict)  # variants that are no layers: (first column, width)
    parts: Mapping[Variant, tuple[int, int]] = field(default_factory=dict)  # likewise, of columns that the above have counted

    @property
    def width(self) -> int:
        return sum(self.widths.values()) + sum(width for _, width in self.whole.values())

    def columns(self, variant: Variant) -> Tensor:
        """int64 [D], of all layers' class tokens, then of all their means."""
        if found := self.whole.get(variant) or self.parts.get(variant):
            first, width = found
            return torch.arange(first, first + width)
        places = [(part, layer) for part in parts_of(variant.pooling) for layer in variant.layers]
        return torch.cat([torch.arange(self.starts[place], self.starts[place] + self.widths[place]) for place in places])

    def as_list(self) -> list[dict[str, Any]]:
        layers = [
            {"pooling": part, "layer": layer, "start": start, "stop": start + self.widths[part, layer]}
            for (part, layer), start in self.starts.items()
        ]
        return layers + [{"pooling": v.pooling, "layer": None, "start": a, "stop": a + width} for v, (a, width) in self.whole.items()]


@dataclass(frozen=True)
class Features:
    """Every pooled layer of the same images, side by side without repetition."""

    spec: FeatureSpec
    layout: Layout
    values: Tensor  # float32 [n, W], on the CPU; a map of the file

    def of(self, variant: Variant) -> Tensor:
        """float32 [n, D], a copy."""
        return self.values[:, sliced(self.layout.columns(variant))].contiguous()


def sliced(columns: Tensor) -> slice | Tensor:
    """Neighbouring columns as a slice, which takes a view where an index takes a copy."""
    first, count = int(columns[0]), len(columns)
    if torch.equal(columns.cpu(), torch.arange(first, first + count)):
        return slice(first, first + count)
    return columns


def refuse_other_features(train: FeatureSpec, test: FeatureSpec) -> None:
    """Raises ConfigError naming the first difference: a probe is tested on the features it was trained on."""
    ours, theirs = train.as_dict(), test.as_dict()
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"a probe trained on features with {name}={ours.get(name)} cannot be tested on features with {name}={theirs.get(name)}; "
                "extract both under one FeatureSpec"
            )


def layout_of(backbone: Backbone, layers: Sequence[int], poolings: Sequence[Part], predictor: bool = False) -> Layout:
    """predictor: whether the mean of its first block stands behind them."""
    starts: dict[Place, int] = {}
    widths: dict[Place, int] = {}
    at = 0
    for part in poolings:
        for layer in layers:
            starts[part, layer], widths[part, layer] = at, backbone.width_of(layer)
            at += backbone.width_of(layer)
    return Layout(starts, widths, {PREDICTOR: (at, backbone.predictor.width)} if predictor else {})


def own_variant(backbone: Backbone, layers: Sequence[int], pooling: Pooling) -> Variant:
    """The features asked for: what every probe uses that says nothing else, and the feature rank.

    layers: blocks passed, negative from the end (-1: the last block's output).  Raises ConfigError for what this encoder does not have.
    """
    if pooling == "predictor":
        if backbone.predictor is None:
            raise ConfigError(
                "features.pooling=predictor: this encoder comes without one; give the run itself, of a decoder whose first block is a feature "
                "(cross_attention), or features.pooling=mean"
            )
        return PREDICTOR
    lowest, depth = backbone.first, backbone.depth
    if outside := [layer for layer in layers if not (lowest <= layer <= depth or lowest - depth - 1 <= layer < 0)]:
        raise ConfigError(
            f"features.layers={list(layers)}: the encoder has layers {lowest}..{depth} ({depth} is the last block's output), or -1 and below "
            f"from the end; {outside[0]} is none of them"
        )
    if pooling != "mean" and not backbone.class_tokens:
        raise ConfigError(f"features.pooling={pooling}: the encoder has no class token; use features.pooling=mean")
    return Variant(tuple(layer if layer >= 0 else depth + 1 + layer for layer in layers), pooling)


def places_of(own: Variant, backbone: Backbone) -> list[Variant]:
    """Where a probe may look: `own`; each layer's mean and class token; the predictor's first block, where there is one."""
    poolings: tuple[Part, ...] = ("mean", "cls") if backbone.class_tokens else ("mean",)
    every = [Variant((layer,), pooling) for pooling in poolings for layer in range(backbone.first, backbone.depth + 1)]
    return list(dict.fromkeys([own, *every, *([] if backbone.predictor is None else [PREDICTOR])]))


def check_resolution(backbone: Backbone, resolution: int) -> None:
    """Raises ConfigError for a size that is no whole number of patches."""
    patch = max(backbone.patch_size)
    if resolution % patch:
        lower = resolution // patch * patch
        near = " and ".join(str(size) for size in (lower, lower + patch) if size)
        raise ConfigError(f"features.resolution={resolution} must be a multiple of the patch size {patch}; the nearest that fit are {near}")


def parts_of(pooling: str) -> tuple[Part, ...]:
    return ("cls", "mean") if pooling == "both" else ("cls",) if pooling == "cls" else ("mean",)


def needed_by(variants: Sequence[Variant]) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    """(layers, poolings) of a table that holds all these variants."""
    layers = sorted({layer for variant in variants for layer in variant.layers})
    poolings = sorted({part for variant in variants if variant.layers for part in parts_of(variant.pooling)})
    return tuple(layers), tuple(poolings)
