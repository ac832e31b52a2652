"""From a shard set to frozen features, under one contract for training and testing a probe.

Letters: B batch, n images, S pixels a side, P prefix tokens, D width of the encoder, W width of a feature table.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mpp.data.decode import open_image
from mpp.data.shards import ShardSet
from mpp.errors import BadSample, CheckpointError, ConfigError, DataError
from mpp.model.encoder import Encoder

Pooling = Literal["mean", "cls", "both"]

CHECKED_IMAGES, CHECK_BATCH = 8, 3  # of the self-check: so many images, recomputed so many at a time
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative difference of one image's features; a wrong image or row is off by 0.1 or more


@dataclass(frozen=True)
class FeatureSpec:
    """How an image becomes one vector; the same object for train and test features, stored in results.json.

    Bicubic centre crops as in the ViT, MAE and DINOv2 probes; they use the class token (DINOv2 also beside the mean), the mean alone is ours.
    """

    layers: tuple[int, ...]  # block numbers from 0; concatenated
    pooling: Pooling  # mean of the patch tokens without prefix tokens, the class token, or [class token, mean]
    resolution: int  # pixels a side
    crop: float  # share of the short side that the centre square keeps
    mean: tuple[float, float, float]  # of the input normalisation, colours in 0..1
    std: tuple[float, float, float]
    precision: Literal["fp32", "bf16"]  # of matrix products; features are float32
    interpolation: str = "bicubic, antialiased"
    masking: str = "off"
    token_norm: str = "on"  # the encoder's final norm on every layer's tokens, before pooling

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Variant:
    """One choice of columns of a feature table."""

    layers: tuple[int, ...]
    pooling: str

    def __str__(self) -> str:
        return (
            f"{self.pooling} of block{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"
            if self.layers
            else self.pooling
        )


@dataclass(frozen=True)
class Features:
    """Every variant's features of the same images, side by side without repetition."""

    values: Tensor  # float32 [n, W], on the CPU
    columns: dict[Variant, Tensor]  # variant -> int64 [D]

    def of(self, variant: Variant) -> Tensor:
        """float32 [n, D]."""
        return self.values[:, self.columns[variant]]


class Extractor(Protocol):
    """uint8 [B, 3, S, S] -> float32 [B, W], and what the columns are."""

    columns: dict[Variant, Tensor]

    def __call__(self, images: Tensor) -> Tensor: ...


def feature_spec(
    encoder: Encoder,
    *,
    layers: Sequence[int],
    pooling: Pooling,
    resolution: int,
    crop: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    precision: Literal["fp32", "bf16"],
) -> FeatureSpec:
    """A spec this encoder can meet.

    layers: blocks, negative from the end.  resolution: pixels a side.  Raises ConfigError for a layer, pooling or size it does not have.
    """
    depth, patch = len(encoder.vit.blocks), encoder.vit.patch_embed.patch_size[0]
    if outside := [layer for layer in layers if not -depth <= layer < depth]:
        raise ConfigError(
            f"features.layers={list(layers)}: the encoder has {depth} blocks, {-depth}..{depth - 1}; {outside[0]} is none of them"
        )
    if pooling != "mean" and encoder.vit.cls_token is None:
        raise ConfigError(f"features.pooling={pooling}: the encoder has no class token; use features.pooling=mean")
    if resolution % patch:
        lower = resolution // patch * patch
        near = " and ".join(str(size) for size in (lower, lower + patch) if size)
        raise ConfigError(f"features.resolution={resolution} must be a multiple of the patch size {patch}; the nearest that fit are {near}")
    return FeatureSpec(tuple(layer % depth for layer in layers), pooling, resolution, crop, mean, std, precision)


def probe_variants(spec: FeatureSpec, depth: int, class_token: bool, last_layers: Sequence[int]) -> list[Variant]:
    """The spec's own variant first, then {last k layers for k in last_layers} x {cls, mean, both}, those the encoder has.

    Source: the grid probe of DINOv2 (arXiv 2304.07193, B.3), {1, 4} last layers x {cls, cls + mean}; mean alone is ours, as masked
    encoders probe best so and may have no class token.
    """
    poolings = ("mean", "cls", "both") if class_token else ("mean",)
    grid = [Variant(tuple(range(max(0, depth - last), depth)), pooling) for last in last_layers for pooling in poolings]
    return list(dict.fromkeys([Variant(spec.layers, spec.pooling), *grid]))


def at_resolution(encoder: Encoder, resolution: int) -> Encoder:
    """A copy of the encoder in eval mode for images of this size: position embeddings are resampled (bicubic, timm) where it differs."""
    vit = copy.deepcopy(encoder.vit)
    if tuple(vit.patch_embed.img_size) != (resolution, resolution):
        vit.set_input_size(img_size=(resolution, resolution))
    return Encoder(vit).eval().requires_grad_(False)


