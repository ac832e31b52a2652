"""What can be said of pictures without looking: they open, show what they were given, and share no state."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from mpp.transfer import plots
from mpp.transfer.metrics import calibration


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def every_picture() -> list[bytes]:
    curve = [(0, 0.2, (0.1, 0.3)), (1, 0.5, (0.4, 0.6))]
    right = torch.arange(100) % 3 > 0
    row = calibration(right, torch.linspace(0.05, 0.99, 100))
    return [
        plots.by_layer({"a": curve, "b": curve[::-1]}, "layers"),
        plots.along_path({"a": [(0.1, 0.3), (1.0, 0.4)]}, {"a": 1.0}, "path", "C"),
        plots.reliability({"a": row}, "reliability"),
        plots.confusion(np.eye(3, dtype=int), ["x", "y", "z"], "few"),
    ]


def test_pictures_open_and_are_the_same_each_time_without_touching_shared_settings():
    before = dict(matplotlib.rcParams)
    first = every_picture()
    assert all(picture(data).std() > 1 for data in first)
    assert first == every_picture()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("classes", [10, 37, 1003])
def test_a_confusion_matrix_of_any_number_of_classes_can_be_drawn(classes):
    counts = 5 * np.eye(classes, dtype=int)
    counts[0, -1] = 3
    counts[2] = 0  # a class without images
    pixels = picture(plots.confusion(counts, [f"class {i}" for i in range(classes)], "t"))
    assert pixels.shape[0] > 500 and pixels.shape[1] > 500


def test_one_confusion_among_a_thousand_classes_is_seen():
    share = np.zeros((1003, 1003))
    share[700, 1002] = 40.0
    seen = plots._brightest(share, 500)
    assert seen.shape == (335, 335) and seen[233, 334] == 40 and (seen > 0).sum() == 1


def test_the_most_frequent_confusions_are_listed_and_right_answers_are_not():
    counts = np.array([[9, 2, 0], [5, 1, 0], [0, 0, 7]])
    share = 100 * counts / counts.sum(1, keepdims=True)
    assert [line.split() for line in plots._worst(counts, share, ["ant", "bee", "cat"])] == [
        ["5", "(83", "%)", "bee", "→", "ant"],
        ["2", "(18", "%)", "ant", "→", "bee"],
    ]
