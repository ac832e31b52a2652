"""Runs broken on purpose say so in plain words, once; a resumed one does not say it again."""

import shutil

from tests.pipeline.conftest import succeed

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
