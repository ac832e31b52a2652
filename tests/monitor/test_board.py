import json
import math

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpp.monitor.board import Board
from mpp.train.progress import signed


def write(board: Board, samples: list[int], value: float = 0.0) -> None:
    for seen in samples:
        board.scalars(seen, seen // 10, {"train/loss": value + seen, "train/skill": 0.5})


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def curve(run_dir, name: str = "train/loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_metrics_and_tensorboard_hold_the_same_numbers_by_samples_seen(tmp_path):
    board = Board(tmp_path, 0)
    write(board, [10, 20])
    board.close()
    assert lines(tmp_path) == [{"samples": s, "step": s // 10, "train/loss": float(s), "train/skill": 0.5} for s in (10, 20)]
    assert curve(tmp_path) == [(10, 10.0), (20, 20.0)]
    assert curve(tmp_path, "train/skill") == [(10, 0.5), (20, 0.5)]


def test_after_a_resume_nothing_is_left_from_behind_the_resumed_step(tmp_path):
    first = Board(tmp_path, 0)
    write(first, [10, 20, 30, 40])
    first.close()
    second = Board(tmp_path, 20)
    assert [line["samples"] for line in lines(tmp_path)] == [10, 20]
    write(second, [30, 40], value=0.5)
    second.close()
    assert [(line["samples"], line["train/loss"]) for line in lines(tmp_path)] == [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]
    assert curve(tmp_path) == [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]


def test_tensorboard_forgets_what_the_resumed_run_has_not_written_again(tmp_path):
    first = Board(tmp_path, 0)
    write(first, [10, 20, 30, 40])
    first.close()
    second = Board(tmp_path, 20)
    write(second, [25])
    second.close()
    assert curve(tmp_path) == [(10, 10.0), (20, 20.0), (25, 25.0)]


def test_a_run_that_never_committed_starts_with_an_empty_board(tmp_path):
    first = Board(tmp_path, 0)
    write(first, [10, 20])
    first.close()
    second = Board(tmp_path, 0)
    assert lines(tmp_path) == []
    write(second, [10], value=0.25)
    second.close()
    assert curve(tmp_path) == [(10, 10.25)]


@pytest.mark.parametrize("later", [0, 1, -3600], ids=["in the same second", "a second later", "on a machine whose clock is an hour slow"])
def test_whatever_the_clock_says_tensorboard_reads_the_newer_file_last(tmp_path, monkeypatch, later):
    for number, value in enumerate([0.0, 0.25, 0.5]):
        monkeypatch.setattr("mpp.monitor.board.time.time", lambda number=number: 1_700_000_000.0 + number * later)
        monkeypatch.setattr("mpp.monitor.board.os.getpid", lambda number=number: 9 - number)  # the other way round by name
        board = Board(tmp_path, 0)
        write(board, [10], value)
        board.close()
    assert curve(tmp_path) == [(10, 10.5)]


@pytest.mark.parametrize("rest", ['{"samples": 20, "ste', '{"samples": 2', "{", '{"samples": 20, "step": 2, "train/loss": 1.0'])
def test_a_line_that_a_kill_cut_short_is_removed(tmp_path, rest):
    board = Board(tmp_path, 0)
    write(board, [10])
    board.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    board = Board(tmp_path, 20)
    write(board, [30])
    board.close()
    assert [line["samples"] for line in lines(tmp_path)] == [10, 30]
    assert not (tmp_path / "metrics.tmp").exists()


def test_pictures_are_kept_by_samples_seen_and_cut_back_too(tmp_path):
    board = Board(tmp_path, 0)
    paths = [board.picture(seen, "holdout/reconstruction", Image.new("RGB", (4, 3), (seen, 0, 0))) for seen in (10, 20, 30)]
    board.close()
    assert [path.name for path in paths] == [f"0000000000{at}-reconstruction.png" for at in (10, 20, 30)]
    assert Image.open(paths[1]).getpixel((0, 0)) == (20, 0, 0)
    Board(tmp_path, 20).close()
    assert [path.exists() for path in paths] == [True, True, False]


def test_pictures_are_on_the_board(tmp_path):
    board = Board(tmp_path, 0)
    board.picture(10, "holdout/reconstruction", Image.new("RGB", (5, 3)))
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("holdout/reconstruction")
    assert (image.step, image.width, image.height) == (10, 5, 3)


def test_a_figure_that_is_not_defined_is_not_written_and_one_that_is_not_finite_stays_json(tmp_path):
    board = Board(tmp_path, 0)
    board.scalars(10, 1, {"train/loss": 1.0, "train/skill": None, "train/rank": math.nan, "train/norm": math.inf})
    board.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    expected = {"samples": 10, "step": 1, "train/loss": 1.0, "train/rank": None, "train/norm": None}
    assert json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON")) == expected
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "train/skill" not in events.Tags()["scalars"]


def test_a_skill_that_is_not_defined_has_a_word():
    assert (signed(None), signed(-0.25), signed(0.5)) == ("none", "-0.2500", "+0.5000")


def test_curves_do_not_go_on_into_a_folder_that_was_taken_away(tmp_path):
    (tmp_path / "run").mkdir()
    board = Board(tmp_path / "run", 0)
    (tmp_path / "run" / "tensorboard").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="tensorboard"):
        board.scalars(10, 1, {"train/loss": 1.0})
