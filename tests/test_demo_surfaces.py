"""Drawn surfaces: which classes, how many, and that a defect is all that tells them apart."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from data_prep import demo_surfaces
from data_prep.demo_surfaces import SIDE, draw
from mpp.base.errors import UserError

DEFECTS = ("scratch", "spot", "dent")


def files(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("surfaces") / "new" / "surfaces"
    assert demo_surfaces.main([str(out), "--images", "20"]) == 0
    return out


def test_four_tenths_are_good_and_two_tenths_have_each_defect(drawn):
    found = files(drawn)
    of = lambda kind: len([name for name in found if name.startswith(f"{kind}/")])
    assert {kind: of(kind) for kind in ("good", *DEFECTS)} == {"good": 8, "scratch": 4, "spot": 4, "dent": 4}
    assert len(set(found.values())) == 20 == len({name.partition("/")[2] for name in found})  # numbers go through all classes
    with Image.open(next(drawn.glob("*/*.png"))) as image:
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")


def test_a_smaller_draw_is_the_beginning_of_a_larger_one(drawn, tmp_path):
    demo_surfaces.main([str(tmp_path / "few"), "--images", "10"])
    few, more = files(tmp_path / "few"), files(drawn)
    assert len(few) == 10 and few.items() <= more.items()


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_lies_on_the_surface_that_its_number_has_without_one(kind):
    """So nothing but the defect tells the classes apart; it is in a part of the image, and another one on each surface."""
    places = []
    for number in range(8):
        apart = np.abs(draw(number, kind).astype(int) - draw(number, "good"))
        seen = apart.max(2) > 5
        assert 0.002 < seen.mean() < (0.4 if kind == "dent" else 0.15), number
        places.append(tuple(np.argwhere(seen).mean(0).round()))
    assert len(set(places)) == 8


def test_a_dent_takes_as_much_light_as_it_gives_and_a_spot_only_takes():
    change = lambda kind, number: draw(number, kind).astype(float) - draw(number, "good")
    for number in range(4):
        dent = change("dent", number)
        assert dent.max() > 10 and dent.min() < -10 and abs(dent.mean()) < 0.01 * dent.max()  # but for what lies beyond the border
        assert change("spot", number).max() <= 1


def test_an_image_is_no_more_told_by_its_tone_than_another():
    """Mean colours of the classes lie closer than their deviations."""
    tones = {kind: np.array([draw(10 * number + 1, kind).mean((0, 1)) for number in range(12)]) for kind in ("good", *DEFECTS)}
    good = tones["good"]
    assert all(np.abs(tones[kind].mean(0) - good.mean(0)).max() < 0.2 * good.std(0).min() for kind in DEFECTS)


def test_too_few_are_refused_and_what_is_there_stays(drawn, tmp_path, capsys):
    before = files(drawn)
    assert demo_surfaces.main([str(drawn)]) == 0 and files(drawn) == before and "is there already" in capsys.readouterr().out
    with pytest.raises(UserError, match="--images 9 is too few for four classes; give at least 10"):
        demo_surfaces.main([str(tmp_path / "none"), "--images", "9"])
    assert not (tmp_path / "none").exists()
