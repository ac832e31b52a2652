"""Limits on what an image may hold, and levels that use a part of their depth, from make_shards.py to training."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import index_shards, inspect_shards, make_shards, verify_shards
from mpp.base.errors import BadSample, DataError
from mpp.config.pretrain import PretrainConfig
from mpp.data.decode import MAX_PIXELS, check_header, decode
from mpp.data.shards import ShardSet
from mpp.prep.prepare import TRAINED_PIXELS

PNG = b"\x89PNG\r\n\x1a\n"
SIDE = 8
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def with_chunks(data: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """Behind the header of a PNG, or before its end."""
    at = len(data) - 12 if last else 33
    return data[:at] + b"".join(chunks) + data[at:]


def run(program, *words) -> int:
    return program.main([*map(str, words), "--quiet"])


# ------------------------------------------------------------------------------------------------------------------------ texts and profiles

LARGE = np.random.default_rng(1).integers(0, 64, 3 << 20, np.uint8).tobytes()  # unpacks to 3 MiB, three times what Pillow takes
TEXTS = {
    "colour profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(LARGE, 1)),
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE, 1)),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LARGE, 1)),
    "plain text": chunk(b"tEXt", b"Comment\0" + LARGE),
    "compressed EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE, 1)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE, 1)),
    "damaged profile": chunk(b"iCCP", b"icc\0\0not deflated"),
    "broken checksum": chunk(b"tEXt", b"Comment\0words")[:-1] + b"?",
}


@pytest.mark.parametrize("last", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_png_is_as_good_as_its_pixels_however_large_its_texts_are(name, last):
    data = with_chunks(encoded(COLOURS), TEXTS[name], last=last)
    np.testing.assert_array_equal(decode(data), COLOURS)
    assert check_header(data) == ("PNG", SIDE, SIDE)


def test_many_texts_are_no_more_than_one():
    data = with_chunks(encoded(COLOURS), *[chunk(b"tEXt", b"Comment\0" + LARGE)] * 25)
    np.testing.assert_array_equal(decode(data), COLOURS)


@pytest.mark.parametrize("last", [False, True], ids=["before", "behind"])
def test_an_orientation_among_large_texts_is_found(last):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = COLOURS[:5]
    words = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode()))
    data = with_chunks(encoded(stored), chunk(b"zTXt", words), TEXTS["compressed text"], TEXTS["colour profile"], last=last)
    np.testing.assert_array_equal(decode(data), np.rot90(stored, -1))
    assert check_header(data) == ("PNG", 5, SIDE)


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_text_that_unpacks_without_end_is_refused(kind):
    bomb = zlib.compress(bytes(65 << 20), 1)
    data = with_chunks(encoded(COLOURS), chunk(kind, (b"a\0\0" if kind != b"iTXt" else b"a\0\1\0\0\0") + bomb))
    for reader in (decode, check_header):
        with pytest.raises(BadSample, match="unpacks to more than 64 MiB"):
            reader(data)


# ---------------------------------------------------------------------------------------------------------------------------- max_pixels


def blank(width: int, height: int) -> bytes:
    """A PNG of black pixels, a bit each."""
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 1)
    return PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_may_be_larger_than_pillow_takes_where_it_is_asked_for(monkeypatch):
    data = blank(100, 90)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # its error comes at twice as many
    with pytest.raises(BadSample, match=r"too many pixels \(100x90, the limit is 1000\)"):
        decode(data, max_pixels=1000)
    assert decode(data, max_pixels=9000).shape == (90, 100, 3)
    with pytest.raises(BadSample, match=r"too many pixels \(100x91, the limit is 9000\)"):
        decode(blank(100, 91), max_pixels=9000)


def test_what_a_bomb_claims_is_said_in_our_words():
    with pytest.raises(BadSample, match=rf"^too many pixels \(100000x100000, the limit is {MAX_PIXELS}\)$"):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0))
        check_header(PNG + header + blank(1, 1)[33:])


@pytest.fixture
def small_limit(monkeypatch):
    """As if no image were to have more than 2,000 pixels, and training took 2,500."""
    for module in ("data_prep.make_shards", "data_prep.index_shards", "mpp.prep.making", "mpp.prep.indexing", "mpp.data.shard_faults"):
        monkeypatch.setattr(f"{module}.MAX_PIXELS", 2000)
    monkeypatch.setattr("mpp.prep.prepare.TRAINED_PIXELS", 2500)
    monkeypatch.setattr("mpp.prep.summary.TRAINED_PIXELS", 2500)


@pytest.fixture
def large(tmp_path) -> Path:
    """A tree with one image of 3,000 pixels among small ones."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "large.png").write_bytes(encoded(np.random.default_rng(2).integers(0, 256, (50, 60, 3), np.uint8)))
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(COLOURS + np.uint8(number)))
    return folder


