"""SimMIM against an independent implementation: transformers.ViTForMaskedImageModeling with our weights and our mask."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.patches import patchify, unpatchify
from mpp.recipe.places import Masks
from tests.transformers_names import of_block

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
IMAGE, WIDTH, HEADS, BATCH = 32, 48, 3, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOKENS = {
    "vit.embeddings.cls_token": "encoder.vit.cls_token",
    "vit.embeddings.mask_token": "mask_token",
    "vit.embeddings.position_embeddings": "encoder.vit.pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "encoder.vit.patch_embed.proj.weight",
    "vit.embeddings.patch_embeddings.projection.bias": "encoder.vit.patch_embed.proj.bias",
    "vit.layernorm.weight": "encoder.vit.norm.weight",
    "vit.layernorm.bias": "encoder.vit.norm.bias",
    "decoder.0.weight": "decoder.head.weight",
    "decoder.0.bias": "decoder.head.bias",
}


def ours(patch: int, unit: int) -> tuple[PretrainConfig, PretrainingModel]:
    config = PretrainConfig.model_validate(
        {
            "model": {
                "arch": "vit_tiny_patch16_224", "image_size": IMAGE, "patch_size": patch, "width": WIDTH, "depth": 2, "heads": HEADS,
            },
            "mask": {"name": "random", "ratio": 0.6, "unit": unit},
            "corruption": {"name": "replace", "mask": 1.0, "swap": 0.0, "keep": 0.0},
            "target": {"name": "pixels", "loss": "l1"},
            "data": {"mean": MEAN, "std": STD},
        }
    )  # fmt: skip
    model = build_model(config, fused_attention=False).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # biases and norms too, which begin as zeros and ones
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    return config, model


def theirs(weights: dict[str, torch.Tensor], patch: int) -> torch.nn.Module:
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, image_size=IMAGE, patch_size=patch,
        encoder_stride=patch, layer_norm_eps=1e-6, attn_implementation="eager", hidden_dropout_prob=0.0,
    )  # fmt: skip
    oracle = transformers.ViTForMaskedImageModeling(config).eval()
    oracle.load_state_dict({name: translated(name, weights, value.shape) for name, value in oracle.state_dict().items()})
    return oracle


def translated(name: str, weights: dict[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Our weight, or its gradient, for one of theirs."""
    if part := re.fullmatch(r"vit\.(?:encoder\.layer|layers)\.(\d+)\.(.*)\.(weight|bias)", name):
        return of_block(weights, f"encoder.vit.blocks.{part[1]}", part[2], part[3])
    found = weights[TOKENS[name]]
    if name.startswith("decoder."):  # ours: row, column, colour; its PixelShuffle: colour, row, column
        side = round((len(found) // 3) ** 0.5)
        found = found.view(side, side, 3, -1).permute(2, 0, 1, 3)
    return found.reshape(shape)


def inputs(config: PretrainConfig) -> tuple[torch.Tensor, Masks[torch.Tensor]]:
    masking = Masking(config.model.grid, config.mask, config.corruption)
    masks = Masks(*map(torch.from_numpy, masking.draw_all([Draws(2, MASK, 0, sample) for sample in range(BATCH)])))
    return torch.randint(0, 256, (BATCH, 3, IMAGE, IMAGE), generator=torch.Generator().manual_seed(3)).float(), masks


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize(("patch", "unit"), [(8, 1), (8, 2), (4, 2), (4, 4)])
def test_predictions_loss_and_gradients_equal_the_oracles(patch, unit):
    config, model = ours(patch, unit)
    oracle = theirs(model.state_dict(), patch)
    images, masks = inputs(config)
    assert masks.predicted.shape[1] % unit**2 == 0

    found, loss, masked, _ = model(images, *masks)
    loss = loss.mean()
    expected = oracle(normalised(images), bool_masked_pos=masks.kind > 0)

    assert masked.all()
    shown = patchify(expected.reconstruction, patch).gather(1, masks.predicted[:, :, None, None, None].expand(-1, -1, 3, patch, patch))
    torch.testing.assert_close(model.target.answer(found).permute(0, 1, 4, 2, 3), shown, atol=2e-5, rtol=1e-4)
    # Its mean is over the masked pixels of all images: their sum by (their number + 1e-5), and by the channels.
    pixels = masks.predicted.numel() * patch**2
    torch.testing.assert_close(loss * (pixels / (pixels + 1e-5)), expected.loss, atol=1e-6, rtol=1e-5)

    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    compared = 0
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(translated(name, gradients, parameter.shape), parameter.grad, atol=2e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")  # fmt: skip
        compared += 1
    assert compared == len(TOKENS) + 2 * 16


@torch.no_grad()
def test_neither_sees_the_pixels_of_masked_patches():
    config, model = ours(4, 2)
    oracle = theirs(model.state_dict(), 4)
    images, masks = inputs(config)
    patches = patchify(images, 4)
    patches[masks.kind > 0] = 255 - patches[masks.kind > 0]
    altered = unpatchify(patches, config.model.grid)
    assert not torch.equal(altered, images)
    assert torch.equal(model(altered, *masks)[0], model(images, *masks)[0])
    first, second = (oracle(normalised(seen), bool_masked_pos=masks.kind > 0).reconstruction for seen in (altered, images))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_the_mask_of_units_is_one_that_the_authors_generator_could_have_made():
    """Its shape [rows, columns] repeats each unit, rows and columns alike (data_simmim.py)."""
    config, _ = ours(4, 2)
    _, masks = inputs(config)
    for kind in masks.kind.view(BATCH, 8, 8).numpy():
        units = kind[::2, ::2]
        assert np.array_equal(units.repeat(2, axis=0).repeat(2, axis=1), kind)
        assert units.sum() == 10  # round(.6 x 16)


def test_simmims_numbers_are_the_papers_and_its_authors():
    config = load(PretrainConfig, ROOT / "configs" / "simmim_b16.yaml")
    assert tuple(Masking(config.model.grid, config.mask, config.corruption).counts) == (120, 120, 76, 120)  # ceil(.6 x 49) units of 4
    assert (config.mask.unit * config.model.patch_size, config.corruption.mask, config.target.loss, config.decoder.name) == (
        32,
        1,
        "l1",
        "linear",
    )
    assert (config.optim.base_lr, config.optim.lr_batch, config.optim.betas) == (1e-4, 512, (0.9, 0.999))
    assert (config.optim.weight_decay, config.optim.clip_norm, config.data.crop_scale) == (0.05, 5, (0.67, 1.0))
    assert config.optim.warmup_samples * 80 == config.optim.total_samples == 800 * 1_281_167
