"""Bytes of one stored image -> checked RGB pixels, with Pillow.

One rule for every image, so that shards, the loader and the probes see the same pixels:

* The first frame counts; EXIF (or XMP) orientation is applied; an unreadable EXIF block means upright, not a bad image.
* Grey, palette and CMYK (Adobe's inverted kind too) become RGB.  What is deeper than 8 bits keeps the upper 8 of its stated range
  (levels.py), grey and colour alike; what states no range (floats, signed numbers) is a bad sample.
* Transparency, of a level or colour (PNG's tRNS) too, is composited on white, the page most such pictures were drawn for.
* ICC profiles and texts are not looked at, however large they are.
* Only Pillow's complaints about content become BadSample.  MemoryError and errors of the system (an OSError with an errno) pass through.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from mpp.base.errors import BadSample, DataError
from mpp.data.class_folders import CONVERTED
from mpp.data.levels import bits_a_channel, loaded, opaque_rgb, raw_grey, tiff_facts, windowed

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
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")  # chunks that say nothing of pixels, but for those in which orientation may stand
_MOST_TEXT = 1 << 20  # bytes of a text, unpacked, in which an orientation is looked for; Pillow's own limit
_BOMB = 64 << 20  # bytes to which no honest text or colour profile unpacks
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
        # Of a TIFF Pillow gives the sides upright.
        if image.format != "TIFF" and (image.format != "PNG" or any(mark in data for mark in _PNG_EXIF)) and _orientation(image) >= 5:
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
        return opaque_rgb(open_upright(data, max_pixels, formats))


def open_upright(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The decoded image, upright, in whatever mode it was stored; grey deeper than 8 bits as "I;16" from 0 to 65,535.  Raises BadSample(reason)."""
    with _content_errors(formats):
        image = loaded(_open(data, max_pixels, formats), data)
        turn = _UPRIGHT.get(_orientation(image))
        return image if turn is None else image.transpose(turn)


def open_windowed(
    data: bytes, window: Sequence[float], max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> tuple[Image.Image, int, int] | None:
    """Grey deeper than 8 bits as an upright image in mode L, and how many pixels were below and above the window; None for any other image.

    window: the raw levels that become 0 and 255 (of WhiteIsZero 255 and 0).  Transparent levels become white.  Raises BadSample(reason).
    """
    with _content_errors(formats):
        image = _open(data, max_pixels, formats)
        found = raw_grey(image)
        if found is None:
            return None
        levels, white_is_zero = found
        pixels, below, above = windowed(levels, *window)
        pixels = 255 - pixels if white_is_zero else pixels
        if "transparency" in image.info:
            pixels[levels == image.info["transparency"]] = 255
        turn = _UPRIGHT.get(_orientation(image))
        drawn = Image.fromarray(pixels)
        return (drawn if turn is None else drawn.transpose(turn)), below, above


def is_deep(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> bool:
    """Whether channels are stored in more than 8 bits, of which a set may use a few only.  Raises BadSample as `check_header` does."""
    if data[:8] == _PNG:
        return data[24:25] == b"\x10"
    with _content_errors(formats):
        return bits_a_channel(_open(data, max_pixels, formats)) > 8


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
        return opaque_rgb(loaded(image, data)), orientation


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
        image = loaded(image, data)
        # Divided sides are rounded up: the last row and column may hold only a part of a pixel.
        box = drafted[1] if drafted else None
        small = opaque_rgb(image).resize(size, Image.Resampling.BICUBIC, box)
        turn = _UPRIGHT.get(orientation)
        return small if turn is None else small.transpose(turn)


def png(image: Image.Image) -> bytes:
    """Without loss, and without packing, which would take longer than all else."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()


def storable(data: bytes) -> bytes:
    """As data_prep stores them: JPEG, PNG and WebP as they are, the first frame of what else is an image (CONVERTED) as PNG.  Raises BadSample."""
    if format_of(data, formats=FORMATS + CONVERTED) in FORMATS:
        return data
    return png(open_image(data, formats=CONVERTED))


def encoded(image: Image.Image) -> bytes:
    """Of an image that Pillow has opened: the bytes of its file, `storable`, as long as nothing was done to it; else its pixels as they are now, as a PNG in
    mode RGB with their EXIF orientation.  Raises BadSample."""
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.fp and image.tell() == 0:
        place = image.fp.tell()
        image.fp.seek(0)
        data = image.fp.read()
        image.fp.seek(place)  # where the decoder goes on
        return storable(data)
    with _content_errors(FORMATS + CONVERTED):
        image.load()
        if image.mode == "F":
            raise BadSample("floating-point levels, whose range is not known; scale them to 0..255 and convert the image to mode L")
        exif = Image.Exif()
        exif[_ORIENTATION] = _orientation(image)
        file = io.BytesIO()
        opaque_rgb(image).save(file, "PNG", compress_level=0, exif=exif)
        return file.getvalue()


def _open(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    """The header, parsed; pixels not yet decoded."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is fixed, and names no sides; ours, below, comes before a pixel is decoded too
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=formats)
    except UnidentifiedImageError as error:
        raise BadSample(_refusal(data, formats)) from error
    width, height = image.size
    if width < 1 or height < 1:
        raise BadSample(f"no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise BadSample(f"too many pixels ({width}x{height}, the limit is {max_pixels})")
    return image


def _refusal(data: bytes, formats: tuple[str, ...]) -> str:
    """Why Pillow does not open it: it asks every format, and says no more than that none took it."""
    for name in formats:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None or accepts(data[:16]) is not True:
            continue
        try:
            factory(io.BytesIO(data), "")
        except (OSError, *_CONTENT_ERRORS) as error:
            facts = f" ({said})" if name == "TIFF" and (said := tiff_facts(data)) else ""
            return f"begins like a {name}, but is damaged or of a kind that is not read: {error}{facts}"
    return f"not an image of {', '.join(formats)}"


def _without_texts(data: bytes) -> bytes:
    """A PNG without its colour profile and its texts, which may be larger than Pillow takes; texts with an orientation stay.  Else as it is.

    Raises BadSample for one that unpacks to more than 64 MiB: other programs that read it would choke.
    """
    if data[:8] != _PNG or not any(mark in data for mark in _PNG_TEXTS):
        return data
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, content = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if kind not in _PNG_TEXTS:
            kept.append(data[at:end])
        else:
            packed = _packed(kind, content)
            if len(packed) > _BOMB >> 11 and _unpacks_beyond(packed, _BOMB):  # deflate packs no tighter than 1 : 1,032
                raise BadSample(f"a text or colour profile that unpacks to more than {_BOMB >> 20} MiB")
            if (
                kind != b"iCCP"
                and content.startswith(_PNG_EXIF[1:])
                and len(content) <= _MOST_TEXT
                and not _unpacks_beyond(packed, _MOST_TEXT)
            ):
                kept.append(data[at:end])
        at = end
    return b"".join(kept) + data[at:]


def _packed(kind: bytes, content: bytes) -> bytes:
    """What is deflated in a chunk of one of _PNG_TEXTS; nothing where nothing is."""
    rest = content.partition(b"\0")[2]
    if kind in (b"iCCP", b"zTXt"):
        return rest[1:]
    return rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" and rest[:1] == b"\1" else b""


def _unpacks_beyond(packed: bytes, limit: int) -> bool:
    """Whether it is deflated data of more than `limit` bytes, found out in little memory."""
    unpacking, size = zlib.decompressobj(), 0
    with suppress(zlib.error):
        while packed and size <= limit:
            size += len(unpacking.decompress(packed, 1 << 20))
            packed = unpacking.unconsumed_tail
    return size > limit


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
