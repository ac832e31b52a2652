"""The contact sheet: the surest errors, each beside its own image, with words that fit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mpp.data.augment import Centre
from mpp.data.crop_dataset import CropDataset
from mpp.data.labelled import open_labelled
from mpp.data.pixels import StoredPixels
from mpp.transfer import mistakes
from mpp.transfer.mistakes import GAP, SIDE, draw_mistakes, fitted, percent, worst
from mpp.transfer.probes.contract import Answers
from mpp.transfer.results import draw_answers, first_run
from tests.transfer.conftest import CLASSES


@pytest.fixture
def crops(splits):
    images = open_labelled(str(splits["test"]), "test")
    return CropDataset(StoredPixels(images, 10**6), Centre(16, 1.0), 0, np.arange(len(images)), leaves_none_out=True)


@pytest.fixture
def written(monkeypatch):
    """What is written on the sheet, in order."""
    said = []
    real = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **rest: said.append(text) or real(self, place, text, **rest))
    return said


def test_the_surest_errors_come_first_and_of_equally_sure_ones_the_first():
    truth = np.array([0, 1, 2, 0, 1, 2])
    predicted, confidence = torch.tensor([1, 1, 0, 1, 0, 0]), torch.tensor([0.5, 0.99, 0.9, 0.5, 0.7, 0.95])
    assert worst(predicted, confidence, truth).tolist() == [5, 2, 4, 0, 3]  # row 1 is right, however sure
    assert worst(predicted, confidence, truth, most=2).tolist() == [5, 2]


def test_each_error_stands_beside_its_own_image_as_the_probe_saw_it(crops, written):
    truth = np.arange(60) % 3
    predicted, confidence = torch.from_numpy(truth.copy()), torch.linspace(0.5, 0.9, 60)
    predicted[[7, 40]] = torch.tensor([(7 + 1) % 3, (40 + 1) % 3])
    made = np.asarray(Image.open(io.BytesIO(draw_mistakes(crops, predicted, confidence, truth, CLASSES, "pretrained, linear, test"))))
    assert written[:2] == ["pretrained, linear, test", "2 of 60 answers are wrong (3.3 %)"]
    assert written[2:4] == ["truth green", "said blue, 77 %"] and written[5:7] == ["truth green", "said blue, 55 %"]
    assert [written[4], written[7]] == ["000000.tar/000000000040", "000000.tar/000000000007"]  # whole, so that it can be found
    for place, row in enumerate([40, 7]):
        seen = crops.batch([(0, row, 0)])["image"][0].numpy().transpose(1, 2, 0)
        enlarged = seen.repeat(SIDE // 16, axis=0).repeat(SIDE // 16, axis=1)
        left = GAP + place * (SIDE + GAP)
        column = made[:, left : left + SIDE]
        assert any((column[top : top + SIDE] == enlarged).all() for top in range(40, 100)), row


def test_without_an_error_the_sheet_says_so(crops, written):
    truth = np.arange(60) % 3
    data = draw_mistakes(crops, torch.from_numpy(truth), torch.ones(60), truth, CLASSES, "pretrained")
    assert written == ["pretrained", "none of 60 answers is wrong"] and data.startswith(b"\x89PNG")


def test_no_more_than_a_sheet_is_shown_and_all_are_counted(crops, written):
    truth = np.zeros(60, dtype=np.int64)
    draw_mistakes(crops, torch.ones(60, dtype=torch.int64), torch.linspace(0.4, 1, 60), truth, CLASSES, "pretrained")
    assert written[1] == "60 of 60 answers are wrong (100.0 %); here are the 24 surest of them"
    assert len(written) == 2 + 3 * mistakes.MOST


@pytest.mark.parametrize(
    "name", ["great white shark, Carcharodon carcharias", "$x$\nline", "猫" * 20, "", " ", "\x1b[31m", "a" * 500], ids=range(7)
)
def test_any_name_fits_below_its_image_with_its_confidence_whole(crops, written, name, recwarn):
    truth = np.zeros(60, dtype=np.int64)
    draw_mistakes(crops, torch.ones(60, dtype=torch.int64), torch.full((60,), 0.625), truth, [name, "b" + name], name * 3)
    sizes = (mistakes.TEXT, mistakes.TEXT, mistakes.TEXT - 3)
    for i, line in enumerate(written[2:]):
        assert ImageFont.truetype(str(mistakes.FONT), sizes[i % 3]).getlength(line) <= SIDE
        assert line.isprintable()
    assert written[3].startswith("said b") and written[3].endswith(", 62 %")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (28, 28, (168, 168)),
        (16, 16, (192, 192)),
        (192, 192, (192, 192)),
        (224, 224, (192, 192)),
        (256, 384, (128, 192)),
        (1, 900, (1, 192)),
    ],
)
def test_images_of_any_size_keep_their_shape_small_ones_by_whole_pixels(height, width, expected):
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    shown = np.asarray(fitted(pixels))
    assert shown.shape == (*expected, 3)
    if width <= SIDE:
        assert np.array_equal(shown, pixels.transpose(1, 2, 0).repeat(expected[0] // height, 0).repeat(expected[1] // width, 1))


def test_a_confidence_never_becomes_certainty_by_rounding():
    assert [percent(share) for share in (0.5, 0.994, 0.9969, 0.99999, 1.0)] == ["50 %", "99 %", "99.69 %", "99.99 %", "100 %"]


def test_pictures_are_of_every_row_that_answered_and_of_the_first_of_several_draws(tmp_path, crops, written):
    truth = np.arange(60) % 3
    right, wrong = torch.from_numpy(truth), torch.from_numpy((truth + 1) % 3)
    several = Answers(torch.stack([right, wrong]), torch.rand(2, 60))
    answers = {
        "raw pixels": {"knn": Answers(right, torch.rand(60))},
        "pretrained": {"linear": several},
        "runs/b c": {"linear": Answers(wrong, torch.rand(60))},
    }
    calibration = {"ece": 0.1, "bins": {"images": [60], "accuracy": [1.0], "confidence": [0.9]}}
    rows = {row: {"linear": {"calibration": calibration}} for row in ("pretrained", "runs/b c")}
    shown = {"pretrained": crops, "runs/b c": crops}
    pictures = draw_answers(tmp_path, "pretrained", "linear", rows, answers, truth, CLASSES, "test", shown)
    assert pictures == ["confusion.png", "reliability.png", "mistakes.png", "mistakes-runs-b-c.png"]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "none of 60 answers is wrong" in written and any(line.startswith("60 of 60 answers are wrong") for line in written)
    assert first_run(several).predicted is not wrong and torch.equal(first_run(several).predicted, right)
