"""What stored numbers mean: from a file's levels, however deep, to levels from 0 (black) to full (white).

* Depth: TIFF's BitsPerSample, or the MaxSampleValue of one that gives it; PNG's and PPM's own.  Grey deeper than 8 bits becomes 16 bits: a level v
  of a range 0..m is 65535 v / m, rounded down, so its upper 8 bits are those of v where m + 1 is a power of two.
* WhiteIsZero is turned round.  Floats and signed numbers have no known black and white, so they are refused.
* A window says which raw levels are black and white, of grey deeper than 8 bits of any kind (`raw_grey`, `windowed`).
* A level or colour that PNG calls transparent is compared at the depth at which it was stored.

Some of this corrects what Pillow passes on as it stands (found with files written by hand, tests/data/test_levels.py).
"""

import io
import struct
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from mpp.base.errors import BadSample

FULL = 65_535
_BITS, _COMPRESSION, _PHOTOMETRIC, _MAX, _PLANAR, _COLORMAP, _INK_SET, _EXTRA, _FORMAT, _SMAX, _SUBSAMPLING = (
    258,
    259,
    262,
    281,
    284,
    320,
    332,
    338,
    339,
    341,
    530,
)  # TIFF 6.0
_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 2, 3, 5, 6
_PNG_GREY, _PNG_RGB = 0, 2  # colour types
_SIGNED, _FLOAT = 2, 3  # SampleFormat
_REMEDY = "whose black and white are not known: make_shards.py --window LOW HIGH says which levels they are"


def loaded(image: Image.Image, data: bytes) -> Image.Image:
    """Decode an image that Pillow has opened from `data`; its levels are right, grey deeper than 8 bits is "I;16" from 0 to 65,535.

    Raises BadSample for levels without a known meaning; whatever Pillow raises.
    """
    if image.format == "TIFF":
        return _tiff(cast(TiffImagePlugin.TiffImageFile, image))
    image.load()
    if image.mode == "F":
        raise BadSample(f"floating-point levels{_from_to(np.asarray(image))}, {_REMEDY}")
    transparent = image.info.get("transparency")
    if image.format == "PNG" and transparent is not None:
        bits, colour = data[24], data[25]  # of IHDR
        if colour == _PNG_GREY and 1 < bits <= 8:  # Pillow spreads the pixels over 0..255, not the transparent level
            image.info["transparency"] = (transparent & (2**bits - 1)) * 255 // (2**bits - 1)
        elif colour == _PNG_RGB and bits == 8:
            image.info["transparency"] = tuple(level & 255 for level in transparent)
        elif colour == _PNG_RGB:
            upper, lower = ([level >> shift & 255 for level in transparent] for shift in (8, 0))
            clear = (np.asarray(image) == upper) & (_lower_bytes(data) == lower)
            del image.info["transparency"]
            image.putalpha(Image.fromarray(np.where(clear.all(-1), 0, 255).astype(np.uint8)))
    if image.mode == "I":  # a PPM's, spread over 16 bits
        return _grey(np.asarray(image), FULL)
    return image


def bits_a_channel(image: Image.Image) -> int:
    """In which the levels of an image that Pillow has opened, and not yet loaded, are stored: of a TIFF or PPM; 8 of all else, but PNG, whose header tells."""
    if image.format == "TIFF":
        return max(_several(cast(TiffImagePlugin.TiffImageFile, image).tag_v2.get(_BITS, 1)))
    if image.format == "PPM":
        # The decoder's arguments: a mode, 16 bits where it is a raw one of such, and the greatest level where it is not 255.
        arguments = cast(ImageFile.ImageFile, image).tile[0].args
        return arguments[1].bit_length() if isinstance(arguments, tuple) and len(arguments) == 2 else 16 if "16" in str(arguments) else 8
    return 8


def raw_grey(image: Image.Image) -> tuple[np.ndarray, bool] | None:
    """Grey levels [H, W] as they are stored, floats or whole numbers, and whether the least is white, of an image that Pillow has opened.

    None for what is neither deeper than 8 bits nor signed, and for colour.  Raises BadSample for what Pillow reads wrongly; whatever Pillow raises.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    formats = set(_several(tags.get(_FORMAT, 1)))
    small = image.mode == "L" and formats == {_SIGNED}
    if not small and not image.mode.startswith(("I", "F")):
        return None
    if formats != {1} and not small and tags.get(_COMPRESSION, 1) != 1 and tags.prefix == b"MM":
        raise BadSample(
            "signed or floating-point levels that are big-endian and compressed, which Pillow reads wrongly; store them little-endian"
        )
    arguments = [tile.args for tile in cast(ImageFile.ImageFile, image).tile]  # gone once it is loaded
    image.load()
    levels = np.asarray(image)
    if small:
        levels = levels.view(np.int8)
    elif image.format == "TIFF" and formats == {1} and levels.dtype == np.int32:
        levels = levels.view(np.uint32)
    elif image.format == "PPM" and image.mode == "I" and isinstance(arguments[0], tuple):  # Pillow has spread them over 16 bits
        levels = (levels.astype(np.uint32) * arguments[0][1] + FULL // 2) // FULL
    return levels, image.format == "TIFF" and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO


def windowed(levels: np.ndarray, low: float, high: float) -> tuple[np.ndarray, int, int]:
    """uint8 [H, W]: levels from `low` to `high` spread evenly over 0 to 255, to the nearest, others clipped; and how many were below and above.

    Raises BadSample where one is not a number.
    """
    below = above = 0
    spread = np.empty(levels.shape, np.uint8)
    for row, stored in zip(spread, levels, strict=True):  # by rows: in 64 bits the whole would take eight times its room
        exact = stored.astype(np.float64)
        if np.isnan(exact).any():
            raise BadSample("holds levels that are no numbers (NaN), which lie in no window")
        below += int((exact < low).sum())
        above += int((exact > high).sum())
        row[:] = np.floor((np.clip(exact, low, high) - low) * 255 / (high - low) + 0.5)
    return spread, below, above


def opaque_rgb(image: Image.Image) -> Image.Image:
    """A loaded image in mode RGB: the upper 8 bits, on white."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.uint16)
        upper = (levels >> 8).astype(np.uint8)
        if "transparency" in image.info:
            upper[levels == image.info["transparency"]] = 255
        return Image.fromarray(upper).convert("RGB")
    if image.mode == "La":  # grey multiplied by its alpha, which Pillow turns into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        drawn = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def tiff_facts(data: bytes) -> str:
    """What a TIFF says of its samples, for a reason why it is not read; nothing where it cannot be told."""
    names = {_PHOTOMETRIC: "PhotometricInterpretation", _BITS: "BitsPerSample", _FORMAT: "SampleFormat", _EXTRA: "ExtraSamples"}
    try:
        stream = io.BytesIO(data)
        tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(tags.next)
        tags.load(stream)
        return ", ".join(f"{name} {' '.join(map(str, _several(tags[tag])))}" for tag, name in names.items() if tag in tags)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, AttributeError, struct.error):
        return ""


