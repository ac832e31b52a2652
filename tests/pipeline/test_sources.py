"""Whole runs on several sources: what they saw, resumed on fewer processes, replayed, examined and told of afterwards."""

import json
import shutil
from collections import Counter

import pytest

from mpp.data.joined_shards import open_shards
from mpp.data.shards import ShardSet
from mpp.doctor import main as doctor
from mpp.replay import main as replay
from mpp.report import main as report
from tests.pipeline.conftest import TINY, metrics, pretrain, succeed, tensors
from tests.pipeline.test_replay import STOPS
from tests.pipeline.test_resume import forget_after

WORDS = ["model.drop_path=0", "log.samples=true", "log.pictures=0", "evaluate.images=0"]
WEIGHTS = "data.weights=[1, 3]"


@pytest.fixture(scope="module")
def sources(make_shards, tmp_path_factory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("sources")
    return str(make_shards(place / "photos" / "train", [20, 14])), str(make_shards(place / "scans" / "train", [22]))


@pytest.fixture(scope="module")
def weighted(sources, tmp_path_factory):
    """8 steps of 12 by two processes."""
    run = tmp_path_factory.mktemp("weighted") / "run"
    finished = succeed(run, listed(sources), *WORDS, WEIGHTS, world=2)
    assert (
        "sources by weight: photos 25.00% of each step, its 29 seen 0.8 times; scans 75.00% of each step, its 19 seen 3.8 times"
        in finished.out
    )
    return run


def listed(sources) -> str:
    return json.dumps(list(sources))


def log_of(run) -> list[list[str]]:
    lines = [line.split("\t") for path in sorted(run.glob("samples.rank*.tsv")) for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: int(line[0]))


def names_of(run, lines) -> list[str]:
    """The source of each line, as sources.json tells."""
    told = json.loads((run / "sources.json").read_text())
    of = lambda sample: next(each["source"] for each in told if 0 <= sample - each["first"] < each["samples"])
    return [of(int(line[1])) for line in lines]


def test_every_step_of_a_run_has_its_share_of_each_source_and_its_log_says_which_sample_is_whose(weighted):
    lines = log_of(weighted)
    assert [int(line[0]) for line in lines] == list(range(96))
    for step in range(8):
        assert Counter(names_of(weighted, lines[12 * step : 12 * step + 12])) == {"photos": 3, "scans": 9}
    assert max(int(line[1]) for line in lines) < 48  # none that is held out


def test_the_hold_out_loss_is_that_of_the_sources_each_by_its_images(weighted):
    rows = [values for values in metrics(weighted).values() if "holdout/loss" in values]
    assert len(rows) == 2
    for row in rows:
        photos, scans = (row[f"holdout/loss/{name}"] for name in ("photos", "scans"))
        assert photos != scans and row["holdout/loss"] == pytest.approx((5 * photos + 3 * scans) / 8, rel=1e-5)


def test_a_sample_that_comes_again_is_seen_in_another_crop_under_another_mask(weighted):
    looks = Counter(line[1] for line in log_of(weighted))
    assert max(looks.values()) > 1
    assert len({tuple(line[1:]) for line in log_of(weighted)}) == 96


def test_a_run_that_was_killed_on_two_processes_goes_on_with_one_as_if_it_had_never_stopped(weighted, sources, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(weighted, run)
    forget_after(run, 4)
    finished = succeed(run, listed(sources), *WORDS, WEIGHTS, world=1)
    assert "resumes at step 4" in finished.out
    assert log_of(run) == log_of(weighted)
    for name, tensor in tensors(weighted, 8).items():
        if name.startswith("weight/"):
            assert (tensors(run, 8)[name] - tensor).abs().max() < 1e-4


def test_by_size_each_sample_of_all_sources_comes_once_an_epoch(sources, tmp_path, capsys):
    run = tmp_path / "run"
    finished = succeed(run, listed(sources), *WORDS)
    assert "sources by size: photos 29 (60.42%), scans 19 (39.58%); each image once an epoch, 2.0 times in all" in finished.out
    lines = log_of(run)
    for epoch in range(2):  # of 48 samples
        assert sorted(int(line[1]) for line in lines[48 * epoch : 48 * epoch + 48]) == list(range(48))
    moved = tmp_path / "moved"
    shutil.copytree(sources[0], moved / "a" / "train")
    shutil.copytree(sources[1], moved / "b" / "train")
    again = pretrain(run, listed([f"{moved}/a/train", f"{moved}/b/train"]), *WORDS)
    assert again.status == [0] and "already finished" in again.out  # the same images in another place
    swapped = pretrain(run, listed(sources[::-1]), *WORDS)
    assert swapped.status == [2] and "the manifest of data.shards[0] has changed since" in swapped.err
    assert report([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert all(source in page for source in sources) and "hold-out loss by source" in page
    capsys.readouterr()


def test_a_run_by_weight_is_replayed_and_names_the_source_of_each_image(sources, tmp_path, capsys):
    run = tmp_path / "run"
    assert pretrain(run, listed(sources), *WORDS, WEIGHTS, program=["-c", STOPS]).status == [1]
    assert replay([str(run / "flight" / "rank0.json"), "images=99", f"out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "replay.json").read_text())
    assert found["same"] == {"samples": True, "masks": True, "pixels": True}
    assert Counter(each["where"].partition(":")[0] for each in found["images"]) == {"photos": 3, "scans": 9}
    joined = open_shards(sources, held_out=8)
    assert all(each["where"] == joined.where(each["shown"]) for each in found["images"])
    assert [len(each) for each in joined.sources] == [34, 22] and isinstance(joined.sources[0], ShardSet)
    capsys.readouterr()


def test_the_doctor_says_how_often_each_source_will_be_seen(sources, tmp_path, capsys):
    assert doctor([*TINY, f"data.shards={listed(sources)}", WEIGHTS, f"run_dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "passes by weight: photos 0.828, scans 3.79" in said and "56 images in 3 shards" in said
