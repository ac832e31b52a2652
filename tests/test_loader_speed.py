import re
from pathlib import Path

import pytest

from mpp import loader_speed
from mpp.base.errors import DataError, UserError
from mpp.config.pretrain import PretrainConfig
from mpp.config.sections import SystemConfig
from mpp.mains.loader_speed import Stage, Stages, limit
from tests.data.tars import write_tars

SMALL = Path(__file__).parents[1] / "configs" / "small_32.yaml"
WORDS = [
    "model={image_size: 16, patch_size: 4}", "data.global_batch=8", "data.holdout_samples=4", "system.workers=1", "--seconds", "0.05",
]  # fmt: skip


def run(shards, capsys, *words: str) -> str:
    assert loader_speed.main([f"data.shards={shards}", *WORDS, *words]) == 0
    return capsys.readouterr().out


def test_it_prints_each_stage_the_whole_and_the_cores_for_a_rate(tiny_shards, capsys):
    text = run(tiny_shards, capsys, "--rate", "100000", "data.views=2")
    rates = {
        name: (float(rate.replace(",", "")), float(cost.replace(",", "")))
        for name, rate, cost in re.findall(r"^(\w+) +([\d,]+) +([\d,]+)", text, re.MULTILINE)
    }
    assert set(rates) == {"read", "decode", "augment", "whole"}
    for rate, cost in rates.values():
        assert 1e6 / rate == pytest.approx(cost, rel=0.01, abs=0.6)  # both are rounded
    cores = int(re.search(r"100,000 views/s +(\d+) core", text)[1])
    reached = float(re.search(r"([\d,]+) views/s reach the trainer", text)[1].replace(",", ""))
    assert cores == pytest.approx(100_000 / min(reached, rates["whole"][0]), rel=0.05, abs=1.1)
    assert "36 training samples" in text
    assert "2 views of each image" in text
    assert "1 loader process " in text
    assert "\nlimit: " in text


def test_what_a_config_leaves_open_is_settled_as_the_run_would(tiny_shards, capsys):
    words = ["--config", str(SMALL), f"data.shards={tiny_shards}", "budget=1h", "system.workers=1", "--seconds", "0.05"]
    assert loader_speed.main(words) == 0  # of 40 images, where the key itself holds out 1,024
    assert "38 training samples" in capsys.readouterr().out


def test_a_stream_is_timed_in_the_same_stages(tmp_path, capsys):
    text = run(f"{write_tars(tmp_path / 'tars', [5, 20, 9])}/{{000..002}}.tar", capsys)
    assert "2 tars as a stream" in text and re.findall(r"^(read|decode|augment|whole) +[\d,]+ +[\d,]+", text, re.MULTILINE) == [
        "read",
        "decode",
        "augment",
        "whole",
    ]
    assert int(re.search(r"\(([\d,]+) views timed\)", text)[1].replace(",", "")) >= 8


def test_images_in_memory_are_timed_where_they_lie(tiny_shards, capsys):
    text = run(tiny_shards, capsys, "system.images=ram", "system.workers=0")
    assert "decoded once, in RAM" in text
    assert "limit: cropping, masking" in text
    assert "loader process" not in text


def test_shards_of_which_nothing_can_be_decoded_are_an_error(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [12])
    damage(folder, range(12))
    with pytest.raises(DataError, match=r"none of the first 8 samples can be decoded; .*verify_shards.py"):
        loader_speed.main([f"data.shards={folder}", *WORDS])


@pytest.mark.parametrize(
    ("read", "decode", "augment", "waited", "expected"),
    [
        (1, 5, 2, 0.1, "decoding; shards made with --resize 256, .* \\(62% of the time\\)"),
        (1, 2, 5, 0.1, "resizing and masking"),
        (5, 2, 1, 0.1, "reading and checking bytes"),
        (1, 5, 2, 9.0, "the disk: of 10.0 s in reads 9.0 s went by waiting"),
    ],
)
def test_the_limit_is_the_slowest_stage_or_the_disk(read, decode, augment, waited, expected):
    stages = Stages(Stage(read, read + waited), Stage(decode, decode), Stage(augment, augment), images=1)
    assert re.match(expected, limit(stages, PretrainConfig(system=SystemConfig())))


@pytest.mark.parametrize("words", [["--rate", "-3"], ["--rate", "x"], ["--seconds", "0"]])
def test_rates_and_times_are_positive(words):
    with pytest.raises(UserError, match=words[0]):
        loader_speed.parse(words)
