"""From uint8 crops to rows of a feature table: an encoder's pooled layers, or the pixels themselves.

Letters: B batch, S pixels a side, P prefix tokens, N patches, W width of a table.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mpp.model.backbone import Backbone
from mpp.model.normalise import normalise
from mpp.model.tokens import choose_attention, class_feature, fused_attention_pays
from mpp.transfer.features import FeatureSpec, Layout, Part, Variant, layout_of


class Extractor(Protocol):
    """uint8 [B, 3, S, S] on its device -> float32 [B, W]."""

    spec: FeatureSpec
    layout: Layout

    def __call__(self, images: Tensor) -> Tensor: ...


class EncoderExtractor:
    """The spec's layers, each pooled to its class token and the mean of its patches; the encoder given is left unchanged."""

    def __init__(self, backbone: Backbone, spec: FeatureSpec, device: torch.device):
        self.spec = spec
        self.layout = layout_of(backbone, spec.layers, spec.poolings, spec.predictor is not None)
        self.backbone = backbone.at_size(spec.resolution, spec.resolution).to(device)
        choose_attention(self.backbone, fused_attention_pays(spec.precision, device.type))

    def tokens(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Colours 0..255, [B, 3, S, S] -> layer: float32 [B, P + N, D] under the final norm."""
        return self._read(images, layers, False)[0]

    def __call__(self, images: Tensor) -> Tensor:
        return self.pooled(*self._read(images, self.spec.layers, self.spec.predictor is not None))

    def pooled(self, tokens: dict[int, Tensor], further: Sequence[Tensor]) -> Tensor:
        """float32 [B, W], of what `of_normalised` gives."""
        return torch.cat([*(self.pool(tokens[layer], part) for part, layer in self.layout.starts), *further], dim=1)

    def _read(self, images: Tensor, layers: Sequence[int], predictor: bool) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Tokens by layer, and what the layout holds behind them."""
        with torch.no_grad():
            return self.of_normalised(normalise(images, self.spec.mean, self.spec.std), layers, predictor)

    def of_normalised(self, pixels: Tensor, layers: Sequence[int], predictor: bool = False) -> tuple[dict[int, Tensor], list[Tensor]]:
        """The same of float32 [B, 3, S, S] as the encoder takes them, with gradients where the caller wants some."""
        further: list[Tensor] = []
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            if predictor:
                found, mean = self.backbone.with_predictor(pixels, layers)
                further = [mean.float()]
            else:
                found = self.backbone.layers(pixels, layers)
        return {layer: tokens.float() for layer, tokens in zip(layers, found, strict=True)}, further

    def pool(self, tokens: Tensor, part: Part) -> Tensor:
        """[B, P + N, D] -> [B, D]: the class token (Pixio: the mean of all), or the mean of the patches; registers are in neither."""
        return class_feature(tokens, self.backbone.class_tokens) if part == "cls" else tokens[:, self.backbone.prefix :].mean(dim=1)


class PixelExtractor:
    """The encoder's own input, normalised, flattened; above `side` pixels averaged down to it, since closed forms in 224^2 x 3 columns are
    out of reach."""

    def __init__(self, resolution: int, crop: float, mean: tuple[float, float, float], std: tuple[float, float, float], side: int):
        self.side = min(side, resolution)
        name = f"raw pixels, {self.side}x{self.side}"
        self.spec = FeatureSpec(name, (), (), resolution, crop, mean, std, "fp32")
        self.variant = Variant((), f"pixels {self.side}x{self.side}")
        self.grey = Variant((), f"{self.variant.pooling}, one channel")
        self.layout = Layout({}, {}, {self.variant: (0, 3 * self.side**2)}, {self.grey: (0, self.side**2)})

    def told_apart(self, values: Tensor, chunk: int = 4096) -> Variant:
        """Of float32 [n, W], the pixels of the images to learn from: one channel where all three are equal in each image, as of grey images.  Three
        times the same columns tell no more, and take three times as long."""
        planes = (part.unflatten(1, (3, -1)) for part in values.split(chunk))
        return self.grey if all(torch.equal(p[:, 0], p[:, 1]) and torch.equal(p[:, 0], p[:, 2]) for p in planes) else self.variant

    def __call__(self, images: Tensor) -> Tensor:
        pixels = normalise(images, self.spec.mean, self.spec.std)
        if self.side != self.spec.resolution:
            pixels = torch.nn.functional.interpolate(pixels, size=self.side, mode="bilinear", antialias=True)
        return pixels.flatten(1)
