"""The commands and the Python of docs/tutorial.md, in the page's order, on a small draw and in a few steps."""

import json
import os
import re
import shlex

import pytest

from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, environment, free_port

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = [re.split(r"\s{2,}#", line.strip())[0] for line in re.findall(r"^    ((?:python|deepspeed) .*)$", PAGE, re.M)]
SMALLER = {  # words behind the page's own, by program
    "demo_surfaces.py": ["--images", "200"],
    "make_shards.py": ["--quiet"],
    "pretrain.py": ["optim.total_samples=640", "data.global_batch=32", "log.pictures_every_steps=20", "system.workers=0"],
    "linear_probe.py": ["random_inits=1", "few_shot.shots=[20]", "linear.curve=false", "knn.curve=false"],
    "finetune.py": ["optim.epochs=1", "repeats=2", "data.global_batch=16", "system.workers=0"],
}


def run(command: str, place) -> str:
    words = shlex.split(command)[1:]
    program = words[0].rpartition("/")[2]
    done = run_forked([*words, *SMALLER.get(program, [])], cwd=place, env=os.environ | environment(0, 1, free_port()), timeout=600)
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch):
    for name in ("mpp", "data_prep", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = {command: run(command, tmp_path) for command in COMMANDS}
    programs = [shlex.split(command)[1].rpartition("/")[2] for command in COMMANDS]
    order = [
        "demo_surfaces.py",
        "make_shards.py",
        "inspect_shards.py",
        "pretrain.py",
        "linear_probe.py",
        "finetune.py",
        "finetune.py",
        "results.py",
    ]
    assert [program for program in programs if program in order] == order
    for command, shown in zip(COMMANDS, said.values(), strict=True):
        if "finetune.py" in command:
            assert "80 labelled images of 4 classes" in shown, shown[-2000:]
    for run_dir in re.findall(r"run_dir=(\S+)", PAGE):
        assert (tmp_path / run_dir).exists()
    assert json.loads((tmp_path / "runs" / "surfaces" / "verdict.json").read_text())["words"]
    assert {"fine-tuned", "from scratch"} <= set(re.findall(r"fine-tuned|from scratch", said[COMMANDS[-1]]))
    monkeypatch.chdir(tmp_path)
    one, all_alike = re.findall(r"^```py\n(.*?)^```$", PAGE, re.M | re.S)
    exec(one, found := {})
    assert found["features"].shape[0] == 1
    exec(all_alike, found := {})
    assert len(found["known"].values) == 60 and found["one"].shape == found["known"].values[0].shape and len(found["alike"]) == 6
