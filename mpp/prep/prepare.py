"""One file's bytes -> the bytes to store, their field and their size in pixels."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from mpp.base.errors import BadSample
from mpp.base.text import counted
from mpp.data.class_folders import CONVERTED
from mpp.data.decode import FORMATS, MAX_PIXELS, check_header, is_deep, open_image, open_shrunk, open_upright, open_windowed
from mpp.data.shard_format import FIELDS

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what a PNG stores without loss
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels of the longest side that each format stores
QUALITY = {"JPEG": 95, "WEBP": 90}  # of re-encoded images, unless --quality says otherwise
TRAINED_PIXELS = 100_000_000  # data.max_pixels of the training programs, unless it is given
DARKEST, BRIGHTEST = "darkest of 16 bits ", "brightest of 16 bits "  # before a level from 0 to 255: how many images have it so
TAIL = 4096  # bytes at the end of a JPEG in which its end mark is looked for (cameras append things)


@dataclass(frozen=True)
class Options:
    check: Literal["header", "decode"] = "header"
    resize: int | None = None  # pixels of the short side, None to keep
    encode: Literal["keep", "jpeg", "png", "webp"] = "keep"
    quality: int | None = None  # of JPEG and WebP, 1 to 100
    max_pixels: int = MAX_PIXELS  # larger images are refused
    window: tuple[float, float] | None = None  # raw levels of grey deeper than 8 bits that become black and white


class Prepared(NamedTuple):
    data: bytes
    field: str  # one of FIELDS' values
    width: int  # pixels, as readers will decode it: upright
    height: int
    image: Image.Image | None  # RGB, where it had to be decoded


def prepare(data: bytes, options: Options, counts: Counter, *, need_pixels: bool = False) -> Prepared:
    """JPEG, PNG and WebP are copied; other kinds become PNG without loss, and so does what options.window has made 8 bits of; `options` may ask for more.

    A copied image is checked from its header, and decoded in full where options.check says so, where `need_pixels`, or where its end does
    not look like the end of its format: so a cut file is always found.  A short side above options.resize is shrunk to it (bicubic,
    antialiased); what is shrunk or re-encoded is upright RGB without EXIF, its chroma at half resolution (4:2:0, WebP knows no other).
    Raises BadSample.
    """
    most = options.max_pixels
    form, width, height = check_header(data, most, FORMATS + CONVERTED)
    deep = form not in LONGEST and is_deep(data, most, FORMATS + CONVERTED)
    drawn: Image.Image | None = None
    if form in CONVERTED or (deep and options.window):
        was_windowed = counts["windowed"]
        drawn = storable(data, options, counts)
        data, form = encoded(drawn, "PNG"), "PNG"
        _, width, height = check_header(data, most)
        deep = deep and not options.window
        counts["converted"] += counts["windowed"] == was_windowed
    side = options.resize if options.resize and min(width, height) > options.resize else None
    target = {"keep": "JPEG" if side else form, "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[options.encode]
    image: Image.Image | None = None
    if side or not (options.encode == "keep" or target == form == "PNG"):
        if side:
            scale = side / min(width, height)
            width, height = (max(side, round(length * scale)) for length in (width, height))
        if max(width, height) > LONGEST.get(target, math.inf):
            raise BadSample(f"{width}x{height} is too long: a {target}'s sides end at {LONGEST[target]}")
        drawn = open_shrunk(data, (width, height), most) if side else open_image(data, most)
        data = encoded(drawn, target, options.quality)
        counts["resized"] += bool(side)
        counts["encoded"] += 1
        if need_pixels:
            image = open_image(data, most)
    elif need_pixels or options.check == "decode" or not looks_whole(data, form):
        image = drawn = open_image(data, most)
    if deep and drawn:
        note_levels(drawn, counts)
    counts["largest"] += width * height > TRAINED_PIXELS
    return Prepared(data, FIELDS[target], width, height, image)


def storable(data: bytes, options: Options, counts: Counter) -> Image.Image:
    """The upright image in a mode that PNG stores without loss; with options.window grey deeper than 8 bits has become 8.  Raises BadSample."""
    formats = FORMATS + CONVERTED
    if options.window:
        if found := open_windowed(data, options.window, options.max_pixels, formats):
            image, below, above = found
            counts.update({"windowed": 1, "below": below, "above": above, "windowed_pixels": image.width * image.height})
            return image
        if is_deep(data, options.max_pixels, formats):
            raise BadSample(
                "colour or transparency of more than 8 bits a channel, and --window is of grey alone; leave --window out, or store grey"
            )
    drawn = open_upright(data, options.max_pixels, formats)
    return drawn if drawn.mode in PNG_MODES else open_image(data, options.max_pixels, formats)


def say_windowed(counts: Counter, window: Sequence[float], images: str = "image") -> str:
    """What was done by a window, from the counts of `storable`."""
    low, high = (f"{level:,}" for level in window)
    if not counts["windowed"]:
        return f"WARNING:  --window {window[0]} {window[1]}: no {images} was grey of more than 8 bits, so nothing was changed"
    below, above = (counts[name] / counts["windowed_pixels"] for name in ("below", "above"))
    return (
        f"windowed: raw levels {low} to {high} of {counted(counts['windowed'], images)} became 0 to 255; "
        f"{below:.2%} of the pixels are below, {above:.2%} above"
    )


def note_levels(image: Image.Image, counts: Counter) -> None:
    """Count the least and greatest upper 8 bits of an image that is stored in 16: counts of images add up, where the levels would not."""
    levels = np.asarray(image)
    upper = levels >> 8 if image.mode == "I;16" else levels
    counts[f"{DARKEST}{upper.min()}"] += 1
    counts[f"{BRIGHTEST}{upper.max()}"] += 1


def used_range(counts: Counter) -> tuple[int, int, int]:
    """(images noted by `note_levels`, least level, greatest level) of all of them, 0 to 255."""
    found = {
        prefix: {int(name.removeprefix(prefix)): n for name, n in counts.items() if name.startswith(prefix)}
        for prefix in (DARKEST, BRIGHTEST)
    }
    return sum(found[DARKEST].values()), min(found[DARKEST], default=0), max(found[BRIGHTEST], default=255)


def say_small_range(counts: Counter) -> str:
    """Of images stored in 16 bits that together use at most half of their range; else nothing."""
    images, least, greatest = used_range(counts)
    if not images or greatest - least >= 128:
        return ""
    used = f"levels {least * 256:,} to {greatest * 256 + 255:,} of 65,535"
    hint = f", as {(greatest * 256 + 255).bit_length()}-bit data in 16-bit files do" if not least else ""
    return (
        f"{images:,} {'image of 16 bits a channel uses' if images == 1 else 'images of 16 bits a channel use'} {used} only{hint}: in 8 bits, {least} to {greatest} of 255 are left of them; spread "
        f"the levels over all 16 bits first (in a TIFF, MaxSampleValue may state the greatest), or, of grey, give make_shards.py --window "
        f"{least * 256} {greatest * 256 + 255}"
    )


def looks_whole(data: bytes, form: str) -> bool:
    """Whether the end of the data is the end of its format."""
    if form == "JPEG":
        return data.rfind(b"\xff\xd9", max(_scan_start(data), len(data) - TAIL)) >= 0
    if form == "PNG":
        return data[-8:-4] == b"IEND"
    return int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _scan_start(data: bytes) -> int:
    """Where a JPEG's own pixels begin, past its header and whatever preview lies there; the end of the data where they never do."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        if data[at + 1] == 0xDA:
            return at
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def encoded(image: Image.Image, form: str, quality: int | None = None) -> bytes:
    """quality: of JPEG and WebP, QUALITY where it is not given; their chroma, if there is any, has half the resolution (4:2:0)."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if form == "PNG" else {"quality": quality or QUALITY[form]}
    if form != "PNG" and image.mode != "L":
        options["subsampling"] = "4:2:0"
    image.save(buffer, form, **options)
    return buffer.getvalue()
