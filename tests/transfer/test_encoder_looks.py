"""Looks inside an encoder during pretraining: which images, figures that timm's own extractor gives, and nothing touched."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from timm.utils import AttentionExtract

from mpp.data.training_set import open_training_set
from mpp.model.normalise import normalise
from mpp.monitor.attention import SpreadSums
from mpp.monitor.inside_sheet import sheet
from mpp.processes.world import World
from mpp.recipe.model import build_model
from mpp.transfer import encoder_looks
from mpp.transfer.encoder_looks import EncoderLooks
from mpp.transfer.while_training import FeatureLooks, choose
from tests.transfer.test_while_training import CPU, config_of

ALONE = World(0, 1, 1, CPU)


def whole(parameters):
    return nullcontext()


def looks_of(config, world=ALONE, everywhere=False):
    chosen = choose(config, open_training_set(config), 40)
    return chosen, EncoderLooks(config, chosen, world, everywhere)


@pytest.mark.parametrize("words", [[], ["model.class_tokens=3", "model.registers=1"], ["model.class_tokens=0"]])
def test_figures_are_those_of_timms_extractor_on_images_that_are_held_out(tiny_shards, words):
    config = config_of(tiny_shards, "model.depth=2", *words)
    chosen, looks = looks_of(config)
    assert set(chosen.asked) <= set(open_training_set(config).holdout.pool)
    assert torch.equal(looks.crops, FeatureLooks(config, chosen, ALONE).crops[len(chosen.bank) :])
    model = build_model(config).eval()
    found, picture = looks.look(model, whole, 5)
    assert picture is not None and picture.width > 500
    with torch.no_grad():
        for block in model.encoder.vit.blocks:
            block.attn.fused_attn = False
        images = normalise(looks.crops.float(), model.mean, model.std)
        every = AttentionExtract(model.encoder.vit, method="hook")(images)
    for number, attention in enumerate(every.values(), 1):
        sums = SpreadSums((2, 2), (8, 8), model.encoder.prefix)
        sums.add(attention)
        assert found[f"attention/distance/block_{number:02}"] == pytest.approx(sums.found().distance.mean().item(), rel=1e-5)
        assert found[f"attention/entropy/block_{number:02}"] == pytest.approx(sums.found().entropy.mean().item() / np.log(4), rel=1e-5)


def test_a_look_draws_no_random_number_and_leaves_weights_mode_and_kernels_alone(tiny_shards):
    config = config_of(tiny_shards)
    _, looks = looks_of(config)
    model = build_model(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kernels = [block.attn.fused_attn for block in model.encoder.vit.blocks]
    state = torch.get_rng_state()
    looks.look(model, whole, 0)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [block.attn.fused_attn for block in model.encoder.vit.blocks] == kernels
    assert not any(module._forward_hooks for module in model.modules()) and all(p.grad is None for p in model.parameters())


def test_one_process_looks_unless_the_weights_are_shared_out_and_then_all_make_the_same_passes(tiny_shards):
    config = config_of(tiny_shards)
    model = build_model(config).eval()
    passes, asked = [], []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))

    def gathered(parameters):
        asked.append(len(list(parameters)))
        return nullcontext()

    second = World(1, 2, 2, CPU)
    assert looks_of(config, second)[1].look(model, gathered, 0) == ({}, None) and not passes and not asked
    counts = []
    for world in (World(0, 2, 2, CPU), second):
        passes.clear(), asked.clear()
        found, picture = looks_of(config, world, everywhere=True)[1].look(model, gathered, 0)
        counts.append((len(passes), list(asked)))
        assert bool(found) == bool(picture) == world.first
    assert counts[0] == counts[1] == (1, [3])  # weight and bias of the patch embedding, and positions


def test_without_pictures_none_is_drawn_and_large_maps_go_in_parts(tiny_shards, monkeypatch):
    config = config_of(tiny_shards, "log.pictures=0")
    _, looks = looks_of(config)
    model = build_model(config).eval()
    monkeypatch.setattr(encoder_looks, "sheet", lambda *_: pytest.fail("drawn"))
    found, picture = looks.look(model, whole, 0)
    assert picture is None
    monkeypatch.setattr("mpp.monitor.attention_by_layer.LARGEST", 3 * 5 * 5 * 4)  # 4 images of 3 heads and 5 tokens
    passes = []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))
    again, _ = looks.look(model, whole, 0)
    assert again == pytest.approx(found) and len(passes) == -(-len(looks.crops) // 4)
    assert sheet is not encoder_looks.sheet