def test_larger_images_are_taken_where_max_pixels_says_so_and_every_program_knows(small_limit, large, tmp_path, capsys):
    with pytest.raises(
        DataError, match=r"first 'large.png' \(too many pixels \(60x50, the limit is 2000\)\).*a new OUT made with --max-pixels"
    ):
        run(make_shards, large, tmp_path / "none", "--workers", "1", "--check", "decode")
    assert run(make_shards, large, tmp_path / "out", "--workers", "1", "--max-pixels", "3000") == 0
    said = capsys.readouterr().out
    assert "WARNING:  1 images have more than 2,500 pixels; training takes larger ones" in said
    assert "data.max_pixels=3000" in said
    train = tmp_path / "out" / "train"
    assert ShardSet.open(train).manifest["source"]["max_pixels"] == 3000
    assert run(verify_shards, train, "--full", "--workers", "1") == 0
    capsys.readouterr()
    assert run(inspect_shards, train, "--json") == 0
    assert json.loads(capsys.readouterr().out)["splits"][0]["unreadable"] == []


def test_the_short_side_is_shrunk_of_images_larger_than_training_takes(small_limit, large, tmp_path, capsys):
    assert run(make_shards, large, tmp_path / "out", "--workers", "1", "--max-pixels", "3000", "--resize", "20") == 0
    assert "WARNING" not in capsys.readouterr().out
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert (20, 24) in {tuple(sorted(shards.size_of(sample))) for sample in range(len(shards))}


def test_a_half_done_set_is_not_finished_under_another_limit(large, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mpp.prep.making.write_split", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(make_shards, large, tmp_path / "out", "--workers", "1", "--max-pixels", "123456")
    with pytest.raises(DataError, match="max_pixels was 123456, is None"):
        run(make_shards, large, tmp_path / "out", "--workers", "1")
    assert run(make_shards, large, tmp_path / "out", "--workers", "1", "--max-pixels", "123456") == 0


def test_tars_are_indexed_with_larger_images_where_max_pixels_says_so(small_limit, large, tmp_path, write_tar):
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "a.tar", {path.name: path.read_bytes() for path in sorted(large.iterdir())})
    with pytest.raises(DataError, match="too many pixels"):
        run(index_shards, tars, "--workers", "1", "--max-pixels", "2999")
    assert run(index_shards, tars, "--workers", "1", "--max-pixels", "3000") == 0
    assert len(ShardSet.open(tars)) == 4
    assert run(verify_shards, tars, "--full", "--workers", "1") == 0


def test_the_limit_that_the_summary_speaks_of_is_that_of_training():
    data = PretrainConfig.model_fields["data"].annotation
    assert data.model_fields["max_pixels"].default == TRAINED_PIXELS
    assert MAX_PIXELS < TRAINED_PIXELS


# --------------------------------------------------------------------------------------------------------------------- a part of the range


def deep_set(folder: Path, highest: int, lowest: int = 0, form: str = "PNG") -> Path:
    folder.mkdir()
    for number in range(4):
        levels = np.linspace(lowest, highest - number, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
        (folder / f"{number}.{'png' if form == 'PNG' else 'tif'}").write_bytes(encoded(levels, form))
    return folder


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_12_bit_data_in_16_bit_files_is_spoken_of(form, tmp_path, capsys):
    assert run(make_shards, deep_set(tmp_path / "in", 4095, form=form), tmp_path / "out", "--workers", "1") == 0
    expected = "4 images of 16 bits a channel use levels 0 to 4,095 of 65,535 only, as 12-bit data in 16-bit files do"
    assert f"WARNING:  {expected}" in capsys.readouterr().out
    assert run(inspect_shards, tmp_path / "out") == 0
    assert f"WARNING:  {expected}" in capsys.readouterr().out


@pytest.mark.parametrize(("lowest", "highest", "speaks"), [(0, 65535, False), (0, 40000, False), (0, 32767, True), (32768, 36000, True)])
def test_only_a_set_that_leaves_half_of_the_range_unused_is_spoken_of(lowest, highest, speaks, tmp_path, capsys):
    assert run(make_shards, deep_set(tmp_path / "in", highest, lowest), tmp_path / "out", "--workers", "1", "--json") == 0
    assert bool(json.loads(capsys.readouterr().out)["small_range"]) == speaks


def test_one_bright_image_is_enough_for_the_set(tmp_path, capsys):
    folder = deep_set(tmp_path / "in", 4095)
    (folder / "bright.png").write_bytes(encoded(np.full((SIDE, SIDE), 60000, np.uint16)))
    assert run(make_shards, folder, tmp_path / "out", "--workers", "1") == 0
    assert "WARNING" not in capsys.readouterr().out
