"""What a run says of itself in the end: of one that has learned, and of one that has not."""

import json

from tests.pipeline.conftest import succeed

QUICK = ["model.drop_path=0", "log={every_steps: 60, holdout_every_steps: 60, pictures: 0}", "checkpoint.every_samples=100000"]


def test_a_run_that_learned_nothing_does_not_end_with_done_alone(shards, tmp_path):
    said = succeed(tmp_path / "run", shards, "optim.base_lr=1e-9", "log.pictures=0").out.splitlines()
    found = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert said[said.index("done") - 1] == f"verdict  {found['words']}"
    assert found["learned"] == "no" and "this run has learned nothing that it does not know" in found["words"]
    assert found["first"]["samples"] == 48 and found["last"]["samples"] == 96 and found["last"]["skill"] < -0.1
    assert found["baseline"] == json.loads((tmp_path / "run" / "baseline.json").read_text())["name"]


def test_a_run_that_learned_says_so_and_says_it_again_when_it_is_asked_for_once_more(shards, tmp_path):
    words = [*QUICK, "optim.base_lr=3e-3", "optim.total_samples=1440", "data.crop_scale=[0.9, 1]", "data.flip=false"]
    first = succeed(tmp_path / "run", shards, *words).out
    found = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert found["learned"] == "yes" and found["last"]["skill"] > found["last"]["skill_margin"] > 0
    (tmp_path / "run" / "verdict.json").unlink()
    again = succeed(tmp_path / "run", shards, *words).out
    assert "nothing to do" in again and f"verdict  {found['words']}" in again and f"verdict  {found['words']}" in first
    assert json.loads((tmp_path / "run" / "verdict.json").read_text()) == found
