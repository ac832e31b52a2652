import io
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

import mpp.data.crop as crop
from mpp.base.errors import BadSample
from mpp.base.rng import CROP, Draws
from mpp.data.augment import Augment
from mpp.data.crop import as_stored, cut, resize, turned
from mpp.data.decode import check_header, decode, open_stored

PHOTOS = Path(os.environ.get("MPP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "photos-300.tar"
needs_libjpeg = pytest.mark.skipif(
    crop._jpeg is None, reason="mpp was set up without libjpeg-turbo's headers (apt-get install libjpeg-dev)"
)


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Slopes, edges and noise."""
    rng = np.random.default_rng(seed)
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    waves = 127 + 90 * np.sin(x / 7 + np.array([0, 1, 2])) * np.cos(y / 9)
    edges = 60 * ((x // 13 + y // 17) % 2)
    return Image.fromarray(np.clip(waves + edges + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", orientation: int | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(monkeypatch: pytest.MonkeyPatch, *arguments) -> list[np.ndarray]:
    with monkeypatch.context() as patch:
        patch.setattr(crop, "_jpeg", None)
        return cut(*arguments)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    if not PHOTOS.exists():
        pytest.skip(f"{PHOTOS} is not there; set MPP_TEST_DATA to the folder that holds it")
    with tarfile.open(PHOTOS) as tar:
        return [tar.extractfile(member).read() for member in tar if member.isfile()][:40]


# ------------------------------------------------------------------------------------------------------------------- one result everywhere


@needs_libjpeg
@settings(max_examples=150)
@given(st.data())
def test_a_part_of_a_jpeg_has_the_bits_of_the_whole(data):
    draw = data.draw
    width, height = draw(st.integers(2, 220)), draw(st.integers(2, 220))
    image = scene(width, height).convert(draw(st.sampled_from(["RGB", "L"])))
    options = {"quality": draw(st.sampled_from([40, 75, 95])), "subsampling": draw(st.integers(0, 2)), "progressive": draw(st.booleans())}
    if rows := draw(st.integers(0, 3)):
        options["restart_marker_rows"] = rows
    encoded_image = encoded(image, orientation=draw(st.integers(1, 8)), **options)
    width, height = check_header(encoded_image)[1:]
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    size = draw(st.sampled_from([3, 8, 24, 64]))  # small ones take reduced decodes
    found = cut(encoded_image, width, height, boxes, size)
    with pytest.MonkeyPatch.context() as patch:
        for one, other in zip(found, by_pillow(patch, encoded_image, width, height, boxes, size), strict=True):
            assert np.array_equal(one, other)


def sampled(width: int, height: int, factors: list[tuple[int, int]], seed: int = 0) -> bytes:
    """A JPEG of noise whose components have any sampling factors (across, down), which Pillow cannot write: a scan of each from a grey JPEG of
    its size.  The first component is a smooth one: chroma alone makes the difference."""
    across, down = (max(factor[axis] for factor in factors) for axis in (0, 1))
    rng = np.random.default_rng(seed)
    tables, scans, frame = b"", b"", struct.pack(">BHHB", 8, height, width, len(factors))
    for number, (h, v) in enumerate(factors, start=1):
        rows, columns = -(-height * v // down), -(-width * h // across)
        plane = rng.integers(0, 256, (rows, columns), np.uint8) if number > 1 else np.full((rows, columns), 120, np.uint8)
        data, at = encoded(Image.fromarray(plane), quality=90), 2
        frame += bytes([number, h << 4 | v, 0])
        while data[at + 1] != 0xDA:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if number == 1 and data[at + 1] in (0xDB, 0xC4):
                tables += data[at:end]
            at = end
        scans += data[at : at + 5] + bytes([number]) + data[at + 6 : -2]
    segment = b"\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame
    return b"\xff\xd8" + tables + segment + scans + b"\xff\xd9"


SAMPLED = {
    "4:4:4": [(1, 1), (1, 1), (1, 1)],
    "4:2:2": [(2, 1), (1, 1), (1, 1)],
    "4:2:0": [(2, 2), (1, 1), (1, 1)],
    "4:4:0": [(1, 2), (1, 1), (1, 1)],
    "4:1:1": [(4, 1), (1, 1), (1, 1)],
    "4:1:1 down": [(1, 4), (1, 1), (1, 1)],
    "4:1:0": [(4, 2), (1, 1), (1, 1)],
    "4:2:2 in other words": [(2, 2), (1, 2), (1, 2)],
    "mixed": [(2, 2), (2, 1), (1, 2)],
    "coarse luma": [(1, 1), (2, 2), (2, 2)],
    "grey": [(2, 2)],
}
RIMS = (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 18, 31, 33, 34)  # pixels: about one and two blocks of 8 and 16


def refuse_differences(data: bytes, width: int, height: int) -> int:
    """Every part 1 to 3 pixels wide or high, at every scale, has the bits of the whole, or is left to Pillow; how many were compared."""
    compared = 0
    for scale in (scale for scale in (1, 2, 4, 8) if scale <= min(width, height)):
        whole = np.asarray(open_stored(data, scale)[0])
        rows, columns = whole.shape[:2]
        spans = [(low, high) for low in range(max(rows, columns)) for high in (low + 1, low + 2, low + 3)]
        boxes = [(left, 0, right, rows) for left, right in spans if right <= columns]
        boxes += [(columns // 2, top, columns // 2 + 1, bottom) for top, bottom in spans if bottom <= rows]
        for left, top, right, bottom in boxes:
            part = np.empty((bottom - top, right - left, 3), np.uint8)
            try:
                crop._jpeg.region(data, scale, left, top, right - left, bottom - top, part)
            except ValueError:
                continue
            compared += 1
            assert np.array_equal(part, whole[top:bottom, left:right]), (width, height, scale, (left, top, right, bottom))
    return compared


@needs_libjpeg
@pytest.mark.parametrize("name", SAMPLED)
def test_the_thinnest_parts_have_the_bits_of_the_whole_however_chroma_is_sampled(name):
    compared = 0
    for width, height in [(width, 17) for width in RIMS] + [(18, height) for height in RIMS]:
        compared += refuse_differences(sampled(width, height, SAMPLED[name]), width, height)
    assert compared > 500 or (name == "4:1:0" and not compared)


@needs_libjpeg
@pytest.mark.parametrize("options", [{"subsampling": 2}, {"subsampling": 1}, {"subsampling": 2, "progressive": True}], ids=str)
def test_the_thinnest_parts_have_the_bits_of_the_whole_whichever_way_it_is_written(options):
    for width, height in [(width, 5) for width in RIMS] + [(5, height) for height in RIMS]:
        noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
        refuse_differences(encoded(Image.fromarray(noise), **options), width, height)


@needs_libjpeg
@pytest.mark.parametrize("box", [(0, 0, 1, 40), (0, 0, 2, 40), (1, 0, 2, 40), (5, 0, 6, 40), (0, 17, 1, 18)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_one_pixel_wide_is_the_same_with_and_without_libjpeg_turbo(box, orientation, monkeypatch):
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 2, 3), np.uint8))
    stored = (6, 40) if orientation < 5 else (40, 6)
    data = encoded(small.resize(stored, Image.Resampling.BICUBIC), orientation=orientation, subsampling=2)
    assert np.array_equal(cut(data, 6, 40, [box], 32)[0], by_pillow(monkeypatch, data, 6, 40, [box], 32)[0])


@needs_libjpeg
def test_photographs_come_out_the_same_with_and_without_libjpeg_turbo(photographs, monkeypatch):
    for number, data in enumerate(photographs):
        width, height = check_header(data)[1:]
        box = Augment(64, (0.05, 1.0), (0.75, 4 / 3), True).draw(Draws(0, CROP, 0, number)).box(width, height)
        assert np.array_equal(cut(data, width, height, [box], 64), by_pillow(monkeypatch, data, width, height, [box], 64))


@needs_libjpeg
def test_what_lies_below_a_crop_is_not_read_and_a_whole_jpeg_is_not_decoded(monkeypatch):
    data = encoded(scene(200, 160))
    whole = cut(data, 200, 160, [(20, 10, 90, 60)], 32)[0]
    middle = len(data) * 3 // 4
    scribbled = data[:middle] + bytes(byte ^ 0x15 if byte < 0x80 else byte for byte in data[middle:-2]) + data[-2:]
    with pytest.raises(BadSample):
        decode(scribbled)
    monkeypatch.setattr(crop, "open_stored", None)  # Pillow is not asked
    assert np.array_equal(cut(scribbled, 200, 160, [(20, 10, 90, 60)], 32)[0], whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_finds_its_pixels_in_the_stored_image(orientation):
    stored = np.arange(3 * 7 * 5, dtype=np.uint8).reshape(5, 7, 3)
    upright = decode(encoded(Image.fromarray(stored), "PNG", orientation))
    height, width = upright.shape[:2]
    box = (0, 2, 3, 3)
    left, top, right, bottom = as_stored(box, width, height, orientation)
    found = turned(stored[top:bottom, left:right].transpose(2, 0, 1), orientation)
    assert np.array_equal(found.transpose(1, 2, 0), upright[box[1] : box[3], box[0] : box[2]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_cropped_upright(orientation):
    data = encoded(scene(90, 70), orientation=orientation)
    upright = decode(data)
    height, width = upright.shape[:2]
    found = cut(data, width, height, [(11, 6, 61, 56)], 25)[0].astype(int)
    expected = resize(upright[6:56, 11:61], 25).astype(int)  # its two passes run in the other order for turned ones
    assert np.abs(found - expected).max() <= 4
    assert np.abs(found - expected).mean() < 0.5


CASES = {
    "grey": (scene(60, 50).convert("L"), "JPEG", {}),
    "cmyk": (scene(60, 50).convert("CMYK"), "JPEG", {}),
    "png": (scene(60, 50), "PNG", {}),
    "webp": (scene(60, 50), "WEBP", {}),
    "palette": (scene(60, 50).quantize(64), "PNG", {}),
    "alpha": (Image.merge("RGBA", [*scene(60, 50).split(), scene(60, 50).convert("L")]), "PNG", {}),
    "16 bit": (Image.fromarray((np.arange(3000).reshape(50, 60) * 21).astype(np.uint16)), "PNG", {}),
    "turned png": (scene(50, 60), "PNG", {"orientation": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_image_is_cropped_from_the_pixels_that_decode_gives(case):
    image, kind, options = CASES[case]
    data = encoded(image, kind, **options)
    found = cut(data, 60, 50, [(7, 3, 37, 33), (0, 0, 60, 50)], 20)
    expected = decode(data)
    tolerance = 4 if "turned" in case else 0
    assert np.abs(found[0].astype(int) - resize(expected[3:33, 7:37], 20)).max() <= tolerance
    assert np.abs(found[1].astype(int) - resize(expected, 20)).max() <= tolerance


# ------------------------------------------------------------------------------------------------------------------------------- the pixels


def weights(length: int, size: int) -> np.ndarray:
    """float64 [size, length]: antialiased bicubic (Keys, a = -0.5), written apart from the code under test."""
    step = length / size
    stretch = max(step, 1.0)
    rows = np.zeros((size, length))
    for i in range(size):
        for j in range(length):
            x = abs((j + 0.5 - (i + 0.5) * step) / stretch)
            rows[i, j] = 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0
    return rows / rows.sum(axis=1, keepdims=True)


def reference(pixels: np.ndarray, size: int) -> np.ndarray:
    """float64 [3, size, size]; rounded to whole levels between the passes, as every uint8 resizer does."""
    lines = np.clip(np.rint(np.einsum("xw,hwc->hxc", weights(pixels.shape[1], size), pixels.astype(float))), 0, 255)
    return np.clip(np.einsum("yh,hxc->cyx", weights(pixels.shape[0], size), lines), 0, 255)


def test_crops_of_photographs_equal_an_exact_bicubic_to_two_levels(photographs):
    means = []
    for number, data in enumerate(photographs[:12]):
        pixels = decode(data)
        height, width = pixels.shape[:2]
        left, top, right, bottom = box = Augment(96, (0.05, 0.5), (0.75, 4 / 3), True).draw(Draws(1, CROP, 0, number)).box(width, height)
        if min(right - left, bottom - top) >= 2 * crop.SPARE * 96:
            continue
        off = np.abs(cut(data, width, height, [box], 96)[0] - reference(pixels[top:bottom, left:right], 96))
        assert off.max() <= 2.0
        means.append(off.mean())
    assert len(means) > 6
    assert max(means) <= 0.3


@pytest.mark.parametrize("ratio", [4.2, 8.4, 16.5])  # just above where the next reduced size is taken: where it is off most
def test_reduced_decoding_stays_near_the_exact_bicubic(photographs, ratio):
    offs = []
    for data in photographs[:8]:
        pixels = decode(data)
        height, width = (side // 8 * 8 for side in pixels.shape[:2])  # on the grid of every reduced size
        size = int(min(height, width) / ratio)
        offs.append(np.abs(cut(data, *pixels.shape[1::-1], [(0, 0, width, height)], size)[0] - reference(pixels[:height, :width], size)))
    assert max(off.mean() for off in offs) <= 1.2
    assert max(np.quantile(off, 0.99) for off in offs) <= 5


def test_resizing_is_torchvisions_own():
    pixels = np.asarray(scene(70, 50))
    ours = cut(encoded(scene(70, 50), "PNG"), 70, 50, [(5, 8, 55, 48)], 32)[0]
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    theirs = resized_crop(planes, 8, 5, 40, 50, [32, 32], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert np.abs(ours.astype(int) - theirs.numpy()).max() <= 1


def test_a_crop_of_the_training_size_is_copied():
    pixels = np.asarray(scene(40, 30))
    assert np.array_equal(cut(encoded(scene(40, 30), "PNG"), 40, 30, [(3, 2, 23, 22)], 20)[0], pixels[2:22, 3:23].transpose(2, 0, 1))


@pytest.mark.parametrize(("side", "scale"), [(63, 1), (64, 2), (127, 2), (128, 4), (255, 4), (256, 8), (2000, 8)])
def test_a_reduced_size_still_holds_the_crop_twice_over(side, scale):
    assert crop._scale([(0, 0, side, side + 10), (3, 3, 3 + side + 40, 3 + side + 40)], 16) == scale


# ------------------------------------------------------------------------------------------------------------------------------- bad content


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_jpeg_is_bad_even_where_the_crop_lies_above_the_cut(share, monkeypatch):
    data = encoded(scene(200, 160), quality=90)
    data = data[: int(len(data) * share)]
    reasons = []
    for patch in (False, True):
        with monkeypatch.context() as context, pytest.raises(BadSample) as caught:
            if patch:
                context.setattr(crop, "_jpeg", None)
            cut(data, 200, 160, [(0, 0, 30, 20)], 16)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_another_size_than_its_index_says_is_bad(kind):
    with pytest.raises(BadSample, match=r"is 60x50 pixels .*the index says 61x50"):
        cut(encoded(scene(60, 50), kind), 61, 50, [(0, 0, 20, 20)], 16)


def test_too_many_pixels_are_refused_before_anything_is_decoded():
    with pytest.raises(BadSample, match=r"too many pixels \(60x50, the limit is 2999\)"):
        cut(b"", 60, 50, [(0, 0, 9, 9)], 8, max_pixels=2999)


@needs_libjpeg
@settings(max_examples=300)
@given(st.data())
def test_damaged_jpegs_never_crash_and_are_judged_alike(data):
    good = encoded(scene(64, 48), progressive=data.draw(st.booleans()), restart_marker_rows=1)
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(2, len(good) - 3))] = data.draw(st.integers(0, 255))
    box = (8, 8, 40, 32)

    def judged() -> bytes | None:
        try:
            return cut(bytes(damaged), 64, 48, [box], 16)[0].tobytes()
        except BadSample:
            return None

    fast = judged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop, "_jpeg", None)
        slow = judged()
    assert fast == slow or slow is None  # a marker may be lost below the part that was read


@needs_libjpeg
@pytest.mark.parametrize("box", [(0, 0, 21, 5), (0, 0, 5, 17), (20, 0, 1, 1), (0, 0, 0, 3), (-1, 0, 4, 4), (2**31, 0, 4, 4)])
def test_a_region_outside_the_image_is_refused(box):
    out = np.empty(max(1, abs(box[2] * box[3]) % 10**6 * 3), dtype=np.uint8)
    with pytest.raises((ValueError, OverflowError)):
        crop._jpeg.region(encoded(scene(20, 16)), 1, *box, out)


@needs_libjpeg
@pytest.mark.parametrize("scans", [1, 3, 6, 9])
def test_a_progressive_jpeg_whose_scans_end_early_is_left_to_pillow(scans):
    data = encoded(scene(96, 80), progressive=True, subsampling=2)
    starts = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    out = np.empty((80, 96, 3), np.uint8)
    crop._jpeg.region(data, 1, 0, 0, 96, 80, out)
    with pytest.raises(ValueError, match="scans are missing"):
        crop._jpeg.region(data[: starts[scans]] + b"\xff\xd9", 1, 0, 0, 96, 80, out)


NO_MEMORY = """
import resource, sys
import numpy as np
from mpp.data import _jpeg
data, out = open(sys.argv[1], "rb").read(), np.empty((8, 8, 3), np.uint8)
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 10_000_000, size + 10_000_000))
try:
    _jpeg.region(data, 1, 0, 0, 8, 8, out)
except MemoryError:
    print("no memory")
"""


@needs_libjpeg
def test_running_out_of_memory_in_libjpeg_is_no_bad_content(tmp_path):
    (tmp_path / "large.jpg").write_bytes(encoded(Image.new("RGB", (4000, 4000)), progressive=True))  # 96 MB of coefficients
    command = [sys.executable, "-c", NO_MEMORY, tmp_path / "large.jpg"]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert finished.stdout == "no memory\n", finished.stderr
