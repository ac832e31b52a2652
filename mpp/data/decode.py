"""Bytes of one stored image -> checked RGB pixels, with Pillow.

One rule for every image, so that shards, the loader and the probes see the same pixels:

* The first frame counts; EXIF (or XMP) orientation is applied; an unreadable EXIF block means upright, not a bad image.
* Grey, palette and CMYK (Adobe's inverted kind too) become RGB.  16-bit grey keeps its upper 8 bits, as Pillow does for 16-bit colour.
* Transparency is composited on white, the page most such pictures were drawn for.  ICC profiles are not applied.
* Only Pillow's complaints about content become BadSample.  MemoryError and errors of the system (an OSError with an errno) pass through.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from mpp.errors import BadSample, DataError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 178_956_970 // 2  # Pillow's own warning level: 256 MiB as RGB

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {  # what turns a stored picture of this EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # a PNG without any of these has no orientation
# What Pillow's parsers raise on damaged bytes, besides an OSError without errno (found by fuzzing; tests/data/test_decode.py repeats it).
_CONTENT_ERRORS = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def require_codecs() -> None:
    """Raises DataError where this Pillow lacks a decoder of FORMATS: every such image would look damaged."""
    Image.init()  # loads every plugin now; it says nothing of those that cannot be imported
    codecs = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp"}
    if missing := [name for name in FORMATS if name not in Image.OPEN or not features.check(codecs[name])]:
        raise DataError(f"this Pillow was built without {', '.join(missing)}; install the wheel: pip install --force-reinstall pillow")


def check_header(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> tuple[str, int, int]:
    """(format, width, height) without decoding pixels (a PNG with an EXIF block, which may come last, is decoded).

    format: one of `formats`; width, height: pixels as `decode` will return them, after orientation.
    Raises BadSample for another format, a damaged header, no pixels or more than `max_pixels`.
    """
    with _content_errors(formats):
        image = _open(data, max_pixels, formats)
        width, height = image.size
        if (image.format != "PNG" or any(mark in data for mark in _PNG_EXIF)) and _orientation(image) >= 5:
            width, height = height, width
        return _format(image), width, height


def format_of(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> str:
    """Which of `formats` the bytes begin like, from the header alone.  Raises BadSample as `check_header` does."""
    with _content_errors(formats):
        return _format(_open(data, max_pixels, formats))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [H, W, 3], RGB, upright; the module's docstring has the rules.  Raises BadSample(reason)."""
    return np.array(open_image(data, max_pixels))


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The decoded image in mode RGB, upright: what `decode` and the loader's crop share.

    formats: Pillow names of the formats let in.  Raises BadSample(reason) for content that cannot be decoded in full.
    """
    with _content_errors(formats):
        return to_rgb(open_upright(data, max_pixels, formats))


def open_upright(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The decoded image, upright, in whatever mode it was stored.  Raises BadSample(reason)."""
    with _content_errors(formats):
        image = _open(data, max_pixels, formats)
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        return image if turn is None else image.transpose(turn)


def open_stored(data: bytes, scale: int, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, int]:
    """The decoded image in mode RGB as it is stored, not turned upright, and its EXIF orientation (1 is upright).

    scale: 1, 2, 4 or 8; a JPEG is decoded at 1/scale of its size, both sides rounded up; any other format at full size, so ask `format_of`
    first.  Raises BadSample(reason) for content that cannot be decoded in full.
    """
    with _content_errors(FORMATS):
        image = _open(data, max_pixels, FORMATS)
        orientation = _orientation(image)
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return to_rgb(image), orientation


def stored_header(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int, int, str]:
    """The EXIF orientation, 1 to 8, stored width and height, and Pillow's mode.  Raises BadSample as `check_header` does."""
    with _content_errors(FORMATS):
        image = _open(data, max_pixels, FORMATS)
        return _orientation(image), *image.size, image.mode


def open_shrunk(data: bytes, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `open_image`, then shrunk to `size`, (width, height) of the upright picture: bicubic, antialiased.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves both sides at least twice as long as wanted: much faster, and the
    bicubic filter still does the last halving.  Raises BadSample(reason).
    """
    with _content_errors(FORMATS):
        image = _open(data, max_pixels, FORMATS)
        orientation = _orientation(image)
        if orientation >= 5:
            size = size[::-1]
        drafted = image.draft(None, (2 * size[0], 2 * size[1]))
        image.load()
        # Divided sides are rounded up: the last row and column may hold only a part of a pixel.
        box = drafted[1] if drafted else None
        small = to_rgb(image).resize(size, Image.Resampling.BICUBIC, box)
        turn = _UPRIGHT.get(orientation)
        return small if turn is None else small.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image in mode RGB by the module's rules.  Raises BadSample for pixels without a known range (float)."""
    if image.mode.startswith("I"):  # 16-bit grey, in 16 or 32 bits; Pillow's own conversion would clip at 255
        upper = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadSample("floating-point pixels have no known range")
    if image.has_transparency_data:
        drawn = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    """The header, parsed; pixels not yet decoded."""
    image = Image.open(io.BytesIO(data), formats=formats)
    width, height = image.size
    if width < 1 or height < 1:
        raise BadSample(f"no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise BadSample(f"too many pixels ({width}x{height}, the limit is {max_pixels})")
    return image


def _format(image: Image.Image) -> str:
    """Cameras store a preview behind the picture; Pillow calls such a JPEG "MPO"."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, *_CONTENT_ERRORS):  # the block lies in memory, so this is content too
        return 1


@contextmanager
def _content_errors(formats: tuple[str, ...]) -> Iterator[None]:
    """Turn what Pillow raises for bad content into BadSample; silence its warnings about odd but usable content."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:  # its own message holds a memory address
        raise BadSample(f"not an image of {', '.join(formats)}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadSample(str(error)) from error
    except _CONTENT_ERRORS as error:
        raise BadSample(f"{type(error).__name__}: {error}") from error
