"""Grey deeper than 8 bits through a stated window: exact levels from every kind of file, refusals, and what the program says of it."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.inspect_shards import main as inspect_shards
from data_prep.make_shards import main as make_shards
from mpp.base.errors import BadSample, UserError
from mpp.data.crop import cut
from mpp.data.decode import decode, open_windowed
from mpp.data.levels import windowed
from mpp.data.shards import ShardSet
from mpp.prep.prepare import Options, prepare
from tests.data.test_levels import ANY, COLOURS, RAMP, H, W, png, tiff


def run(*words) -> str:
    """What make_shards.py prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert make_shards([*map(str, words), "--quiet", "--workers", "1"]) == 0
    return printed.getvalue()


def by_fractions(levels: np.ndarray, low: float, high: float) -> list[list[int]]:
    """The window in exact arithmetic, halves up."""
    low, high = Fraction(low), Fraction(high)
    return [
        [int((min(max(Fraction(level), low), high) - low) * 255 / (high - low) + Fraction(1, 2)) for level in row]
        for row in levels.tolist()
    ]


@given(st.integers(-40_000, 40_000), st.integers(1, 70_000), st.lists(st.integers(-(2**31), 2**32 - 1), min_size=1, max_size=30))
def test_a_window_is_exact_to_the_nearest_level_and_counts_what_it_clips(low, width, levels):
    pixels, below, above = windowed(np.array([levels], np.int64), low, low + width)
    assert pixels.dtype == np.uint8
    exact = [Fraction(min(max(level, low), low + width) - low) * 255 / width for level in levels]
    off = [abs(found - wanted) for found, wanted in zip(pixels[0].tolist(), exact, strict=True)]
    assert max(off) <= Fraction(1, 2)
    assert (below, above) == (sum(level < low for level in levels), sum(level > low + width for level in levels))
    assert windowed(np.array([[low, low + width]]), low, low + width)[0].tolist() == [[0, 255]]


def netpbm(kind: str, levels: np.ndarray, most: int) -> bytes:
    body = " ".join(map(str, levels.reshape(-1).tolist())).encode() if kind == "P2" else levels.astype(">u2").tobytes()
    return f"{kind}\n{W} {H}\n{most}\n".encode() + body


def whole(bits: int, *, signed: bool = False) -> np.ndarray:
    levels = (RAMP * (2**bits - 1)).astype(np.int64)
    return levels - 2 ** (bits - 1) if signed else levels


FLOATS = (RAMP * 7 - 3).astype(np.float32)
FILES: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "PNG": (lambda: png(whole(16), 16, 0), whole(16)),
    "TIFF, 12 bits": (lambda: tiff(whole(12), 12, 1), whole(12)),
    "TIFF, 16 bits": (lambda: tiff(whole(16), 16, 1, pack=True), whole(16)),
    "TIFF, 16 bits, big-endian": (lambda: tiff(whole(16), 16, 1, order=">"), whole(16)),
    "TIFF, 16 bits, big-endian, deflated": (lambda: tiff(whole(16), 16, 1, order=">", pack=True), whole(16)),
    "TIFF, 16 bits, MaxSampleValue": (lambda: tiff(whole(12), 16, 1, most=4095), whole(12)),
    "TIFF, 32 bits": (lambda: tiff(whole(32), 32, 1), whole(32)),
    "TIFF, 8 bits, signed": (
        lambda: tiff(whole(8), 8, 1, kind=2, data=whole(8, signed=True).astype(np.int8).tobytes()),
        whole(8, signed=True),
    ),
    "TIFF, 16 bits, signed": (
        lambda: tiff(whole(16), 16, 1, kind=2, data=whole(16, signed=True).astype("<i2").tobytes()),
        whole(16, signed=True),
    ),
    "TIFF, 16 bits, signed, big-endian": (
        lambda: tiff(whole(16), 16, 1, kind=2, order=">", data=whole(16, signed=True).astype(">i2").tobytes()),
        whole(16, signed=True),
    ),
    "TIFF, floats": (lambda: tiff(whole(16), 32, 1, kind=3, data=FLOATS.astype("<f4").tobytes()), FLOATS),
    "TIFF, floats, big-endian": (lambda: tiff(whole(16), 32, 1, kind=3, order=">", data=FLOATS.astype(">f4").tobytes()), FLOATS),
    "TIFF, floats, deflated": (lambda: tiff(whole(16), 32, 1, kind=3, pack=True, data=FLOATS.astype("<f4").tobytes()), FLOATS),
    "PGM": (lambda: netpbm("P5", whole(12), 4095), whole(12)),
    "PGM of all 16 bits": (lambda: netpbm("P5", whole(16), 65535), whole(16)),
    "plain PGM": (lambda: netpbm("P2", whole(12), 4095), whole(12)),
    "PFM": (lambda: f"Pf\n{W} {H}\n-1.0\n".encode() + FLOATS[::-1].astype("<f4").tobytes(), FLOATS),
}


