"""Parquet image data sets, as Hugging Face stores them and as others do, become shards."""

import io
import json
from collections import Counter, namedtuple
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mpp.base.errors import BadSample, DataError
from mpp.data.shards import ShardSet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from data_prep import make_shards  # noqa: E402
from mpp.prep.source import SourceOptions  # noqa: E402
from mpp.prep.sources import open_source  # noqa: E402
from mpp.prep.sources.parquet import Parquet, split_of  # noqa: E402

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["crane", "dog", "crane"]  # ImageNet has two cranes


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def features(**columns) -> dict:
    return {"huggingface": json.dumps({"info": {"features": columns}})}


def write(path: Path, columns: dict, metadata: dict | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=3, **options)
    return path


def images(numbers) -> "pa.Array":
    return pa.array([{"bytes": picture(number), "path": f"{number}.png"} for number in numbers], IMAGE)


def hugging_face(folder: Path) -> Path:
    """10 training images in two files, 4 for validation."""
    known = features(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": NAMES})
    for name, numbers in (
        ("train-00000-of-00002", range(7)),
        ("train-00001-of-00002", range(7, 10)),
        ("validation-00000-of-00001", range(10, 14)),
    ):
        labels = pa.array([number % 3 for number in numbers], pa.int64())
        write(folder / "data" / f"{name}.parquet", {"image": images(numbers), "label": labels}, known)
    (folder / "README.md").write_text("a card")
    return folder


def make(source: Path, out: Path, *words) -> None:
    assert make_shards.main([str(source), str(out), "--quiet", "--workers", "1", "--samples-per-shard", "4", *words]) == 0


def stored(folder: Path) -> dict[bytes, int]:
    shards = ShardSet.open(folder)
    return {shards.read(sample): int(shards.labels[sample]) for sample in range(len(shards))}


def unpacked(path: Path, scratch: Path, **options) -> Parquet:
    scratch.mkdir(exist_ok=True)
    return open_source(path, scratch, SourceOptions(**options)).unpack(
        scratch, lambda what, total: nullcontext(SimpleNamespace(update=int))
    )


def items(path: Path, scratch: Path, **options) -> list:
    return list(unpacked(path, scratch, **options).items(Counter()))


def test_a_hugging_face_folder_keeps_its_splits_bytes_labels_and_class_names(tmp_path):
    make(hugging_face(tmp_path / "birds"), tmp_path / "out", "--labels")
    assert stored(tmp_path / "out" / "train") == {picture(number): number % 3 for number in range(10)}
    assert stored(tmp_path / "out" / "val") == {picture(number): number % 3 for number in range(10, 14)}
    assert ShardSet.open(tmp_path / "out" / "val").classes == NAMES
    assert [path.name for path in (tmp_path / "out" / ".work").iterdir() if not path.name.startswith("lock")] == ["plan.json"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00005.parquet", "train"),
        ("data/validation-00000-of-00001-6b9f2a.parquet", "val"),
        ("default/test/0000.parquet", "test"),
        ("default/validation/0000.parquet", "val"),
        ("train_extra-00000-of-00004.parquet", "train_extra"),
        ("train.parquet", "train"),
        ("valid_03.parquet", "val"),
        ("training/x.parquet", "train"),
        ("trains/test/x.parquet", "test"),
        ("trainstation.parquet", "train"),
        ("testament.parquet", "train"),
        ("images.parquet", "train"),
    ],
)
def test_the_split_is_read_from_the_name(name, split):
    assert split_of(name) == split


def test_columns_are_found_by_type_and_the_unclear_are_asked_for(tmp_path):
    columns = {"left": images(range(2)), "right": images(range(2, 4)), "id": ["x", "y"], "fine": [5, 0], "coarse": [1, 0]}
    known = features(fine={"_type": "ClassLabel", "names": list("abcdef")}, coarse={"_type": "ClassLabel", "names": ["m", "n"]})
    path = write(tmp_path / "pairs.parquet", columns, known)
    with pytest.raises(DataError, match=r"2 columns of images \(of encoded bytes: left, right; .*choose one with --image-field"):
        open_source(path, tmp_path)
    with pytest.raises(DataError, match=r"has no column colour of labels .* id, fine, coarse"):
        open_source(path, tmp_path, SourceOptions(image_field="left", label_field="colour"))
    with pytest.raises(DataError, match=r"has no label column \(fine, coarse: choose with --label-field\)"):
        make(path, tmp_path / "out", "--labels", "--image-field", "right")
    make(path, tmp_path / "out", "--labels", "--image-field", "right", "--label-field", "fine")
    assert stored(tmp_path / "out" / "train") == {picture(2): 5, picture(3): 0}
    with pytest.raises(DataError, match="label_field was fine, is coarse"):
        make(path, tmp_path / "out", "--labels", "--image-field", "right", "--label-field", "coarse")


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array(["b", "a"]), ["a", "b"], [1, 0]),
        (pa.array(["b", "a"]).dictionary_encode(), ["a", "b"], [1, 0]),
        (pa.array(["10", "9"]), ["10", "9"], [0, 1]),
        (pa.array([2, 0], pa.uint8()), ["0", "1", "2"], [2, 0]),
    ],
)
def test_plain_bytes_and_every_kind_of_label_are_read(tmp_path, labels, classes, numbers):
    make(write(tmp_path / "x.parquet", {"jpg": [picture(0), picture(1)], "label": labels}), tmp_path / "out", "--labels")
    assert stored(tmp_path / "out" / "train") == {picture(0): numbers[0], picture(1): numbers[1]}
    assert ShardSet.open(tmp_path / "out" / "train").classes == classes


