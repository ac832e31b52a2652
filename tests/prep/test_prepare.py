"""What becomes of one file: copied after a look at its header, converted, shrunk or encoded anew; or refused with a reason."""

import io
import pickle
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mpp.base.errors import BadSample
from mpp.data.decode import decode
from mpp.prep.prepare import Options, prepare

OPTIONS = [Options(), Options(check="decode"), Options(resize=8), Options(encode="jpeg"), Options(encode="webp", quality=80)]


def stored(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def colours(mode: str, width: int = 24, height: int = 16) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    slope = np.stack([rows * 255 // height, columns * 255 // width, 255 - rows * 255 // height], -1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((rows * 65535 // height).astype(np.uint16))
    image = Image.fromarray(slope)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((columns * 255 // width).astype(np.uint8)))
    return image if image.mode == mode else image.convert(mode)


STRANGE = {
    **{f"{mode} PNG": stored(colours(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "palette with a transparent colour": stored(colours("P"), "PNG", transparency=3),
    **{f"{mode} JPEG": stored(colours(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    "progressive JPEG": stored(colours("RGB"), "JPEG", progressive=True),
    "4:4:4 JPEG": stored(colours("RGB"), "JPEG", subsampling=0, quality=100),
    "lossy WebP": stored(colours("RGB"), "WEBP"),
    "lossless WebP with alpha": stored(colours("RGBA"), "WEBP", lossless=True),
    "animated WebP": stored(colours("RGB"), "WEBP", save_all=True, append_images=[colours("L").convert("RGB")]),
    "multi-picture JPEG": stored(colours("RGB"), "MPO", save_all=True, append_images=[colours("RGB")]),
    **{f"turned {turn} JPEG": stored(colours("RGB"), "JPEG", exif=struct.pack(">6s4sIHHHIHHI", b"Exif\0\0", b"MM\0*", 8, 1, 0x112, 3, 1, turn, 0, 0))
       for turn in range(1, 9)},
    "JPEG with bytes behind its end": stored(colours("RGB"), "JPEG") + b"appended by a camera" * 20,
    "one pixel": stored(colours("RGB", 1, 1), "PNG"),
    "very wide": stored(colours("L", 5000, 2), "PNG"),
    "GIF": stored(colours("P"), "GIF"),
    "BMP": stored(colours("RGB"), "BMP"),
    "16-bit TIFF": stored(colours("I;16"), "TIFF"),
    "CMYK TIFF": stored(colours("CMYK"), "TIFF"),
    "PPM": stored(colours("RGB"), "PPM"),
}  # fmt: skip
CONVERTED = ("GIF", "BMP", "16-bit TIFF", "CMYK TIFF", "PPM")


@pytest.mark.parametrize("name", STRANGE)
def test_copied_and_converted_images_keep_every_pixel(name):
    data = STRANGE[name]
    counts = Counter()
    done = prepare(data, Options(), counts)
    if name in CONVERTED:
        assert counts["converted"] == 1
        assert done.field == "png"
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        if name != "16-bit TIFF":
            np.testing.assert_array_equal(decode(done.data), np.asarray(image.convert("RGB")))
    else:
        assert done.data == data
    assert decode(done.data).shape == (done.height, done.width, 3)


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_stored_decodes_to_the_stated_size_and_looks_like_the_original(name, options):
    data = STRANGE[name]
    done = prepare(data, options, Counter(), need_pixels=True)
    pixels = decode(done.data)
    assert pixels.shape == (done.height, done.width, 3)
    np.testing.assert_array_equal(np.asarray(done.image), pixels)
    original = decode(prepare(data, Options(), Counter()).data)
    if options.resize and min(original.shape[:2]) > options.resize:
        assert min(done.width, done.height) == options.resize
    assert abs(done.width / done.height - original.shape[1] / original.shape[0]) < 0.1
    same_size = np.asarray(Image.fromarray(original).resize((done.width, done.height), Image.Resampling.BICUBIC))
    assert np.abs(same_size.astype(int) - pixels).mean() < 20  # in what was encoded 2 x 2 pixels share a colour
    if options.encode != "keep":
        assert done.field == {"jpeg": "jpg", "webp": "webp"}[options.encode]
        assert (done.width, done.height) == original.shape[1::-1]


def with_preview() -> bytes:
    """A JPEG that holds a whole smaller one in its EXIF block, as those of cameras do."""
    whole, preview = STRANGE["RGB JPEG"], b"Exif\0\0" + STRANGE["L JPEG"]
    return whole[:2] + b"\xff\xe1" + (2 + len(preview)).to_bytes(2, "big") + preview + whole[2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


REFUSED = {
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
    "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "PDF": b"%PDF-1.7\n" + b"0" * 100,
    "pickle": pickle.dumps(Evil()),
    "text": b"not an image",
    "a few bytes": b"\xff\xd8",
    "zip": b"PK\3\4" + bytes(100),
    "PNG of no size": png_header(0, 5) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
    "PNG of absurd size": png_header(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
    "PNG of 10 billion pixels": png_header(100_000, 100_000) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
    "PNG with a text bomb": png_header(4, 4) + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 1)) + chunk(b"IEND", b""),
    "JPEG of 4 billion pixels": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
    + bytes(50)
    + b"\xff\xd9",
    "floating-point TIFF": stored(Image.new("F", (4, 4)), "TIFF"),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", REFUSED)
def test_what_only_claims_to_be_an_image_is_refused_and_never_executed(name, options):
    with pytest.raises(BadSample, match=r"\w"):
        prepare(REFUSED[name], options, Counter())


@pytest.mark.parametrize("form", ["JPEG", "JPEG with a preview", "PNG", "WEBP", "GIF", "BMP", "PPM"])
def test_a_file_cut_anywhere_is_refused_without_asking_for_a_decode(form):
    """But for the few bytes behind the pixels: a file without these shows all of its picture."""
    data = with_preview() if "preview" in form else stored(colours("RGB"), form, **({"lossless": True} if form == "WEBP" else {}))
    whole = decode(prepare(data, Options(), Counter()).data)
    refused = 0
    for size in range(len(data)):
        try:
            done = prepare(data[:size], Options(), Counter())
        except BadSample:
            refused += 1
        else:
            np.testing.assert_array_equal(decode(done.data), whole)
    assert refused > len(data) - 20


def test_a_header_check_does_not_decode_and_a_decode_check_does(monkeypatch):
    from mpp.prep import prepare as module

    calls = []
    monkeypatch.setattr(module, "open_image", lambda data, max_pixels: calls.append(len(data)))
    data = STRANGE["RGB JPEG"]
    prepare(data, Options(), Counter())
    assert not calls
    prepare(data, Options(check="decode"), Counter())
    assert calls == [len(data)]


def test_damage_inside_a_png_is_found_by_the_decode_check():
    data = bytearray(STRANGE["RGB PNG"])
    data[len(data) // 2] ^= 1
    with pytest.raises(BadSample):
        prepare(bytes(data), Options(check="decode"), Counter())


@pytest.mark.parametrize(("form", "longest"), [("jpeg", 65_500), ("webp", 16_383)])
def test_a_side_that_a_format_cannot_store_is_a_reason_and_not_a_crash(form, longest):
    with pytest.raises(BadSample, match=f"too long: a {form.upper()}'s sides end at {longest}"):
        prepare(stored(Image.new("L", (longest + 1, 2)), "PNG"), Options(encode=form), Counter())


@pytest.mark.parametrize(("encode", "low", "high"), [("jpeg", 20, 95), ("webp", 20, 95)])
def test_quality_is_that_of_the_encoder(encode, low, high):
    data = stored(colours("RGB", 200, 100), "PNG")
    small, large = (len(prepare(data, Options(encode=encode, quality=quality), Counter()).data) for quality in (low, high))
    assert small < large
