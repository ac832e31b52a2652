"""Runs broken on purpose say so in plain words, once; a resumed one does not say it again."""

import os
import shutil

import numpy as np
from PIL import Image

from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, succeed

LONGER = ["log={every_steps: 2, holdout_every_steps: 4, pictures: 0}", "optim={base_lr: 1e-9, warmup_samples: 24, total_samples: 240}"]


def test_a_rate_that_teaches_nothing_is_told_while_the_run_goes_on_and_not_again_when_it_is_resumed(shards, tmp_path):
    out = succeed(tmp_path / "run", shards, *LONGER).out
    (line,) = (line for line in out.splitlines() if line.startswith("note: hold-out skill is -"))
    assert "the model predicts worse than the trivial rule" in line and "optim.base_lr" in line
    assert out.index(line) < out.index("step 20/20 ")
    for step in range(12, 21, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:09d}")
    again = succeed(tmp_path / "run", shards, *LONGER).out
    assert "resumes at step 10" in again and "note: hold-out skill" not in again


def test_a_channel_that_is_the_same_everywhere_is_told_before_the_first_step(shards, tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        pixels[..., 2] = 128
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    words = ["data_prep/make_shards.py", str(tmp_path / "images"), str(tmp_path / "flat"), "--quiet", "--workers", "1"]
    assert run_forked(words, cwd=ROOT, env=os.environ).returncode == 0
    out = succeed(tmp_path / "run", tmp_path / "flat" / "train", "optim.total_samples=24", "log.pictures=0").out
    (line,) = (line for line in out.splitlines() if line.startswith("note: blue is the same in nearly all pixels of these images"))
    assert "inspect_shards.py" in line and out.index(line) < out.index("step 1/2 ")
    assert "same in nearly all pixels" not in succeed(tmp_path / "other", shards, "optim.total_samples=24", "log.pictures=0").out