def test_rows_without_bytes_are_rejected_with_their_path(tmp_path):
    rows = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": "far/1.png"}, None, {"bytes": b"", "path": "2.png"}]
    path = write(tmp_path / "x.parquet", {"image": pa.array(rows, IMAGE)})
    make(path, tmp_path / "out", "--max-rejects", "0.8")
    assert list(stored(tmp_path / "out" / "train")) == [picture(0)]
    reasons = {reject["name"]: reject["reason"] for reject in map(json.loads, (tmp_path / "out" / "rejects.jsonl").open())}
    assert reasons == {
        "x.parquet/1": "the row has no bytes, only the path far/1.png",
        "x.parquet/2": "the row has no bytes",
        "x.parquet/3": "an empty file",
    }


def test_labels_that_are_missing_or_have_no_name_are_refused(tmp_path):
    known = features(label={"_type": "ClassLabel", "names": NAMES})
    for labels, message in (
        ([0, None], "'x.parquet/1' has no label in the column label"),
        ([0, -1], "/1' has no label"),
        ([0, 3], "holds 3, but has 3"),
    ):
        path = write(tmp_path / "x.parquet", {"image": images(range(2)), "label": labels}, known)
        with pytest.raises(DataError, match=message):
            make(path, tmp_path / "out", "--labels")
        assert not (tmp_path / "out").exists()


def test_damage_is_named(tmp_path):
    folder = hugging_face(tmp_path / "birds")
    path = folder / "data" / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet: is cut short or damaged"):
        open_source(folder, tmp_path)
    path = write(tmp_path / "x.parquet", {"image": images(range(2))}, write_page_checksum=True, write_statistics=False, compression="none")
    whole = path.read_bytes()
    at = whole.index(picture(1)) + 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"x.parquet: is cut short or damaged"):
        unpacked(path, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())


def test_what_was_unpacked_is_kept_unless_the_file_or_the_columns_changed(tmp_path):
    columns = {"left": images(range(5)), "right": images(range(5, 10))}
    path = write(tmp_path / "x.parquet", columns)
    scratch = tmp_path / "scratch"
    assert len(items(path, scratch, image_field="left")) == 5
    (only,) = scratch.iterdir()
    made = only.stat().st_ino
    source = unpacked(path, scratch, image_field="left")
    assert only.stat().st_ino == made
    reader = source.reader()
    assert [reader.read(item) for item in source.items(Counter())] == [picture(number) for number in range(5)]
    reader.close()
    assert len(items(path, scratch, image_field="right")) == 5
    assert len(list(scratch.iterdir())) == 2
    write(path, {name: column[:4] for name, column in columns.items()})
    assert len(items(path, scratch, image_field="left")) == 4


def test_two_data_sets_in_one_folder_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    folder = hugging_face(tmp_path / "birds")
    free = namedtuple("usage", "free")
    with monkeypatch.context() as patched:
        patched.setattr("mpp.prep.sources.parquet.shutil.disk_usage", lambda path: free(1000))
        with pytest.raises(DataError, match=r"must be copied out of birds .* has [\d.]+ \w+ free"):
            unpacked(folder, tmp_path / "scratch")
    write(folder / "other" / "train.parquet", {"image": images(range(2))})
    with pytest.raises(DataError, match=r"data/train-00000-of-00002.parquet and other/train.parquet do not have the same columns"):
        open_source(folder, tmp_path)


def test_a_table_beside_images_does_not_make_a_folder_parquet(tmp_path, capsys):
    write(tmp_path / "photos" / "metadata.parquet", {"file_name": ["a.png"], "label": [1]})
    assert open_source(tmp_path / "photos", tmp_path, SourceOptions("folder")).kind == "folder"
    (tmp_path / "photos" / "a.png").write_bytes(picture(0))
    assert open_source(tmp_path / "photos", tmp_path).kind == "folder"
    make(tmp_path / "photos", tmp_path / "out")
    assert "photos is read as a folder of images; for its 1 .parquet files say --format parquet" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no columns of images .* images must be stored as their files' bytes"):
        open_source(tmp_path / "photos", tmp_path, SourceOptions("parquet"))


def test_a_file_without_bytes_is_no_sample(tmp_path):
    source = unpacked(write(tmp_path / "x.parquet", {"image": pa.array([{"bytes": None, "path": "a.png"}], IMAGE)}), tmp_path / "scratch")
    (item,) = source.items(Counter())
    with pytest.raises(BadSample, match=r"only the path a.png"):
        source.reader().read(item)
