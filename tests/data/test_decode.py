import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpp.base.errors import BadSample, DataError
from mpp.data.decode import FORMATS, check_header, decode, format_of, open_image, open_shrunk, require_codecs

WIDTH, HEIGHT = 12, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_bit_equal(form, options):
    data = encoded(Image.fromarray(PIXELS), form, **options)
    assert check_header(data) == (form, WIDTH, HEIGHT)
    found = decode(data)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_the_header_agrees(form, orientation):
    # TIFF 6.0, tag 274: where the stored row 0 and column 0 lie in the picture.
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(PIXELS)
    options: dict = {"lossless": True} if form == "WEBP" else {}
    formats = (*FORMATS, "TIFF")
    expected = upright(np.asarray(open_image(encoded(image, form, **options), formats=formats)))
    data = encoded(image, form, exif=exif, **options)
    np.testing.assert_array_equal(np.asarray(open_image(data, formats=formats)), expected)
    assert check_header(data, formats=formats) == (form, expected.shape[1], expected.shape[0])
    if form in FORMATS:
        np.testing.assert_array_equal(decode(data), expected)


def test_unreadable_exif_means_upright_not_bad():
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0this is no TIFF header")
    assert check_header(data) == ("JPEG", WIDTH, HEIGHT)
    assert format_of(data) == "JPEG"
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def test_grey_palette_and_bilevel_become_rgb():
    grey = Image.fromarray(PIXELS[..., 0])
    np.testing.assert_array_equal(decode(encoded(grey)), np.repeat(PIXELS[..., :1], 3, axis=2))
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette)), np.array(palette.convert("RGB")))
    bilevel = grey.convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(decode(encoded(bilevel))[..., 0], np.where(PIXELS[..., 0] > 127, 255, 0))


def test_16_bit_grey_keeps_its_upper_8_bits():
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(values))), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_upper_8_bits():
    values = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(data), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(form):
    drawn = np.dstack([PIXELS, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    drawn[:, :4, 3] = 0
    drawn[:, 4:8, 3] = 128
    data = encoded(Image.fromarray(drawn), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    found = decode(data)
    assert (found[:, :4] == 255).all()
    blended = PIXELS[:, 4:8] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(found[:, 4:8] - blended).max() <= 1
    np.testing.assert_array_equal(found[:, 8:], PIXELS[:, 8:])


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 10, 10, 0, 0, 255])
    image.putpixel((1, 2), 1)
    found = decode(encoded(image, transparency=0))
    assert tuple(found[2, 1]) == (0, 0, 255)
    assert tuple(found[0, 0]) == (255, 255, 255)


def test_cmyk_jpeg_has_the_right_colours():
    found = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 3


def test_a_cameras_multi_picture_jpeg_is_a_jpeg():
    image = Image.fromarray(PIXELS)
    data = encoded(image, "MPO", save_all=True, append_images=[image])
    assert check_header(data) == ("JPEG", WIDTH, HEIGHT)
    assert format_of(data) == "JPEG"
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def test_other_formats_are_refused_without_an_address_in_the_reason():
    gif = encoded(Image.fromarray(PIXELS), "GIF")
    for data in (b"", b"hello", gif, b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        for reader in (check_header, decode, format_of, lambda data: open_shrunk(data, (1, 1))):
            with pytest.raises(BadSample, match=r"^not an image of JPEG, PNG, WEBP$"):
                reader(data)
    assert open_image(gif, formats=("GIF",)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("form", FORMATS)
def test_too_many_pixels_are_refused_from_the_header(form):
    data = encoded(Image.fromarray(PIXELS), form)
    for reader in (check_header, decode):
        with pytest.raises(BadSample, match=f"too many pixels .{WIDTH}x{HEIGHT}, the limit is 95"):
            reader(data, max_pixels=WIDTH * HEIGHT - 1)
    assert decode(data, max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("side", [10_000, 100_000])  # above our limit; above Pillow's own
def test_a_bomb_is_refused_without_unpacking_it(side, recwarn):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    for reader in (check_header, decode):
        with pytest.raises(BadSample):
            reader(data)
    assert not recwarn.list


@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_image_is_a_bad_sample(form):
    data = encoded(Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)), form)
    with pytest.raises(BadSample):
        decode(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_a_failing_machine_is_not_a_bad_sample(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        decode(b"")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_bytes_give_an_image_or_a_bad_sample_and_nothing_else(form, draw):
    data = bytearray(encoded(Image.fromarray(PIXELS), form))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    for reader in (check_header, lambda data: decode(data, max_pixels=1 << 20)):
        try:
            reader(bytes(data))
        except BadSample as error:
            assert str(error)


def smooth(width: int, height: int) -> Image.Image:
    """Waves of several lengths, all longer than 200 pixels."""
    down, right = np.mgrid[0:height, 0:width]
    waves = [np.sin(down / 36 + right / 68), np.cos(right / 44 - down / 160), np.sin((down + right) / 92)]
    return Image.fromarray((127.5 + 100 * np.stack(waves, -1)).round().astype(np.uint8))


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("width", "height"), [(400, 300), (397, 299), (301, 533)])
def test_shrinking_gives_the_upright_picture_whichever_way_it_is_turned_and_however_long_its_sides(turn, width, height):
    """397 pixels divided by 8 end in a part of a pixel: nothing may shift by it."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(smooth(width, height), "JPEG", quality=98, subsampling=0, exif=exif)
    upright = open_image(data)
    for divisor in (1.5, 3, 5, 17):
        size = (round(upright.width / divisor), round(upright.height / divisor))
        found = open_shrunk(data, size)
        assert found.size == size
        exact = np.asarray(upright.resize(size, Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(np.asarray(found) - exact).mean() < 0.6
        assert np.abs(np.asarray(found) - exact).max() <= 4


def test_a_large_jpeg_is_decoded_at_the_least_size_that_leaves_twice_what_is_wanted(monkeypatch):
    loaded = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, *rest: (loaded.append(image.size), resize(image, *rest))[1])
    data = encoded(smooth(800, 640), "JPEG")
    for wanted in (40, 79, 80, 81, 160, 161, 320):
        open_shrunk(data, (wanted * 5 // 4, wanted))
    assert loaded == [(100, 80), (200, 160), (200, 160), (400, 320), (400, 320), (800, 640), (800, 640)]
    loaded.clear()
    open_shrunk(encoded(smooth(800, 640), "PNG"), (50, 40))
    assert loaded == [(800, 640)]


def test_what_is_decoded_small_is_still_found_to_be_cut():
    data = encoded(smooth(800, 640), "JPEG")
    with pytest.raises(BadSample):
        open_shrunk(data[: len(data) * 2 // 3], (50, 40))


def test_a_pillow_without_a_codec_is_refused_and_its_images_are_not_called_bad(monkeypatch):
    require_codecs()
    monkeypatch.setattr("mpp.data.decode.features.check", lambda codec: codec != "webp")
    with pytest.raises(DataError, match=r"this Pillow was built without WEBP; .*pip install"):
        require_codecs()


def test_a_plugin_that_cannot_be_imported_is_refused(monkeypatch):
    monkeypatch.setattr("mpp.data.decode.Image.OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "PNG"})
    with pytest.raises(DataError, match="this Pillow was built without PNG"):
        require_codecs()
