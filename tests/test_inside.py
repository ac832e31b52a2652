"""Looking inside encoders of every kind with the program: files, the numbers behind them, and what is said to be absent."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from matplotlib.collections import PathCollection
from PIL import Image
from timm.utils import AttentionExtract

from mpp.base.errors import ConfigError, DataError, UserError
from mpp.config.inside import InsideConfig
from mpp.config.schema import load
from mpp.config.sections import ModelConfig
from mpp.data.labelled import open_images
from mpp.inside import main
from mpp.interop.encoder_folder import write_encoder
from mpp.interop.loaded_encoder import LoadedEncoder, digest_of
from mpp.interop.read_encoder import read_encoder
from mpp.mains import inside
from mpp.model.encoder import build_encoder
from mpp.model.normalise import normalise
from mpp.monitor.attention import Spread, rollout
from mpp.monitor.attention_by_layer import LayerSpread
from mpp.transfer import inside_plots

HALF = (0.5, 0.5, 0.5)
OURS = {
    "plain": ["class_tokens=1"],
    "pixio": ["class_tokens=3", "registers=2"],
    "without": ["class_tokens=0", "position=sincos2d"],
    "rotary": ["arch=vit_small_patch16_rope_224", "position=rotary", "class_tokens=0", "registers=4"],
}
THEIRS = {
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 32},
    "deit3_small_patch16_224": {"depth": 2, "img_size": (32, 48)},
    "beit_base_patch16_224": {"depth": 2, "img_size": 32, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2, "img_size": 28},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1), "img_size": 28, "embed_dim": 24, "num_heads": (3, 3)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
}
FIGURES = {
    "vit_tiny_patch16_224": {"filters", "positions", "attention", "maps", "tokens"},
    "deit3_small_patch16_224": {"filters", "positions", "attention", "maps", "tokens"},
    "beit_base_patch16_224": {"filters", "relative", "attention", "maps", "tokens"},
    "eva02_tiny_patch14_224": {"filters", "positions", "rotary", "attention", "maps", "tokens"},
    "swin_tiny_patch4_window7_224": {"filters", "relative", "attention", "tokens"},
    "convnext_atto": {"filters", "tokens"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images in a folder without classes."""
    folder = tmp_path_factory.mktemp("photos")
    dice = np.random.default_rng(0)
    for number in range(12):
        small = dice.integers(0, 256, (5, 6, 3)).astype(np.uint8)
        Image.fromarray(small).resize((60, 50), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def loaded(name, **words):
    torch.manual_seed(0)
    make = lambda: timm.create_model(name, pretrained=False, num_classes=0, **words).eval()
    net = make()

    def fresh(seed):
        torch.manual_seed(seed)
        return make()

    size = words.get("img_size", 64)
    return LoadedEncoder(net, None, size if isinstance(size, int) else size[0], HALF, HALF, name, digest_of(net), fresh, (name, words))


def looked_at(out, *words):
    assert main([*words, f"out={out}"]) == 0
    return json.loads((out / "inside.json").read_text())


@pytest.mark.parametrize("name", THEIRS)
def test_of_any_model_of_timm_everything_that_it_has_is_drawn_and_the_rest_named(name, photos, tmp_path, monkeypatch, capsys):
    encoder = loaded(name, **THEIRS[name])
    monkeypatch.setattr(inside, "read_encoder", lambda source: encoder)
    found = looked_at(tmp_path, f"encoder=timm:{name}", f"images={photos}", "count=5", "maps=2", "batch=3")
    assert set(found["files"]) == FIGURES[name]
    for file in found["files"].values():
        assert min(Image.open(tmp_path / file).size) > 250
    said = capsys.readouterr().out
    assert all(f"absent    {what}" in said for what in found["absent"])
    assert ("attention" in found["absent"]) == ("attention" not in found) and ("positions" in found["absent"]) == ("positions" not in found)
    assert found["tokens"]["explained"][0] > 0 and len(found["filters"]["explained"]) > 0
    if "maps" not in FIGURES[name]:
        assert any("maps" in key or key == "attention" for key in found["absent"])


@pytest.mark.parametrize("name", OURS)
def test_of_our_own_encoders_the_numbers_are_those_of_timms_extractor_and_plain_sums(name, photos, tmp_path):
    model = load(ModelConfig, None, ["image_size=32", "patch_size=8", "width=24", "depth=2", "heads=2", *OURS[name]])
    net = build_encoder(model, seed=1).vit
    write_encoder(tmp_path / "encoder", net.state_dict(), model, HALF, HALF, "test", "seal")
    out = tmp_path / "out"
    words = [f"encoder={tmp_path / 'encoder'}", f"images={photos}", "count=6", "maps=2", "batch=4", "filters=9"]
    found = looked_at(out, *words)
    encoder = read_encoder(tmp_path / "encoder").net
    prefix, classes = encoder.num_prefix_tokens, model.class_tokens
    crops = inside.choose(load(InsideConfig, None, words), open_images(str(photos)), (32, 32))
    images = lambda ids: normalise(crops.images(ids).float(), HALF, HALF)
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    extract = AttentionExtract(encoder, method="hook")
    with torch.no_grad():
        every, shown = ([each.double() for each in extract(images(ids)).values()] for ids in (crops.data.ids, crops.shown))
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double() * 8
    assert len(found["attention"]["layers"]) == 2
    for layer, attention in zip(found["attention"]["layers"], every, strict=True):
        patches = attention[:, :, prefix:, prefix:]
        shares = patches / patches.sum(-1, keepdim=True)
        distance = (shares * torch.cdist(place, place)).sum(-1).mean((0, 2))
        assert layer["distance_pixels"] == pytest.approx(distance.tolist(), rel=1e-4)
        assert layer["distance_share"] == pytest.approx((distance / math.hypot(32, 32)).tolist(), rel=1e-4)
        entropy = -(shares * shares.log()).sum(-1).mean((0, 2))
        assert layer["entropy_nats"] == pytest.approx(entropy.tolist(), rel=1e-4)
        assert layer["entropy_share"] == pytest.approx((entropy / math.log(16)).tolist(), rel=1e-4)
        assert layer["to_prefix"] == pytest.approx(attention[:, :, prefix:, :prefix].sum(-1).mean((0, 2)).tolist(), abs=1e-5)
    rows = slice(0, classes) if classes else slice(prefix, None)
    mixed = rollout([each.float() for each in shown])[:, rows, prefix:].mean(1)
    assert np.allclose(found["maps"]["rollout"], mixed / mixed.sum(-1, keepdim=True), rtol=1e-3)
    last = shown[-1][:, :, rows, prefix:].mean(2)
    assert np.allclose(found["maps"]["last_block"], last / last.sum(-1, keepdim=True), rtol=1e-3)
    assert found["maps"]["asked"] == ("class tokens" if classes else "patches")
    assert ("rotary" in found["positions"]) == (name == "rotary") and ("absolute" in found["positions"]) == (name != "rotary")
    assert np.shape(found["filters"]["components"]) == (9, 3, 8, 8) and found["images"]["shown"] == crops.shown.tolist()
    assert found["attention"]["random"]["layers"][0]["distance_pixels"] != found["attention"]["layers"][0]["distance_pixels"]


def test_attention_inside_of_windows_is_as_far_as_windows_reach(photos, tmp_path, monkeypatch):
    name = "swin_tiny_patch4_window7_224"
    encoder = loaded(name, **THEIRS[name] | {"img_size": 56})
    with torch.no_grad():
        for module in encoder.net.modules():
            if type(module).__name__ == "WindowAttention":
                module.qkv.weight.zero_()
                module.relative_position_bias_table.zero_()  # now every head looks everywhere alike
    monkeypatch.setattr(inside, "read_encoder", lambda source: encoder)
    layers = looked_at(tmp_path, "encoder=timm:swin", f"images={photos}", "count=2", "maps=1", "random_init=null")["attention"]["layers"]
    for layer, cell in zip(layers, (4, 8), strict=True):
        points = [(row * cell, column * cell) for row in range(7) for column in range(7)]
        mean = sum(math.dist(one, other) for one in points for other in points) / 49**2
        assert layer["distance_pixels"] == pytest.approx([mean] * 3, rel=1e-4) and layer["patches"] == 49
        assert layer["entropy_share"] == pytest.approx([1] * 3, rel=1e-4) and layer["uniform_pixels"] == pytest.approx(mean, rel=1e-4)


def test_batches_and_which_images_are_drawn_change_no_average(photos, tmp_path, monkeypatch):
    encoder = loaded("vit_tiny_patch16_224", **THEIRS["vit_tiny_patch16_224"])
    monkeypatch.setattr(inside, "read_encoder", lambda source: encoder)
    words = ["encoder=timm:vit", f"images={photos}", "count=7", "random_init=null"]
    one = looked_at(tmp_path / "one", *words, "batch=7")
    other = looked_at(tmp_path / "other", *words, "batch=2", "show=[11, 3]")
    assert other["images"]["shown"] == [11, 3] and "random" not in one["attention"]
    for ours, theirs in zip(one["attention"]["layers"], other["attention"]["layers"], strict=True):
        assert ours["distance_pixels"] == pytest.approx(theirs["distance_pixels"], rel=1e-4)
    assert one["tokens"]["explained"] == pytest.approx(other["tokens"]["explained"], rel=1e-3)


def test_a_picture_that_another_encoder_left_behind_goes(photos, tmp_path, monkeypatch):
    encoder = loaded("convnext_atto", **THEIRS["convnext_atto"])
    monkeypatch.setattr(inside, "read_encoder", lambda source: encoder)
    (tmp_path / "maps.png").write_bytes(b"old")
    (tmp_path / "own.png").write_bytes(b"not ours")
    looked_at(tmp_path, "encoder=timm:x", f"images={photos}", "count=2")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["filters.png", "inside.json", "own.png", "tokens.png"]


def test_what_cannot_be_is_refused_in_one_line(photos, tmp_path, monkeypatch):
    encoder = loaded("vit_tiny_patch16_224", **THEIRS["vit_tiny_patch16_224"])
    monkeypatch.setattr(inside, "read_encoder", lambda source: encoder)
    words = ["encoder=timm:vit", f"images={photos}", f"out={tmp_path}"]
    with pytest.raises(ConfigError, match=r"show=\[12\]: .* holds the images 0 to 11; 12 is none of them"):
        main([*words, "show=[12]"])
    with pytest.raises(ConfigError, match=r"resolution=40 must be a multiple of the patch size 16; the nearest that fit are 32 and 48"):
        main([*words, "resolution=40"])
    with pytest.raises(ConfigError, match=r"images= is missing; python mpp/inside.py encoder=RUN images=FOLDER"):
        main(words[:1])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none holds neither manifest.json nor images; give a folder of images or of shards"):
        main([words[0], f"images={tmp_path / 'none'}"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(UserError, match=r"a\.png"):
        main([words[0], f"images={tmp_path / 'broken'}", words[2]])


def test_images_come_from_shards_and_from_folders_with_or_without_folders_in_them(tiny_shards, photos, tmp_path):
    (tmp_path / "some" / "deep").mkdir(parents=True)
    for number, place in enumerate(("b.png", "some/a.png", "some/deep/c.png")):
        (tmp_path / place).write_bytes((photos / f"{number:02}.png").read_bytes())
    assert [open_images(str(tmp_path)).where(each).removeprefix(f"{tmp_path}/") for each in range(3)] == [
        "b.png",
        "some/a.png",
        "some/deep/c.png",
    ]
    assert len(open_images(str(photos))) == 12 and len(open_images(str(tiny_shards))) > 12
    with pytest.raises(DataError, match="holds the splits"):
        open_images(str(tiny_shards.parent))
    with pytest.raises(DataError, match="no such folder"):
        open_images("nowhere")


def test_a_mosaic_has_every_tile_in_its_place():
    tiles = [np.full((2, 3), number) for number in range(5)]
    page = inside_plots.mosaic(tiles, 3, -1)
    assert (
        page.shape == (5, 11) and page[0, 4] == 1 and page[3, 0] == 3 and page[4, 6] == 4 and page[2, 0] == page[0, 3] == page[4, 10] == -1
    )


def test_no_head_lies_on_the_edge_of_its_panel(monkeypatch):
    distance = torch.tensor([[48.0, 49.0, 52.0], [50.0, 50.0, 50.0]])
    spreads = [Spread(each, torch.full((3,), 4.9), torch.full((3,), 0.2)) for each in distance]
    layers = [LayerSpread(SimpleNamespace(place=f"block {number}"), each, 144, 49.9) for number, each in enumerate(spreads, 1)]
    drawn = []
    monkeypatch.setattr(inside_plots, "png", lambda figure: drawn.append(figure) or b"")
    inside_plots.attention(layers, [], "an encoder")
    for axes in drawn[0].axes:
        highest = max(float(points.get_offsets()[:, 1].max()) for points in axes.collections if isinstance(points, PathCollection))
        assert axes.get_ylim()[0] == 0 and highest < 0.97 * axes.get_ylim()[1]
