"""Runs that learn from what was made before them, a frozen encoder or a codebook: to the end, resumed, refused with another."""

import json
import shutil

import pytest
import torch

from mpp import fit_codebook
from mpp.base.errors import CheckpointError
from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import write_encoder
from mpp.interop.pretraining import pretraining_of
from mpp.model.encoder import build_encoder
from mpp.pretrain import main
from mpp.train.commit import commits
from tests.pipeline.conftest import TINY, metrics, succeed, tensors

LAST = 8
KINDS = ("frozen", "codebook")
KEYS = {"frozen": "target.encoder", "codebook": "target.path"}


def make(kind: str, where, shards, seed: int) -> None:
    """An encoder/ folder, or a codebook."""
    if kind == "frozen":
        model = ModelConfig(arch="vit_tiny_patch16_224", image_size=32, patch_size=4, width=16, depth=2, heads=2)  # of larger images
        write_encoder(where, build_encoder(model, seed).vit.state_dict(), model, (0.5,) * 3, (0.2,) * 3, "a frozen one")
    else:
        words = ["model={image_size: 16, patch_size: 4}", "data={holdout_samples: 8, crop_scale: [0.5, 1]}", "workers=0", "clusters=6"]
        fit_codebook.main([*words, f"data.shards={shards}", f"out={where}", f"seed={seed}"])


def target(kind: str, where) -> str:
    section = f"encoder: {where}, blocks: 2" if kind == "frozen" else f"path: {where}"
    return f"target={{name: {kind}, {section}}}"


@pytest.fixture(scope="module", params=KINDS)
def made(request, shards, tmp_path_factory):
    """kind, what it has lent, its finished run, and what that said."""
    place = tmp_path_factory.mktemp(request.param)
    lent = place / "lent.safetensors"
    make(request.param, lent, shards, 1)
    said = succeed(place / "run", shards, target(request.param, lent)).out
    return request.param, lent, place / "run", said


def test_a_run_learns_from_it_with_a_skill_and_pictures(made, shards):
    kind, _, run, said = made
    assert ("teacher a frozen one" if kind == "frozen" else "codebook of 6 centres") in said and "trivial baseline: " in said
    names = {name for values in metrics(run).values() for name in values}
    assert {"train/loss", "holdout/loss", "train/skill", "holdout/skill"} <= names
    assert [path.stem for path in sorted((run / "pictures").glob("*-reconstruction.png"))] == [
        f"{at:012d}-reconstruction" for at in (48, 96)
    ]
    assert not any("centres" in name or name.startswith("ema/") for name in tensors(run, LAST))  # what is lent is not saved with it
    assert json.loads((run / "baseline.json").read_text())["loss"] > 0


def test_a_frozen_encoders_skill_says_that_its_trivial_rules_know_more(made):
    """Each of its features has read the whole image; codes of pixels are told by their own patch."""
    kind, _, run, said = made
    baseline = json.loads((run / "baseline.json").read_text())
    assert baseline["looks_beyond"] == (kind == "frozen")
    assert ("knows more than the model" in said) == (kind == "frozen" and baseline["name"] != "constant")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_wherever_it_lies_by_now(made, shards, tmp_path):
    kind, lent, run, _ = made
    moved, again = tmp_path / "moved.safetensors", tmp_path / "run"
    (shutil.copytree if kind == "frozen" else shutil.copy)(lent, moved)
    shutil.copytree(run, again)
    for folder in (again / "checkpoints").iterdir():
        if int(folder.name) > 4:
            shutil.rmtree(folder)
    assert "resumes at step 4" in succeed(again, shards, target(kind, moved)).out
    ours, theirs = tensors(run, LAST), tensors(again, LAST)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(run) == metrics(again)
    recipes = [pretraining_of(commits(folder)[0])["recipe"] for folder in (run, again)]
    assert recipes[0] == recipes[1]  # of what was lent, not of where it lay


def test_a_run_that_goes_on_with_another_is_refused_by_name_and_its_recipe_is_another(made, shards, tmp_path):
    kind, _, run, _ = made
    other = tmp_path / "other.safetensors"
    make(kind, other, shards, 2)
    words = [*TINY, f"data.shards={shards}", f"run_dir={run}", "optim.total_samples=120", target(kind, other)]
    message = rf"what {KEYS[kind]} names has changed since .* was written \(sha256 \w{{12}}\.\.\., then \w{{12}}\.\.\.\): the run would be another"
    with pytest.raises(CheckpointError, match=message):
        main(words)
    commit = commits(run)[0]
    before = pretraining_of(commit)["recipe"]
    commit.record["manifests"][KEYS[kind]] = "another"
    assert pretraining_of(commit)["recipe"] != before
