"""What is settled before a run is built: its length in epochs or minutes, and what a preset fits to the set; and that a run which goes on keeps it."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
import yaml

from mpp.base.errors import ConfigError
from mpp.config import small
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load, tree_of
from mpp.data.shards import ShardSet
from mpp.mains import settling
from mpp.processes.world import World
from tests.pipeline.conftest import ROOT, finish, metrics, pretrain, start, succeed, tensors

SMALL = [
    "--config",
    str(ROOT / "configs" / "small_32.yaml"),
    *[
        "model.width=16",
        "model.depth=1",
        "model.heads=2",
        "decoder.depth=1",
        "decoder.width=16",
        "decoder.heads=2",
        "system.precision=fp32",
        "system.workers=0",
    ],
]


def fitted(run_dir, shards, *words, world=1):
    return finish(start([*SMALL, f"data.shards={shards}", f"run_dir={run_dir}", *words], world))


def config_of(run_dir) -> dict:
    return yaml.safe_load((run_dir / "config.yaml").read_text())


@pytest.fixture(scope="module")
def begun(shards, tmp_path_factory):
    """A fitted run of three passes over 48 images, with a commit in its middle."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    finished = fitted(run, shards, "optim.epochs=4", "checkpoint={every_samples: 32, keep: 9}")
    assert finished.status == [0], finished.err
    return run, finished.out


def test_a_preset_settles_what_is_left_open_and_says_so(begun):
    run, out = begun
    config = config_of(run)
    assert (config["data"]["global_batch"], config["data"]["holdout_samples"], config["model"]["width"]) == (16, 2, 16)
    assert config["optim"]["total_samples"] == 176 == 4 * (48 - 2) // 16 * 16  # held-out images are not passed over
    assert config["data"]["mean"] != [0.5, 0.5, 0.5] and all(0 < value < 1 for value in config["data"]["std"])
    assert "fit small: 48 images cut to 32 px, on CPU cores | encoder 1 x 16, 2 heads | masks in units of 1 x 1 | 11 steps of 16" in out
    assert "note: 48 images are few" in out and "what was seen: on CIFAR-10 (JPEG)" in out


