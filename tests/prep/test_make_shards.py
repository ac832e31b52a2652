"""make_shards.py as its users meet it: a command with a folder before it and shards behind it."""

import contextlib
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.make_shards import main
from mpp.base.errors import UserError
from mpp.data.decode import decode
from mpp.data.shards import ShardSet

PROGRAM = Path(__file__).parents[2] / "data_prep" / "make_shards.py"
IMAGES = 30


def make(*words, **options) -> str:
    """What the program prints; options of subprocess.run make it run in a process of its own, which takes longer."""
    if options:
        done = subprocess.run(command(*words), capture_output=True, text=True, timeout=120, check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*map(str, words), "--quiet"]) == 0
    return printed.getvalue()


def fails(*words, **options) -> str:
    """The one line that the program ends with."""
    if options:
        done = subprocess.run(command(*words), capture_output=True, text=True, timeout=120, check=False, **options)
        assert done.returncode == 2, (done.stdout, done.stderr)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(UserError) as error:
        main([*map(str, words), "--quiet"])
    return str(error.value)


def command(*words) -> list[str]:
    return [sys.executable, str(PROGRAM), *map(str, words), "--quiet"]


def picture(number: int, form: str = "JPEG", size=(20, 16)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def files(images: int = IMAGES) -> dict[str, bytes]:
    """Three classes; one image in five is a PNG, one a WebP."""
    forms = ("JPEG", "PNG", "WEBP", "JPEG", "JPEG")
    names = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    return {f"{'abc'[n % 3]}/{n:02d}.{names[forms[n % 5]]}": picture(n, forms[n % 5], (20 + n % 7, 16)) for n in range(images)}


def lay_out(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return lay_out(tmp_path_factory.mktemp("source") / "photos", files())


@pytest.fixture(scope="session")
def made(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    make(source, out, "--labels", "--val", 5, "--samples-per-shard", 4, "--workers", 1)
    return out


def snapshot(out: Path) -> dict[str, bytes]:
    """Every visible file; the work folder holds only a plan."""
    assert {path.name for path in (out / ".work").iterdir()} == {"plan.json", "lock", "lock-plan"}
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


def test_every_image_is_in_exactly_one_split_with_its_bytes_and_label(made):
    content = files()
    found = []
    for split, count in (("train", IMAGES - 5), ("val", 5)):
        shards = ShardSet.open(made / split)
        assert len(shards) == count
        assert shards.labelled
        assert shards.index["key"].tolist() == list(range(count))
        found += [(shards.read(sample), shards.classes[shards.labels[sample]]) for sample in range(count)]
    assert sorted(found) == sorted((data, name[0]) for name, data in content.items())
    assert found != sorted(found)  # shuffled


def test_the_manifests_claims_hold_when_worked_out_anew(made):
    folder = made / "train"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["shards"]] == [f"{shard:06d}.tar" for shard in range(7)]
    assert [entry["samples"] for entry in manifest["shards"]] == [4] * 6 + [1]
    pixels, sizes = [], []
    for entry in manifest["shards"]:
        data = (folder / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        with tarfile.open(folder / entry["name"]) as tar:
            images = [decode(tar.extractfile(info).read()) for info in tar if not info.name.endswith(".cls")]
        pixels += [image.reshape(-1, 3) for image in images]
        sizes += [image.shape[1::-1] for image in images]
    index = ShardSet.open(folder).index
    assert list(zip(index["width"].tolist(), index["height"].tolist(), strict=True)) == sizes
    np.testing.assert_allclose(manifest["mean"], np.concatenate(pixels).mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(manifest["std"], np.concatenate(pixels).std(0) / 255, rtol=1e-12)
    assert manifest["samples"] == manifest["mean_std_images"] == sum(count for _, count in manifest["short_sides"]) == IMAGES - 5
    assert manifest["bytes"] == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert manifest["classes"] == ["a", "b", "c"]
    assert manifest["source"] == {
        "name": "photos", "kind": "folder", "image_field": None, "label_field": None, "labels": True, "label_names": False,
        "class_level": None, "split_level": None, "val": 5, "seed": 0, "samples_per_shard": 4,
        "dedup": False, "check": "header", "resize": None, "encode": "keep", "quality": None, "max_pixels": None,
    }  # fmt: skip


def test_webdataset_opens_every_shard(made):
    webdataset = pytest.importorskip("webdataset")
    shards = ShardSet.open(made / "train")
    urls = [str(path) for path in sorted((made / "train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [int(sample["__key__"]) for sample in samples] == shards.index["key"].tolist()
    images = [next(sample[field] for field in ("jpg", "png", "webp") if field in sample) for sample in samples]
    assert images == [shards.read(sample) for sample in range(len(shards))]
    assert [int(sample["cls"]) for sample in samples] == shards.labels.tolist()


@pytest.mark.parametrize("workers", [2, 5])
def test_the_number_of_workers_changes_no_byte(source, made, tmp_path, workers):
    make(source, tmp_path / "out", "--labels", "--val", 5, "--samples-per-shard", 4, "--workers", workers)
    assert snapshot(tmp_path / "out") == snapshot(made)


def test_another_seed_shuffles_otherwise_and_val_does_not_move_the_start_of_train(source, made, tmp_path):
    make(source, tmp_path / "plain", "--labels", "--samples-per-shard", 4)
    make(source, tmp_path / "other", "--labels", "--samples-per-shard", 4, "--seed", 1)
    assert not (tmp_path / "plain" / "val").exists()
    first = [(out / "train" / "000000.tar").read_bytes() for out in (made, tmp_path / "plain", tmp_path / "other")]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("kind", ["zip", "stored.zip", "tar", "tar.gz", "tgz", "tar.xz"])
def test_an_archive_gives_the_shards_of_its_folder(made, tmp_path, kind):
    archive = tmp_path / f"photos.{kind}"
    content = {"./" + name if "tar" in kind else name: data for name, data in files().items()}
    if kind.endswith("zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED) as zipped:
            for name, data in content.items():
                zipped.writestr(name, data)
    else:
        with tarfile.open(archive, {"tar": "w", "tar.xz": "w:xz"}.get(kind, "w:gz")) as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    make(archive, tmp_path / "out", "--labels", "--val", 5, "--samples-per-shard", 4)
    found, expected = snapshot(tmp_path / "out"), snapshot(made)
    manifests = {name for name in found if name.endswith("manifest.json")}  # they name the source
    assert {name: data for name, data in found.items() if name not in manifests} == {
        name: data for name, data in expected.items() if name not in manifests
    }


def test_hostile_and_odd_members_are_counted_and_never_extracted(tmp_path):
    archive = tmp_path / "odd.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("../../evil.jpg", "good.jpg", "/root.jpg", ".hidden.jpg", "__MACOSX/._x.jpg", "notes.txt", "good.jpg"):
            info = tarfile.TarInfo(name)
            data = picture(1)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    summary = make(archive, tmp_path / "deep" / "er" / "out", "--max-rejects", 0.5)
    assert "2 images" in summary
    assert "rejected: 1" in summary
    assert "ignored:  5 ((hidden) 2, (names with ..) 1, (repeated names) 1, .txt 1)" in summary
    assert not list(tmp_path.rglob("evil.jpg"))


def test_other_formats_become_png_without_loss_and_broken_ones_are_listed(tmp_path):
    pixels = Image.fromarray(np.random.default_rng(5).integers(0, 256, (9, 7, 3), np.uint8))
    folder = lay_out(tmp_path / "mixed", {"readme.md": b"x", "cut.jpg": picture(1)[:-200], "text.png": b"no image", "empty.webp": b""})
    pixels.save(folder / "1.bmp")
    pixels.save(folder / "2.tiff")
    pixels.save(folder / "3.ppm")
    pixels.quantize(8).save(folder / "4.gif", save_all=True, append_images=[pixels.rotate(90)])
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    message = fails(folder, tmp_path / "out")
    assert "4 of 8 files are not readable images, first " in message
    assert "--max-rejects 0.5 " in message
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()
    stamp = (tmp_path / "out" / "train" / "000000.tar").stat().st_mtime_ns

    summary = make(folder, tmp_path / "out", "--max-rejects", 0.5)
    assert (tmp_path / "out" / "train" / "000000.tar").stat().st_mtime_ns == stamp  # kept
    assert "converted to PNG (first frame, without loss): 4" in summary
    assert "ignored:  1 (.md 1)" in summary
    assert "kept from an earlier run: 1 of 1 shards" in summary
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {reject["name"] for reject in rejects} == {"cut.jpg", "text.png", "empty.webp", "lost.jpg"}
    shards = ShardSet.open(tmp_path / "out" / "train")
    assert shards.manifest["rejects"] == 4
    assert sorted([*shards.index["key"].tolist(), *(reject["key"] for reject in rejects)]) == list(range(8))  # numbered before
    found = [decode(shards.read(sample)) for sample in range(4)]
    quantized = np.array(pixels.quantize(8).convert("RGB"))
    assert sum(np.array_equal(image, np.array(pixels)) for image in found) == 3
    assert sum(np.array_equal(image, quantized) for image in found) == 1


def test_resize_shrinks_the_short_side_and_copies_what_is_small(tmp_path):
    small, wide, tall = picture(1, size=(40, 30)), picture(2, "PNG", (90, 60)), picture(3, size=(48, 144))
    folder = lay_out(tmp_path / "sizes", {"small.jpg": small, "wide.png": wide, "tall.jpg": tall})
    assert "shrunk to a short side of 32: 2" in make(folder, tmp_path / "out", "--resize", 32)
    shards = ShardSet.open(tmp_path / "out" / "train")
    sizes = zip(shards.index["width"].tolist(), shards.index["height"].tolist(), strict=True)
    assert sorted(sizes) == [(32, 96), (40, 30), (48, 32)]
    assert small in [shards.read(sample) for sample in range(3)]
    assert all(Image.open(io.BytesIO(shards.read(sample))).format == "JPEG" for sample in range(3))


# Stands in for os.rename, os.fsync and os.unlink, and kills the whole group at the given call, before or after it.
KILLER = """
import os, runpy, signal, sys
counter, at, after = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after"
def watch(call):
    def watched(*args, **options):
        handle = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b"x")
        now = os.fstat(handle).st_size
        os.close(handle)
        if now == at and not after: os.killpg(0, signal.SIGKILL)
        try: return call(*args, **options)
        finally:
            if now == at: os.killpg(0, signal.SIGKILL)
    return watched
os.rename, os.fsync, os.unlink = watch(os.rename), watch(os.fsync), watch(os.unlink)
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(tmp_path):
    folder = lay_out(tmp_path / "photos", files(10))
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(folder, ".")
    words = [tmp_path / "photos.tar.gz", "--val", 3, "--samples-per-shard", 4, "--workers", 1]
    make(tmp_path / "photos.tar.gz", tmp_path / "whole", *words[1:])
    expected = snapshot(tmp_path / "whole")
    killed, at = 0, 1
    while True:
        out = tmp_path / f"out{at}"
        command = [
            sys.executable,
            "-c",
            KILLER,
            tmp_path / f"count{at}",
            at,
            ("before", "after")[at % 2],
            PROGRAM,
            words[0],
            out,
            *words[1:],
        ]
        status = subprocess.run(list(map(str, command)), capture_output=True, start_new_session=True, timeout=60, check=False).returncode
        if status == 0:
            break
        assert status == -9
        killed += 1
        for split in ("train", "val"):  # whatever has a manifest is whole
            if (out / split / "manifest.json").exists():
                ShardSet.open(out / split)
        make(words[0], out, *words[1:])
        assert snapshot(out) == expected
        at += 4
    assert killed >= 8


def test_a_kept_shard_that_was_damaged_meanwhile_is_made_again(tmp_path):
    folder = lay_out(tmp_path / "photos", {**files(12), "bad.jpg": b"bad"})
    fails(folder, tmp_path / "out", "--samples-per-shard", 4)  # all shards are made, the manifest is not
    shard = tmp_path / "out" / "train" / "000001.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:600] + b"?" + before[601:])
    make(folder, tmp_path / "out", "--samples-per-shard", 4, "--max-rejects", 0.1)
    assert shard.read_bytes() == before


def test_a_complete_set_is_left_alone_and_another_command_is_refused(tmp_path):
    folder = lay_out(tmp_path / "photos", files(6))
    out = tmp_path / "out"
    make(folder, out)
    before = snapshot(out)
    assert "already complete" in make(folder, out)
    assert "is complete, but by another command (seed was 0, is 3); repeat that command, remove" in fails(folder, out, "--seed", 3)
    (folder / "a" / "new.jpg").write_bytes(picture(99))
    assert "the files of photos changed" in fails(folder, out)
    assert snapshot(out) == before
    (folder / "a" / "new.jpg").unlink()
    os.truncate(out / "train" / "000000.tar", 2000)
    assert "000000.tar: has 2000 bytes" in fails(folder, out)


def test_a_half_done_set_refuses_another_command(tmp_path):
    folder = lay_out(tmp_path / "photos", {**files(6), "bad.jpg": b"bad"})
    fails(folder, tmp_path / "out")
    assert "is half done, but by another command (resize was None, is 8)" in fails(folder, tmp_path / "out", "--resize", 8)


def test_bad_input_is_told_with_what_to_do(tmp_path, source):
    out = tmp_path / "out"
    (tmp_path / "none").mkdir()
    lay_out(tmp_path / "text", {"a.txt": b"x", "b.heic": b"x"})
    lay_out(tmp_path / "bare", {"a/1.jpg": picture(1), "2.jpg": picture(2)})
    (tmp_path / "x.rar").write_bytes(b"Rar!" * 100)
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\0")
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(source, "photos")
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:5000])
    with tarfile.open(tmp_path / "whole.tar") as tar:
        header = next(info.offset for info in tar if info.name.endswith("08.jpg"))
    (tmp_path / "at header.tar").write_bytes(data[:header])  # tarfile itself says nothing about either of these
    (tmp_path / "flipped.tar").write_bytes(data[:header] + b"#" + data[header + 1 :])
    lay_out(tmp_path / "mine", {"thesis.tex": b"x"})
    for words, message in (
        ((tmp_path / "nowhere", out), "nowhere: no such file or folder; give a folder of images, a .zip,"),
        ((tmp_path / "none", out), "none: holds no images"),
        ((tmp_path / "text", out), "holds no images among 2 files (.heic 1, .txt 1)"),
        ((source / "a" / "00.jpg", out), "is a single file; give the folder that holds the images"),
        ((tmp_path / "x.rar", out), "is neither a folder nor a whole archive"),
        ((tmp_path / "cut.tar.gz", out), "cut.tar.gz: is cut short or damaged"),
        ((tmp_path / "cut.tar", out), "cut.tar: is cut short or damaged"),
        ((tmp_path / "at header.tar", out), f"is cut short or damaged at byte {header}"),
        ((tmp_path / "flipped.tar", out), f"is cut short or damaged at byte {header}"),
        ((tmp_path / "bare", out, "--labels"), "'2.jpg' lies in no folder, so it has no class; mend that, or leave out --labels"),
        ((source, out, "--val", "0.001"), "--val 0.001 of 30 images is 0, and val and train need one at least; give a number from 1 to 29"),
        ((source, out, "--val", "30"), "30 images is 30, and val and train need one at least; give a number from 1 to 29"),
        ((source, out, "--val", "1.5"), "'1.5' is neither a share below 1 nor a count of images"),
        ((source, out, "--samples-per-shard", "0"), "'0' is not a whole number of at least 1"),
        ((source, out, "--max-reject", "x"), "'x' is not a share"),
        ((source, out, "--colour"), "unrecognized arguments: --colour; --help lists the options"),
        ((source,), "the following arguments are required: OUT"),
        ((source, source), "SOURCE and OUT are the same folder"),
        ((source, tmp_path / "mine"), "is not empty and was not begun by make_shards.py"),
        ((source, tmp_path / "x.rar"), "x.rar: is a file; choose another OUT"),
        ((source, "/proc/nothing/out"), "check that SOURCE can be read and OUT written"),
    ):
        assert message in fails(*words), words
    assert not out.exists()


def test_a_folder_of_splits_is_no_folder_of_images_though_a_contact_sheet_lies_in_it(tmp_path, source):
    made = tmp_path / "made"
    assert main([str(source), str(made)]) == 0
    Image.new("RGB", (8, 8)).save(made / "inspect-train.png")
    assert "holds splits of shards, not images; to make them anew give one of them, such as " + str(made / "train") in fails(
        made, tmp_path / "again"
    )
    assert not (tmp_path / "again").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(source, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    message = fails(source, tmp_path / "out", "--workers", 2, preexec_fn=limit)
    assert "File too large" in message
    assert "run the same command again" in message
    assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == []
    make(source, tmp_path / "out")
    assert len(ShardSet.open(tmp_path / "out" / "train")) == IMAGES


def test_it_runs_with_a_safe_path_and_with_its_output_inside_the_source(tmp_path):
    folder = lay_out(tmp_path / "photos", files(6))
    make(".", "shards", cwd=folder, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert "already complete" in make(".", "shards", cwd=folder)
    assert len(ShardSet.open(folder / "shards" / "train")) == 6


def test_a_real_archive(tmp_path):
    data = Path(os.environ.get("MPP_TEST_DATA", PROGRAM.parents[2] / "shared" / "data")) / "photos-300.tar"
    if not data.exists():
        pytest.skip(f"{data} is not here; MPP_TEST_DATA names the folder")
    make(data, tmp_path / "out", "--val", 0.1)
    shards = ShardSet.open(tmp_path / "out" / "train")
    with tarfile.open(data) as tar:
        known = {hashlib.sha256(tar.extractfile(info).read()).digest() for info in tar}
    assert len(shards) == 270
    assert {hashlib.sha256(shards.read(sample)).digest() for sample in range(270)} < known
