"""Images that look nearly like one of train: counted by a correlation that numpy gives too, and shown."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpp.data.array_images import ArrayImages
from mpp.transfer.near_duplicates import PAIRS, SHOWN, SIDE, Near, find_near, sheet, thumbnails

CPU = torch.device("cpu")


def scenes(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 48, 64, 3]: coarse noise made smooth, as unlike each other as photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((64, 48), Image.Resampling.BICUBIC)) for each in coarse])


def arrays(pixels: np.ndarray) -> ArrayImages:
    return ArrayImages(Path("made"), ["a"], pixels, np.zeros(len(pixels), np.int32))


@pytest.fixture(scope="module")
def sets():
    """Test images: 0 is train's 7, 1 is 8 brightened, 2 is 9 with noise, 3 is 10 trimmed, 4 is flat, the rest are new."""
    known, new = scenes(30, 0), scenes(26, 1)
    noise = np.random.default_rng(2).normal(0, 9, known[9].shape)
    trimmed = np.asarray(Image.fromarray(known[10]).crop((1, 1, 63, 47)).resize((64, 48)))
    altered = [known[7], known[8] * 0.8 + 40, known[9] + noise, trimmed, np.full_like(known[0], 90)]
    return arrays(np.concatenate([np.clip(np.stack(altered), 0, 255).astype(np.uint8), new])), arrays(known)


def find(sets, threshold=0.95):
    test, train = sets
    same = np.arange(len(test)) == 0
    return find_near(test, np.arange(len(test)), train, np.arange(5, 30), threshold, same, CPU)


def test_copies_that_were_altered_a_little_are_found_and_nothing_else(sets):
    found = find(sets)
    assert np.flatnonzero(found.mask).tolist() == [1, 2, 3] and found.nearest[:4].tolist() == [7, 8, 9, 10]
    assert found.correlation[0] > 0.9999 and found.correlation[4] == 0  # the same bytes count elsewhere, a flat image is like none
    assert found.words("test image").startswith(
        "near      3 of 31 test images beside 1 that are the same byte for byte, look like one of train ("
    )
    assert not find(sets, 1.0).mask.any()


def test_the_correlation_is_numpys_of_the_grey_versions(sets):
    found, (test, train) = find(sets), sets
    small = [thumbnails(images, np.arange(len(images))).numpy() for images in (test, train)]
    assert small[0].shape == (31, SIDE**2)
    rows = [row for row in range(31) if row != 4]
    expected = np.corrcoef(small[0][rows], small[1][5:])[: len(rows), len(rows) :]
    np.testing.assert_allclose(found.correlation[rows], expected.max(1), atol=1e-5)
    assert found.nearest[rows].tolist() == (5 + expected.argmax(1)).tolist()
    assert find((train, train)).nearest[6:].tolist() == list(range(6, 30))  # 5 on: each is its own


def test_the_sheet_shows_the_closest_and_those_at_the_threshold(sets):
    found = find(sets)
    assert found.shown()[:3] == (1 + np.argsort(-found.correlation[1:])[:3]).tolist() and len(found.shown()) == PAIRS
    correlation = np.linspace(1, 0, 101).astype(np.float32)
    many = Near(0.5, correlation, np.arange(101), np.arange(101) == 3, np.arange(101))
    assert many.shown() == [0, 1, 2, *range(4, 13), *range(39, 51)]
    picture = Image.open(io.BytesIO(sheet(found, *sets)))
    first = np.asarray(picture)[12 : 12 + SHOWN - 2, 12 : 12 + 2 * SHOWN - 2]
    left, right = first[:, : SHOWN - 2], first[:, SHOWN:]
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.95  # whatever its brightness
    pairs = found.about()["shown"]
    assert pairs[0]["image"] in (1, 2, 3) and pairs[0]["train"] == pairs[0]["image"] + 7 and found.about()["images"] == 3
