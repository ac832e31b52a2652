"""What the preset of small sets settles: whole numbers that a run accepts, for any set and machine; and what a file or a word names stays."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load, seconds_of, tree_of
from mpp.config.small import STEPS, Facts, batch_of, course, expectation, held_out, shape, usual_samples
from mpp.data.batch_plan import plan_batch

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("small_*.yaml"))
COLOURS = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def facts(images=10_000, grid=8, gpu=False, processes=1) -> Facts:
    return Facts(images, (grid, grid), gpu, processes, *COLOURS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@given(st.integers(2, 200_000), st.integers(1, 10**8), st.booleans(), st.integers(1, 16))
def test_every_set_machine_and_length_gives_a_run(path, images, samples, gpu, processes):
    known = Facts(images, load(PretrainConfig, path).model.grid, gpu, processes, *COLOURS)
    config = load(PretrainConfig, path, [], tree_of(shape(known) | course(samples, known)))
    batch, optim = config.data.global_batch, config.optim
    assert optim.total_samples % batch == 0 == batch % processes and optim.total_samples >= batch
    assert optim.total_samples <= max(batch, samples)
    assert optim.warmup_samples <= 0.1 * optim.total_samples + batch
    assert config.data.holdout_samples < images and config.data.mean == COLOURS[0]
    plan_batch(batch, config.data.streams, processes, config.system.micro_batch_max)


def test_a_run_of_the_usual_length_has_the_batch_and_the_rate_that_were_measured():
    found = course(usual_samples(facts()), facts())
    assert (found["data.global_batch"], found["optim.base_lr"], found["optim.total_samples"]) == (256, 1.5e-3, 768_000)
    assert usual_samples(facts(100_000)) == 2_000_000


@given(st.integers(100, 200_000), st.integers(STEPS, 10**8), st.integers(1, 2))
def test_more_samples_never_take_a_smaller_batch_and_few_images_fill_theirs(images, samples, processes):
    small, large = (batch_of(count, facts(images, processes=processes)) for count in (samples, 2 * samples))
    assert small <= large <= images
    assert small == 32 or samples / small >= STEPS


def test_the_rate_goes_by_the_root_of_the_batch_that_is_asked_for():
    assert course(10**6, facts(), 64)["optim.base_lr"] == 7.5e-4 and course(10**6, facts(), 1024)["optim.base_lr"] == 3e-3


def test_fine_grids_hide_squares_and_odd_or_coarse_ones_do_not():
    assert [shape(facts(grid=side)).get("mask.unit") for side in (8, 14, 15, 16, 17, 24)] == [None, None, None, 2, None, 2]


def test_the_encoder_grows_with_the_machine_and_the_set():
    widths = [shape(facts(images, gpu=gpu))["model.width"] for images, gpu in ((100, False), (10**6, False), (100, True), (50_000, True))]
    assert widths == [192, 192, 192, 384]


def test_the_hold_out_costs_a_small_share_of_any_run():
    for images, samples in ((100, 5000), (10_000, 10_000), (100_000, 2 * 10**6)):
        found = course(samples, facts(images))
        looks = found["optim.total_samples"] // found["data.global_batch"] / found["log.holdout_every_steps"]
        assert looks * held_out(facts(images)) <= 0.25 * samples + held_out(facts(images))


def test_what_a_file_or_a_word_names_stays():
    words = ["model.width=48", "data.mean=[0.5, 0.5, 0.5]", "optim.total_samples=6400", "optim.warmup_samples=0"]
    config = load(PretrainConfig, CONFIGS[0], words, tree_of(shape(facts()) | course(10**6, facts(), 64)))
    assert (config.model.width, config.model.depth, config.data.mean, config.optim.total_samples) == (48, 6, (0.5,) * 3, 6400)
    assert config.optim.betas == (0.9, 0.95)  # of the file


def test_few_images_are_warned_of_and_what_was_seen_is_the_nearest_below():
    assert (
        expectation(facts(9_999), 10**6)[0].startswith("note: 9,999 images are few") and "init_from=" in expectation(facts(9_999), 10**6)[0]
    )
    (only,) = expectation(facts(10_000), 10**6)
    assert "890,880 samples gave +18 points" in only
    assert "22,176 samples gave +3 points" in expectation(facts(10_000), 10_000)[0]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30min", 1800), ("1.5h", 5400), ("1h30min", 5400)])
def test_a_budget_is_a_time_with_its_unit(text, seconds):
    assert seconds_of(text) == seconds
    assert load(PretrainConfig, None, [f"budget={text}"]).budget == text


@pytest.mark.parametrize("text", ["30", "0min", "min", "30 minutes", "1h 30min", "-5min"])
def test_a_budget_without_a_unit_is_refused(text):
    with pytest.raises(ConfigError, match=f"budget: '{text}' is no time; give one with its unit, such as 30min"):
        load(PretrainConfig, None, [f"budget={text}"])


def test_two_lengths_are_refused():
    with pytest.raises(ConfigError, match=r"budget=1h and optim\.epochs=3 both set the length of the run; give one of them"):
        load(PretrainConfig, None, ["budget=1h", "optim.epochs=3"])


@pytest.mark.parametrize(
    ("images", "apart", "expected"), [(48, 0, 2), (10_000, 0, 500), (50_000, 0, 1024), (48, 20, 19), (48, 5_000, 1024)]
)
def test_a_twentieth_of_the_set_is_held_out_or_what_there_is_of_another(images, apart, expected):
    assert held_out(replace(facts(images), apart=apart)) == expected
