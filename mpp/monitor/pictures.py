"""Pictures of what the model saw and predicted, right for every target."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mpp.masking import MASKED
from mpp.targets import Target, gather_patches, patchify, unpatchify

GREY = 128.0
COLUMNS = ("image", "encoder sees", "prediction", "its target")
MARGIN = 4


def reconstruction(
    target: Target,
    patch_size: int,
    images: Tensor,
    kind: Tensor,
    source: Tensor,
    predicted: Tensor,
    prediction: Tensor,
    title: str,
    drops: bool,
) -> Image.Image:
    """One row an image: the image, what the encoder sees (masked patches grey, swapped ones as their source), the prediction in the
    predicted places, and what would be perfect for this target there.

    images: 0..255 [B, 3, S, S]; kind, source [B, N]; predicted [B, M]; prediction [B, M, O].
    """
    patches = patchify(images.float(), patch_size)
    clean = gather_patches(patches, predicted)
    seen = gather_patches(patches, source)
    seen = torch.where((kind == MASKED)[:, :, None, None, None], GREY, seen)
    cells = target.cells(clean)
    panels = [images.float(), unpatchify(seen)]
    for answer in (target.answer(prediction.float()), cells):
        panels.append(unpatchify(_placed(patches, predicted, target.picture(answer, clean))))
    caption = f"{title}: {target.caption}; {'hidden patches are dropped' if drops else 'grey: [mask]; swapped patches show their source'}"
    return _sheet(panels, caption)


def _placed(patches: Tensor, predicted: Tensor, pictures: Tensor) -> Tensor:
    index = predicted[:, :, None, None, None].expand(-1, -1, *patches.shape[2:])
    return patches.scatter(1, index, pictures.to(patches.dtype))


def _sheet(panels: list[Tensor], caption: str) -> Image.Image:
    """panels: a column each, [B, 3, S, S], 0..255; small images are enlarged by whole pixels."""
    rows, size = len(panels[0]), panels[0].shape[-1]
    side = size * max(1, 96 // size)
    width = len(panels) * (side + MARGIN) + MARGIN
    lines = _wrapped(caption, width)
    top = 16 + 12 * len(lines) + MARGIN
    sheet = Image.new("RGB", (width, top + rows * (side + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((MARGIN, 2 + 12 * i), line, fill="black")
    for column, panel in enumerate(panels):
        left = MARGIN + column * (side + MARGIN)
        draw.text((left, top - 16), COLUMNS[column], fill="black")
        for row, pixels in enumerate(panel.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()):
            picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + row * (side + MARGIN)))
    return sheet


def _wrapped(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and ImageDraw.ImageDraw(Image.new("1", (1, 1))).textlength(f"{line} {word}") > width - 2 * MARGIN:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]
