"""Whole runs on tars that nobody has indexed."""

import json
import shutil
from types import SimpleNamespace

import pytest

from mpp.data.streams import Passed, Tar
from mpp.pages.page import data_card
from mpp.pages.run_folder import PRETRAINING
from tests.data.tars import pictures, write_tar, write_tars
from tests.pipeline.conftest import pretrain, succeed

COUNTS = (9, 4, 17, 3, 11)  # samples of each tar; 8 of the first are held out
SAMPLED = ("log.samples=true", "system.workers=1", "optim.total_samples=48", "log.pictures=0")


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("streams"), COUNTS)


def log_of(run) -> dict[int, tuple[int, ...]]:
    """position -> (sample, shown, box)."""
    lines = [line.split("\t") for file in run.glob("samples.rank*.tsv") for line in file.read_text().splitlines()]
    assert len(lines) == len({line[0] for line in lines})
    return {int(line[0]): tuple(map(int, line[1:7])) for line in lines}


@pytest.mark.slow
def test_two_ranks_train_on_unequal_tars_go_on_after_a_stop_and_write_no_secret(tars, tmp_path):
    run, word = tmp_path / "run", f"pipe:TOKEN=sesame cat {tars}/{{000..004}}.tar"
    finished = succeed(run, word, *SAMPLED, world=2)
    assert "4 steps of 12 | 4 tars of unknown size" in finished.out and "as many images a step on" in finished.out
    assert "note: 4 tars (1 more held out) as a stream, without an index: the order of samples depends on" in finished.out
    first = log_of(run)
    assert sorted(first) == list(range(48))
    assert all(len(file.read_text().splitlines()) == 24 for file in run.glob("samples.rank*.tsv"))
    names = [f"pipe:TOKEN=... cat {tars}/{number:03d}.tar" for number in range(5)]
    ids = [{Passed(Tar(name, ""), f"{key:06d}", b"").id for key in range(100)} for name in names]
    assert not ids[0] & {sample for sample, *_ in first.values()}  # it was held out
    assert {sample for sample, *_ in first.values()} <= ids[1] | ids[2] | ids[3] | ids[4]

    baseline = (run / "baseline.json").read_bytes()
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > 2:
            shutil.rmtree(folder)
    resumed = succeed(run, word, *SAMPLED, world=2)
    assert "resumes at step 2" in resumed.out
    again = log_of(run)
    assert sorted(again) == list(range(48)) and not ids[0] & {sample for sample, *_ in again.values()}
    assert all(again[position] == first[position] for position in range(24))
    of_start = lambda log, begin: sorted(log[position][0] for position in range(begin, begin + 12))
    assert len({tuple(of_start(log, begin)) for log, begin in ((first, 0), (first, 24), (again, 24))}) == 3
    assert (run / "baseline.json").read_bytes() == baseline

    for text in (
        finished.out,
        finished.err,
        resumed.out,
        *(file.read_bytes().decode(errors="replace") for file in run.rglob("*") if file.is_file()),
    ):
        assert "sesame" not in text

    shutil.copytree(tars, tmp_path / "others")
    write_tar(tmp_path / "others" / "000.tar", pictures(range(50, 59)))
    refused = pretrain(run, f"{tmp_path}/others/{{000..004}}.tar", "optim.total_samples=96")
    assert refused.status == [2] and "error: the list of tars, or the hold-out, of data.shards has changed since" in refused.err


def test_a_page_of_a_run_on_a_stream_says_that_nobody_has_counted_it():
    found = SimpleNamespace(
        kind=PRETRAINING,
        tree={"data": {"shards": ["a.tar", "pipe:cat b.tar"]}},
        trained_on=["a.tar", "pipe:cat b.tar"],
        path=None,
        manifest=lambda word: None,
        bad_samples=list,
        last=lambda name: 0,
    )
    rows, notes = data_card(found)
    assert [row for row in rows if row[0] == "images"] == [("images", "a.tar"), ("images", "pipe:cat b.tar")]
    assert all("A stream of tars without an index: nobody has counted" in note for note in notes[:2]) and len(notes) == 2


@pytest.mark.slow
def test_a_cut_tar_and_bad_images_stop_a_run_as_they_do_with_shards(tars, tmp_path):
    for name in ("000.tar", "002.tar"):
        shutil.copy(tars / name, tmp_path / name)
    whole = (tmp_path / "002.tar").read_bytes()
    (tmp_path / "002.tar").write_bytes(whole[: whole.index(b"000020.png")])
    cut = pretrain(tmp_path / "cut", f"[{tmp_path}/000.tar,{tmp_path}/002.tar]", world=2)
    assert 2 in cut.status and 0 not in cut.status and cut.error_lines  # who has not met it says that another has ended
    assert all("002.tar is cut at a header: it ends at byte" in line or "has ended" in line for line in cut.error_lines)

    write_tar(tmp_path / "bad.tar", [*pictures(range(30)), ("one.png", b"no image")])
    words = [f"[{tmp_path}/000.tar,{tmp_path}/bad.tar]", "optim.total_samples=48"]
    assert "one" in (stopped := pretrain(tmp_path / "stopped", *words)).err and stopped.status == [2]
    succeed(tmp_path / "allowed", *words, "data.max_bad_fraction=0.1")
    noted = [json.loads(line) for line in (tmp_path / "allowed" / "bad_samples.rank0.jsonl").read_text().splitlines()]
    assert {fault["where"] for fault in noted} == {f"{tmp_path}/bad.tar: one"} and all(fault["position"] is not None for fault in noted)