def crop_centre(image: Image.Image, resolution: int, crop: float) -> np.ndarray:
    """uint8 [3, S, S]: the centre square of side crop x the short side, resized to S = resolution (bicubic, antialiased).

    The same as resizing the short side to S / crop and cutting the centre, but without rounding that size to whole pixels.
    """
    side = crop * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    cut = image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, 3, S, S] -> float32, (value / 255 - mean) / std by channel."""
    shape = (1, 3, 1, 1)
    return (images.float() / 255 - torch.tensor(mean, device=images.device).view(shape)) / torch.tensor(std, device=images.device).view(
        shape
    )


class EncoderExtractor:
    """Tokens of the layers the variants need, each pooled to its class token and its patch mean; the encoder given is left unchanged."""

    def __init__(self, encoder: Encoder, spec: FeatureSpec, variants: Sequence[Variant], device: torch.device):
        self.spec = spec
        self.encoder = at_resolution(encoder, spec.resolution).to(device)
        pooled = sorted({(part, layer) for v in variants for layer in v.layers for part in _parts(v.pooling)})  # all cls, then all means
        self.layers = sorted({layer for _, layer in pooled})
        self.pooled = pooled
        place = {key: torch.arange(i * encoder.width, (i + 1) * encoder.width) for i, key in enumerate(pooled)}
        self.columns = {v: torch.cat([place[part, layer] for part in _parts(v.pooling) for layer in v.layers]) for v in variants}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] on the encoder's device -> float32 [B, W]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            found = self.encoder.layers(normalise(images, self.spec.mean, self.spec.std), self.layers)
        tokens = dict(zip(self.layers, found, strict=True))
        return torch.cat([self._pool(tokens[layer].float(), part) for part, layer in self.pooled], dim=1)

    def _pool(self, tokens: Tensor, part: str) -> Tensor:
        return tokens[:, 0] if part == "cls" else tokens[:, self.encoder.prefix :].mean(dim=1)


class PixelExtractor:
    """The encoder's own input, normalised, flattened; above `side` pixels averaged down to it, since closed forms in 224^2 x 3 columns are
    out of reach."""

    def __init__(self, spec: FeatureSpec, side: int):
        self.spec = spec
        self.side = min(side, spec.resolution)
        self.columns = {Variant((), f"pixels {self.side}x{self.side}"): torch.arange(3 * self.side**2)}

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 [B, 3 side side]."""
        pixels = normalise(images, self.spec.mean, self.spec.std)
        if self.side != self.spec.resolution:
            pixels = torch.nn.functional.interpolate(pixels, size=self.side, mode="bilinear", antialias=True)
        return pixels.flatten(1)


def extract(
    shards: ShardSet,
    samples: np.ndarray,
    extractors: Mapping[str, Extractor],
    *,
    resolution: int,
    crop: float,
    precision: Literal["fp32", "bf16"],
    batch: int,
    workers: int,
    max_pixels: int,
    device: torch.device,
) -> dict[str, Features]:
    """Features of the samples (int64 [n], ids) by every extractor, in one pass over the images.

    A few are then computed again, at another batch size, and compared.  Raises DataError for an image that cannot be read (none is left
    out), CheckpointError for features that are not finite, ConfigError when the comparison fails.
    """
    crops = _Crops(shards, samples, resolution, crop, max_pixels)
    tables = {name: torch.empty(len(samples), _width(e), dtype=torch.float32) for name, e in extractors.items()}
    # A generator of its own: the loader would otherwise draw from torch's global one.
    loader = DataLoader(crops, batch, num_workers=workers, collate_fn=_stack, pin_memory=device.type == "cuda", generator=torch.Generator())
    start = 0
    for images in loader:
        if isinstance(images, str):
            raise DataError(images)
        images = images.to(device, non_blocking=True)
        for name, extractor in extractors.items():
            tables[name][start : start + len(images)] = extractor(images).cpu()
        start += len(images)
    for name, table in tables.items():
        if not bool(torch.isfinite(table).all()):
            raise CheckpointError(
                f"{name}: the encoder gives features that are not finite; its training diverged, take an earlier checkpoint"
            )
    rows = np.unique(np.linspace(0, len(samples) - 1, CHECKED_IMAGES).round().astype(np.int64))
    for chosen in np.array_split(rows, -(-len(rows) // CHECK_BATCH)):
        again = _stack([crops[int(row)] for row in chosen])
        if isinstance(again, str):
            raise DataError(again)
        for name, extractor in extractors.items():
            compare(name, tables[name][chosen], extractor(again.to(device)).cpu(), TOLERANCE[precision])
    return {name: Features(tables[name], extractor.columns) for name, extractor in extractors.items()}


def compare(name: str, stored: Tensor, fresh: Tensor, tolerance: float) -> None:
    """Raises ConfigError when a row of float32 [n, W] differs from its fresh one by more than `tolerance` of its norm."""
    off = float(((stored - fresh).norm(dim=1) / fresh.norm(dim=1).clamp_min(1e-12)).max())
    if not off <= tolerance:
        raise ConfigError(
            f"{name}: features computed at another batch size differ by {off:.2g} of their norm (allowed {tolerance:g}); they depend on "
            "more than the image, so no figure would be right; try features.precision=fp32 and another features.batch"
        )


class _Crops(Dataset):
    def __init__(self, shards: ShardSet, samples: np.ndarray, resolution: int, crop: float, max_pixels: int):
        self.shards, self.samples, self.resolution, self.crop, self.max_pixels = shards, samples, resolution, crop, max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Tensor | str:
        """uint8 [3, S, S], or what is wrong: an exception would cross the worker's border as a page of traceback."""
        sample = int(self.samples[row])
        try:
            image = open_image(self.shards.read(sample), self.max_pixels)
        except BadSample as error:
            return f"{self.shards.where(sample)}: {error}; a probe leaves no image out, so copy or make the split again"
        except DataError as error:
            return str(error)
        return torch.from_numpy(crop_centre(image, self.resolution, self.crop))


def _stack(items: list[Tensor | str]) -> Tensor | str:
    for item in items:
        if isinstance(item, str):
            return item
    return torch.stack([item for item in items if not isinstance(item, str)])


def _parts(pooling: str) -> tuple[str, ...]:
    return ("cls", "mean") if pooling == "both" else (pooling,)


def _width(extractor: Extractor) -> int:
    return 1 + max(int(columns.max()) for columns in extractor.columns.values())
