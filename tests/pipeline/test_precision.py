"""What bf16 and fp32 mean is the same at every ZeRO stage and on any number of processes: forward pass, gradients, exchange, update."""

import itertools
import json

import pytest

from mpp.base.errors import ConfigError
from mpp.config.sections import SystemConfig
from mpp.train.engine import DECIDED, _merged, _precisions
from tests.pipeline.conftest import finish, metrics, start, succeed

STEPS = """
import json, sys
import numpy as np, torch, torch.distributed as dist
from torch.nn.functional import cross_entropy
from mpp.config.pretrain import PretrainConfig
from mpp.config.sections import SystemConfig
from mpp.data.batch_plan import plan_batch
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from tests.masks import draw
from mpp.base.rng import MASK, Draws
from mpp.train.engine import Engine, start_distributed
from mpp.base.errors import run_program
from mpp.train.optim import build_optimiser
from mpp.processes.world import leave

world = start_distributed()
model = {"arch": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "heads": 2}
config = PretrainConfig.model_validate({"model": model, "decoder": {"name": "linear", "head_std": 0.1}})
masking, plan = Masking((4, 4), config.mask, config.corruption), plan_batch(8, None, world.size, 4)

def micro_batch(step, number):  # the same whichever rank takes it
    dice = torch.Generator().manual_seed(100 * step + number)
    masks = [draw(masking, Draws(0, MASK, step, 4 * number + i)) for i in range(4)]
    masks = [torch.from_numpy(np.stack([getattr(mask, name) for mask in masks])) for name in ("kind", "source", "visible", "predicted")]
    return torch.rand(4, 3, 16, 16, generator=dice) * 255, masks, torch.randint(0, 512, (4, masking.counts[0]), generator=dice)

def loss_of(prediction, goal):
    return cross_entropy(prediction.float().flatten(0, 1), goal.flatten())

def main(_):
    for system in json.loads(sys.argv[1]):
        model, system = build_model(config, False), SystemConfig(**system)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=system.precision == "bf16"):  # before DeepSpeed has seen it
            images, masks, goal = micro_batch(0, 0)
            alone, *_ = model(images, *masks)
            alone = [str(alone.dtype), float(loss_of(alone, goal))]
        engine = Engine(model, build_optimiser(model, config.optim), plan, world, system, 0.0)
        losses, norms = [], []
        for step in range(3):
            total = torch.zeros(())
            for turn in range(plan.accumulation):
                images, masks, goal = micro_batch(step, world.rank * plan.accumulation + turn)
                prediction, *_ = engine.forward(images, *masks)
                loss = loss_of(prediction, goal)
                if not losses and not turn:
                    first = [str(prediction.dtype), float(loss)]
                engine.backward(loss)
                total += loss.detach() / 2
            dist.all_reduce(total)
            norms.append(float(engine.update(1e-2)))
            losses.append(float(total))
        masters = sorted({str(state[kind].dtype) for state in engine.inner_optimiser.state.values() for kind in ("exp_avg", "exp_avg_sq")})
        masters += sorted({str(p.dtype) for group in engine.inner_optimiser.param_groups for p in group["params"]})
        if world.first:
            print("FOUND", json.dumps({"losses": losses, "norms": norms, "first": first, "alone": alone, "masters": masters}))
    return leave()

run_program(main)  # else a rank that has ended is taken for dead by the other's watchman
"""
SYSTEMS = [
    *({"precision": "bf16", "zero_stage": stage} for stage in range(4)),
    *({"precision": "bf16", "zero_stage": stage, "gradient_precision": "bf16"} for stage in (0, 2)),
    *({"precision": "fp32", "zero_stage": stage} for stage in (0, 3)),
]  # stage 3 after all others of its kind: what DeepSpeed lays over torch there, stays for the life of a process


@pytest.fixture(scope="module")
def found() -> dict[tuple, dict]:
    """(precision, stage, gradient precision, processes) -> losses and norms of three steps on the same eight images."""
    everything = {}
    for world in (1, 2):
        done = finish(start([json.dumps(SYSTEMS)], world, ["-c", STEPS]))
        assert done.status == [0] * world, done.err[-3000:]
        lines = [json.loads(line.removeprefix("FOUND ")) for line in done.out.splitlines() if line.startswith("FOUND ")]
        for system, line in zip(SYSTEMS, lines, strict=True):
            everything[system["precision"], system["zero_stage"], system.get("gradient_precision", "fp32"), world] = line
    return everything


