"""What a masked patch must predict, how far off a prediction is, and how it looks.

A target takes the clean patches as they are before normalisation: float [B, M, 3, P, P], 0..255.
Letters: B batch, M patches, P patch side in pixels, g cells a side (1 for mean colour, P for pixels), O outputs a patch.
Every loss is float32 and comes as one number a patch [B, M]; which patches are averaged is the caller's choice.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mpp.config.pretrain import ColorGridTarget, MeanColorTarget, PixelsTarget


class Target(Protocol):
    @property
    def outputs(self) -> int:
        """O, the numbers that the decoder predicts for each patch."""

    @property
    def caption(self) -> str:
        """What stands under its pictures."""

    def cells(self, patches: Tensor) -> Tensor:
        """[B, M, 3, P, P] -> what is to be predicted: class numbers int64 [B, M, g, g], or values float [B, M, g, g, 3]."""

    def loss(self, prediction: Tensor, cells: Tensor) -> Tensor:
        """prediction [B, M, O], cells as above -> float32 [B, M]."""

    def answer(self, prediction: Tensor) -> Tensor:
        """prediction [B, M, O] -> the cells it stands for: the likeliest classes, or the values."""

    def picture(self, cells: Tensor, patches: Tensor) -> Tensor:
        """cells and the clean patches they belong to -> colours 0..255 [B, M, 3, P, P]."""


def color_class(colors: Tensor, bits: int) -> Tensor:
    """colors float [..., 3], 0..255 -> class int64 [...], `bits` a channel, red highest.

    Source: ViT B.1.2; equal bins of 256 / 2^bits levels are ours.
    """
    level = (colors.clamp(0, 255) / 2 ** (8 - bits)).long().clamp(max=2**bits - 1)
    red, green, blue = level.unbind(-1)
    return (red << 2 * bits) | (green << bits) | blue


def class_color(classes: Tensor, bits: int) -> Tensor:
    """class int64 [...] -> the colour in the middle of its bin, float [..., 3], 0..255."""
    level = torch.stack([(classes >> shift) & (2**bits - 1) for shift in (2 * bits, bits, 0)], dim=-1)
    return (level.float() + 0.5) * 2 ** (8 - bits)


@dataclass(frozen=True)
class ColorClasses:
    """The mean colour of each of g x g cells of a patch, as a class (ViT B.1.2: g = 1 is its option 1, g = 4 its option 2).

    Where g does not divide P, cells are the windows of adaptive average pooling, which then overlap by a pixel (ours).
    """

    grid: int
    bits: int

    @property
    def outputs(self) -> int:
        return self.grid**2 * self.classes

    @property
    def classes(self) -> int:
        return 2 ** (3 * self.bits)

    @property
    def caption(self) -> str:
        return f"likeliest of {self.classes} colours for each {'patch' if self.grid == 1 else f'of {self.grid}x{self.grid} cells'}, drawn as the middle of its bin"

    def cells(self, patches: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(patches.flatten(0, 1).float(), self.grid)
        return color_class(means.permute(0, 2, 3, 1), self.bits).unflatten(0, patches.shape[:2])

    def loss(self, prediction: Tensor, cells: Tensor) -> Tensor:
        logits = self._logits(prediction).float()
        return F.cross_entropy(logits.flatten(0, -2), cells.flatten(), reduction="none").view(cells.shape).mean(dim=(2, 3))

    def answer(self, prediction: Tensor) -> Tensor:
        return self._logits(prediction).argmax(dim=-1)

    def picture(self, cells: Tensor, patches: Tensor) -> Tensor:
        colors = class_color(cells, self.bits).permute(0, 1, 4, 2, 3).flatten(0, 1)
        return F.interpolate(colors, size=patches.shape[-2:], mode="nearest").unflatten(0, cells.shape[:2])

    def _logits(self, prediction: Tensor) -> Tensor:
        return prediction.unflatten(-1, (self.grid, self.grid, self.classes))


@dataclass(frozen=True)
class Pixels:
    """Every pixel, in the units the encoder sees, (colour / 255 - mean) / std, optionally normalised within each patch.

    Source: ViT B.1.2 option 3 (its units are ours); MAE with `normalise`: unbiased variance over the P x P x 3 values of a patch, eps 1e-6.
    """

    patch_size: int
    power: int  # 1: absolute error, 2: squared error
    normalise: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def outputs(self) -> int:
        return self.patch_size**2 * 3

    @property
    def caption(self) -> str:
        return "predicted pixels" + (", un-normalised with the true mean and deviation of each patch" if self.normalise else "")

    def cells(self, patches: Tensor) -> Tensor:
        values = self._seen(patches)
        if self.normalise:
            middle, spread = self._statistics(values)
            values = (values - middle) / spread
        return values

    def loss(self, prediction: Tensor, cells: Tensor) -> Tensor:
        return (self.answer(prediction) - cells).abs().pow(self.power).mean(dim=(2, 3, 4))

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction.float().unflatten(-1, (self.patch_size, self.patch_size, 3))  # the order of MAE's patchify

    def picture(self, cells: Tensor, patches: Tensor) -> Tensor:
        if self.normalise:
            middle, spread = self._statistics(self._seen(patches))
            cells = cells * spread + middle
        mean, std = cells.new_tensor(self.mean), cells.new_tensor(self.std)
        return ((cells * std + mean) * 255).clamp(0, 255).permute(0, 1, 4, 2, 3)

    def _seen(self, patches: Tensor) -> Tensor:
        values = patches.float().permute(0, 1, 3, 4, 2) / 255
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)

    @staticmethod
    def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
        middle = values.mean(dim=(2, 3, 4), keepdim=True)
        return middle, (values.var(dim=(2, 3, 4), keepdim=True, unbiased=True) + 1e-6).sqrt()


def make_target(
    config: MeanColorTarget | ColorGridTarget | PixelsTarget,
    patch_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Target:
    """mean, std: of the input normalisation, colours in 0..1."""
    match config:
        case MeanColorTarget():
            return ColorClasses(grid=1, bits=config.bits)
        case ColorGridTarget():
            return ColorClasses(grid=config.grid, bits=config.bits)
        case PixelsTarget():
            return Pixels(patch_size, power={"l1": 1, "l2": 2}[config.loss], normalise=config.normalise, mean=mean, std=std)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """images [B, 3, S, S] -> patches [B, N, 3, P, P], row by row."""
    batch, channels, height, width = images.shape
    p = patch_size
    return images.view(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, p, p)


def unpatchify(patches: Tensor) -> Tensor:
    """patches [B, N, 3, P, P] of a square image, row by row -> images [B, 3, S, S]."""
    batch, count, channels, p, _ = patches.shape
    side = round(count**0.5)
    return patches.view(batch, side, side, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side * p, side * p)


def gather_patches(patches: Tensor, index: Tensor) -> Tensor:
    """patches [B, N, 3, P, P], index [B, M] -> [B, M, 3, P, P]."""
    return patches.gather(1, index[:, :, None, None, None].expand(-1, -1, *patches.shape[2:]))
