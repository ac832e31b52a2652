"""Names made to fool a terminal or its reader, through every program that shows them."""

import json
import os
import unicodedata

import pytest

from data_prep import index_shards, inspect_shards, make_shards, verify_shards
from mpp.base.errors import DataError
from mpp.data.shards import ShardSet

CLASSES = ["ca\x1b[31mt", "dog\nerror: the disk is broken", "c\u202eow\r", "$\\frac{"]


def harmless(text: str) -> bool:
    return all(unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for line in text.split("\n") for letter in line)


@pytest.fixture
def hostile(tmp_path, picture):
    """A tree of such classes, with such files beside the images, and one image that is none."""
    folder = tmp_path / "se\x1b[2Jt"
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for image in range(3):
            (folder / name / f"a\x1b]0;title\x07{image}.png").write_bytes(picture(3 * number + image, "PNG"))
        (folder / name / "notes.\x1b[8m").write_bytes(b"")
    (folder / CLASSES[0] / "bad\nerror: forged.png").write_bytes(b"no image")
    return folder


def run(capfd, program, *words) -> str:
    """All that it writes, on either stream; a bar too."""
    program.main([os.fspath(word) for word in words])
    shown = capfd.readouterr()
    assert not [line for line in (shown.out + shown.err).split("\n") if line.startswith("error")]
    return shown.out + shown.err


def test_no_program_lets_a_name_through_to_the_terminal(hostile, tmp_path, capfd):
    out = tmp_path / "ou\x1b[31mt"
    with pytest.raises(DataError, match="not readable images"):
        make_shards.main([os.fspath(hostile), os.fspath(out), "--labels", "--quiet", "--workers", "1"])
    said = run(capfd, make_shards, hostile, out, "--labels", "--quiet", "--workers", "1", "--max-rejects", "0.1")
    assert harmless(said)
    assert "c\\u202eow\\r" in said
    assert ShardSet.open(out / "train").classes == sorted(CLASSES)  # stored as they are
    for program, *words in (
        (inspect_shards, out / "train", "--out", tmp_path / "pictures", "--quiet"),
        (verify_shards, out / "train", "--full", "--workers", "1", "--quiet"),
    ):
        assert harmless(run(capfd, program, *words))
        json.loads(run(capfd, program, *words, "--json"))
    assert "ca\\x1b[31mt 3" in run(capfd, inspect_shards, out / "train", "--out", tmp_path / "pictures", "--quiet")
    bars = run(capfd, verify_shards, out / "train", "--full", "--workers", "1")
    assert harmless(bars.replace("\r", "\n"))
    shard = out / "train" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    assert harmless(run(capfd, verify_shards, out / "train", "--full", "--workers", "1", "--quiet"))


def test_tars_of_such_names_are_indexed_without_them_in_the_words(tmp_path, picture, write_tar, capfd):
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(folder / "a\x1b[31m.tar", {f"{number}\x1b[2J.png": picture(number, "PNG") for number in range(3)} | {"3\nerror.\x1b": b""})
    assert harmless(run(capfd, index_shards, folder, "--quiet", "--workers", "1"))
    assert harmless(run(capfd, verify_shards, folder, "--full", "--quiet", "--workers", "1"))
    assert harmless(run(capfd, inspect_shards, folder, "--out", tmp_path, "--quiet"))
