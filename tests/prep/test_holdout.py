"""--val: of each class alike, and nothing of one thing in two splits."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.make_shards import main
from mpp.base.errors import DataError, UserError
from mpp.data.class_folders import listed_names
from mpp.data.shards import ShardSet
from mpp.prep.holdout import Grouping, choose, quotas

SIZES = {"ant": 23, "bee": 11, "cat": 1, "dog": 5}


def make(*words) -> None:
    assert main([*map(str, words), "--quiet"]) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory, picture) -> Path:
    """Each class's images are of three patients; a patient has images of several classes."""
    folder, number = tmp_path_factory.mktemp("holdout") / "photos", 0
    for name, count in SIZES.items():
        for image in range(count):
            path = folder / name / f"patient{image % 9}" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
            number += 1
    return folder


def by_class(split: Path) -> Counter:
    shards = ShardSet.open(split)
    return Counter(shards.classes[label] for label in shards.labels)


def visible(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and ".work" not in path.parts}


@given(
    counts=st.dictionaries(st.integers(0, 50), st.integers(1, 40), min_size=1, max_size=12).map(Counter),
    share=st.floats(0, 1),
)
def test_quotas_are_exact_and_no_class_is_off_by_an_image_or_loses_its_last(counts, share):
    most = sum(count - 1 for count in counts.values())
    wanted = round(share * most)
    chosen = quotas(counts, wanted, lambda number: str(number).encode())
    assert chosen.total() == wanted
    total = counts.total()
    full = any(chosen[number] == count - 1 for number, count in counts.items())  # others take what such a class cannot give
    for number, count in counts.items():
        assert 0 <= chosen[number] < count
        assert chosen[number] * total > wanted * count - total or chosen[number] == count - 1
        assert full or chosen[number] * total < wanted * count + total
    with pytest.raises(UserError, match=f"at most {most} can be kept apart"):
        quotas(counts, most + 1, lambda number: b"")


@pytest.mark.parametrize(
    ("val", "expected"),
    [(10, {"ant": 6, "bee": 3, "dog": 1}), (0.4, {"ant": 9, "bee": 5, "dog": 2}), (36, {"ant": 22, "bee": 10, "dog": 4})],
)
def test_val_has_of_each_class_its_share_and_train_keeps_a_single_image_which_is_told(source, tmp_path, capsys, val, expected):
    make(source, tmp_path / "out", "--labels", "--val", val)
    found = by_class(tmp_path / "out" / "val")
    assert found == expected
    train = by_class(tmp_path / "out" / "train")
    assert train == Counter(SIZES) - found
    single = listed_names([name for name, count in sorted(train.items()) if count == 1])
    told = [line for line in capsys.readouterr().out.splitlines() if " one image in train: " in line]
    assert [line.partition(" in train: ")[2].partition(";")[0] for line in told] == [single] * bool(single)
    with pytest.raises(UserError, match="at most 36 can be kept apart"):
        make(source, tmp_path / "more", "--labels", "--val", 37)
    assert not (tmp_path / "more").exists()


WORDS = ("--labels", "--val", 0.3, "--samples-per-shard", 4)


@pytest.mark.parametrize("group", [(), ("--group", 2)])
def test_workers_parts_and_the_source_s_packing_change_no_byte(source, tmp_path, group):
    make(source, tmp_path / "out", *WORDS, *group)
    expected = visible(tmp_path / "out")
    make(source, tmp_path / "workers", *WORDS, *group, "--workers", 2)
    for part in (1, 0):
        make(source, tmp_path / "parts", *WORDS, *group, "--part", f"{part}/2")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.tar")}
    make(source, tmp_path / "parts", *WORDS, *group)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert visible(tmp_path / "workers") == visible(tmp_path / "parts") == expected
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(source, ".")
    make(tmp_path / "photos.tar", tmp_path / "tar", *WORDS, *group)
    assert {name: data for name, data in visible(tmp_path / "tar").items() if "manifest" not in name} == {
        name: data for name, data in expected.items() if "manifest" not in name
    }
    make(source, tmp_path / "other", *WORDS, *group, "--seed", 1)
    assert visible(tmp_path / "other") != expected


def things(split: Path, source: Path) -> set[str]:
    known = {path.read_bytes(): path.parent.name for path in source.rglob("*.jpg")}
    shards = ShardSet.open(split)
    return {known[shards.read(sample)] for sample in range(len(shards))}


@pytest.mark.parametrize("group", ["2", r"re:patient\d+", "re:/patient(.)/"])
@pytest.mark.parametrize("labels", [(), ("--labels",)])
def test_the_images_of_one_thing_are_in_one_split(source, tmp_path, capsys, group, labels):
    make(source, tmp_path / "out", "--val", 12, "--group", group, *labels, "--json")
    report = json.loads(capsys.readouterr().out)["holdout"]
    train, val = (things(tmp_path / "out" / split, source) for split in ("train", "val"))
    assert not train & val
    assert (report["things"], report["of_things"]) == (len(val), 9)
    assert report["images"] == len(ShardSet.open(tmp_path / "out" / "val"))
    assert abs(report["images"] - 12) <= 3
    assert ShardSet.open(tmp_path / "out" / "val").manifest["source"]["group"] == group


