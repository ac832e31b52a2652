"""inspect_shards.py: what it says is so, and the picture can be made whatever the set."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep import inspect_shards
from mpp.base.errors import DataError, UserError
from mpp.data.shard_format import SHORT_SIDES
from mpp.data.write_shards import Sample, write_manifest, write_shard
from mpp.prep.inspect_sheet import (
    CAPTION,
    CELL,
    COLUMNS,
    GAP,
    MARGIN,
    WIDTH,
    Cell,
    can_be_drawn,
    draw_cell,
    fit,
    font,
    short,
    wrap,
)
from mpp.prep.inspecting import short_sides_between


def make(
    folder: Path, sizes: Sequence[tuple[int, int]], labels: Sequence[int] = (), classes: Sequence[str] = (), per_shard: int = 4
) -> Path:
    """A split of pictures of one colour each, (width, height) in pixels."""
    folder.mkdir(parents=True)
    samples = []
    for key, (width, height) in enumerate(sizes):
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (40 * key % 256, 90, 200)).save(buffer, "PNG" if key % 2 else "WEBP", lossless=True)
        samples.append(Sample(key, "png" if key % 2 else "webp", buffer.getvalue(), width, height, labels[key] if labels else -1))
    parts = [write_shard(folder, f"{first:06d}.tar", samples[first : first + per_shard]) for first in range(0, len(samples), per_shard)]
    write_manifest(
        folder,
        split=folder.name,
        shards=parts,
        classes=list(classes),
        colours=np.eye(256, dtype=np.int64)[[51, 102, 204]],
        colour_images=len(sizes),
        rejects=3,
        source={"name": "test.zip"},
    )
    return folder


def facts(capsys, *words: object) -> dict:
    capsys.readouterr()
    assert inspect_shards.main([*map(str, words), "--json"]) == 0
    (split,) = json.loads(capsys.readouterr().out)["splits"]
    return split


def test_the_facts_are_those_of_the_set(tmp_path, capsys):
    sizes = [(30, 40), (50, 31), (32, 200), (64, 64), (100, 300), (70, 65)]
    split = make(tmp_path / "out" / "train", sizes, [0, 2, 2, 0, 2, 2], ["ant", "bee", "cat"])
    found = facts(capsys, split)
    assert {name: found[name] for name in ("images", "shards", "rejects", "classes", "classes_without_images", "unlabelled")} == {
        "images": 6,
        "shards": 2,
        "rejects": 3,
        "classes": 3,
        "classes_without_images": 1,
        "unlabelled": 0,
    }
    assert found["bytes"] == sum(path.stat().st_size for path in split.glob("*.tar"))
    assert found["samples_per_shard"] == [2, 4, 4]
    assert (found["narrowest_side"], found["longest_side"], found["most_oblong"]) == (30, 300, 6.25)
    assert found["short_sides"] == [[1, 2], [32, 1], [64, 2], [96, 1]]
    assert found["formats"] == {"WEBP": 3, "PNG": 3}
    assert (found["most_frequent"][0], found["least_frequent"][-1]) == (["cat", 4], ["bee", 0])
    assert found["gini"] == round(8 / 18, 4)  # mean difference of all pairs of 4, 2 and 0, over twice their mean: 16 / (9 * 2 * 2)
    assert np.allclose(found["mean"], [0.2, 0.4, 0.8]) and found["unreadable"] == []
    inspect_shards.main([str(split)])
    out = capsys.readouterr().out
    assert "train: 6 images in 2 shards" in out and "(test.zip)" in out
    assert "short side     64-95 " + "#" * 40 + " 2 (33.3%)" in out
    assert "most  cat 4, ant 2, bee 0" in out


SETS = {
    "one image": ([(40, 30)], [0], ["only"]),
    "no classes": ([(40, 30)] * 5, [], []),
    "one class": ([(40, 30)] * 5, [0] * 5, ["a name " * 40]),
    "1000 classes": ([(40, 30)] * 20, list(range(0, 1000, 50)), [f"n{number:08d} golden\nretriever" for number in range(1000)]),
    "12 classes, some of which cannot be drawn": ([(9, 9)] * 12, list(range(12)), ["日本語", "", "\x00\x1b[31m", "żółć", *"abcdefgh"]),
    "13 classes": ([(9, 9)] * 13, list(range(13)), list("abcdefghijklm")),
    "very wide, very tall and very small": ([(9000, 1), (1, 9000), (1, 1), (1100, 1100)], [], []),
}


@pytest.mark.parametrize("name", SETS)
def test_every_kind_of_set_has_its_picture(tmp_path, capsys, name):
    split = make(tmp_path / "out" / "train", *SETS[name])
    found = facts(capsys, tmp_path / "out")
    assert found["picture"] == str(tmp_path / "out" / "inspect-train.png")
    sheet = Image.open(found["picture"]).convert("RGB")
    images = len(SETS[name][0])
    for number in range(images):  # each in its cell
        left, top = MARGIN + number % COLUMNS * (CELL + GAP), MARGIN + 50 + number // COLUMNS * (CELL + CAPTION + GAP)
        assert sheet.getpixel((left + CELL // 2 - 1, top + CELL // 2 - 1)) == (40 * number % 256, 90, 200)
    inspect_shards.main([str(split)])
    assert "\x1b" not in capsys.readouterr().out
    pixels = np.asarray(sheet)
    assert (pixels[:, : MARGIN // 2] == 255).all() and (pixels[:, WIDTH - MARGIN // 2 :] == 255).all()  # nothing runs over the edge


def test_a_damaged_image_has_an_empty_cell_and_is_named(tmp_path, capsys):
    split = make(tmp_path / "train", [(40, 40)] * 4, [0, 1, 0, 1], ["a", "b"])
    with (split / "000000.tar").open("r+b") as file:
        file.seek(512 + 20)
        file.write(b"\xaa\x55")
    found = facts(capsys, split, "--out", tmp_path / "new" / "folder")
    assert len(found["unreadable"]) == 1
    assert found["unreadable"][0].startswith("train/000000.tar: 000000000000 (offset 512): CRC-32 is")
    sheet = Image.open(tmp_path / "new" / "folder" / "inspect-train.png").convert("RGB")
    assert sheet.getpixel((MARGIN + CELL // 2, MARGIN + 50 + CELL - 10)) == (236, 236, 236)
    assert sheet.getpixel((MARGIN, MARGIN + 50)) == (200, 60, 60)
    inspect_shards.main([str(split)])
    assert "UNREADABLE: 1 of the images looked at" in capsys.readouterr().out


def test_the_seed_and_the_number_choose_the_images(tmp_path, capsys):
    split = make(tmp_path / "train", [(20, 20)] * 30)

    def picture(*words: object) -> bytes:
        return Path(facts(capsys, split, *words)["picture"]).read_bytes()

    first = picture("--images", 5)
    assert first == picture("--images", 5)
    assert first != picture("--images", 5, "--seed", 1)
    assert picture("--images", 0)


def test_what_cannot_be_opened_or_written_is_an_error_of_one_line(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        inspect_shards.main([str(tmp_path / "nowhere")])
    split = make(tmp_path / "train", [(20, 20)])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        inspect_shards.main([str(split), "--out", str(tmp_path / "file" / "below")])
    (split / "index.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"index.bin"):
        inspect_shards.main([str(split)])


def test_text_is_cut_to_its_room():
    face = font(13)
    assert fit("short", face, 100) == "short"
    for text in ("w" * 300, "two\nlines and\tmore " * 9, ""):
        assert face.getlength(fit(text, face, 100)) <= 100
        lines = wrap(text, face, 100, 3)
        assert len(lines) <= 3 and all(face.getlength(line) <= 100 for line in lines)
    assert fit("w" * 300, face, 100).endswith("w…")
    assert wrap("one two", face, 500, 3) == ["one two"]
    assert [can_be_drawn(text) for text in ("golden retriever", "Grünfink, Чиж, Åkerhöna", "日本", "")] == [True, True, False, False]


def test_captions_and_reasons_stay_in_their_cell():
    sheet = Image.new("RGB", (CELL + 40, CELL + CAPTION + 40), "white")
    draw_cell(sheet, ImageDraw.Draw(sheet), 20, 20, Cell("g" * 300, None, "reason " * 300))
    pixels = np.asarray(sheet).copy()
    pixels[20 : 20 + CELL + CAPTION, 20 : 20 + CELL] = 255
    assert (pixels == 255).all()


def test_numbers_on_bars_are_short():
    assert [short(count) for count in (0, 7, 999, 1000, 9_949, 12_345, 999_499, 999_500, 1_281_167, 10**9, 10**15)] == (
        ["0", "7", "999", "1.0k", "9.9k", "12k", "999k", "1.0M", "1.3M", "1.0G", "1.0P"]
    )


def test_bins_between_the_first_and_the_last_are_all_there():
    assert short_sides_between([(32, 5), (96, 7)]) == [("32-63", 5), ("64-95", 0), ("96-127", 7)]
    assert short_sides_between([(SHORT_SIDES[-1], 1)]) == [("4096+", 1)]
