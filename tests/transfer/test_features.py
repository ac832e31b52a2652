import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms.functional import center_crop

from mpp.config import ModelConfig
from mpp.data.shards import ShardSet
from mpp.errors import CheckpointError, ConfigError, DataError
from mpp.model.encoder import build_encoder
from mpp.transfer.features import (
    EncoderExtractor,
    PixelExtractor,
    Variant,
    at_resolution,
    compare,
    crop_centre,
    extract,
    feature_spec,
    normalise,
    probe_variants,
)

CPU = torch.device("cpu")
TINY = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=12, depth=3, heads=3)


def spec_of(encoder, **changes):
    settings = {
        "layers": (-1,),
        "pooling": "mean",
        "resolution": 16,
        "crop": 1.0,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "precision": "fp32",
    }
    return feature_spec(encoder, **(settings | changes))


def images(count=6, side=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def extract_from(path, extractors, samples=None, **changes):
    shards = ShardSet.open(path)
    settings = {"resolution": 16, "crop": 1.0, "precision": "fp32", "batch": 16, "workers": 0, "max_pixels": 10**6, "device": CPU}
    return extract(shards, np.arange(len(shards)) if samples is None else samples, extractors, **(settings | changes))


def test_mean_pooling_leaves_the_class_token_out_and_norms_come_before_pooling():
    encoder = build_encoder(TINY, 0).eval()
    spec = spec_of(encoder)
    variants = [Variant((2,), "mean"), Variant((2,), "cls"), Variant((1, 2), "both")]
    extractor = EncoderExtractor(encoder, spec, variants, CPU)
    table = extractor(images())
    with torch.no_grad():
        one, two = encoder.layers(normalise(images(), spec.mean, spec.std), (1, 2))
    assert_close(table[:, extractor.columns[variants[0]]], two[:, 1:].mean(1))
    assert_close(table[:, extractor.columns[variants[1]]], two[:, 0])
    assert_close(table[:, extractor.columns[variants[2]]], torch.cat([one[:, 0], two[:, 0], one[:, 1:].mean(1), two[:, 1:].mean(1)], 1))
    assert not torch.allclose(two.mean(1), two[:, 1:].mean(1), atol=1e-4)  # the plausible bug is visible here


def test_the_grid_of_variants_holds_the_specs_own_first_and_no_cls_without_a_class_token():
    encoder = build_encoder(TINY, 0)
    own = spec_of(encoder, layers=(-2,))
    names = [str(v) for v in probe_variants(own, 3, True, (1, 4))]
    assert names == [
        "mean of block 1", "mean of block 2", "cls of block 2", "both of block 2",
        "mean of blocks 0, 1, 2", "cls of blocks 0, 1, 2", "both of blocks 0, 1, 2",
    ]  # fmt: skip
    assert {v.pooling for v in probe_variants(own, 3, False, (1, 4))} == {"mean"}


def test_the_encoder_is_left_unchanged_also_at_another_resolution():
    encoder = build_encoder(TINY, 0).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    EncoderExtractor(encoder, spec_of(encoder, resolution=24), [Variant((2,), "mean")], CPU)(images(side=24))
    assert encoder.training and encoder.grid == (4, 4)
    assert all(p.requires_grad for p in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_resolution_resamples_positions_and_the_same_one_keeps_them():
    encoder = build_encoder(TINY, 0)
    assert torch.equal(at_resolution(encoder, 16).vit.pos_embed, encoder.vit.pos_embed)
    larger = at_resolution(encoder, 24)
    assert larger.grid == (6, 6) and larger.vit.pos_embed.shape == (1, 37, 12)
    assert torch.equal(larger.vit.pos_embed[:, 0], encoder.vit.pos_embed[:, 0])  # the class token's is no place in the image


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (37, 37)])
def test_the_crop_is_that_of_resizing_the_short_side_and_cutting_the_centre(size):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0])
    image = Image.fromarray(np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], -1).astype(np.uint8))
    scale = 16 / 0.8 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    expected = np.asarray(center_crop(resized, [16, 16])).transpose(2, 0, 1)
    got = crop_centre(image, 16, 0.8)
    assert got.shape == (3, 16, 16) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected).mean() < 4  # theirs is rounded to whole pixels


def test_an_image_of_the_right_size_passes_untouched():
    pixels = images(1)[0].numpy()
    assert np.array_equal(crop_centre(Image.fromarray(pixels.transpose(1, 2, 0)), 16, 1.0), pixels)


def test_features_do_not_depend_on_batch_size_workers_or_company(splits):
    encoder = build_encoder(TINY, 0)
    make = lambda: {"e": EncoderExtractor(encoder, spec_of(encoder), [Variant((2,), "mean")], CPU)}
    whole = extract_from(splits["train"], make())["e"].values
    assert_close(extract_from(splits["train"], make(), batch=7)["e"].values, whole)
    assert_close(extract_from(splits["train"], make(), workers=1)["e"].values, whole)
    some = np.array([3, 50, 119])
    assert_close(extract_from(splits["train"], make(), samples=some)["e"].values, whole[some])


def test_extraction_leaves_the_global_random_state_alone(splits):
    state = torch.random.get_rng_state()
    extract_from(splits["test"], {"p": PixelExtractor(spec_of(build_encoder(TINY, 0)), 8)})
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_extractor_that_sees_its_batch_is_caught(splits):
    class SeesBatch(PixelExtractor):
        def __call__(self, images):
            pixels = super().__call__(images)
            return pixels - pixels.mean(0)  # a forgotten BatchNorm in train mode

    with pytest.raises(ConfigError, match="another batch size"):
        extract_from(splits["test"], {"p": SeesBatch(spec_of(build_encoder(TINY, 0)), 8)})


def test_features_that_are_not_finite_are_an_error(splits):
    encoder = build_encoder(TINY, 0)
    encoder.vit.norm.weight.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        extract_from(splits["test"], {"e": EncoderExtractor(encoder, spec_of(encoder), [Variant((2,), "mean")], CPU)})


def test_a_damaged_image_stops_the_probe_and_is_named(tmp_path, splits):
    import shutil

    shutil.copytree(splits["test"], tmp_path / "test")
    shards = ShardSet.open(tmp_path / "test")
    with (tmp_path / "test" / "000000.tar").open("r+b") as tar:
        tar.seek(int(shards.index[7]["offset"]) + 60)
        tar.write(b"\x00\x01\x02")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^test/000000.tar: 000000000007 .*CRC-32.*no image out") as caught:
            extract_from(tmp_path / "test", {"p": PixelExtractor(spec_of(build_encoder(TINY, 0)), 8)}, workers=workers)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": (3,)}, "3 blocks"),
        ({"layers": (-4,)}, "-3..2"),
        ({"resolution": 18}, "16 and 20"),
    ],
)
def test_a_spec_the_encoder_cannot_meet_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        spec_of(build_encoder(TINY, 0), **changes)


def test_the_class_token_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match="no class token"):
        spec_of(build_encoder(TINY.model_copy(update={"class_token": False}), 0), pooling="both")


def test_comparison_fails_on_nan_and_passes_within_the_tolerance():
    a = torch.ones(2, 4)
    compare("a", a, a * (1 + 1e-5), 1e-3)
    with pytest.raises(ConfigError):
        compare("a", a, a * float("nan"), 1e-3)
