"""Whole runs that go on from another's weights at other sizes (init_from)."""

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.interop.read_encoder import read_encoder
from mpp.interop.start_from import initialise_from
from mpp.model.backbone import Backbone
from mpp.recipe.model import build_model
from tests.pipeline.conftest import TINY, succeed, tensors

SHORT = ["optim.total_samples=24", "optim.warmup_samples=12"]
LARGER = ["model.image_size=48", "model.patch_size=8"]  # 6 x 6 patches, where the first run had 4 x 4
STILL = ["optim.base_lr=1e-30"]  # after whose steps the weights are those that it began with


@torch.no_grad()
def test_a_run_goes_on_from_the_weights_of_one_of_smaller_images_and_patches(shards, tmp_path):
    succeed(tmp_path / "small", shards, *SHORT)
    there = f"init_from={tmp_path / 'small'}"
    loaded = read_encoder(tmp_path / "small")
    config = load(PretrainConfig, None, [*TINY, there])
    model, images = build_model(config).eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    initialise_from(model, config)  # at its own size, before a first step
    wanted = Backbone(loaded.net).layers(images, [2])[0]
    assert torch.equal(model.encoder(model.encoder.embed(images)), wanted)

    done = succeed(tmp_path / "large", shards, *SHORT, *LARGER, *STILL, there)
    assert "resampled: encoder.vit.patch_embed.proj.weight (patches of 4 x 4 to 8 x 8 pixels" in done.out and "verdict" in done.out
    assert "encoder.vit.pos_embed (4 x 4 to 6 x 6 places" in done.out
    before, after = tensors(tmp_path / "small", 2), tensors(tmp_path / "large", 2)
    for name, rule in (
        ("patch_embed.proj.weight", lambda weight: resample_patch_embed(weight, [8, 8])),
        ("pos_embed", lambda places: resample_abs_pos_embed(places, [6, 6], [4, 4])),
        ("blocks.1.mlp.fc2.weight", lambda weight: weight),
    ):
        full = f"weight/encoder.vit.{name}"
        torch.testing.assert_close(after[full], rule(before[full]), atol=1e-6, rtol=0)
    again = succeed(tmp_path / "large", shards, *SHORT, *LARGER, *STILL, there)  # which has its own weights now
    assert "weights from" not in again.out
