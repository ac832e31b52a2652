"""Brightness, from files written by hand: every kind of level comes out as its format's standard says, or is refused with the reason."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpp.base.errors import BadSample
from mpp.data.decode import FORMATS, check_header, decode, is_deep, open_image, open_shrunk, open_upright

ANY = (*FORMATS, "GIF", "BMP", "TIFF", "PPM")
H, W = 6, 11  # an odd number of pixels a row: rows of 1, 2, 4 and 12 bits end inside a byte
RAMP = np.linspace(0, 1, H * W).reshape(H, W)
COLOURS = np.random.default_rng(0).random((H, W, 3))


def packed(samples: np.ndarray, bits: int, order: str) -> bytes:
    """[H, W, S] whole numbers -> rows of `bits` bits a sample, each row padded to a byte; order: "<" or ">" for whole bytes."""
    if bits >= 8 and bits != 12:
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    rows = []
    for row in samples.reshape(len(samples), -1).tolist():
        text = "".join(f"{level:0{bits}b}" for level in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    kind: int | None = None,
    extra: Sequence[int] = (),
    planar: bool = False,
    most: int | None = None,
    pack: bool = False,
    more: Sequence[tuple[int, int, Sequence[int]]] = (),
    data: bytes | None = None,
) -> bytes:
    """samples [H, W, S] (or [H, W]) of any whole numbers, in one strip; planar: each channel in a strip of its own; pack: deflated."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    height, width, channels = samples.shape
    parts = [samples[..., number : number + 1] for number in range(channels)] if planar else [samples]
    strips = [data] if data is not None else [packed(part, bits, order) for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if pack else strips
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [8 if pack else 1]),
        (262, 3, [photometric]),
        (273, 4, [0] * len(strips)),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(strip) for strip in strips]),
        (284, 3, [2 if planar else 1]),
        *more,
    ]
    tags += [(281, 3 if most < 65536 else 4, [most] * channels)] if most else []
    tags += [(338, 3, list(extra))] if extra else []
    tags += [(339, 3, [kind] * channels)] if kind else []
    tags.sort()
    free = 8 + 2 + 12 * len(tags) + 4
    beside = sum(4 * len(values) for _, _, values in tags)  # room enough for what does not stand in its entry
    starts = np.cumsum([free + beside, *map(len, strips)])[:-1].tolist()
    entries, body = b"", b""
    for tag, size, values in tags:
        value = struct.pack(f"{order}{len(values)}{'H' if size == 3 else 'I'}", *(starts if tag == 273 else values))
        if len(value) > 4:
            value, body = struct.pack(f"{order}I", free + len(body)), body + value
        entries += struct.pack(f"{order}HHI", tag, size, len(values)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + body.ljust(beside, b"\0") + b"".join(strips)


def png(samples: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """samples [H, W(, S)]; colour: PNG's colour type; chunks: (kind, data) before the pixels."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    rows = b"".join(b"\0" + packed(row[None], bits, ">") for row in samples)
    header = (b"IHDR", struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def levels(bits: int) -> np.ndarray:
    """Black to white."""
    return (RAMP * (2**bits - 1)).astype(np.int64)


def grey(data: bytes) -> np.ndarray:
    """uint8 [H, W]; all ways to the pixels agree."""
    found = np.asarray(open_image(data, formats=ANY))
    assert (found == found[..., :1]).all()
    assert check_header(data, formats=ANY)[1:] == (found.shape[1], found.shape[0])
    if data[:4] in (b"\x89PNG", b"RIFF"):
        np.testing.assert_array_equal(decode(data), found)
        np.testing.assert_array_equal(np.asarray(open_shrunk(data, (found.shape[1], found.shape[0]))), found)
    return found[..., 0]


@pytest.mark.parametrize("pack", [False, True], ids=["raw", "deflated"])
@pytest.mark.parametrize("white_is_zero", [False, True], ids=["black is zero", "white is zero"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_a_grey_tiff_of_every_depth_runs_from_black_to_white_or_is_refused(bits, order, white_is_zero, pack):
    stored = levels(bits)
    data = tiff(2**bits - 1 - stored if white_is_zero else stored, bits, 1 - white_is_zero, order=order, pack=pack)
    expected = stored >> (bits - 8) if bits >= 8 else stored * 255 // (2**bits - 1)
    try:
        found = grey(data)
    except BadSample as reason:
        assert bits in (12, 16, 32) and f"BitsPerSample {bits}" in str(reason) and "kind that is not read" in str(reason)
        assert order == ">" or white_is_zero
        return
    np.testing.assert_array_equal(found, expected)
    if bits > 8:  # make_shards stores all 16 bits
        kept = np.asarray(open_upright(data, formats=ANY)).astype(np.int64)
        assert kept.min() == 0
        assert kept.max() == 65535
        assert np.abs(kept - RAMP * 65535).max() < 2 ** (16 - min(bits, 16)) + 1


@pytest.mark.parametrize(
    ("bits", "most"), [(16, 4095), (16, 1023), (16, 16383), (16, 4000), (16, 255), (32, 65535), (32, 1000), (12, 1023), (8, 15)]
)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_the_greatest_level_that_a_tiff_states_is_white(bits, most, white_is_zero):
    stored = (RAMP * most).astype(np.int64)
    if white_is_zero and bits in (12, 32):
        return  # not read at all
    data = tiff(most - stored if white_is_zero else stored, bits, 1 - white_is_zero, most=most)
    found = grey(data)
    assert (found[0, 0], found[-1, -1]) == (0, 255)
    assert np.abs(found - RAMP * 255).max() <= 1 + 255 / most
    if (most + 1).bit_count() == 1 and most > 255:
        shift = most.bit_length() - 8
        np.testing.assert_array_equal(found, 255 - ((most - stored) >> shift) if white_is_zero else stored >> shift)


def test_a_level_above_the_stated_greatest_is_refused():
    with pytest.raises(BadSample, match="a level of 65535, above its MaxSampleValue of 4095"):
        grey(tiff(levels(16), 16, 1, most=4095))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "words"), [(2, "signed levels"), (3, "floating-point levels|not read"), (4, "unusual levels|not read")])
def test_signed_and_floating_point_levels_are_refused(bits, order, kind, words):
    with pytest.raises(BadSample, match=words):
        grey(tiff(levels(bits) // 2, bits, 1, order=order, kind=kind))


@pytest.mark.parametrize("pack", [False, True], ids=["raw", "deflated"])
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["grey+alpha", "grey+premultiplied", "rgb", "rgb+alpha", "rgb+other", "cmyk"])
def test_channels_of_every_depth_and_layout_come_out_right_or_are_refused(kind, bits, order, planar, pack):
    full, alpha = 2**bits - 1, np.linspace(0.2, 1, H * W).reshape(H, W, 1)
    base = COLOURS[..., :1] if kind.startswith("grey") else COLOURS
    shares, photometric, extra, white = {
        "grey+alpha": (np.dstack([base, alpha]), 1, [2], base * alpha + 1 - alpha),
        "grey+premultiplied": (np.dstack([base * alpha, alpha]), 1, [1], base * alpha + 1 - alpha),
        "rgb": (base, 2, [], base),
        "rgb+alpha": (np.dstack([base, alpha]), 2, [2], base * alpha + 1 - alpha),
        "rgb+other": (np.dstack([base, alpha]), 2, [0], base),
        "cmyk": (np.dstack([1 - base, np.zeros((H, W, 1))]), 5, [], base),
    }[kind]
    data = tiff((shares * full).astype(np.int64), bits, photometric, order=order, planar=planar, extra=extra, pack=pack)
    try:
        found = np.asarray(open_image(data, formats=ANY)).astype(float)
    except BadSample as reason:
        assert str(reason)
        assert (kind, bits) not in {("rgb", 8), ("cmyk", 8)}
        assert planar or kind not in ("rgb", "rgb+alpha", "rgb+other")
        return
    assert np.abs(found - np.broadcast_to(white, found.shape) * 255).max() <= 3  # eight bits of alpha, rounded twice


@pytest.mark.parametrize("pack", [False, True])
def test_16_bit_colour_that_states_its_greatest_level_is_refused(pack):
    with pytest.raises(BadSample, match="16-bit colour whose MaxSampleValue is 4095"):
        open_image(tiff((COLOURS * 4095).astype(np.int64), 16, 2, most=4095, pack=pack), formats=ANY)


@pytest.mark.parametrize("scale", [1, 256])
def test_a_tiffs_palette_may_be_of_8_or_16_bits(scale):
    palette = np.random.default_rng(1).integers(0, 256, (3, 256))
    index = np.arange(H * W).reshape(H, W)
    found = np.asarray(open_image(tiff(index, 8, 3, more=[(320, 3, (palette * scale).ravel().tolist())]), formats=ANY))
    np.testing.assert_array_equal(found, palette.T[index])


def test_uncompressed_ycbcr_is_right_where_it_is_whole_and_refused_where_it_is_not():
    ycc = np.asarray(Image.fromarray((COLOURS * 255).astype(np.uint8)).convert("YCbCr"))
    found = np.asarray(open_image(tiff(ycc, 8, 6, more=[(530, 3, [1, 1])]), formats=ANY)).astype(float)
    y, cb, cr = ycc.astype(float).transpose(2, 0, 1)
    expected = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1)
    assert np.abs(found - expected.clip(0, 255)).max() <= 1
    for more in ([], [(530, 3, [2, 2])], [(530, 3, [2, 1])]):
        with pytest.raises(BadSample, match="chroma is subsampled"):
            open_image(tiff(ycc, 8, 6, more=more), formats=ANY)


def test_inks_other_than_the_four_are_refused():
    with pytest.raises(BadSample, match="inks that are not cyan"):
        open_image(tiff(np.zeros((H, W, 4), np.int64), 8, 5, more=[(332, 3, [2])]), formats=ANY)


def test_lab_is_the_colour_it_names():
    """White, black, a mid grey and sRGB's red in CIELAB (D50)."""
    named = np.array([[(255, 0, 0), (0, 0, 0), (137, 0, 0), (138, 81, 70)]])  # 255 L / 100, a, b
    found = np.asarray(open_image(tiff(named & 255, 8, 8), formats=ANY)).astype(int)
    assert np.abs(found[0] - [(255, 255, 255), (0, 0, 0), (128, 128, 128), (254, 1, 1)]).max() <= 4


# ------------------------------------------------------------------------------------------------------------------------------ transparency


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_level_of_every_depth_is_white_and_no_other_is(bits):
    most = 2**bits - 1
    for level in sorted({0, 1, most // 3, most}):
        stored = np.random.default_rng(2).integers(0, most + 1, (H, W))
        stored[0, 0] = level
        stored[-1, -1] = level ^ 1  # its nearest
        found = grey(png(stored, bits, 0, (b"tRNS", struct.pack(">H", level))))
        plain = stored >> (bits - 8) if bits >= 8 else stored * 255 // most
        np.testing.assert_array_equal(found, np.where(stored == level, 255, plain))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_white_and_its_nearest_neighbour_is_not(bits):
    stored = (COLOURS * (2**bits - 1)).astype(np.int64)
    stored[2, 3] = stored[4, 5] = stored[0, 0]
    stored[1, 1] = stored[0, 0] ^ [0, 0, 1]
    found = decode(png(stored, bits, 2, (b"tRNS", struct.pack(">3H", *stored[0, 0].tolist()))))
    clear = (stored == stored[0, 0]).all(-1)
    assert clear.sum() == 3
    np.testing.assert_array_equal(found, np.where(clear[..., None], 255, stored >> (bits - 8)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_entries_of_a_palette_are_composited_on_white(bits):
    rng = np.random.default_rng(3)
    palette, alpha = rng.integers(0, 256, (2**bits, 3)), rng.integers(0, 256, 2**bits)
    alpha[0], alpha[-1] = 0, 255
    stored = rng.integers(0, 2**bits, (H, W))
    found = decode(png(stored, bits, 3, (b"PLTE", palette.astype(np.uint8).tobytes()), (b"tRNS", alpha.astype(np.uint8).tobytes())))
    share = alpha[stored][..., None] / 255
    assert np.abs(found - (palette[stored] * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_and_colour_with_alpha_are_composited_on_white(bits):
    full, alpha = 2**bits - 1, np.linspace(0, 1, H * W).reshape(H, W, 1)
    for colour, base in ((4, COLOURS[..., :1]), (6, COLOURS)):
        found = decode(png((np.dstack([base, alpha]) * full).astype(np.int64), bits, colour))
        assert np.abs(found - 255 * np.broadcast_to(base * alpha + 1 - alpha, (H, W, 3))).max() <= 2


def test_a_turned_image_keeps_its_transparent_level():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = levels(16)
    found = decode(png(stored, 16, 0, (b"tRNS", struct.pack(">H", int(stored[3, 4]))), (b"eXIf", exif.tobytes()[6:])))
    np.testing.assert_array_equal(found[..., 0], np.rot90(np.where(stored == stored[3, 4], 255, stored >> 8), -1))


# -------------------------------------------------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize("most", [1, 15, 100, 255, 256, 1000, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_greatest_level_of_a_ppm_is_white(most, plain, channels):
    shares = RAMP[..., None] if channels == 1 else COLOURS
    stored = np.rint(shares * most).astype(np.int64)
    head = f"P{2 + (channels == 3) + 3 * (not plain)}\n{W} {H}\n{most}\n".encode()
    body = " ".join(map(str, stored.ravel().tolist())).encode() if plain else stored.astype(">u2" if most > 255 else "u1").tobytes()
    found = np.asarray(open_image(head + body, formats=ANY))
    assert np.abs(found - np.broadcast_to(stored / most * 255, found.shape)).max() <= 1
    if channels == 1 and most > 255:
        assert np.asarray(open_upright(head + body, formats=ANY)).max() == 65535


def test_a_floating_point_ppm_is_refused():
    with pytest.raises(BadSample, match="floating-point levels"):
        grey(f"Pf\n{W} {H}\n-1.0\n".encode() + RAMP.astype("<f4").tobytes())


def test_a_12_bit_jpeg_is_refused_with_the_reason():
    buffer = io.BytesIO()
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    data[data.index(b"\xff\xc0") + 4] = 12
    for reader in (decode, check_header):
        with pytest.raises(BadSample, match=r"begins like a JPEG, but is damaged or of a kind that is not read: .*12-bit"):
            reader(bytes(data))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "PNG", "WEBP"])
def test_what_every_format_stores_of_8_bits_comes_back(form, mode):
    pixels = np.dstack([COLOURS * 255, np.where(RAMP > 0.5, 255, 0)[..., None]]).astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGB").quantize(16) if mode == "P" else Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    expected = np.asarray(image.convert("RGB"))
    if mode == "RGBA":
        expected = np.where(RAMP[..., None] > 0.5, expected, 255)
    if (form, mode) in (("GIF", "RGB"), ("GIF", "RGBA"), ("BMP", "RGBA")):
        return  # 256 colours; no alpha
    np.testing.assert_array_equal(np.asarray(open_image(buffer.getvalue(), formats=ANY)), expected)


@given(st.sampled_from(["P2", "P3", "P5", "P6"]), st.integers(1, 65535))
def test_a_ppm_is_deep_by_its_greatest_level(kind, most):
    samples = 16 * (3 if kind in ("P3", "P6") else 1)
    body = b"0 " * samples if kind < "P4" else bytes(samples * (1 if most < 256 else 2))
    assert is_deep(f"{kind}\n4 4\n{most}\n".encode() + body, formats=ANY) == (most > 255)


@pytest.mark.parametrize("pack", [False, True], ids=["raw", "deflated"])
@pytest.mark.parametrize(("bits", "colour"), [(1, False), (8, False), (8, True), (16, False), (16, True)])
def test_a_tiff_is_deep_by_its_bits(bits, colour, pack):
    samples = np.zeros((160, 16, 3) if colour else (160, 16), np.int64)  # sides and offsets with 16 in them tell nothing
    assert is_deep(tiff(samples, bits, 2 if colour else 1, pack=pack), formats=ANY) == (bits > 8)


@pytest.mark.parametrize(
    ("bits", "colour", "shape"), [(8, 0, (2, 3)), (16, 0, (2, 3)), (8, 2, (2, 3, 3)), (16, 2, (2, 3, 3)), (16, 4, (2, 3, 2))]
)
def test_a_png_is_deep_by_its_header(bits, colour, shape):
    assert is_deep(png(np.zeros(shape, np.int64), bits, colour)) == (bits == 16)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP"])
def test_other_formats_have_8_bits(form):
    file = io.BytesIO()
    Image.new("RGB", (30, 40), (10, 20, 30)).save(file, form)
    assert not is_deep(file.getvalue(), formats=ANY)
