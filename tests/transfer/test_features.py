"""What a feature table holds, and that both sides of a probe hold the same."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mpp.base.errors import ConfigError
from mpp.config.sections import ModelConfig
from mpp.model.backbone import Backbone
from mpp.model.encoder import build_encoder
from mpp.model.normalise import normalise
from mpp.transfer.extractors import EncoderExtractor, PixelExtractor
from mpp.transfer.features import (
    FeatureSpec,
    Variant,
    check_resolution,
    needed_by,
    own_variant,
    refuse_other_features,
)
from mpp.transfer.probes.linear import LinearProbe

CPU = torch.device("cpu")
TINY = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=12, depth=3, heads=3)


def backbone(**changes) -> Backbone:
    return Backbone(build_encoder(TINY.model_copy(update=changes), 0).vit).eval()


def spec_of(layers=(3,), poolings=("mean",), **changes) -> FeatureSpec:
    return FeatureSpec("tiny", layers, poolings, 16, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32", **changes)


def images(count=6, side=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def test_mean_pooling_leaves_the_class_token_out_and_norms_come_before_pooling():
    spec = spec_of((2, 3), ("cls", "mean"))
    extractor = EncoderExtractor(backbone(), spec, CPU)
    table, columns = extractor(images()), extractor.layout.columns
    with torch.no_grad():
        two, three = backbone().layers(normalise(images(), spec.mean, spec.std), (2, 3))
    assert_close(table[:, columns(Variant((3,), "mean"))], three[:, 1:].mean(1))
    assert_close(table[:, columns(Variant((3,), "cls"))], three[:, 0])
    both = torch.cat([two[:, 0], three[:, 0], two[:, 1:].mean(1), three[:, 1:].mean(1)], 1)
    assert_close(table[:, columns(Variant((2, 3), "both"))], both)
    assert not torch.allclose(three.mean(1), three[:, 1:].mean(1), atol=1e-4)  # the plausible bug is visible here


def test_the_grid_holds_the_own_features_first_every_layer_and_no_cls_without_a_class_token():
    own = own_variant(backbone(), (-2,), "mean")
    names = [str(v) for v in LinearProbe(last_layers=(1, 2)).variants(own, backbone())]
    assert names == [
        "mean of layer 2", "mean of layer 0", "mean of layer 1", "mean of layer 3",
        "cls of layer 0", "cls of layer 1", "cls of layer 2", "cls of layer 3", "both of layer 3",
        "mean of layers 2, 3", "cls of layers 2, 3", "both of layers 2, 3",
    ]  # fmt: skip
    assert [str(v) for v in LinearProbe(curve=False, last_layers=()).variants(own, backbone())] == ["mean of layer 2"]
    assert {v.pooling for v in LinearProbe().variants(own, backbone(class_tokens=0))} == {"mean"}
    assert needed_by([Variant((1, 3), "mean"), Variant((2,), "both")]) == ((1, 2, 3), ("cls", "mean"))


def test_the_encoder_is_left_unchanged_also_at_another_resolution():
    own = backbone().train()
    own.net.requires_grad_(True)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    spec = FeatureSpec("tiny", (3,), ("mean",), 24, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32")
    EncoderExtractor(own, spec, CPU)(images(side=24))
    assert own.training and all(p.requires_grad for p in own.parameters())
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name])


def test_large_pixels_are_averaged_down_and_small_ones_kept():
    kept, shrunk = (PixelExtractor(16, 1.0, (0.5,) * 3, (0.25,) * 3, side) for side in (32, 4))
    assert kept.layout.width == 3 * 256 and shrunk.layout.width == 48
    assert_close(kept(images()), (images().float() / 255 - 0.5).flatten(1) / 0.25)
    assert_close(shrunk(images()).mean(1), kept(images()).mean(1), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": (2,)},
        {"poolings": ("cls",)},
        {"masking": "on"},
        {"token_norm": "off"},
        {"dtype": "float16"},
        {"interpolation": "nearest"},
    ],
)
def test_sides_that_differ_in_anything_are_refused(change):
    ours = spec_of()
    refuse_other_features(ours, spec_of())
    with pytest.raises(ConfigError, match=next(iter(change))):
        refuse_other_features(ours, FeatureSpec(**(ours.as_dict() | change)))


@pytest.mark.parametrize(("layers", "says"), [((4,), r"layers 0\.\.3.*4 is none"), ((-5,), "-5 is none"), ((-1, 9), "9 is none")])
def test_a_layer_the_encoder_does_not_have_is_refused(layers, says):
    with pytest.raises(ConfigError, match=says):
        own_variant(backbone(), layers, "mean")
    assert own_variant(backbone(), (-4, 3), "mean").layers == (0, 3)


def test_a_size_of_no_whole_patches_and_a_missing_class_token_are_refused():
    with pytest.raises(ConfigError, match="16 and 20"):
        check_resolution(backbone(), 18)
    with pytest.raises(ConfigError, match="no class token"):
        own_variant(backbone(class_tokens=0), (-1,), "both")