def test_a_column_tells_the_things_of_a_list_and_a_row_without_one_is_refused(source, tmp_path, capsys):
    images = sorted(source.rglob("*.jpg"))
    rows = [(str(path), path.parents[1].name, path.parent.name) for path in images]
    (tmp_path / "list.csv").write_text("path,label,Patient\n" + "".join(",".join(row) + "\n" for row in rows))
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps(dict(zip(("path", "label", "patient"), row, strict=True))) + "\n" for row in rows)
    )
    for name in ("list.csv", "list.jsonl"):
        make(tmp_path / name, tmp_path / f"out {name}", *WORDS, "--group", "patient")
        assert "things (--group patient)" in capsys.readouterr().out
        assert not things(tmp_path / f"out {name}" / "train", source) & things(tmp_path / f"out {name}" / "val", source)
    with pytest.raises(DataError, match=r"no column is called 'person' .*name one with --group\)"):
        make(tmp_path / "list.csv", tmp_path / "out", *WORDS, "--group", "person")
    with (tmp_path / "list.jsonl").open("a") as file:
        file.write(json.dumps({"path": str(images[0]) + "x", "label": "ant"}) + "\n")
    with pytest.raises(UserError, match=r"--group patient: .*0\.jpgx has none"):
        make(tmp_path / "list.jsonl", tmp_path / "out", *WORDS, "--group", "patient")
    assert not (tmp_path / "out").exists()


def test_fields_of_webdataset_and_columns_of_parquet_tell_things(picture, write_tar, tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "wds").mkdir()
    members = {}
    for number in range(12):
        members |= {f"{number}.jpg": picture(number), f"{number}.json": json.dumps({"film": number // 3}).encode()}
    write_tar(tmp_path / "wds" / "0.tar", members)
    table = pyarrow.table({"image": [picture(number) for number in range(12)], "film": [number // 3 for number in range(12)]})
    parquet.write_table(table, tmp_path / "set.parquet")
    for source in ("wds", "set.parquet"):
        make(tmp_path / source, tmp_path / f"out {source}", "--val", 3, "--group", "film")
        shards = ShardSet.open(tmp_path / f"out {source}" / "val")
        found = {shards.read(sample) for sample in range(len(shards))}
        assert found in [{picture(number) for number in range(first, first + 3)} for first in range(0, 12, 3)]
    with pytest.raises(DataError, match="has no column movie"):
        make(tmp_path / "set.parquet", tmp_path / "out", "--val", 3, "--group", "movie")
    with pytest.raises(UserError, match="has none"):
        make(tmp_path / "wds", tmp_path / "out", "--val", 3, "--group", "movie")


def test_what_cannot_be_grouped_is_told(source, tmp_path, capsys):
    for words, message in (
        (("--val", 5, "--group", "patient"), "is a field of csv, jsonl, parquet, webdataset"),
        (("--val", 5, "--group", 3), "has none"),
        (("--val", 5, "--group", 0), "count from 1"),
        (("--val", 5, "--group", "re:("), "no regular expression"),
        (("--group", 1), "give --val with it"),
        (("--val", 5, "--labels", "--group", 1), "each holds all images of a class"),
    ):
        with pytest.raises((UserError, SystemExit), match=message):
            make(source, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_an_out_begun_when_val_was_drawn_from_all_classes_together_is_refused(source, tmp_path):
    make(source, tmp_path / "out", *WORDS, "--part", "0/2")
    plan = tmp_path / "out" / ".work" / "plan.json"
    noted = json.loads(plan.read_bytes())
    with pytest.raises(DataError, match=r"half done, but by another command .group was None, is 2"):
        make(source, tmp_path / "out", *WORDS, "--group", 2)
    del noted["plan"]["val_by_class"], noted["plan"]["group"]
    plan.write_text(json.dumps(noted))
    with pytest.raises(DataError, match=r"half done, but by another command .val_by_class was None, is True"):
        make(source, tmp_path / "out", *WORDS)
    make(source, tmp_path / "plain", "--val", 5, "--samples-per-shard", 4, "--part", "0/2")  # without labels nothing has changed
    plan = tmp_path / "plain" / ".work" / "plan.json"
    noted = json.loads(plan.read_bytes())
    del noted["plan"]["val_by_class"], noted["plan"]["group"]
    plan.write_text(json.dumps(noted))
    make(source, tmp_path / "plain", "--val", 5, "--samples-per-shard", 4)


def test_val_keeps_its_images_where_repeats_are_left_out(picture, tmp_path):
    folder = tmp_path / "photos"
    for number in range(30):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number % 24))
    make(folder, tmp_path / "plain", "--labels", "--val", 10)
    make(folder, tmp_path / "out", "--labels", "--val", 10, "--dedup")
    assert by_class(tmp_path / "plain" / "val") == {"a": 5, "b": 5}
    read = {
        split: [ShardSet.open(tmp_path / "out" / split).read(sample) for sample in range(len(ShardSet.open(tmp_path / "out" / split)))]
        for split in ("train", "val")
    }
    assert len(set(read["val"])) == len(read["val"])
    assert not set(read["train"]) & set(read["val"])
    assert len(read["train"]) + len(read["val"]) == 24
    plain = ShardSet.open(tmp_path / "plain" / "val")
    assert set(read["val"]) == {plain.read(sample) for sample in range(len(plain))}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=6, max_size=40),
    share=st.floats(0.05, 0.5),
)
def test_things_are_chosen_so_that_no_single_step_comes_nearer(sizes, share):
    groups = {number.to_bytes(16, "big"): +Counter({0: one, 1: two}) for number, (one, two) in enumerate(sizes)}
    counts = sum(groups.values(), Counter())
    wanted = max(1, round(share * counts.total()))
    apart = choose(groups, counts, wanted, Grouping("1", level=1))
    assert apart < set(groups)
    assert apart

    def distance(chosen) -> int:
        held = sum((groups[thing] for thing in chosen), Counter())
        if any(0 < count == held[number] for number, count in counts.items()):
            return 10**9  # train keeps an image of each class
        return sum(abs(held[number] * counts.total() - wanted * count) for number, count in counts.items())

    steps = [distance(apart ^ {thing}) for thing in groups if apart != {thing}]
    assert distance(apart) <= min(steps)
