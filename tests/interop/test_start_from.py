"""Pretraining goes on from MAE's own checkpoints: the first loss is the one that transformers' implementation has."""

import numpy as np
import pytest
import torch

from mpp.base.errors import ConfigError
from mpp.base.rng import MASK, Draws
from mpp.config.pretrain import PretrainConfig
from mpp.interop import start_from
from mpp.interop.start_from import initialise_from
from mpp.recipe.masking import Masking
from mpp.recipe.model import PretrainingModel, build_model
from tests.masks import draw

transformers = pytest.importorskip("transformers")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SECTION = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512, "image_size": 32, "patch_size": 8,
    "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 128,
    "mask_ratio": 0.75, "norm_pix_loss": True, "layer_norm_eps": 1e-6,
}  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SECTION)).eval()
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False  # or transformers 5 leaves the encoder's positions at zero
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(16)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    return model


def configured(source, **changes) -> PretrainConfig:
    sections = {
        "init_from": str(source),
        "model": {
            "arch": "vit_tiny_patch16_224",
            "image_size": 32,
            "patch_size": 8,
            "width": 128,
            "depth": 2,
            "heads": 2,
            "position": "sincos2d",
        },
        "mask": {"name": "random", "ratio": 0.75},
        "corruption": {"name": "drop"},
        "target": {"name": "pixels", "normalise": True},
        "decoder": {"name": "transformer", "depth": 2, "width": 32, "heads": 4},
        "data": {"mean": MEAN, "std": STD},
    }
    for key, value in changes.items():
        sections[key] = {**sections[key], **value}
    return PretrainConfig.model_validate(sections)


def first_loss(config: PretrainConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PretrainingModel]:
    """Of a model that begins from config.init_from; the images 0..255 and the noise by which the oracle hides the same patches."""
    model = build_model(config, False).eval()
    initialise_from(model, config)
    masking = Masking(config.model.grid, config.mask, config.corruption)
    drawn = [draw(masking, Draws(2, MASK, 0, sample)) for sample in range(3)]
    mask = {name: torch.from_numpy(np.stack([getattr(m, name) for m in drawn])) for name in ("kind", "source", "visible", "predicted")}
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator).float()
    loss = model(images, **mask)[1].mean()
    return loss, images, torch.rand(3, 16, generator=generator) + (mask["kind"] > 0), model


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def published(oracle) -> dict[str, torch.Tensor]:
    """Under the names of MAE's own release."""
    theirs, named = oracle.state_dict(), {}
    for side, own in [("vit.layers", "blocks"), ("decoder.decoder_layers", "decoder_blocks")]:
        for i in range(2):
            for kind in ("weight", "bias"):
                at = lambda name, i=i, kind=kind, side=side: theirs[f"{side}.{i}.{name}.{kind}"]
                block = {
                    "attn.qkv": torch.cat([at(f"attention.{part}_proj") for part in "qkv"]), "attn.proj": at("attention.o_proj"),
                    "norm1": at("layernorm_before"), "norm2": at("layernorm_after"), "mlp.fc1": at("mlp.fc1"), "mlp.fc2": at("mlp.fc2"),
                }  # fmt: skip
                named |= {f"{own}.{i}.{name}.{kind}": tensor for name, tensor in block.items()}
    outside = {
        "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings", "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        outside |= {
            f"patch_embed.proj.{kind}": f"vit.embeddings.patch_embeddings.projection.{kind}",
            f"norm.{kind}": f"vit.layernorm.{kind}",
        }
        outside |= {f"decoder_{name}.{kind}": f"decoder.decoder_{name}.{kind}" for name in ("embed", "norm", "pred")}
    return named | {name: theirs[other] for name, other in outside.items()}


@torch.no_grad()
@pytest.mark.parametrize("form", ["transformers", "MAE's release"])
def test_the_first_loss_is_the_oracles(oracle, tmp_path, form, capsys):
    if form == "transformers":
        oracle.save_pretrained(tmp_path / "mae")
    else:
        torch.save({"model": published(oracle), "epoch": 799}, tmp_path / "mae")
    loss, images, noise, _ = first_loss(configured(tmp_path / "mae"))
    torch.testing.assert_close(loss, oracle(normalised(images), noise=noise).loss, atol=1e-5, rtol=1e-5)
    said = capsys.readouterr().out
    assert "0 begin afresh" in said and "note" not in said


@torch.no_grad()
def test_heads_of_a_decoder_that_a_file_does_not_say_are_told_where_published_ones_have_others(oracle, tmp_path, capsys, monkeypatch):
    """Shapes do not show them, so weights alone would fit."""
    torch.save({"model": published(oracle)}, tmp_path / "mae.pth")
    initialise_from(build_model(config := configured(tmp_path / "mae.pth", decoder={"heads": 2}), False), config)
    assert "note" not in capsys.readouterr().out  # of this width nothing is published
    monkeypatch.setitem(start_from.MAE_DECODER, "width", 32)
    initialise_from(build_model(config, False), config)
    assert "its decoder is taken with decoder.heads=2; a file of weights does not say how many it has, and " in capsys.readouterr().out
    assert start_from.MAE_DECODER["heads"] == PretrainConfig.model_validate({"decoder": {"name": "transformer"}}).decoder.heads


@torch.no_grad()
def test_an_encoder_without_its_decoder_begins_with_a_fresh_one_and_says_so(oracle, tmp_path, capsys):
    torch.save(
        {name: t for name, t in published(oracle).items() if "decoder" not in name and name != "mask_token"}, tmp_path / "encoder.pth"
    )
    *_, model = first_loss(configured(tmp_path / "encoder.pth", data={"mean": (0.5, 0.5, 0.5)}))
    assert torch.equal(model.encoder.vit.blocks[1].mlp.fc1.weight, oracle.vit.layers[1].mlp.fc1.weight)
    fresh = build_model(configured(""), False).decoder.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.decoder.state_dict().items())
    said = capsys.readouterr().out
    assert f"{len(fresh)} begin afresh" in said and "data.mean=[0.485, 0.456, 0.406]" in said


def test_positions_that_do_not_fit_are_not_left_out_unsaid(oracle, tmp_path, capsys):
    weights = published(oracle)
    weights["pos_embed"] = weights["pos_embed"] + 0.1
    torch.save(weights, tmp_path / "mae.pth")
    first_loss(configured(tmp_path / "mae.pth"))
    assert "model.position=learned would take it" in capsys.readouterr().out
    *_, model = first_loss(configured(tmp_path / "mae.pth", model={"position": "learned"}))
    assert torch.equal(model.encoder.vit.pos_embed, weights["pos_embed"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"heads": 4}}, r"there heads 2 and here 4\); to begin from it give model\.heads=2$"),
        ({"decoder": {"heads": 2}}, r"set decoder\.heads=4$"),
        ({"model": {"depth": 3}}, r"there depth 2 and here 3\); to begin from it give model\.depth=2$"),
        ({"model": {"depth": 1, "width": 64, "heads": 1}}, "give model.width=128 model.depth=2 model.heads=2$"),
    ],
)
def test_another_architecture_is_refused(oracle, tmp_path, changes, words):
    oracle.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=words):
        first_loss(configured(tmp_path, **changes))
