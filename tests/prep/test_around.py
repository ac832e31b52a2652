"""A source that is made of another one has its labels, too."""

from pathlib import Path

import pytest

from mpp.prep.layouts import LaidOut
from mpp.prep.source import Source
from mpp.prep.sources.checksum import Checked
from mpp.prep.tiles import Tiles


class Numbered(Source):
    path, kind = Path("rows"), "rows"
    numbered, unlabelled = True, "has no number"

    def class_number(self, label, numbers):
        return 10 + int(label)


AROUND = [lambda source: Checked(source, ""), lambda source: Tiles(source, Path("tiles")), lambda source: LaidOut(source, 1, 0)]


@pytest.mark.parametrize("around", AROUND, ids=["Checked", "Tiles", "LaidOut"])
def test_labels_are_read_as_the_source_inside_reads_them(around):
    made = around(Numbered())
    assert made.numbered and not made.digits_are_numbers and made.unlabelled == "has no number"
    assert made.class_number("2", {}) == 12 and made.class_names({"0", "2"}) == Numbered().class_names({"0", "2"}) == ["0", "1", "2"]
    assert around(made).numbered


def test_where_labels_are_names_they_are_no_numbers_for_whatever_is_around():
    named = LaidOut(Numbered(), 1, 0, label_names=True)
    assert [around(named).class_names({"10", "9"}) for around in AROUND[:2]] == [["9", "10"]] * 2
    assert LaidOut(Numbered(), 1, 0).numbered and not LaidOut(Numbered(), 1, 0, label_names=True).numbered