def _several(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _tiff(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    tags = image.tag_v2
    bits, photometric = _several(tags.get(_BITS, 1))[0], tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    formats = set(_several(tags.get(_FORMAT, 1)))
    if formats != {1}:
        raise _unknown_levels(image, formats)
    most, stated = 2**bits - 1, _several(tags.get(_MAX, tags.get(_SMAX, 0)))[0]
    # In 8 bits it is often the brightest level that occurs, and no depth.
    if isinstance(stated, int | float) and 0 < stated < most and (bits > 8 or int(stated) & int(stated + 1) == 0):
        most = int(stated)
    raw = tags.get(_COMPRESSION, 1) == 1
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I") and most != 2**bits - 1:
        raise BadSample(f"{bits}-bit colour whose MaxSampleValue is {most}; spread its levels over all {bits} bits, or store grey")
    if raw and photometric == _YCBCR and _several(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise BadSample("uncompressed YCbCr whose chroma is subsampled, or does not say that it is not")
    if tags.get(_PLANAR, 1) == 2 and len(image.getbands()) > 1 and (photometric not in (_RGB, _CMYK) or (raw and bits != 8)):
        raise BadSample(f"{bits}-bit channels stored one after the other (PlanarConfiguration 2), which is read of compressed colour only")
    if photometric == _CMYK and tags.get(_INK_SET, 1) != 1:
        raise BadSample("inks that are not cyan, magenta, yellow and black")
    if photometric == _PALETTE and max(tags[_COLORMAP]) < 256 and image.palette is not None:  # of 8 bits, as old writers stored it
        image.palette.palette = bytes(tags[_COLORMAP])
    image.load()
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        return _grey(levels.view(np.uint32) if bits == 32 else levels, most, photometric == _WHITE_IS_ZERO)
    if image.mode == "L" and most != 2**bits - 1:
        levels = np.asarray(image)  # turned round by Pillow
        inverse = photometric == _WHITE_IS_ZERO
        spread = _spread(255 - levels if inverse else levels, most, 255)
        return Image.fromarray((255 - spread if inverse else spread).astype(np.uint8))
    return image


def _unknown_levels(image: TiffImagePlugin.TiffImageFile, formats: set) -> BadSample:
    """Why a TIFF of signed, floating-point or other levels is not read without a window, and which it has, so that one can be chosen."""
    kind = "floating-point" if _FLOAT in formats else "signed" if formats == {_SIGNED} else ""
    if not kind or len(image.getbands()) > 1:
        return BadSample(f"{kind or 'unusual'} levels (SampleFormat {min(formats)}), whose black and white are not known")
    found = raw_grey(image)
    return BadSample(f"{kind} levels{_from_to(found[0]) if found else ''}, {_REMEDY}")


def _from_to(levels: np.ndarray) -> str:
    """ " from -1024 to 3071", for a message; nothing where there are no numbers"""
    numbers = levels[np.isfinite(levels)]
    return f" from {numbers.min():g} to {numbers.max():g}" if numbers.size else ""


def _grey(levels: np.ndarray, most: int, white_is_zero: bool = False) -> Image.Image:
    """Levels from 0 to `most` in mode I;16, from 0 to 65,535."""
    spread = _spread(levels, most, FULL)
    return Image.fromarray(np.uint16(FULL) - spread if white_is_zero else spread)


def _spread(levels: np.ndarray, most: int, full: int) -> np.ndarray:
    if levels.size and int(levels.max()) > most:
        raise BadSample(f"a level of {int(levels.max())}, above its MaxSampleValue of {most}")
    spread = np.empty(levels.shape, np.uint16)
    for row, stored in zip(spread, levels, strict=True):  # by rows: in 64 bits the whole would take eight times its room
        row[:] = stored if most == full else stored.astype(np.uint64) * np.uint64(full) // np.uint64(most)
    return spread


def _lower_bytes(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]: the lower halves of a PNG's 16-bit colours."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # as if they stood the other way round
    return np.asarray(image)
