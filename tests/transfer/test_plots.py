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


def test_every_row_has_its_matrix_as_a_panel_while_classes_are_few_and_as_a_file_of_its_own_beyond():
    rows = {"raw pixels": 1, "random init": 2, "runs/a b": 3, "runs/a-b": 4}
    matrices = lambda classes: {row: times * np.eye(classes, dtype=int) for row, times in rows.items()}
    names = lambda classes: [str(i) for i in range(classes)]
    (few,) = plots.confusions(matrices(12), names(12), "t").items()
    assert few[0] == "confusion.png" and min(picture(few[1]).shape[:2]) > 2 * 12 * plots.CELL * plots.DOTS_PER_INCH
    many = plots.confusions(matrices(13), names(13), "t")
    assert list(many) == ["confusion-raw-pixels.png", "confusion-random-init.png", "confusion-runs-a-b.png", "confusion-runs-a-b-2.png"]
    assert len({picture(data).tobytes() for data in many.values()}) == 4  # each shows its own counts
    assert list(plots.confusions({"fine-tuned": np.eye(13, dtype=int)}, names(13), "t")) == ["confusion.png"]


def test_a_matrix_with_numbers_says_counts_and_shares_and_how_many_images_each_class_has(monkeypatch):
    said = []
    real = plots.png
    monkeypatch.setattr(
        plots, "png", lambda figure: said.extend(text.get_text() for text in figure.findobj(matplotlib.text.Text)) or real(figure)
    )
    plots.confusions(
        {"raw pixels": np.array([[299, 1], [30, 10]]), "tuned": np.array([[0, 300], [0, 40]])}, ["ok", "$ 5"], "linear, test, 340 images"
    )
    assert {"<1 %\n1", "75 %\n30", "100 %\n300", "ok (300)", r"\$ 5 (40)", "linear, test, 340 images"} <= set(said)
    titles = [" ".join(text.split()) for text in said]
    assert "raw pixels 309 of 340 right (90.9 %), balanced 62.3 %" in titles and "tuned 40 of 340 right (11.8 %), balanced 50.0 %" in titles


def test_names_too_long_keep_both_ends_and_letters_the_font_lacks_are_told_apart():
    fits = lambda text: len(text) <= 9
    assert plots.clipped("great white shark A", fits) == "grea…rk A" and plots.clipped("abcdefghi", fits) == "abcdefghi"
    assert plots.clipped("猫\n", lambda text: True) == r"\u732b\n" != plots.clipped("犬\n", lambda text: True)
    assert plots.clipped("anything", lambda text: False) == "a…"


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
