"""The teacher's life in a run, without the run: it starts as the encoder, and follows it by the decay of its clock."""

import math
from types import SimpleNamespace

import pytest
import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.model import build_model
from mpp.train.teacher import teacher_of

WORDS = [
    "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 8, width: 12, depth: 2, heads: 3, position: sincos2d, drop_path: 0.5}",
    "data.global_batch=4",
    "decoder={name: linear, head_std: 0.02}",
]


def config_of(*words: str) -> PretrainConfig:
    return load(PretrainConfig, None, [*WORDS, *words])


def test_a_target_that_asks_for_no_teacher_gets_none():
    config = config_of()
    model = build_model(config, False)
    assert teacher_of(model, config) is None and model.teacher is None


def test_the_teacher_begins_as_the_encoder_and_follows_it_by_hand_over_three_steps():
    config = config_of("target={name: features, blocks: 2, ema_start: 0.5, ema_end: 0.9, ema_samples: 8}")
    model = build_model(config, False).train()
    average = teacher_of(model, config)
    assert model.teacher.net is average.net and not average.net.training
    encoder = dict(model.encoder.named_parameters())
    by_hand = {name: parameter.detach().double().clone() for name, parameter in encoder.items()}
    ours = dict(average.net.named_parameters())
    assert ours.keys() == encoder.keys()
    assert all(torch.equal(ours[name], parameter) and ours[name] is not parameter for name, parameter in encoder.items())

    dice = torch.Generator().manual_seed(0)
    for step, decay in [(1, 0.5), (2, 0.7), (3, 0.9)]:  # 0, 4 and 8 samples seen before it
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=dice))
        average.update(SimpleNamespace(module=model, stage=0), step)
        for name, parameter in encoder.items():
            by_hand[name] = decay * by_hand[name] + (1 - decay) * parameter.detach().double()
            assert ours[name].dtype == torch.float32
            torch.testing.assert_close(ours[name].double(), by_hand[name], atol=1e-6, rtol=1e-6)
    assert torch.equal(ours["vit.pos_embed"], encoder["vit.pos_embed"])  # fixed
    assert average.tensors().keys() == {f"ema/{name}" for name in encoder}


# By step, of 10 with 4 samples each, warm-up over 4 of them to 1e-3: the decays that the authors' own formulas give.
LAST = 9
RAMPS = {
    "{ema_start: 0.996, ema_end: 1.0, ema_samples: null}": lambda i: 0.996 + i * (1.0 - 0.996) / 10,  # I-JEPA's generator
    "{ema_schedule: cosine, ema_start: 0.996, ema_end: 1.0, ema_samples: null}":
        lambda i: 1 - (1 - 0.996) * (math.cos(math.pi * i / 10) + 1) / 2,  # BYOL (arXiv 2006.07733, 3.3), and DINO
    "{ema_schedule: cosine, ema_start: 0.9, ema_end: 0.99, ema_samples: 20}": lambda i: 0.99 - 0.09 * (math.cos(math.pi * min(i, 5) / 5) + 1) / 2,
    "{ema_schedule: lr}":
        lambda i: 1 - (1e-3 * i / 4 if i < 4 else 1e-3 * 0.5 * (1 + math.cos(math.pi * 0.8 * (i - 4) / 6))),  # CAPI: 1 -> .999, then back up
}  # fmt: skip


@pytest.mark.parametrize("knobs", RAMPS)
def test_the_decay_of_every_step_is_that_of_the_authors_formula(knobs):
    config = config_of(
        f"target={{name: features, blocks: 2, {knobs[1:]}",
        "optim={base_lr: 1e-3, warmup_samples: 16, total_samples: 40, cosine_share: 0.8}",
    )
    average = teacher_of(build_model(config, False), config)
    for step in range(10):
        assert average.decay_at(step + 1) == pytest.approx(RAMPS[knobs](step), rel=1e-12), step


def test_a_decay_of_one_leaves_the_teacher_as_it_is_to_the_bit():
    config = config_of("target={name: features, blocks: 2, ema_start: 0.5, ema_end: 1.0, ema_samples: 4}")
    model = build_model(config, False)
    average = teacher_of(model, config)
    with torch.no_grad():
        model.encoder.vit.cls_token.add_(1)
    before = {name: parameter.clone() for name, parameter in average.net.named_parameters()}
    average.update(SimpleNamespace(module=model, stage=0), 2)
    assert average.decay_at(2) == 1.0
    assert all(torch.equal(parameter, before[name]) for name, parameter in average.net.named_parameters())


def test_over_the_whole_run_means_over_the_whole_cycle_of_an_extension():
    config = config_of("target={name: features, blocks: 2, ema_start: 0.5, ema_end: 1.0, ema_samples: null}", "optim.warmup_samples=0")
    average = teacher_of(build_model(config, False), config, began=config.optim.total_samples - 16)
    first = (config.optim.total_samples - 16) // 4 + 1
    assert [average.decay_at(first + step) for step in range(5)] == [0.5, 0.625, 0.75, 0.875, 1.0]
