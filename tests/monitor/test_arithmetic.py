"""The arithmetic of a step equals the formula of a Vision Transformer, and counting it leaves no trace."""

import itertools
import time

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.mains.pretrain import flop_of
from mpp.model import normalise
from mpp.monitor.arithmetic import matrix_rate, training_flop
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.teacher import teacher_of

CPU = torch.device("cpu")
MAE = ["mask={name: random, ratio: 0.75}", "corruption.name=drop", "target={name: pixels, normalise: true}"]


def counted(*words, fused=False):
    config = load(PretrainConfig, None, ["data.shards=none", "model.class_tokens=0", *words])
    model = build_model(config, fused)
    teacher_of(model, config)
    return flop_of(model, config, Masking(config.model.grid, config.mask, config.corruption), CPU)


def sizes(arch="vit_tiny_patch16_224", side=32, patch=4, width=48, depth=2, heads=3):
    words = [f"model.arch={arch}", f"model.image_size={side}", f"model.patch_size={patch}"]
    return [*words, f"model.width={width}", f"model.depth={depth}", f"model.heads={heads}"]


def blocks(depth, width, tokens):
    """Multiply-adds of so many blocks."""
    return depth * (12 * width**2 * tokens + 2 * tokens**2 * width)


def embedding(patches, patch, width):
    return patches * 3 * patch**2 * width


@given(st.sampled_from([16, 32]), st.sampled_from([4, 8]), st.sampled_from([1, 3]), st.sampled_from([24, 48]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_every_token_is_encoded_and_half_of_them_are_predicted(side, patch, depth, width, fused):
    patches = (side // patch) ** 2
    found = counted(*sizes(side=side, patch=patch, depth=depth, width=width), "mask={name: random, ratio: 0.5}", fused=fused)
    head = patches // 2 * width * 512
    # Three products for each of the forward pass, but two for the patches' embedding: nobody asks for the gradient of an image.
    assert found == 6 * (blocks(depth, width, patches) + head) + 4 * embedding(patches, patch, width)


@pytest.mark.parametrize("fused", [False, True])
def test_a_dropping_encoder_saves_what_it_does_not_see(fused):
    found = counted(*sizes(), *MAE, "decoder={name: transformer, depth: 1, width: 24, heads: 2}", fused=fused)
    decoder = 16 * 48 * 24 + blocks(1, 24, 64) + 48 * 24 * 48  # what is encoded comes in, all places are decoded, the hidden ones predicted
    assert found == 6 * (blocks(2, 48, 16) + decoder) + 4 * embedding(64, 4, 48)


def test_what_is_known_of_large_models():
    """GFLOP an image: ViT-B/16 105.4, MAE's ViT-B 58.7 (the published sizes, which count a gradient of the image)."""
    large = ["model.arch=vit_base_patch16_224", "model.image_size=224", "model.patch_size=16"]
    assert counted(*large, "model.class_tokens=1", fused=True) / 1e9 == pytest.approx(105.4, rel=0.002)
    decoder = "decoder={name: transformer, depth: 8, width: 512, heads: 16}"
    assert counted(*large, *MAE, decoder, "model.class_tokens=1", fused=True) / 1e9 == pytest.approx(58.7, rel=0.01)


def test_a_teacher_costs_its_forward_pass_alone():
    alone = counted(*sizes(), "mask={name: random, ratio: 0.5}")
    taught = counted(*sizes(), "mask={name: random, ratio: 0.5}", "target={name: features, blocks: 2}")
    patches, heads = 64, 32 * 48 * (512 - 48)  # the heads differ: 512 classes, 48 numbers
    assert taught - alone == 2 * (blocks(2, 48, patches) + embedding(patches, 4, 48)) - 6 * heads


def test_what_is_frozen_has_no_gradient_to_compute():
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    loss = lambda: net(torch.zeros(5, 8)).sum()
    assert training_flop(net, loss) == 2 * 5 * (2 * 8 * 16 + 3 * 16 * 4)
    net[0].requires_grad_(False)
    assert training_flop(net, loss) == 2 * 5 * (8 * 16 + 2 * 16 * 4)


def test_counting_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(normalise, "_made", {})
    net = timm.create_model("resnet18", num_classes=3)
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    images = lambda: normalise.normalise(torch.zeros(2, 3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    assert training_flop(net, lambda: torch.rand(()) * net(images()).sum()) > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters()) and torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(images()).all()  # constants are real ones


def test_a_machine_that_takes_a_second_for_a_product_has_its_operations_a_second(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert matrix_rate(CPU, torch.float32) == 2 * 1024**3
