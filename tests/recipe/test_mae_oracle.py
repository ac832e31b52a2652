"""MAE against an independent implementation: transformers.ViTMAEForPreTraining with our weights and our mask."""

import re

import numpy as np
import pytest
import torch

from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.model.tokens import sincos_positions
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.patches import patchify
from tests.masks import draw
from tests.transformers_names import of_block

transformers = pytest.importorskip("transformers")
from transformers.models.vit_mae import modeling_vit_mae  # noqa: E402

IMAGE, WIDTH, HEADS, DECODER, RATIO = 32, 48, 3, 32, 0.75
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(patch: int, normalise: bool) -> tuple[PretrainConfig, PretrainingModel]:
    config = PretrainConfig.model_validate(
        {
            "model": {
                "arch": "vit_tiny_patch16_224", "image_size": IMAGE, "patch_size": patch, "width": WIDTH, "depth": 2, "heads": HEADS,
                "position": "sincos2d",
            },
            "mask": {"name": "random", "ratio": RATIO},
            "corruption": {"name": "drop"},
            "target": {"name": "pixels", "normalise": normalise},
            "decoder": {"name": "transformer", "depth": 2, "width": DECODER, "heads": 4},
            "data": {"mean": MEAN, "std": STD},
        }
    )  # fmt: skip
    model = build_model(config, fused_attention=False).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # biases and norms too, which begin as zeros and ones
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    return config, model


def theirs(model: PretrainingModel, patch: int, normalise: bool):
    config = transformers.ViTMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, image_size=IMAGE, patch_size=patch,
        decoder_hidden_size=DECODER, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=4 * DECODER,
        mask_ratio=RATIO, norm_pix_loss=normalise, layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    oracle = transformers.ViTMAEForPreTraining(config).eval()
    # Its own fixed positions: transformers 5 leaves the encoder's at zero because it takes the projection for loaded.
    oracle.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    oracle.vit.embeddings.initialize_weights()
    oracle.decoder.initialize_weights((IMAGE // patch) ** 2)
    weights = model.state_dict()
    copied = {}
    for name in oracle.state_dict():
        if name not in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):  # those are its own: fixed, and to be compared
            copied[name] = translated(name, weights)
    missing, unexpected = oracle.load_state_dict(copied, strict=False)
    assert sorted(missing) == ["decoder.decoder_pos_embed", "vit.embeddings.position_embeddings"]
    assert not unexpected
    return oracle


def translated(name: str, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Our weight for one of theirs (names of transformers 5 and 4)."""
    part = re.fullmatch(r"(vit|decoder)\.(?:encoder\.layer|layers|decoder_layers)\.(\d+)\.(.*)\.(weight|bias)", name)
    if not part:
        return weights[
            {
                "vit.embeddings.cls_token": "encoder.vit.cls_token",
                "vit.embeddings.patch_embeddings.projection.weight": "encoder.vit.patch_embed.proj.weight",
                "vit.embeddings.patch_embeddings.projection.bias": "encoder.vit.patch_embed.proj.bias",
                "vit.layernorm.weight": "encoder.vit.norm.weight",
                "vit.layernorm.bias": "encoder.vit.norm.bias",
                "decoder.mask_token": "decoder.mask_token",
                "decoder.decoder_embed.weight": "decoder.embed.weight",
                "decoder.decoder_embed.bias": "decoder.embed.bias",
                "decoder.decoder_norm.weight": "decoder.norm.weight",
                "decoder.decoder_norm.bias": "decoder.norm.bias",
                "decoder.decoder_pred.weight": "decoder.head.weight",
                "decoder.decoder_pred.bias": "decoder.head.bias",
            }[name]
        ]
    half, number, layer, kind = part.groups()
    return of_block(weights, f"{'encoder.vit' if half == 'vit' else 'decoder'}.blocks.{number}", layer, kind)


def inputs(config: PretrainConfig, batch: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Images 0..255, our masks, and noise that makes the oracle choose the same patches, in an order of its own."""
    masking = Masking(config.model.grid, config.mask, config.corruption)
    drawn = [draw(masking, Draws(2, MASK, 0, sample)) for sample in range(batch)]
    mask = {name: torch.from_numpy(np.stack([getattr(m, name) for m in drawn])) for name in ("kind", "source", "visible", "predicted")}
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(batch, (IMAGE // config.model.patch_size) ** 2, generator=generator) + (mask["kind"] > 0)
    return torch.randint(0, 256, (batch, 3, IMAGE, IMAGE), generator=generator).float(), mask, noise


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize(("patch", "normalise"), [(8, True), (8, False), (4, True)])
def test_predictions_loss_and_gradients_equal_the_oracles(patch, normalise):
    config, model = ours(patch, normalise)
    oracle = theirs(model, patch, normalise)
    images, mask, noise = inputs(config)

    found, loss, *_ = model(images, **mask)
    loss = loss.mean()
    expected = oracle(normalised(images), noise=noise)

    assert torch.equal(expected.mask.bool(), mask["kind"] > 0)
    theirs_there = expected.logits.gather(1, mask["predicted"][..., None].expand(-1, -1, expected.logits.shape[-1]))
    torch.testing.assert_close(found, theirs_there, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)

    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    compared = 0
    for name, parameter in oracle.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(translated(name, gradients), parameter.grad, atol=2e-5, rtol=1e-4)
            compared += 1
    assert compared > 60


@pytest.mark.parametrize("patch", [4, 8])
def test_patches_are_in_the_order_of_the_oracles_patchify(patch):
    config, model = ours(patch, False)
    oracle = theirs(model, patch, False)
    images, _, _ = inputs(config)
    target = model.target
    torch.testing.assert_close(target.cells(patchify(images, patch)).flatten(2), oracle.patchify(normalised(images)), atol=1e-6, rtol=1e-6)
    assert torch.equal(target.answer(oracle.patchify(images)).permute(0, 1, 4, 2, 3), patchify(images, patch))


@pytest.mark.parametrize(("width", "side"), [(48, 4), (32, 8), (512, 14)])
def test_fixed_positions_equal_those_of_the_oracle(width, side):
    config = transformers.ViTMAEConfig(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=2, image_size=side * 2, patch_size=2, decoder_num_hidden_layers=1
    )
    embeddings = modeling_vit_mae.ViTMAEEmbeddings(config)
    embeddings.initialize_weights()
    torch.testing.assert_close(sincos_positions(width, (side, side)), embeddings.position_embeddings[0, 1:].detach(), atol=1e-5, rtol=0)
    assert not embeddings.position_embeddings[0, 0].any()


@torch.no_grad()
def test_neither_sees_the_pixels_of_masked_patches():
    config, model = ours(8, True)
    oracle = theirs(model, 8, True)
    images, mask, noise = inputs(config)
    patches = patchify(images, 8)
    patches[mask["kind"] > 0] = 255 - patches[mask["kind"] > 0]
    side = IMAGE // 8
    altered = patches.view(3, side, side, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, IMAGE, IMAGE)
    assert not torch.equal(altered, images)
    assert torch.equal(model(altered, **mask)[0], model(images, **mask)[0])
    torch.testing.assert_close(
        oracle(normalised(altered), noise=noise).logits, oracle(normalised(images), noise=noise).logits, atol=1e-6, rtol=0
    )
