"""The teacher's life in a run, without the run: it starts as the encoder, and follows it by the decay of its clock."""

from types import SimpleNamespace

import torch

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.pretraining import teacher_of
from mpp.recipe.model import build_model

WORDS = [
    "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 8, width: 12, depth: 2, heads: 3, position: sincos2d, drop_path: 0.5}",
    "data.global_batch=4",
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
    for step, decay in [(1, 0.7), (2, 0.9), (3, 0.9)]:  # 4, 8 and 12 samples seen
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
