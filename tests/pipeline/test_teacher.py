"""Runs that learn from a teacher, the average of their own encoder: committed, resumed, dealt out by ZeRO, measured."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from mpp.base.errors import CheckpointError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.loader import fixed_batches
from mpp.data.training_set import open_training_set
from mpp.interop.read_encoder import read_encoder
from mpp.mains.export import export
from mpp.model.normalise import normalise
from mpp.monitor.rank import spread
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import everywhere
from mpp.train.step import masked_images
from mpp.train.teacher import teacher_of
from mpp.transfer.overlap import trained_on
from tests.pipeline.conftest import TINY, finish, metrics, start, succeed, tensors

DECAYS = [0.5, 0.56, 0.62, 0.68, 0.74, 0.8, 0.8, 0.8]  # of each of 8 steps of 12 samples
FEATURES = [
    "target={name: features, blocks: 2, ema_start: 0.5, ema_end: 0.8, ema_samples: 60}",
    "corruption={name: replace, mask: 1.0, swap: 0.0, keep: 0.0}",
    "checkpoint={every_samples: 12, keep: 9}",
]
DECAYING = [
    "optim={weight_decay: 20, final_weight_decay: 40, norm_decay_scale: 0.1, patch_embed_lr_scale: 0.2, base_lr: 1e-3, warmup_samples: 24}"
]
LAST = 8
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
    for stage, micro in ((0, 12), (0, 3), (1, 3), (2, 3), (3, 3)):  # what DeepSpeed lays over torch at stage 3, stays for the life of a process
        main([*sys.argv[2:], f"system.zero_stage={stage}", f"system.micro_batch_max={micro}", f"run_dir={sys.argv[1]}{stage}micro{micro}"])
    part()
    return 0

run_program(every_stage)
"""


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught") / "run"
    said = succeed(folder, shards, *FEATURES).out
    (folder / "said").write_text(said)
    return folder


def config_of(shards) -> PretrainConfig:
    return load(PretrainConfig, None, [*TINY, *FEATURES, f"data.shards={shards}"])