def test_a_fitted_run_that_goes_on_is_the_same_run_on_any_number_of_processes(begun, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun[0], run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > 4:
            shutil.rmtree(folder)
    finished = fitted(run, shards, "optim.epochs=4", "checkpoint={every_samples: 32, keep: 9}", world=2)
    assert finished.status == [0, 0] and "resumes at step 4" in finished.out, finished.err
    assert config_of(run)["optim"] == config_of(begun[0])["optim"] and config_of(run)["data"] == config_of(begun[0])["data"]
    assert metrics(run)[11]["train/loss"] == pytest.approx(metrics(begun[0])[11]["train/loss"], rel=1e-4)


def test_a_finished_run_is_trained_on_by_more_epochs_with_what_it_was_begun_with(begun, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun[0], run)
    finished = fitted(run, shards, "optim.epochs=6", "checkpoint={every_samples: 32, keep: 9}")
    assert finished.status == [0], finished.err
    config, before = config_of(run), config_of(begun[0])
    assert config["optim"]["total_samples"] == 272 == 6 * 46 // 16 * 16
    assert config["optim"] | {"epochs": 4, "total_samples": 176} == before["optim"] and config["data"] == before["data"]
    assert 17 in metrics(run)


@pytest.mark.parametrize("words", [[], ["init_from=runs/other"], ["branch_from=runs/other"]], ids=str)
def test_who_continues_from_weights_is_not_told_to(words):
    colours = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    said = settling.said(load(PretrainConfig, SMALL[1], words), small.Facts(2_000, (8, 8), False, 1, *colours))
    assert any("images are few" in line for line in said) == (not words) and said[-1].startswith("what was seen")


def test_a_length_in_samples_is_taken_however_short_and_the_rest_follows_from_it(shards, tmp_path):
    finished = fitted(tmp_path / "run", shards, "optim.total_samples=100")
    assert finished.status == [0], finished.err
    config = config_of(tmp_path / "run")
    assert (config["optim"]["total_samples"], config["data"]["global_batch"], config["optim"]["warmup_samples"]) == (100, 16, 16)
    refused = fitted(tmp_path / "none", shards, "optim.total_samples=100", "optim.warmup_samples=200")
    assert "optim.warmup_samples=200 exceeds optim.total_samples=100" in refused.err


def test_epochs_set_the_length_of_any_recipe(shards, tmp_path):
    succeed(tmp_path / "run", shards, "optim.epochs=1.5")
    assert config_of(tmp_path / "run")["optim"]["total_samples"] == 60 == int(1.5 * 40) // 12 * 12
    assert max(metrics(tmp_path / "run")) == 5


@pytest.mark.long
def test_a_budget_is_measured_kept_and_not_changed(shards, tmp_path):
    run = tmp_path / "run"
    words = ["budget=9s", "checkpoint={every_samples: 16, keep: 9}", "optim.warmup_samples=0"]
    finished = fitted(run, shards, *words)
    assert finished.status == [0], finished.err
    rate, samples = re.search(r"budget 9s: ([\d,]+) images/s were measured, so ([\d,]+) samples, [\d.]+ passes", finished.out).groups()
    total = config_of(run)["optim"]["total_samples"]
    assert total == int(samples.replace(",", "")) and total < 9 * int(rate.replace(",", "")) and total % 16 == 0
    last = max(int(folder.name) for folder in (run / "checkpoints").iterdir())
    whole = tensors(run, last)
    shutil.rmtree(run / "checkpoints" / f"{last:09d}")
    again = fitted(run, shards, *words)
    assert again.status == [0] and "were measured" not in again.out and config_of(run)["optim"]["total_samples"] == total
    assert all(tensor.equal(whole[name]) for name, tensor in tensors(run, last).items())
    other = fitted(run, shards, "budget=1h")
    assert other.status != [0]
    assert re.search(rf"budget=1h: \S+ was begun with budget=9s, which settled optim.total_samples={total}; leave it as it was", other.err)


@pytest.mark.parametrize(
    ("budget", "batches", "rate"), [("1h", [256, 512], 1000), ("20min", [256], 960), ("10min", [256, 128], 880), ("1min", [256, 32], 460)]
)
def test_the_speed_is_measured_at_the_batch_that_the_run_has(shards, tmp_path, monkeypatch, budget, batches, rate):
    asked = []

    def measure(config, run_dir, world, peers):
        asked.append(config.data.global_batch)
        return World(0, 1, 1, torch.device("cpu")), {512: 1000.0, 256: 960.0, 128: 880.0, 32: 460.0}[asked[-1]]

    def again(below, above):
        words = [*begun, *(f"{key}={json.dumps(value)}" for key, value in above.items())]
        return load(PretrainConfig, SMALL[1], words, tree_of(below))

    begun = [f"data.shards={shards}", f"budget={budget}"]
    colours = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    monkeypatch.setattr(settling, "facts_of", lambda *_: small.Facts(10_000, (8, 8), False, 1, *colours))
    monkeypatch.setattr(settling, "measure", measure)
    monkeypatch.setattr(settling.psutil, "Process", lambda: SimpleNamespace(create_time=lambda: time.time() - 6))
    config = settling.settle(again({}, {}), again, tmp_path / "run").config
    assert asked == batches and config.data.global_batch == batches[-1]
    assert config.optim.total_samples == pytest.approx((0.95 * settling.seconds_of(budget) - 6) * rate, rel=0.02)


def test_with_a_hold_out_of_its_own_no_image_of_the_set_is_held_out(shards):
    words = [f"data.shards={shards}", f"data.holdout_shards={shards}", "optim.epochs=2"]  # not to be trained with: they are the same
    config = load(PretrainConfig, SMALL[1], words)
    fit = settling.Fit(config, settling.facts_of(config, ShardSet.open(shards)))
    assert fit.samples_asked() == 2 * 48 and fit.open_keys(96)["data.holdout_samples"] == 47


@pytest.mark.parametrize(("least", "words", "refused"), [(48, [], False), (49, [], True), (49, ["data.global_batch=2"], False)])
def test_a_preset_is_not_fitted_to_a_handful_of_images_unless_the_batch_is_given(shards, tmp_path, monkeypatch, least, words, refused):
    monkeypatch.setattr(small, "LEAST_IMAGES", least)
    again = lambda below, above: load(PretrainConfig, SMALL[1], [f"data.shards={shards}", *words], tree_of(below))
    if refused:
        with pytest.raises(
            ConfigError, match=r"fit=small: \S+ holds 48 images, and 49 are the fewest .*; see whether .* data.global_batch="
        ):
            settling.settle(again({}, {}), again, tmp_path)
    else:
        assert settling.settle(again({}, {}), again, tmp_path).config.optim.total_samples == small.SAMPLES


def test_several_sources_are_settled_for_all_their_images(shards, tiny_shards):
    words = [f"data.shards=[{shards}, {tiny_shards}]", "data.weights=[1, 9]", "optim.epochs=2", "data.global_batch=8"]
    again = lambda below, above: load(
        PretrainConfig, SMALL[1], [*words, *(f"{key}={json.dumps(value)}" for key, value in above.items())], tree_of(below)
    )
    settled = settling.settle(again({}, {}), again, shards.parent / "no run")
    assert settled.config.optim.total_samples == 2 * (48 + 40 - settled.config.data.holdout_samples) // 8 * 8
    assert any("fit small: 88 images" in line for line in settled.words)


@pytest.mark.long
def test_two_processes_measure_and_settle_alike(shards, tmp_path):
    finished = fitted(tmp_path / "run", shards, "budget=15s", world=2)
    assert finished.status == [0, 0], finished.err
    assert config_of(tmp_path / "run")["optim"]["total_samples"] == 16 * max(metrics(tmp_path / "run"))


def test_a_budget_that_is_over_before_the_first_step_is_refused(shards, tmp_path):
    finished = fitted(tmp_path / "run", shards, "budget=0.01s")  # gone before the speed is known
    assert finished.status != [0] and len(finished.error_lines) == 1
    assert re.search(
        r"error: budget=0\.01s: at \d+ images/s, as measured, what is left of it is \d+ images, and a run has at least 320", finished.err
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_shards_that_are_not_there_are_refused_before_anything_is_settled(tmp_path):
    finished = fitted(tmp_path / "run", tmp_path / "none")
    assert finished.status != [0] and len(finished.error_lines) == 1 and not (tmp_path / "run").exists()
    assert pretrain(tmp_path / "run", tmp_path / "none", "optim.epochs=2").error_lines == finished.error_lines
