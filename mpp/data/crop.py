"""From an image's bytes to training crops: decode only what they need, then shrink or stretch them to the training size.

    bytes -> a part of the image, at 1, 1/2, 1/4 or 1/8 of its size -> uint8 [3, H, W], antialiased bicubic

* libjpeg-turbo decodes a part of a JPEG (_jpeg.c): blocks above and beside it are parsed and thrown away, what lies below is not read.
  Without that module, and for every other format or an unusual sampling of chroma, Pillow decodes the whole image.  Either way the same bits come out, so only the speed
  of a mixed cluster differs.  One exception: a JPEG that was damaged before its shard was made passes here where the damage lies below the
  crop, while Pillow calls it bad.  make_shards.py lets none in; in tars from elsewhere verify_shards.py --full finds them.
* A large JPEG is decoded at the smallest reduced size that still holds each crop `SPARE` times over on both sides.  The crop is snapped to
  that size's grid, by up to half a reduced pixel, since the resizer takes whole pixels.
* The filter sees the crop's own pixels only, as if they had been cut out first (torchvision's order).

Against float64 arithmetic on photographs, crops of full-size decodes are off by 0.25 of 255 levels in the mean and 2 at most, those of
reduced ones by 0.5 in the mean, and 5 in one place of a hundred (tests/data/test_crop.py).
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch

from mpp.base.errors import BadSample
from mpp.data.decode import MAX_PIXELS, format_of, open_stored, stored_header

try:
    import mpp.data._jpeg as _jpeg
except ImportError as error:  # built only where libjpeg-turbo's headers are installed
    _jpeg = None  # type: ignore[assignment]
    _missing = str(error)

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Size = int | tuple[int, int]  # pixels a side, or (height, width)
SPARE = 2
BACKWARDS_X = (2, 3, 6, 7)  # EXIF orientations in which the x axis of the upright image runs backwards in the stored one
BACKWARDS_Y = (3, 4, 7, 8)


def jpeg_decoder() -> str:
    """What decodes JPEGs here, for people."""
    return f"Pillow (whole images; {_missing})" if _jpeg is None else "libjpeg-turbo (parts of images)"


def cut(data: bytes, width: int, height: int, boxes: Sequence[Box], size: Size, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """uint8 [3, H, W], size = (H, W), for each box of one encoded image, which is decoded once.

    width, height: of the upright image, as its index says.  boxes: inside it.
    Raises BadSample(reason) for content that cannot be decoded, of another size than the index says, or larger than `max_pixels`.
    """
    parts, orientation = decode_parts(data, width, height, boxes, size, max_pixels)
    return [turned(resize(part, as_stored_size(size, orientation)), orientation) for part in parts]


def decode_parts(
    data: bytes, width: int, height: int, boxes: Sequence[Box], size: Size, max_pixels: int = MAX_PIXELS
) -> tuple[list[np.ndarray], int]:
    """As `cut`, before anything is resized: uint8 [H, W, 3] of each box, as stored, and the EXIF orientation that turns it upright."""
    if width * height > max_pixels:
        raise BadSample(f"too many pixels ({width}x{height}, the limit is {max_pixels})")
    if _jpeg is not None and (plain := plain_jpeg(data, max_pixels)) is not None:
        orientation, *found = plain
        side = (height, width) if orientation >= 5 else (width, height)
        scale = _scale(boxes, size)
        snapped = [_snap(as_stored(box, width, height, orientation), side, scale) for box in boxes]
        around = _union(snapped)
        pixels = np.empty((around[3] - around[1], around[2] - around[0], 3), dtype=np.uint8)
        with suppress(ValueError):  # libjpeg's complaint: Pillow judges, in the same words on every machine
            if found == [*side]:
                _jpeg.region(data, scale, around[0], around[1], pixels.shape[1], pixels.shape[0], pixels)
                return [_inside(pixels, box, around) for box in snapped], orientation
    scale = _scale(boxes, size) if format_of(data, max_pixels) == "JPEG" else 1
    image, orientation = open_stored(data, scale, max_pixels)
    side = (height, width) if orientation >= 5 else (width, height)
    if image.size != (-(-side[0] // scale), -(-side[1] // scale)):
        raise BadSample(f"is {image.width}x{image.height} pixels (at 1/{scale} of its size), the index says {width}x{height}")
    snapped = [_snap(as_stored(box, width, height, orientation), side, scale) for box in boxes]
    return [_inside(np.asarray(image), box, (0, 0)) for box in snapped], orientation


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [3, H, W], size = (H, W), bicubic, antialiased."""
    planes = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=both(size), mode="bicubic", antialias=True)
    return resized[0].numpy()


def both(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def as_stored_size(size: Size, orientation: int) -> tuple[int, int]:
    """(height, width) of a crop before it is turned upright (EXIF orientation 1 to 8)."""
    height, width = both(size)
    return (width, height) if orientation >= 5 else (height, width)


def turned(planes: np.ndarray, orientation: int) -> np.ndarray:
    """[3, H, W] as stored -> upright (EXIF orientation 1 to 8)."""
    if orientation >= 5:
        planes = planes.transpose(0, 2, 1)
    if orientation in BACKWARDS_X:
        planes = planes[:, :, ::-1]
    return planes[:, ::-1] if orientation in BACKWARDS_Y else planes


def as_stored(box: Box, width: int, height: int, orientation: int) -> Box:
    """Where a box of the upright image, width x height, lies in the image as it is stored (EXIF orientation 1 to 8)."""
    left, top, right, bottom = box
    if orientation in BACKWARDS_X:
        left, right = width - right, width - left
    if orientation in BACKWARDS_Y:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def plain_jpeg(data: bytes, max_pixels: int) -> tuple[int, int, int] | None:
    """Orientation and stored size of a grey or colour JPEG with its end mark, else None (a cut one is for Pillow to judge).

    Raises BadSample for a header that Pillow refuses.
    """
    if not data.startswith(b"\xff\xd8") or not data.endswith(b"\xff\xd9"):
        return None
    if _jpeg is None:
        orientation, width, height, mode = stored_header(data, max_pixels)
        return (orientation, width, height) if mode in ("L", "RGB") else None
    try:
        width, height, components, has_app1 = _jpeg.header(data)
    except ValueError:
        return None
    if components not in (1, 3):
        return None
    return (stored_header(data, max_pixels)[0] if has_app1 else 1), width, height


def _scale(boxes: Sequence[Box], size: Size) -> int:
    height, width = both(size)
    spare = min(min((right - left) / width, (bottom - top) / height) for left, top, right, bottom in boxes)
    return next((scale for scale in (8, 4, 2) if spare >= scale * SPARE), 1)


def _snap(box: Box, side: tuple[int, int], scale: int) -> Box:
    """A box in pixels of the reduced image; its last row and column, where they hold only a part of a pixel, stay outside."""
    edges = [min(round(edge / scale), side[axis % 2] // scale) for axis, edge in enumerate(box)]
    return edges[0], edges[1], edges[2], edges[3]


def _union(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _inside(pixels: np.ndarray, box: Box, origin: Sequence[int]) -> np.ndarray:
    left, top, right, bottom = box
    return pixels[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]]
