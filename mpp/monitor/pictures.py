"""Pictures of what the model saw and predicted, right for every target."""

from PIL import Image, ImageDraw
from torch import Tensor

from mpp.recipe.model import PretrainingModel
from mpp.recipe.patches import gather_patches, patchify, unpatchify
from mpp.recipe.places import Masks

COLUMNS = ("image", "encoder sees", "prediction", "its target")
MARGIN = 4


def reconstruction(
    model: PretrainingModel, images: Tensor, masks: Masks[Tensor], prediction: Tensor, truth: Tensor, title: str
) -> Image.Image:
    """One row an image: the image, what the encoder sees (as its corruption draws it), the prediction in the predicted places, and what would be
    perfect for this target there.

    images: 0..255 [B, 3, H, W]; prediction [B, M, O]; truth: the target's goals [B, M, ...].
    """
    target, grid, predicted = model.target, model.encoder.grid, masks.predicted
    side = images.shape[2] // grid[0]
    patches = patchify(images.float(), side)
    clean = gather_patches(patches, predicted)
    panels = [images.float(), model.corruption.picture(images.float(), masks, side, model.mask_token)]
    for goal in (target.answer(prediction.float()), truth):
        panels.append(unpatchify(_placed(patches, predicted, target.picture(goal, clean, truth)), grid))
    return _sheet(panels, f"{title}: {target.caption}; {model.corruption.caption}")


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