def test_every_zero_stage_trains_alike_in_bf16_on_one_process_and_on_two(found):
    reference = found["bf16", 0, "fp32", 1]
    for stage, world in itertools.product(range(4), (1, 2)):
        line = found["bf16", stage, "fp32", world]
        assert line["losses"][0] == reference["losses"][0], (stage, world)  # the forward pass, to the bit
        assert line["norms"] == pytest.approx(reference["norms"], rel=2e-6), (stage, world)
        assert line["losses"] == pytest.approx(reference["losses"], rel=1e-6), (stage, world)
    for stage, world in itertools.product((0, 3), (1, 2)):
        assert found["fp32", stage, "fp32", world]["losses"] == pytest.approx(found["fp32", 0, "fp32", 1]["losses"], rel=1e-6)


def test_bf16_is_torchs_autocast_and_fp32_is_not(found):
    for (precision, stage, _, world), line in found.items():
        assert line["alone"][0] == {"bf16": "torch.bfloat16", "fp32": "torch.float32"}[precision]
        assert line["first"] == line["alone"], (precision, stage, world)
    ours, theirs = (found[precision, 0, "fp32", 1]["losses"][0] for precision in ("bf16", "fp32"))
    assert 1e-5 < abs(ours / theirs - 1) < 1e-2


def test_weights_and_moments_are_float32_at_every_stage_and_precision(found):
    assert {dtype for line in found.values() for dtype in line["masters"]} == {"torch.float32"}


def test_gradients_exchanged_in_bf16_are_rounded_because_somebody_asked(found):
    for stage in (0, 2):
        exact, rounded = (found["bf16", stage, kind, 2]["norms"][0] for kind in ("fp32", "bf16"))
        assert 1e-6 < abs(rounded / exact - 1) < 1e-2
    assert found["bf16", 0, "bf16", 1]["norms"] == found["bf16", 0, "fp32", 1]["norms"]  # one process exchanges nothing


def test_what_mpp_decides_is_refused_with_the_name_of_its_option():
    ours = {"zero_optimization": {"stage": 3, "memory_efficient_linear": False}, **_precisions(SystemConfig())}
    for name, option in DECIDED.items():
        section, _, key = name.partition(".")
        with pytest.raises(ConfigError, match=rf"system\.deepspeed\.{name} is decided by mpp; set {option}"):
            _merged(ours, {section: {key: 1}} if key else {section: {"enabled": True}})
    merged = _merged(ours, {"zero_optimization": {"memory_efficient_linear": True}, "wall_clock_breakdown": True})
    assert merged["zero_optimization"] == {"stage": 3, "memory_efficient_linear": True} and merged["wall_clock_breakdown"] is True
    with pytest.raises(ConfigError, match="must be a section"):
        _merged(ours, {"zero_optimization": True})


@pytest.mark.long
def test_whole_runs_in_bf16_write_the_same_losses_at_every_stage_on_one_process_and_on_two(shards, tmp_path):
    losses = {}
    for stage, world in itertools.product(range(4), (1, 2)):
        run = tmp_path / f"{stage}-{world}"
        words = [
            "system={precision: bf16, micro_batch_max: 6, workers: 0}",
            f"system.zero_stage={stage}",
            "model.drop_path=0",
            "optim.clip_norm=0",
        ]
        succeed(run, shards, *words, "log.pictures=0", world=world)
        losses[stage, world] = [values["train/loss"] for _, values in sorted(metrics(run).items())]
    for place, found in losses.items():
        assert found == pytest.approx(losses[0, 1], rel=1e-5), place
    run = tmp_path / "fp32"
    succeed(run, shards, "system.micro_batch_max=6", "model.drop_path=0", "optim.clip_norm=0")
    assert metrics(run)[1]["train/loss"] != losses[0, 1][0]