@pytest.mark.parametrize("name", FILES)
def test_raw_levels_of_every_kind_of_file_go_through_the_window(name):
    draw, levels = FILES[name]
    low, high = (float(levels.min() + share * (levels.max() - levels.min())) for share in (0.125, 0.75))
    image, below, above = open_windowed(draw(), (low, high), formats=ANY)
    assert image.mode == "L"
    assert np.asarray(image).tolist() == by_fractions(levels, low, high)
    assert (below, above) == (int((levels < low).sum()), int((levels > high).sum()))


def test_white_is_zero_is_turned_round_and_orientation_applied():
    data = tiff(65535 - whole(16), 16, 0, more=[(274, 3, [6])])
    image, _, _ = open_windowed(data, (0, 65535), formats=ANY)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(by_fractions(whole(16), 0, 65535), -1))


def test_a_level_that_png_calls_transparent_is_white():
    levels = whole(16)
    image, _, _ = open_windowed(png(levels, 16, 0, (b"tRNS", int(levels[2, 3]).to_bytes(2, "big"))), (0, 65535))
    expected = np.array(by_fractions(levels, 0, 65535))
    expected[2, 3] = 255
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_what_no_window_can_be_of_is_rejected_with_the_reason():
    options = Options(window=(0, 4095))
    deep = (COLOURS * 65535).astype(np.int64)
    holes = np.where(RAMP > 0.5, np.nan, RAMP).astype("<f4").tobytes()
    for data, said in (
        (png(deep, 16, 2), "colour or transparency of more than 8 bits a channel, and --window is of grey alone"),
        (png(deep[..., :2], 16, 4), "colour or transparency of more than 8 bits"),
        (tiff(deep, 16, 2), "colour or transparency of more than 8 bits"),
        (netpbm("P6", deep // 16, 4095), "colour or transparency of more than 8 bits"),
        (tiff(whole(16), 32, 1, kind=3, data=holes), "no numbers .NaN., which lie in no window"),
        (tiff(whole(16), 16, 1, kind=2, order=">", pack=True), "big-endian and compressed, which Pillow reads wrongly"),
    ):
        with pytest.raises(BadSample, match=said):
            prepare(data, options, Counter())


def test_images_of_8_bits_are_what_they_are_without_a_window():
    for data in (png(whole(8), 8, 0), png((COLOURS * 255).astype(np.int64), 8, 2), tiff(whole(8), 8, 1), tiff(whole(4), 4, 1)):
        counts = Counter()
        assert prepare(data, Options(window=(0, 4095)), counts) == prepare(data, Options(), Counter())
        assert not counts["windowed"]


@pytest.mark.parametrize("name", [name for name in FILES if "signed" in name or "floats" in name or name == "PFM"])
def test_levels_of_no_known_range_are_rejected_with_their_range_and_the_remedy(name):
    draw, levels = FILES[name]
    with pytest.raises(BadSample) as error:
        prepare(draw(), Options(), Counter())
    assert f"levels from {levels.min():g} to {levels.max():g}, whose black and white are not known: make_shards.py --window LOW" in str(
        error.value
    )


# ---------------------------------------------------------------- the program


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Four images of 12 bits in 16 and one of 8."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        levels = np.random.default_rng(number).integers(0, 4096, (12, 12)).astype(np.uint16)
        Image.fromarray(levels).save(folder / f"{number}.{'png' if number % 2 else 'tif'}")
    Image.fromarray(np.full((12, 12), 7, np.uint8)).save(folder / "small.png")
    return folder


def test_a_set_made_through_a_window_holds_its_levels_and_says_so(mixed, tmp_path, capsys):
    said = run(mixed, tmp_path / "out", "--window", 256, 4095, "--max-rejects", 1)
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert shards.manifest["source"]["window"] == [256, 4095]
    stored = [Image.open(io.BytesIO(shards.read(sample))) for sample in range(5)]
    assert {image.mode for image in stored} == {"L"}
    expected = [by_fractions(np.asarray(Image.open(path)), 256, 4095) for path in mixed.iterdir() if path.name != "small.png"]
    assert sorted(np.asarray(image).tolist() for image in stored) == sorted([*expected, [[7] * 12] * 12])
    below = sum(int((np.asarray(Image.open(path)) < 256).sum()) for path in mixed.iterdir() if path.name != "small.png")
    assert f"windowed: raw levels 256 to 4,095 of 4 images became 0 to 255; {below / 576:.2%} of the pixels are below, 0.00% above" in said
    assert "WARNING" not in said
    assert "converted" not in said
    assert inspect_shards([str(tmp_path / "out"), "--quiet"]) == 0
    assert "windowed: raw levels 256 to 4,095" in capsys.readouterr().out


def test_tiles_are_windowed_before_they_are_cut(mixed, tmp_path):
    said = run(mixed, tmp_path / "out", "--window", 0, 4095, "--tile", 8)
    assert "windowed: raw levels 0 to 4,095 of 4 scans became 0 to 255" in said
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert len(shards) == 5 * 4
    wanted = {np.array(by_fractions(np.asarray(Image.open(path)), 0, 4095), np.uint8)[:8, :8].tobytes() for path in mixed.glob("[0-9].*")}
    assert wanted <= {decode(shards.read(sample))[..., 0].tobytes() for sample in range(20)}


def test_without_a_window_the_upper_bits_are_kept_and_the_warning_names_one(mixed, tmp_path):
    said = run(mixed, tmp_path / "out")
    assert "give make_shards.py --window 0 4095" in said
    assert "window" not in ShardSet.open(tmp_path / "out" / "train").manifest["source"]


def test_a_window_that_nothing_is_seen_through_is_spoken_of(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "in" / "a.png")
    assert "WARNING:  --window 0 4095: no image was grey of more than 8 bits" in run(tmp_path / "in", tmp_path / "out", "--window", 0, 4095)


def test_levels_may_be_negative_and_another_window_is_another_set(tmp_path):
    (tmp_path / "in").mkdir()
    levels = np.linspace(-1024, 3071, 144).reshape(12, 12).astype(np.int32)
    Image.fromarray(levels).save(tmp_path / "in" / "ct.tif")
    assert Image.open(tmp_path / "in" / "ct.tif").tag_v2[339] == (2,)
    with pytest.raises(UserError, match=r"signed levels from -1024 to 3071, whose black and white are not known: make_shards.py --window"):
        run(tmp_path / "in", tmp_path / "none")
    run(tmp_path / "in", tmp_path / "out", "--window", -160, 240.5)
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert decode(shards.read(0))[..., 0].tolist() == by_fractions(levels, -160, 240.5)
    assert shards.manifest["source"]["window"] == [-160, 240.5]
    with pytest.raises(UserError, match=r"window was \[-160, 240.5\], is \[-160, 240\]"):
        run(tmp_path / "in", tmp_path / "out", "--window", -160, 240)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(9, 9, "must be below the second"), (0, "nan", "is not a level"), (0, "x", "is not a level")]
)
def test_a_window_that_is_none_is_refused(mixed, tmp_path, low, high, said):
    with pytest.raises(UserError, match=said):
        run(mixed, tmp_path / "out", "--window", low, high)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- grey in training


@pytest.mark.parametrize(("mode", "form"), [("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("L", "JPEG"), ("L", "WEBP"), ("LA", "WEBP")])
def test_grey_reaches_training_as_three_equal_channels(mode, form):
    grey = Image.fromarray((RAMP * 255).astype(np.uint8)).convert(mode)
    if mode == "LA":
        grey.putalpha(255)
    buffer = io.BytesIO()
    grey.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    data = prepare(buffer.getvalue(), Options(), Counter()).data
    (crop,) = cut(data, W, H, [(0, 0, W, H)], (H, W))
    assert crop.shape == (3, H, W)
    assert (crop == crop[:1]).all()
    np.testing.assert_array_equal(crop.transpose(1, 2, 0), decode(data))
    off = np.abs(crop[0].astype(int) - np.asarray(grey.convert("L")))
    assert off.max() <= (8 if form == "JPEG" else 0)


def test_what_is_kept_of_a_window_is_told_in_json(mixed, tmp_path):
    facts = json.loads(run(mixed, tmp_path / "out", "--window", 0, 4095, "--json"))
    assert facts["windowed"] == 4
    assert facts["converted"] == 0
