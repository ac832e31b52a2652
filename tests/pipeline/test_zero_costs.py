"""What ZeRO's stages hold and send, counted on real processes: the formulas of mpp/train/zero_costs.py."""

import json
from collections import Counter

import pytest
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.mains.pretrain import micro_step_bytes
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.zero_costs import PERSISTENT, Parameters, Sent, held_at_most, held_between_steps, sent
from tests.forks import Forked
from tests.pipeline.conftest import ROOT, TINY, environment, finish, free_port

# Collectives of step 5 by kind and bytes; bytes of all tensors before step 6, and of those that step 6 makes, at most.
COUNTING = """
import gc, json, sys, warnings
from pathlib import Path
import torch
import torch.distributed as dist
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.monitor.memory import _Held
from mpp.pretrain import main
warnings.simplefilter("ignore")
out, calls, number, held = sys.argv.pop(1), [], [0], _Held()
def noting(name, real):
    def noted(*given, **named):
        tensors = [each for each in (*given, *named.values()) if isinstance(each, torch.Tensor)]
        if number[0] == 5:
            calls.append([name, max(each.numel() * each.element_size() for each in tensors)])
        return real(*given, **named)
    return noted
for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "reduce"):
    setattr(dist, name, noting(name, getattr(dist, name)))
def all_bytes():
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor):
            for tensor in filter(lambda found: found is not None, (each, each.grad if each.is_leaf else None)):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())
class Noted(run.Step):
    def __init__(self, *given):
        super().__init__(*given)
        number[0] = self.number
        if self.number == 6:
            self.run.before = all_bytes()
            held.__enter__()
        if self.number == 7:
            held.__exit__(None, None, None)
            Path(out).write_text(json.dumps({"calls": calls, "between": self.run.before, "step": held.most}))
run.Step = Noted
run_program(main)
"""
WIDE = ["model.width=512", "model.depth=3", "data.global_batch=8", "optim.total_samples=64", "optim.warmup_samples=0"]
QUIET = ["log={every_steps: 50, holdout_every_steps: 50, pictures: 0}", "checkpoint.every_samples=6400"]
KINDS = {"all_reduce": "all_reduce", "all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter"}


def parameters_of(words) -> Parameters:
    trained = [each.numel() for each in build_model(load(PretrainConfig, None, [*TINY, *words])).parameters() if each.requires_grad]
    return Parameters(sum(trained), sum(size for size in trained if size <= PERSISTENT))


def step_bytes_of(words) -> int:
    config = load(PretrainConfig, None, [*TINY, *words])
    masking = Masking(config.model.grid, config.mask, config.corruption)
    return micro_step_bytes(build_model(config), config, masking, config.system.micro_batch_max, torch.device("cpu"))


SHORT = [(0, 2, 1), (1, 2, 1), (2, 2, 2), (3, 2, 1)]
LONG = [(stage, world, accumulation) for world, accumulation in [(2, 1), (2, 2), (4, 1)] for stage in range(4)]


@pytest.mark.parametrize(
    ("stage", "world", "accumulation"), [*SHORT, *(pytest.param(*each, marks=pytest.mark.long) for each in LONG if each not in SHORT)]
)
def test_collectives_and_memory_are_those_of_the_formulas(stage, world, accumulation, shards, tmp_path):
    words = [*WIDE, f"system.micro_batch_max={8 // world // accumulation}", f"system.zero_stage={stage}"]
    port, out = free_port(), tmp_path / "found.json"
    given = [*TINY, *QUIET, *words, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    processes = [
        Forked(["-c", COUNTING, str(out if rank == 0 else tmp_path / "other.json"), *given], cwd=ROOT, env=environment(rank, world, port) | {"PYTHONPATH": str(ROOT)})
        for rank in range(world)
    ]  # fmt: skip
    finished = finish(processes)
    assert finished.status == [0] * world, finished.err[-3000:]
    found, parameters = json.loads(out.read_text()), parameters_of(words)

    by_kind = Counter()
    for name, size in found["calls"]:
        by_kind[KINDS[name]] += size
    small = 64  # bytes of all_reduce: norms, and what the ranks agree on
    expected = {each.kind: each.size for each in sent(parameters, stage, accumulation)}
    assert by_kind["all_reduce"] - expected.pop("all_reduce", 0) in range(small)
    for kind, size in expected.items():
        assert by_kind[kind] == pytest.approx(size, rel=1e-3), kind  # pieces are padded
    assert by_kind.keys() == {"all_reduce", *expected}

    whole = 4 * parameters.trained
    assert found["between"] == pytest.approx(held_between_steps(parameters, stage, world), abs=0.03 * whole)
    made = step_bytes_of(words)
    assert found["between"] + found["step"] == pytest.approx(held_at_most(parameters, stage, world, made, accumulation), rel=0.15)


def test_a_ring_sends_all_but_ones_own_part_once_and_for_a_sum_twice():
    assert Sent("all_gather", 1000).by_each(4) == 750 and Sent("reduce_scatter", 1000).by_each(4) == 750
    assert Sent("all_reduce", 1000).by_each(4) == 1500 and Sent("all_reduce", 1000).by_each(1) == 0


def test_bf16_gradients_are_half_as_many_bytes_and_weights_are_not():
    many = Parameters(10**6)
    assert sent(many, 0, 3, gradient_bytes=2) == [Sent("all_reduce", 2 * 10**6)]
    assert sent(many, 2, 3, gradient_bytes=2) == [Sent("all_reduce", 6 * 10**6), Sent("all_gather", 4 * 10**6)]


def test_beyond_a_billion_parameters_zero_3_gathers_twice():
    assert sent(Parameters(2 * 10**9), 3, 1)[1].size == 2 * sent(Parameters(10**9), 3, 1)[1].size * 2
