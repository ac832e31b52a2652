from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from mpp.base.rng import CROP, Draws
from mpp.data.augment import Augment
from mpp.data.crop import resize
from mpp.data.decode import decode
from tests.data.masked_images import AUGMENT, SIZE, dataset


def test_half_of_the_samples_are_flipped_or_none():
    flips = sum(AUGMENT.draw(Draws(5, CROP, 0, sample)).pose for sample in range(2000))
    assert abs(flips - 1000) < 100  # 4.5 standard deviations
    never = replace(AUGMENT, flip=False)
    assert not any(never.draw(Draws(5, CROP, 0, sample)).pose for sample in range(50))


@pytest.mark.parametrize(
    ("width", "height", "scale", "ratio"),
    [(500, 375, (0.05, 1.0), (0.75, 4 / 3)), (300, 400, (0.2, 1.0), (0.75, 4 / 3)), (400, 100, (0.3, 0.9), (0.5, 2.0))],
)
def test_crops_are_distributed_as_torchvisions(width, height, scale, ratio):
    draws = 5000
    augment = Augment(SIZE, scale, ratio, flip=True)
    ours = np.array([augment.draw(Draws(1, CROP, 0, sample)).box(width, height) for sample in range(draws)], dtype=float)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        boxes = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(draws)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in boxes], dtype=float)

    def features(box: np.ndarray) -> np.ndarray:
        w, h = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        share, aspect = w * h / (width * height), np.log(w / h)
        return np.stack(
            [share, share**2, aspect, aspect**2, (box[:, 0] + box[:, 2]) / width, (box[:, 1] + box[:, 3]) / height, box[:, 0] ** 2]
        )

    a, b = features(ours), features(theirs)
    error = np.sqrt((a.var(axis=1) + b.var(axis=1)) / draws)
    assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) < 4 * error).all()
    for mine, other in zip(a, b, strict=True):
        grid = np.quantile(np.concatenate([mine, other]), np.linspace(0.02, 0.98, 25))
        gap = np.abs((mine[:, None] <= grid).mean(axis=0) - (other[:, None] <= grid).mean(axis=0)).max()
        assert gap < 0.04  # Kolmogorov-Smirnov at 5,000 against 5,000: beyond it fewer than 1 in 1,000


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_a_crop_never_leaves_the_image(width, height, low, share, sample):
    augment = Augment(8, (low, low + share * (1 - low)), (0.75, 4 / 3), flip=True)
    left, top, right, bottom = augment.draw(Draws(0, CROP, 0, sample)).box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize(("width", "height", "box"), [(400, 10, (193, 0, 206, 10)), (10, 400, (0, 193, 10, 206)), (9, 9, (0, 0, 9, 9))])
def test_when_nothing_fits_the_largest_centred_box_is_taken(width, height, box):
    augment = Augment(8, (1.0, 1.0), (0.75, 4 / 3) if width != height else (1.0, 1.0), flip=False)
    found = augment.draw(Draws(0, CROP)).box(width, height)
    with torch.random.fork_rng(devices=[]):
        top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(augment.ratio))
    assert found == (left, top, left + w, top + h) == box


def test_an_image_is_the_boxs_pixels_resized_and_never_flipped_by_the_worker(tiny_shards):
    data = dataset(tiny_shards)
    batch = data.batch([(3, sample, sample) for sample in range(6)])
    assert batch["pose"].any()
    for sample, (left, top, right, bottom) in enumerate(batch["box"].tolist()):
        expected = resize(decode(data.pixels.source.read(sample))[top:bottom, left:right], SIZE)
        assert np.array_equal(batch["image"][sample].numpy(), expected)
