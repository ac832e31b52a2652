"""Runs whose target learns itself: its parameters have a rate and a decay of their own, are committed, resumed, and dealt out by ZeRO."""

import shutil

import pytest
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.interop.read_encoder import read_encoder
from mpp.recipe.model import build_model
from tests.pipeline.conftest import TINY, finish, metrics, start, succeed, tensors

MANY = """
import sys
import torch.distributed as dist
import mpp.train.engine as engine
import mpp.train.gathering as gathering
from mpp.base.errors import run_program
from mpp.pretrain import main

def every_stage(_):
    world, part = engine.start_distributed(), dist.destroy_process_group
    gathering.start_distributed = lambda *_, **__: world  # one process group for all runs
    dist.destroy_process_group = lambda *_: None
    for stage in range(4):
        main([*sys.argv[2:], f"system.zero_stage={stage}", f"run_dir={sys.argv[1]}{stage}"])
    part()
    return 0

run_program(every_stage)
"""

CLUSTERS = [
    "target={name: clusters, clusters: 10, ema_start: 0.5, ema_end: 0.8, ema_samples: 60, head_lr_scale: 0.5, head_decay_scale: 3}",
    "mask={name: inverse_block, predicted: 0.25}",
    "corruption={name: drop}",
    "decoder={name: cross_attention, depth: 1, width: 16, heads: 2, position: rotary}",
    "model.drop_path=0",
    "optim.weight_decay=0.1",
    "optim.clip_norm=0",
    "checkpoint={every_samples: 12, keep: 9}",
]
HEAD, LAST = "target.clusters.weight", 8


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clustered") / "run"
    (folder.parent / "said").write_text(succeed(folder, shards, *CLUSTERS).out)
    return folder


def test_the_targets_own_parameters_step_by_adamw_at_their_own_rate_and_decay(run):
    for step in range(2, LAST + 1):
        before, after = tensors(run, step - 1), tensors(run, step)
        rate = metrics(run)[step]["optim/learning_rate"]
        for name, lr_scale, decay in ((HEAD, 0.5, 3 * 0.1), ("target.clusters.bias", 0.5, 3 * 0.1), ("decoder.head.direction", 1.0, 0.1)):
            weight = before[f"weight/{name}"].double() * (1 - rate * lr_scale * decay)
            first, second = after[f"exp_avg/{name}"].double(), after[f"exp_avg_sq/{name}"].double()
            moved = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            torch.testing.assert_close(after[f"weight/{name}"].double(), weight - rate * lr_scale * moved, atol=1e-6, rtol=1e-5)
            assert (moved != 0).any()


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_its_clusters_too(run, shards, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for folder in (again / "checkpoints").iterdir():
        if int(folder.name) > 3:
            shutil.rmtree(folder)
    assert "resumes at step 3" in succeed(again, shards, *CLUSTERS).out
    ours, theirs = tensors(run, LAST), tensors(again, LAST)
    assert ours.keys() == theirs.keys() and f"exp_avg/{HEAD}" in ours
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics(run) == metrics(again)


def test_the_board_shows_its_own_loss_and_whether_it_codes_the_place(run):
    rows = [values for values in metrics(run).values() if "target/own_loss" in values]
    assert len(rows) == LAST and all(0 < row["target/own_loss"] < 10 for row in rows)
    assert 0 < metrics(run)[LAST]["target/position"] < 1
    assert "the place alone explains" in (run.parent / "said").read_text()


def test_its_predictor_is_read_as_a_feature(run, shards):
    loaded = read_encoder(run)
    assert loaded.predictor is not None
    ours = tensors(run, LAST)
    assert all(torch.equal(tensor, ours[f"weight/decoder.{name}"]) for name, tensor in loaded.predictor.net.named_parameters())
    config = load(PretrainConfig, None, [*TINY, *CLUSTERS, f"data.shards={shards}"])
    model = build_model(config, False).eval()
    model.load_state_dict({name.removeprefix("weight/"): tensor for name, tensor in ours.items() if name.startswith("weight/")})
    tokens, places = model.encoder(model.encoder.embed(torch.rand(2, 3, 16, 16))), torch.arange(16).expand(2, -1)
    wanted = model.decoder.first_block(tokens, None, places)
    torch.testing.assert_close(loaded.predictor.net.first_block(tokens, None, places), wanted)


@pytest.mark.slow
def test_on_every_stage_and_world_clusters_are_those_of_the_whole_batch(shards, tmp_path):
    """With pictures, and a hold-out that two processes share unevenly: what one of them asked alone, it would wait for for ever."""
    words = [*TINY, *CLUSTERS, "data.holdout_samples=7", "optim.total_samples=36", "checkpoint.every_samples=36", f"data.shards={shards}"]
    for world in (1, 2):
        done = finish(start([str(tmp_path / f"world{world}stage"), *words], world, ["-c", MANY]))
        assert done.status == [0] * world, done.err
    whole, *others = sorted(tmp_path.glob("world*"))
    assert len(others) == 7
    for other in others:
        for step, values in metrics(whole).items():
            for name in ("train/loss", "target/own_loss", "holdout/loss", "target/position", "teacher/rank", "optim/gradient_norm"):
                if name in values:
                    assert metrics(other)[step][name] == pytest.approx(values[name], rel=2e-4), (other.name, step, name)
        torch.testing.assert_close(tensors(other, 3)[f"weight/{HEAD}"], tensors(whole, 3)[f"weight/{HEAD}"], atol=1e-4, rtol=1e-3)