def kinds(run, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """The encoder's weights ("weight") and the teacher's ("ema") of a commit, by the encoder's names."""
    found = tensors(run, step)
    return {
        kind: {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
        for kind, prefix in (("weight", "weight/encoder."), ("ema", "ema/"))
    }


def test_the_teacher_in_each_commit_is_the_average_by_hand_from_the_first_weights_on(run, shards):
    by_hand = {name: p.detach().double() for name, p in build_model(config_of(shards), False).encoder.named_parameters()}
    for step, decay in enumerate(DECAYS, 1):
        found = kinds(run, step)
        assert found["ema"].keys() == found["weight"].keys() == by_hand.keys()
        by_hand = {name: decay * by_hand[name] + (1 - decay) * weight.double() for name, weight in found["weight"].items()}
        for name, average in found["ema"].items():
            assert average.dtype == torch.float32
            torch.testing.assert_close(average.double(), by_hand[name], atol=2e-7, rtol=2e-6)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_its_teacher_too(run, shards, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for folder in (again / "checkpoints").iterdir():
        if int(folder.name) > 3:  # on its way from the first decay to the last
            shutil.rmtree(folder)
    assert "resumes at step 3" in succeed(again, shards, *FEATURES).out
    ours, theirs = tensors(run, LAST), tensors(again, LAST)
    assert ours.keys() == theirs.keys() and any(name.startswith("ema/") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(run) == metrics(again)


def test_no_skill_is_defined_and_log_and_board_say_so(run):
    said = (run / "said").read_text()
    assert "no trivial baseline: this target moves with its teacher, so no skill is defined" in said
    assert "skill none" in said and "skill +" not in said and "skill -" not in said
    names = {name for values in metrics(run).values() for name in values}
    assert {"train/loss", "holdout/loss"} <= names and not any("skill" in name for name in names)
    assert json.loads((run / "baseline.json").read_text()) == {
        "name": "none",
        "weight": 0.0,
        "loss": None,
        "losses": {},
        "looks_beyond": False,
    }
    assert [path.stem for path in sorted((run / "pictures").glob("*-reconstruction.png"))] == [
        f"{at:012d}-reconstruction" for at in (48, 96)
    ]


def test_the_encoder_that_is_handed_on_is_the_students(run, shards):
    from safetensors.torch import load_file

    handed, found = load_file(run / "encoder" / "model.safetensors"), kinds(run, LAST)
    assert {f"vit.{name}" for name in handed} == found["weight"].keys()
    assert all(torch.equal(tensor, found["weight"][f"vit.{name}"]) for name, tensor in handed.items())
    assert not all(torch.equal(tensor, found["ema"][f"vit.{name}"]) for name, tensor in handed.items())


def test_the_teacher_is_handed_on_beside_it_and_exported_on_request(run, tmp_path):
    handed, found = read_encoder(run / "teacher").net.state_dict(), kinds(run, LAST)
    assert {f"vit.{name}" for name in handed} == found["ema"].keys()
    assert all(torch.equal(tensor, found["ema"][f"vit.{name}"]) for name, tensor in handed.items())
    export(str(run / "checkpoints" / "000000004"), str(tmp_path / "out"), ["timm", "safetensors"], teacher=True)
    for folder in ("timm", "safetensors"):
        exported = read_encoder(tmp_path / "out" / folder).net.state_dict()
        assert all(torch.equal(tensor, kinds(run, 4)["ema"][f"vit.{name}"]) for name, tensor in exported.items())
    with pytest.raises(CheckpointError, match=r"encoder has no teacher: .*; leave --teacher \(in Python: network\) out"):
        export(str(run / "encoder"), str(tmp_path / "none"), ["timm"], teacher=True)
    assert [found.problem for found in trained_on(str(run / "teacher"))] == [""]  # images seen before are found through it, too
    about = json.loads((run / "teacher" / "config.json").read_text())["mpp"]
    assert about["source"] == "teacher of run at 96 samples" and about["pretraining"]["samples_seen"] == 96


def as_committed(run, shards, step: int, teacher_step: int) -> PretrainingModel:
    config = config_of(shards)
    model = build_model(config, False).eval()
    average = teacher_of(model, config)
    model.load_state_dict({name.removeprefix("weight/"): t for name, t in tensors(run, step).items() if name.startswith("weight/")})
    average.net.load_state_dict(kinds(run, teacher_step)["ema"])
    return model


@torch.no_grad()
def test_the_hold_out_is_measured_against_the_present_teacher(run, shards):
    sets = open_training_set(config_of(shards))
    ((batch, weight),) = fixed_batches(sets.holdout, np.array(sets.holdout.pool), 8)
    assert weight.tolist() == [1] * 8
    for step in (4, 8):
        loss = lambda teacher_step, step=step: float(
            as_committed(run, shards, step, teacher_step)(*masked_images(batch, torch.device("cpu")))[1].mean()
        )
        written = metrics(run)[step]["holdout/loss"]
        assert written == pytest.approx(loss(step), rel=1e-5)
        assert abs(written - loss(step - 1)) > 1e-4 * written  # nor against the one of a step before


@torch.no_grad()
def test_what_is_left_of_the_differences_between_images_is_measured_on_the_hold_out(run, shards):
    sets = open_training_set(config_of(shards))
    ((batch, _),) = fixed_batches(sets.holdout, np.array(sets.holdout.pool), 8)
    model = as_committed(run, shards, LAST, LAST)
    images, *masks = masked_images(batch, torch.device("cpu"))
    goals = model.target(images, everywhere(Masks(*masks)), model.teacher).double().numpy()
    within, total = ((goals - goals.mean(0)) ** 2).sum(), ((goals - goals.mean((0, 1))) ** 2).sum()
    written = metrics(run)[LAST]
    assert written["target/position"] == pytest.approx(1 - within / total, rel=1e-5) and 0 < 1 - within / total < 1
    net = model.teacher.net
    tokens = net(net.embed(normalise(images, model.mean, model.std)))[:, net.prefix :].mean(1)
    assert written["teacher/rank"] == pytest.approx(spread(tokens)["rank"], rel=1e-4)
    assert "the place alone explains" in (run / "said").read_text()


@pytest.fixture(scope="module")
def every_stage(shards, tmp_path_factory):
    """worldWstageSmicroM: 3 steps of 12 samples on W processes at ZeRO stage S, in 12, 4, 2 or 1 micro-batches a step and process; a commit each."""
    place = tmp_path_factory.mktemp("stages")
    words = [*TINY, *FEATURES, *DECAYING, "model.drop_path=0", "log.pictures=0", "optim.total_samples=36", f"data.shards={shards}"]
    for world in (1, 2):
        done = finish(start([str(place / f"world{world}stage"), *words], world, ["-c", MANY]))
        assert done.status == [0] * world, done.err
    return place


@pytest.mark.slow
def test_every_stage_world_and_accumulation_has_the_same_losses_and_moves_the_teacher_once_a_step(every_stage):
    whole = every_stage / "world1stage0micro12"
    for other in every_stage.glob("world*"):
        for step, values in metrics(whole).items():
            for name in ("train/loss", "holdout/loss", "optim/gradient_norm"):
                if name in values:
                    assert metrics(other)[step][name] == pytest.approx(values[name], rel=1e-5), (other.name, step, name)
        for step in (1, 2, 3):
            ours, theirs = kinds(whole, step)["ema"], kinds(other, step)["ema"]
            for name in ours:
                torch.testing.assert_close(theirs[name], ours[name], atol=1e-5, rtol=1e-4)
    assert len(list(every_stage.glob("world*"))) == 10


@pytest.mark.slow
def test_at_every_stage_each_weight_decays_and_moves_by_its_own_factors_of_the_steps_decay_and_rate(every_stage):
    """AdamW by hand (arXiv 1711.05101), from one commit to the next, with the moments of the latter."""
    for run in every_stage.glob("world*"):
        for step in (2, 3):
            before, after, known = tensors(run, step - 1), tensors(run, step), metrics(run)[step]
            rate, decay = 1e-3 * (step - 1) / 2, 40 - 20 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 3))
            assert (known["optim/learning_rate"], known["optim/weight_decay"]) == (pytest.approx(rate), pytest.approx(decay))
            for name, moved in ((name.removeprefix("weight/"), after[name].double()) for name in after if name.startswith("weight/")):
                slow, norm = 0.2 if "patch_embed" in name else 1.0, "norm" in name
                shrinks = (0.1 if norm else 0.0 if "token" in name or "pos_embed" in name else 1.0) if name.endswith("weight") else 0.0
                mean, square = (after[f"{kind}/{name}"].double() for kind in ("exp_avg", "exp_avg_sq"))
                update = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
                by_hand = before[f"weight/{name}"].double() * (1 - slow * rate * decay * shrinks) - slow * rate * update
                torch.testing.assert_close(
                    moved, by_hand, atol=1e-6, rtol=1e-6, msg=lambda words, at=(run.name, step, name): f"{at}: {words}"
                )


def test_a_student_of_another_run_begins_with_its_own_encoder_as_teacher(run, shards):
    """What init_from does before the teacher is made."""
    config = config_of(shards)
    model = build_model(config, False)
    with torch.no_grad():
        model.encoder.vit.pos_embed.add_(1)
    average = teacher_of(model, config)
    images = normalise(torch.rand(1, 3, 16, 16) * 255, config.data.mean, config.data.std)
    assert torch.equal(average.net(average.net.embed(images)), model.eval().encoder(model.encoder.embed(images)))
