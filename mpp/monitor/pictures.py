"""Pictures of what the model saw and predicted, right for every target.

Letters: B images, N patches of a grid of rows x columns, M predicted, H x W pixels of an image, P patch side in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mpp.monitor.skill import Baseline
from mpp.recipe.model import PretrainingModel
from mpp.recipe.patches import gather_patches, patchify, unpatchify
from mpp.recipe.places import KEPT, SWAPPED, VISIBLE, Grid, Masks

LEAST_SIDE = 160  # pixels of a drawn image: smaller ones are enlarged by whole pixels
MARGIN = 6
LARGE, SMALL = 15, 12  # letters, in pixels
LINE = 16
SWATCH = 12
NEIGHBOURS = 4  # seen patches whose statistics stand in for those of a hidden one (ours)
FRAMES = {SWAPPED: (230, 159, 0), KEPT: (0, 114, 178)}  # orange and blue of Okabe and Ito: told apart by every kind of eye
BETTER_OR_WORSE, MORE = "RdBu_r", "viridis"  # matplotlib's


@dataclass(frozen=True)
class Column:
    title: str
    pixels: Tensor  # [B, 3, H, W], 0..255
    framed: bool = False  # whether what became of hidden patches is told by frames


@dataclass(frozen=True)
class ErrorScale:
    """Losses as colours: the trivial predictor's in the middle, or, where there is none, from nothing to the largest of the sheet."""

    trivial: float | None
    largest: float

    @property
    def top(self) -> float:
        return 2 * self.trivial if self.trivial is not None else self.largest

    @property
    def words(self) -> tuple[str, str, str]:
        """At nothing, in the middle, at the top."""
        return "0", f"{self.top / 2:.3g}" + (" (trivial)" if self.trivial is not None else ""), f"{self.top:.3g}"

    def colours(self, losses: np.ndarray) -> np.ndarray:
        """[...] -> 0..255 [..., 3]."""
        import matplotlib  # here, because it takes a quarter of a second

        shades = matplotlib.colormaps[MORE if self.trivial is None else BETTER_OR_WORSE]
        return 255 * np.asarray(shades(np.clip(losses / max(self.top, 1e-12), 0, 1)))[..., :3]


def reconstruction(
    model: PretrainingModel, images: Tensor, masks: Masks[Tensor], prediction: Tensor, truth: Tensor, baseline: Baseline, title: str
) -> Image.Image:
    """One row an image: the image, what the encoder sees (as its corruption draws it), and in the predicted places the prediction, what would be
    perfect for this target there, and the loss.  Where a prediction can only be drawn with something taken from the truth, it is drawn once more with
    the same of the nearest patches that the encoder sees.

    images: 0..255 [B, 3, H, W]; prediction [B, M, O]; truth: the target's goals [B, M, ...].
    """
    target, grid, corruption = model.target, model.encoder.grid, model.corruption
    images, prediction = images.float(), prediction.float()
    side = images.shape[2] // grid[0]
    clean = patchify(images, side)
    own = gather_patches(clean, masks.predicted)
    sees = corruption.picture(images, masks, side, model.mask_token)
    shown = patchify(sees, side)
    in_place = lambda patches: unpatchify(_placed(shown, masks.predicted, patches), grid)
    answer = target.answer(prediction)
    columns = [
        Column("image", images),
        Column("encoder sees", sees, framed=True),
        Column("prediction", in_place(target.picture(answer, own, truth))),
    ]
    lines = [f"prediction: {target.caption}"]
    nearest = nearest_seen(masks, corruption.places(masks), grid) if target.borrows else None
    if nearest is not None:
        lent = clean[torch.arange(len(clean), device=clean.device)[:, None, None], nearest]  # [B, M, k, 3, P, P]
        pooled = lent.permute(0, 1, 3, 4, 2, 5).flatten(4)  # side by side, as one wide patch
        columns.append(Column("prediction, guessed", in_place(target.picture(answer, pooled, truth))))
        lines.append(
            f"guessed: the same with the {target.borrows} of the {nearest.shape[2]} nearest patches seen, in place of the true {target.borrows}, "
            "which the model is never asked for"
        )
    columns.append(Column("its target", in_place(target.picture(truth, own, truth))))
    losses = target.loss(prediction, truth).float().cpu().numpy()
    scale = ErrorScale(baseline.loss if baseline.defines_skill else None, float(losses.max()))
    heat = torch.from_numpy(scale.colours(losses)).to(shown)[..., None, None].expand_as(own)
    faded = unpatchify(_placed(_faded(shown), masks.predicted, heat), grid)
    columns.append(Column("loss", faded))
    meaning = (
        f"blue: better than the trivial rule '{baseline.name}', red: worse"
        if scale.trivial is not None
        else "no trivial rule; the brighter, the larger"
    )
    return _Sheet(columns, masks.kind, grid).draw(title, lines, corruption.legend, corruption.caption, scale, meaning)


