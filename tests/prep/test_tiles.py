"""Scans cut into tiles: every pixel, every tile whole, every scan in one split, the same bytes however the work was divided or interrupted."""

import contextlib
import io
import itertools
import json
import tarfile
import weakref
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.inspect_shards import main as inspect_shards
from data_prep.make_shards import main as make_shards
from data_prep.verify_shards import main as verify_shards
from mpp.base.errors import BadSample, UserError
from mpp.data.decode import decode, open_image
from mpp.data.fingerprints import how_stored
from mpp.data.shards import ShardSet
from mpp.prep import tiles
from mpp.prep.destination import Destination
from mpp.prep.prepare import Options
from mpp.prep.source import Reader
from mpp.prep.tiles import Cutting, tiles_of

ANY = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
TILE, OVERLAP = 16, 3


def run(*words) -> str:
    """What make_shards.py prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert make_shards([*map(str, words), "--quiet"]) == 0
    return printed.getvalue()


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, form, **options)
    return buffer.getvalue()


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


SCANS = {
    f"{'ab'[number % 2]}/{number}.{'tif' if number % 3 == 1 else 'png'}": noise(number, 16 + 7 * number, 50 - 4 * number)
    for number in range(7)
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans") / "scans"
    for name, pixels in SCANS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels, "TIFF" if name.endswith("tif") else "PNG"))
    return folder


WORDS = ("--tile", TILE, "--overlap", OVERLAP, "--labels", "--val", 0.3, "--samples-per-shard", 10)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> tuple[Path, str]:
    """OUT and what was printed."""
    out = tmp_path_factory.mktemp("made") / "out"
    return out, run(source, out, *WORDS, "--workers", 1)


def content(out: Path) -> dict[str, bytes]:
    assert {path.name for path in (out / ".work").iterdir()} == {"plan.json", "lock", "lock-plan"}  # nothing of the cutting is left
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}
    return found


# ---------------------------------------------------------------- where tiles lie


@given(st.integers(8, 40), st.data())
def test_tiles_are_full_cover_every_pixel_and_overlap_as_asked_but_for_the_last(tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    width, height = (tile + data.draw(st.integers(0, 90)) for _ in range(2))
    cutting = Cutting(tile, overlap)
    found = list(cutting.tiles(width, height))
    seen = np.zeros((height, width), int)
    for place in found:
        assert 0 <= place.x <= width - tile
        assert 0 <= place.y <= height - tile
        assert cutting.can_be(place)
        seen[place.y : place.y + tile, place.x : place.x + tile] += 1
    assert seen.min() > 0
    for axis, number, length in (("x", "column", width), ("y", "row", height)):
        starts = {getattr(place, number): getattr(place, axis) for place in found}
        assert sorted(starts) == list(range(len(starts)))
        ordered = [starts[one] for one in sorted(starts)]
        steps = [after - before for before, after in itertools.pairwise(ordered)]
        assert all(step == tile - overlap for step in steps[:-1])
        assert not steps or 0 < steps[-1] <= tile - overlap
        assert ordered[0] == 0
        assert ordered[-1] == length - tile
    assert len(found) == len({place[:2] for place in found}) == len({place.row for place in found}) * len({place.column for place in found})
    assert [place[:2] for place in found] == sorted(place[:2] for place in found)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK")


@settings(max_examples=40)
@given(st.sampled_from(MODES), st.sampled_from(ANY[1:]), st.integers(1, 8), st.integers(0, 30), st.integers(0, 30), st.integers(0, 7))
def test_a_tile_of_a_lossless_image_is_the_slice_of_its_pixels(mode, form, orientation, more_width, more_height, overlap):
    width, height = 8 + more_width, 8 + more_height
    pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 4), np.uint8)
    scan = Image.fromarray(pixels, "RGBA").convert(mode) if mode != "I;16" else Image.fromarray(pixels[..., 0].astype(np.uint16) * 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {"exif": exif}, "TIFF": {"tiffinfo": exif, "icc_profile": b"x" * 300}, "WEBP": {"exif": exif, "lossless": True}}
    try:
        data = encoded(scan, form, **options.get(form, {}))
    except (OSError, KeyError, ValueError):
        return  # a mode that this format does not store
    whole = np.asarray(open_image(data, formats=ANY))
    found = list(tiles_of(data, Options(), Cutting(8, overlap), Counter()))
    assert len(found) == len(list(Cutting(8, overlap).tiles(whole.shape[1], whole.shape[0])))
    for place, tile in found:
        assert tile[:4] == b"\x89PNG"
        assert b"iCCP" not in tile
        np.testing.assert_array_equal(decode(tile), whole[place.y : place.y + 8, place.x : place.x + 8])


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_tiles_of_a_jpeg_are_jpegs_or_without_loss_where_that_is_asked_for_or_something_else_follows(mode):
    smooth = np.linspace(0, 255, 40 * 48 * 3).reshape(40, 48, 3).astype(np.uint8)
    data = encoded(Image.fromarray(smooth).convert(mode), "JPEG", quality=90)
    whole = decode(data).astype(int)
    for options, form in ((Options(), "JPEG"), (Options(encode="png"), "PNG"), (Options(resize=8), "PNG"), (Options(encode="webp"), "PNG")):
        found = list(tiles_of(data, options, Cutting(16, 0), Counter()))
        assert len(found) == 9
        for place, tile in found:
            stored = Image.open(io.BytesIO(tile))
            assert stored.format == form
            if form == "JPEG":
                assert stored.mode == ("L" if mode == "L" else "RGB")
                assert mode != "L" or stored.layer[0][1:3] == (1, 1)  # grey with sampling factors is noise to some decoders
            difference = np.abs(decode(tile) - whole[place.y : place.y + 16, place.x : place.x + 16])
            assert difference.max() <= (0 if form == "PNG" else 12)
    assert len(next(tiles_of(data, Options(quality=20), Cutting(16, 0), Counter()))[1]) < len(
        next(tiles_of(data, Options(), Cutting(16, 0), Counter()))[1]
    )


def test_a_scan_smaller_than_a_tile_on_one_side_is_no_tile():
    with pytest.raises(BadSample, match=r"40x15 is smaller than a tile of 16; give a smaller --tile"):
        next(tiles_of(encoded(noise(0, 15, 40)), Options(), Cutting(16, 0), Counter()))
    assert len(list(tiles_of(encoded(noise(0, 16, 16)), Options(), Cutting(16, 15), Counter()))) == 1


# ---------------------------------------------------------------- the program


def test_every_tile_of_every_scan_is_stored_once_with_its_pixels_its_label_and_its_place(made):
    out, _ = made
    found = Counter()
    for split in ("train", "val"):
        shards, stored = ShardSet.open(out / split), members(out / split)
        assert len(stored) == 3 * len(shards)
        assert shards.index["key"].tolist() == list(range(len(shards)))
        for sample in range(len(shards)):
            key = f"{shards.index['key'][sample]:012d}"
            told = json.loads(stored[f"{key}.json"])
            pixels = SCANS[told["scan"]]
            np.testing.assert_array_equal(decode(shards.read(sample)), pixels[told["y"] : told["y"] + TILE, told["x"] : told["x"] + TILE])
            assert shards.size_of(sample) == (TILE, TILE)
            assert shards.classes[shards.labels[sample]] == told["scan"][0]
            found[(told["scan"], told["row"], told["column"], told["x"], told["y"])] += 1
    expected = {
        (name, *place) for name, pixels in SCANS.items() for place in Cutting(TILE, OVERLAP).tiles(pixels.shape[1], pixels.shape[0])
    }
    assert set(found) == expected
    assert set(found.values()) == {1}


def scans_of(folder: Path) -> list[str]:
    return [json.loads(data)["scan"] for name, data in members(folder).items() if name.endswith(".json")]


def test_a_scan_lies_in_one_split_and_its_tiles_are_shuffled_among_those_of_others(made):
    out, _ = made
    train, val = scans_of(out / "train"), scans_of(out / "val")
    assert set(train) | set(val) == set(SCANS)
    assert not set(train) & set(val)
    assert sum(one != other for one, other in itertools.pairwise(train)) > 2 * len(set(train))


def test_any_webdataset_reader_finds_the_place(made):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted((made[0] / "val").glob("*.tar"))]
    found = [json.loads(sample["json"]) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert [told["scan"] for told in found] == scans_of(made[0] / "val")


def test_the_words_at_the_end_count_scans_and_tiles(made, source, tmp_path):
    out, said = made
    tiles_made = sum(len(ShardSet.open(out / split)) for split in ("train", "val"))
    apart = len(ShardSet.open(out / "val"))
    assert f"cut:      7 scans -> {tiles_made} tiles of 16, neighbours share 3 pixels\n" in said
    assert f"kept apart: {apart} of {tiles_made} images" in said
    assert f"{len(set(scans_of(out / 'val')))} of 7 scans" in said
    assert f"data.shards={out}/train data.holdout_shards={out}/val" in said
    assert ShardSet.open(out / "train").manifest["source"] | {"tile": 16, "overlap": 3} == ShardSet.open(out / "train").manifest["source"]
    facts = json.loads(run(source, tmp_path / "out", *WORDS, "--workers", 1, "--json"))
    assert facts["cut"] == {"scans": 7, "tiles": tiles_made, "rejected": 0}
    assert facts["splits"]["val"]["images"] == apart


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_do_not_depend_on_workers_or_parts(source, made, tmp_path, workers):
    if workers == 1:
        for part in (2, 0, 1):
            run(source, tmp_path / "out", *WORDS, "--part", f"{part}/3", "--workers", 1)
    run(source, tmp_path / "out", *WORDS, "--workers", workers)
    assert content(tmp_path / "out") == content(made[0])


class Killed(BaseException):
    pass


def test_interrupted_anywhere_the_same_command_ends_with_the_same_bytes_and_cuts_nothing_twice(source, made, tmp_path, monkeypatch):
    monkeypatch.setattr(Destination, "abandon", lambda self: None)  # a kill leaves no time for this
    cut, calls, stop_at = Counter(), 0, 1
    real_cut, real_fsync = tiles.cut, tiles.write_stream.__globals__["os"].fsync

    def fsync(file) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Killed
        real_fsync(file)

    def counted(work, job, tick) -> None:
        real_cut(work, job, tick)
        cut[job.name] += 1

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(tiles, "cut", counted)
    kills = 0
    while True:
        calls = 0
        try:
            run(source, tmp_path / "out", *WORDS, "--workers", 1)
            break
        except Killed:
            kills, stop_at = kills + 1, stop_at + 3
            (rows,) = (tmp_path / "out" / ".work" / "tiles").glob("*") if (tmp_path / "out" / ".work" / "tiles").exists() else (None,)
            if rows:
                (rows / ".000001.rows.tmp-123").write_bytes(b"half a tile")
    assert kills >= 4
    assert len(cut) >= 4  # one that was stopped after its file had its name is not counted
    assert set(cut.values()) == {1}
    assert content(tmp_path / "out") == content(made[0])


def test_what_was_cut_is_kept_when_the_run_is_stopped(source, made, tmp_path, monkeypatch):
    def stop(*words) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mpp.prep.plan.counts_of", stop)
        run(source, tmp_path / "out", *WORDS, "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(tiles, "tiles_of", stop)
        run(source, tmp_path / "out", *WORDS, "--workers", 1)
    assert content(tmp_path / "out") == content(made[0])


def test_another_command_removes_what_a_stopped_one_had_cut(source, tmp_path, monkeypatch):
    def stop(*words) -> None:
        raise Killed

    for tile in (16, 12):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr("mpp.prep.plan.counts_of", stop)
            run(source, tmp_path / "out", "--tile", tile, "--workers", 1)
        assert len(list((tmp_path / "out" / ".work" / "tiles").iterdir())) == 1
    assert "7 images" in run(source, tmp_path / "out", "--workers", 1)


def test_scans_that_changed_since_they_were_cut_are_cut_again(tmp_path, monkeypatch):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encoded(noise(number, 20, 40)))
    with monkeypatch.context() as patch:
        patch.setattr("mpp.prep.plan.counts_of", lambda *words: (_ for _ in ()).throw(Killed))  # everything is cut by then
        with pytest.raises(Killed):
            run(folder, tmp_path / "out", "--tile", 16, "--workers", 1)
    assert list((tmp_path / "out" / ".work" / "tiles").glob("*/*.rows"))
    (folder / "0.png").write_bytes(encoded(noise(9, 20, 41)))
    run(folder, tmp_path / "out", "--tile", 16, "--workers", 1)
    run(folder, tmp_path / "other", "--tile", 16, "--workers", 1)
    assert content(tmp_path / "out") == content(tmp_path / "other")
    assert "is already complete" in run(folder, tmp_path / "out", "--tile", 16)
    for words, said in (
        (("--tile", 17), "tile was 16, is 17"),
        (("--tile", 16, "--overlap", 1), "overlap was 0, is 1"),
        ((), "tile was 16"),
    ):
        with pytest.raises(UserError, match=said):
            run(folder, tmp_path / "out", *words)
    (folder / "1.png").write_bytes(encoded(noise(8, 20, 40)))
    with pytest.raises(UserError, match="the files of scans changed"):
        run(folder, tmp_path / "out", "--tile", 16)


def test_scans_that_cannot_be_cut_are_rejects_with_their_reason(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, data in (
        ("small.png", encoded(noise(1, 15, 99))),
        ("cut.png", encoded(noise(2, 40, 40))[:900]),
        ("large.png", encoded(noise(3, 50, 60))),
        ("good.png", encoded(noise(4, 32, 48))),
    ):
        (folder / name).write_bytes(data)
    words = ("--tile", 16, "--max-pixels", 2500, "--workers", 1)
    with pytest.raises(UserError, match=r"3 of 9 files .*run again with --max-rejects 0\.334 "):
        run(folder, tmp_path / "out", *words)
    said = run(folder, tmp_path / "out", *words, "--max-rejects", 0.334)
    assert "cut:      1 scan -> 6 tiles of 16, 3 scans rejected\n" in said
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    reasons = {reject["name"]: reject["reason"] for reject in rejects}
    assert set(reasons) == {"small.png", "cut.png", "large.png"}
    assert reasons["small.png"].startswith("99x15 is smaller than a tile of 16")
    assert reasons["large.png"] == "too many pixels (60x50, the limit is 2500)"
    assert ShardSet.open(tmp_path / "out" / "train").manifest["rejects"] == 3
    assert verify_shards([str(tmp_path / "out"), "--full", "--quiet", "--workers", "1"]) == 0


def test_a_scan_that_is_damaged_further_down_leaves_no_half_of_itself(tmp_path):
    data = encoded(noise(1, 600, 64), "TIFF")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "0.tif").write_bytes(data[: len(data) // 2])
    (tmp_path / "scans" / "1.png").write_bytes(encoded(noise(2, 16, 32)))
    said = run(tmp_path / "scans", tmp_path / "out", "--tile", 16, "--max-rejects", 0.5, "--workers", 1)
    assert "1 scan -> 2 tiles of 16, 1 scan rejected" in said


def test_one_scan_is_held_at_a_time(source, tmp_path, monkeypatch):
    held, most, real = Counter(), [], tiles.storable

    def storable(*words) -> Image.Image:
        most.append(held["scans"])
        image = real(*words)
        held["scans"] += 1
        weakref.finalize(image, held.subtract, ["scans"])
        return image

    monkeypatch.setattr(tiles, "storable", storable)
    monkeypatch.setattr(tiles, "FILES", 2)  # of several scans each
    run(source, tmp_path / "out", "--tile", 16, "--workers", 1)
    assert most == [0] * 7


def test_files_may_be_as_large_as_their_pixels_allow(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Reader, "most_bytes", 1500)  # every scan here has more, every tile less
    with pytest.raises(UserError, match=r"none of 7 files .* and the limit is 1500"):
        run(source, tmp_path / "whole", "--workers", 1)
    assert "7 scans ->" in run(source, tmp_path / "out", "--tile", 16, "--workers", 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tile", 16, "--overlap", 16), "--overlap 16 must be less than --tile 16"),
        (("--overlap", 4), "--overlap is of tiles; give --tile with it"),
        (("--tile", 7), "not a whole number of at least 8"),
        (("--tile", 9000), "at most 8192"),
        (("--tile", 16, "--encode", "png", "--quality", 80), "--quality is of encoded images"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_written(source, tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run(source, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_groups_are_those_of_the_scans_and_one_scan_alone_cannot_be_divided(source, tmp_path):
    run(source, tmp_path / "out", "--tile", 16, "--val", 0.4, "--group", "re:^(.)/", "--workers", 1)
    train, val = ({name[0] for name in scans_of(tmp_path / "out" / split)} for split in ("train", "val"))
    assert sorted([*train, *val]) == ["a", "b"]
    with pytest.raises(UserError, match=r"--group re:x: .* has none, so it may be of any"):
        run(source, tmp_path / "none", "--tile", 16, "--val", 0.4, "--group", "re:x")
    assert not (tmp_path / "none").exists()  # told before anything was cut
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "scan.png").write_bytes(encoded(noise(0, 64, 64)))
    with pytest.raises(UserError, match=r"--tile keeps a scan whole, and --val finds 1 in 16 images.*give more scans, or leave out --val"):
        run(tmp_path / "one", tmp_path / "none", "--tile", 16, "--val", 0.4)


def test_splits_of_the_source_are_kept(tmp_path):
    for number, name in enumerate(("train/a/0", "train/b/1", "val/a/2", "val/b/3")):
        path = tmp_path / "scans" / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(noise(number, 32, 32)))
    run(tmp_path / "scans", tmp_path / "out", "--tile", 16, "--labels", "--workers", 1)
    assert set(scans_of(tmp_path / "out" / "val")) == {"val/a/2.png", "val/b/3.png"}
    assert ShardSet.open(tmp_path / "out" / "val").classes == ["a", "b"]


def test_tiles_are_shrunk_and_encoded_like_any_image(source, tmp_path):
    said = run(source, tmp_path / "out", "--tile", 16, "--resize", 8, "--encode", "png", "--workers", 1)
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert {shards.size_of(sample) for sample in range(len(shards))} == {(8, 8)}
    assert f"shrunk to a short side of 8: {len(shards)}" in said
    assert shards.read(0)[:4] == b"\x89PNG"


def test_blank_tiles_are_repeats_and_can_be_left_out(tmp_path):
    (tmp_path / "scans").mkdir()
    page = np.full((64, 64, 3), 255, np.uint8)
    page[:16, :16] = noise(0, 16, 16)
    (tmp_path / "scans" / "page.png").write_bytes(encoded(page))
    said = run(tmp_path / "scans", tmp_path / "out", "--tile", 16, "--dedup", "--workers", 1)
    assert "cut:      1 scan -> 16 tiles of 16" in said
    assert "repeats:  14, byte for byte; 14 left out" in said
    assert len(ShardSet.open(tmp_path / "out" / "train")) == 2
    repeats = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert all(repeat["name"].startswith("page.png/r") for repeat in repeats)
    assert verify_shards([str(tmp_path / "out"), "--full", "--quiet", "--workers", "1"]) == 0


# ---------------------------------------------------------------- verified, inspected, compared, read again


@pytest.fixture
def copy(made, tmp_path) -> Path:
    folder = tmp_path / "val"
    folder.mkdir()
    for path in (made[0] / "val").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_whole_set_of_tiles_has_no_fault(made, capsys):
    assert verify_shards([str(made[0]), "--full", "--quiet", "--workers", "1"]) == 0
    assert inspect_shards([str(made[0] / "train"), "--quiet", "--out", str(made[0].parent)]) == 0
    assert "cut:      tiles of 16 (neighbours share 3 pixels)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (b'"row": 0', b'"row": 7', "place"),
        (b'{"scan"', b'["scan"', "place"),
        (b'"x"', b'"z"', "place"),
        (b".json\0", b".jsun\0", "place"),
        (b'"scan": "b/', b'"scan": "c/', "shard sha256"),
    ],
)
def test_a_place_that_cannot_be_is_a_fault(copy, capsys, before, after, kind):
    path = copy / "000000.tar"
    data = path.read_bytes()
    at = data.index(before)
    path.write_bytes(data[:at] + after + data[at + len(before) :])
    assert verify_shards([str(copy), "--full", "--quiet", "--json", "--workers", "1"]) == 1
    assert json.loads(capsys.readouterr().out)["splits"][0]["kinds"].get(kind) == 1


def test_sets_that_were_cut_otherwise_are_not_taken_for_stored_alike(made, source, tmp_path):
    run(source, tmp_path / "out", "--tile", 16, "--workers", 1)
    cut, other = ShardSet.open(made[0] / "train"), ShardSet.open(tmp_path / "out" / "train")
    assert how_stored(cut) == how_stored(ShardSet.open(made[0] / "val")) != how_stored(other)


def test_tiles_are_a_source_again_and_grouped_by_their_scan(made, tmp_path):
    run(made[0] / "train", tmp_path / "out", "--val", 0.3, "--group", "scan", "--workers", 1)
    shards = {split: ShardSet.open(tmp_path / "out" / split) for split in ("train", "val")}
    first = ShardSet.open(made[0] / "train")
    scans = dict(zip([first.read(sample) for sample in range(len(first))], scans_of(made[0] / "train"), strict=True))
    found = {split: {scans[one.read(sample)] for sample in range(len(one))} for split, one in shards.items()}
    assert found["train"]
    assert found["val"]
    assert not found["train"] & found["val"]


def test_a_shard_of_tiles_costs_a_header_and_a_line_a_tile(made):
    shards, stored = ShardSet.open(made[0] / "val"), members(made[0] / "val")
    padded = sum(512 + len(data) + -len(data) % 512 for data in stored.values())
    assert Fraction(padded, len(shards)) < 512 * 6 + TILE * TILE * 4