def nearest_seen(masks: Masks[Tensor], places: Tensor | None, grid: Grid) -> Tensor | None:
    """int64 [B, M, k]: for each predicted patch the nearest ones (on the grid; the earlier of two) of which the encoder sees everything; None: of none.

    places [B, K]: whose tokens the encoder has; None: all.
    """
    seen = masks.kind == VISIBLE
    if places is not None:
        seen = torch.zeros_like(seen).scatter(1, places, True)
    count = min(NEIGHBOURS, int(seen.sum(1).min()))
    if not count:
        return None
    numbers = torch.arange(grid[0] * grid[1], device=seen.device)
    points = torch.stack([numbers // grid[1], numbers % grid[1]], dim=1)
    apart = (points[masks.predicted][:, :, None] - points).square().sum(-1)  # [B, M, N]
    far = apart.masked_fill(~seen[:, None], torch.iinfo(apart.dtype).max)
    return far.argsort(dim=-1, stable=True)[:, :, :count]


def _placed(patches: Tensor, predicted: Tensor, pictures: Tensor) -> Tensor:
    index = predicted[:, :, None, None, None].expand(-1, -1, *patches.shape[2:])
    return patches.scatter(1, index, pictures.to(patches.dtype))


def _faded(patches: Tensor) -> Tensor:
    """What is not spoken of: pale grey."""
    return (patches.mean(2, keepdim=True) * 0.3 + 178).expand_as(patches)


class _Sheet:
    def __init__(self, columns: list[Column], kind: Tensor, grid: Grid):
        self.columns, self.kind, self.grid = columns, kind.cpu(), grid
        height, width = columns[0].pixels.shape[-2:]
        self.factor = max(1, -(-LEAST_SIDE // max(height, width)))
        self.high, self.wide = height * self.factor, width * self.factor
        self.width = MARGIN + len(columns) * (self.wide + MARGIN)
        self.tiles = [[self._tile(column, row) for row in range(len(kind))] for column in columns]

    def draw(self, title: str, lines: list[str], legend: dict[int, str], sees: str, scale: ErrorScale, meaning: str) -> Image.Image:
        swatches = [(self._swatch(kind), words) for kind, words in legend.items() if bool((self.kind == kind).any())]
        said = [
            (LARGE, title),
            (SMALL, f"encoder sees: {sees}"),
            *((SMALL, line) for line in lines),
            (SMALL, f"loss of each predicted patch: {meaning}"),
        ]
        wrapped = [(size, part) for size, text in said for part in _wrapped(text, self.width - 2 * MARGIN, size)]
        top = MARGIN + LINE * (len(wrapped) + 2) + MARGIN
        sheet = Image.new("RGB", (self.width, top + len(self.kind) * (self.high + MARGIN)), "white")
        pen = ImageDraw.Draw(sheet)
        for number, (size, text) in enumerate(wrapped):
            pen.text((MARGIN, MARGIN + LINE * number), text, fill="black" if size == LARGE else "#444", font=ImageFont.load_default(size))
        self._keys(sheet, pen, MARGIN + LINE * len(wrapped), swatches, scale)
        for number, (column, tiles) in enumerate(zip(self.columns, self.tiles, strict=True)):
            left = MARGIN + number * (self.wide + MARGIN)
            pen.text((left, top - LINE - 2), column.title, fill="black", font=ImageFont.load_default(SMALL))
            for row, tile in enumerate(tiles):
                sheet.paste(tile, (left, top + row * (self.high + MARGIN)))
        return sheet

    def _keys(
        self, sheet: Image.Image, pen: ImageDraw.ImageDraw, top: int, swatches: list[tuple[Image.Image, str]], scale: ErrorScale
    ) -> None:
        """On one line: what frames and fillings mean, and the colours of the loss."""
        left, font = MARGIN, ImageFont.load_default(SMALL)
        for swatch, words in swatches:
            sheet.paste(swatch, (left, top + 1))
            pen.text((left + SWATCH + 4, top), words, fill="#444", font=font)
            left += SWATCH + 20 + int(pen.textlength(words, font=font))
        low, middle, high = scale.words
        bar = Image.fromarray(np.tile(scale.colours(np.linspace(0, scale.top, 120)), (SWATCH, 1, 1)).round().astype(np.uint8))
        text = f"{middle} … {high}"
        right = self.width - MARGIN - int(pen.textlength(text, font=font))
        pen.text((right, top), text, fill="#444", font=font)
        sheet.paste(bar, (right - bar.width - 6, top + 1))
        pen.text((right - bar.width - 12 - int(pen.textlength(f"loss {low}", font=font)), top), f"loss {low}", fill="#444", font=font)

    def _tile(self, column: Column, row: int) -> Image.Image:
        pixels = column.pixels[row].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        tile = Image.fromarray(pixels).resize((self.wide, self.high), Image.Resampling.NEAREST)
        if column.framed:
            pen = ImageDraw.Draw(tile)
            for kind, colour in FRAMES.items():
                for number in (self.kind[row] == kind).nonzero().flatten().tolist():
                    pen.rectangle(self._box(number), outline=colour, width=2)
        return tile

    def _box(self, number: int) -> tuple[int, int, int, int]:
        """Of a patch, both corners within it."""
        down, right = divmod(number, self.grid[1])
        tall, broad = self.high // self.grid[0], self.wide // self.grid[1]
        return right * broad, down * tall, (right + 1) * broad - 1, (down + 1) * tall - 1

    def _swatch(self, kind: int) -> Image.Image:
        """The first such patch as it is drawn."""
        row, number = (self.kind == kind).nonzero()[0].tolist()
        framed = next(at for at, column in enumerate(self.columns) if column.framed)
        left, top, right, bottom = self._box(number)
        patch = self.tiles[framed][row].crop((left, top, right + 1, bottom + 1)).resize((SWATCH, SWATCH), Image.Resampling.NEAREST)
        ImageDraw.Draw(patch).rectangle((0, 0, SWATCH - 1, SWATCH - 1), outline=FRAMES.get(kind, (120, 120, 120)))
        return patch


def _wrapped(text: str, width: int, size: int) -> list[str]:
    font = ImageFont.load_default(size)
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]
