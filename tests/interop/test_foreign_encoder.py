"""Checkpoints of other projects: built by the reference library itself (or, for SimMIM and BEiT, by an implementation here) and compared by its own forward."""

import argparse
import json
import logging
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mpp.base.errors import CheckpointError, ConfigError
from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import write_encoder
from mpp.interop.foreign_names import architecture_from_shapes
from mpp.interop.loaded_encoder import digest_of
from mpp.interop.read_encoder import read_encoder
from mpp.model.backbone import Backbone
from mpp.model.encoder import build_encoder

WIDTH, DEPTH, HEADS, IMAGE, PATCH = 128, 2, 2, 32, 8
SIZES = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
SMALL = ModelConfig(arch="vit_tiny_patch16_224", image_size=IMAGE, patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)


def images() -> torch.Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))


def scattered(module: torch.nn.Module) -> torch.nn.Module:
    """Biases, norms and tokens too, which begin as zeros and ones."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
    return module.eval()


@torch.no_grad()
def tokens_of(loaded) -> torch.Tensor:
    """As probes and fine-tuning take them."""
    backbone = Backbone(loaded.net)
    return backbone.layers(images(), [backbone.depth])[0]


# ------------------------------------------------------------------------------------------------------------------------------ transformers

SECTION = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH, "image_size": IMAGE,
    "patch_size": PATCH, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 128, "mask_ratio": 0.0,
}  # fmt: skip


def of_transformers(name: str, **changes):
    transformers = pytest.importorskip("transformers")
    config = (transformers.ViTMAEConfig if "MAE" in name else transformers.ViTConfig)(**(SECTION | changes))
    return scattered(getattr(transformers, name)(config))


@torch.no_grad()
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize(
    "name", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling", "ViTMAEModel", "ViTMAEForPreTraining"]
)
def test_a_folder_of_transformers_gives_the_tokens_of_that_library(tmp_path, name, eps):
    model = of_transformers(name, layer_norm_eps=eps)
    model.save_pretrained(tmp_path)
    loaded = read_encoder(tmp_path)
    trunk = model.vit if hasattr(model, "vit") else model
    order = {"noise": torch.arange(16.0).expand(2, -1)} if "MAE" in name else {}
    torch.testing.assert_close(tokens_of(loaded), trunk(images(), **order).last_hidden_state, atol=2e-5, rtol=1e-5)
    assert (loaded.model is not None) == (eps == 1e-6)
    assert bool(loaded.decoder) == (name == "ViTMAEForPreTraining")


@torch.no_grad()
def test_a_pytorch_bin_with_the_names_that_transformers_5_has_in_memory(tmp_path):
    model = of_transformers("ViTForImageClassification")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    loaded = read_encoder(tmp_path)
    torch.testing.assert_close(tokens_of(loaded), model.vit(images()).last_hidden_state, atol=2e-5, rtol=1e-5)
    assert (loaded.mean, loaded.std, loaded.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), IMAGE)


def test_what_is_assumed_and_left_out_is_said(tmp_path, capsys):
    of_transformers("ViTForImageClassification").save_pretrained(tmp_path)
    loaded = read_encoder(tmp_path)
    said = capsys.readouterr().err
    assert "classifier.bias, classifier.weight" in said and "ImageNet's mean" in said
    assert loaded.mean == (0.485, 0.456, 0.406)
    torch.save(build_encoder(SMALL, 0).vit.state_dict(), tmp_path / "vit.pth")
    read_encoder(tmp_path / "vit.pth")
    assert "2 attention heads are assumed (width / 64)" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("model_type", "deit")])
def test_a_transformers_model_that_computes_something_else_is_refused(tmp_path, key, value):
    of_transformers("ViTModel").save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=value):
        read_encoder(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------------------- MAE


@torch.no_grad()
@pytest.mark.parametrize("finetuned", [False, True])
def test_maes_published_form(tmp_path, finetuned):
    more = {"global_pool": "avg", "fc_norm": True, "num_classes": 10} if finetuned else {"num_classes": 0}
    net = scattered(timm.create_model("vit_base_patch16_224", **SIZES, **more))
    weights = dict(net.state_dict())
    if not finetuned:
        weights |= {
            "mask_token": torch.zeros(1, 1, 32),
            "decoder_embed.weight": torch.zeros(32, WIDTH),
            "decoder_blocks.0.norm1.weight": torch.ones(32),
        }
    torch.save({"model": weights, "epoch": 3}, tmp_path / "mae.pth")
    loaded = read_encoder(tmp_path / "mae.pth")
    expected = net.forward_features(images())
    torch.testing.assert_close(tokens_of(loaded), net.fc_norm(expected) if finetuned else expected, atol=1e-5, rtol=1e-5)
    assert sorted(loaded.decoder) == ([] if finetuned else ["blocks.0.norm1.weight", "embed.weight", "mask_token"])


# ------------------------------------------------------------------------------------------------------------------- SimMIM and BEiT

SIDE = IMAGE // PATCH


def beit_weights(*, shared: bool, finetuned: bool) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(2)
    shape = {"cls_token": (1, 1, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    table = ((2 * SIDE - 1) ** 2 + 3, HEADS)
    if shared:
        shape["rel_pos_bias.relative_position_bias_table"] = table
    for i in range(DEPTH):
        within = {
            "gamma_1": (WIDTH,), "gamma_2": (WIDTH,), "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,), "attn.q_bias": (WIDTH,), "attn.v_bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,), "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,), **({} if shared else {"attn.relative_position_bias_table": table}),
        }  # fmt: skip
        shape |= {f"blocks.{i}.{name}": size for name, size in within.items()}
    last = "fc_norm" if finetuned else "norm"
    shape |= {f"{last}.weight": (WIDTH,), f"{last}.bias": (WIDTH,)}
    return {name: torch.randn(size, generator=noise) * 0.2 for name, size in shape.items()}


def relative_places() -> torch.Tensor:
    """[1 + N, 1 + N]: the row of the bias table for a query and a key; the last three are class to all, all to class, class to class (BEiT)."""
    rows = (2 * SIDE - 1) ** 2 + 3
    place = torch.empty(1 + SIDE**2, 1 + SIDE**2, dtype=torch.long)
    for query in range(SIDE**2):
        for key in range(SIDE**2):
            down, right = query // SIDE - key // SIDE, query % SIDE - key % SIDE
            place[1 + query, 1 + key] = (down + SIDE - 1) * (2 * SIDE - 1) + right + SIDE - 1
    place[0], place[:, 0], place[0, 0] = rows - 3, rows - 2, rows - 1
    return place


def beit_forward(w: dict[str, torch.Tensor]) -> torch.Tensor:
    patches = F.conv2d(images(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(2, -1, -1), patches], dim=1)
    norm = lambda x, name: F.layer_norm(x, (WIDTH,), w[name + ".weight"], w[name + ".bias"], 1e-6)
    for i in range(DEPTH):
        b = f"blocks.{i}."
        table = w.get("rel_pos_bias.relative_position_bias_table", w.get(b + "attn.relative_position_bias_table"))
        bias = torch.cat([w[b + "attn.q_bias"], torch.zeros(WIDTH), w[b + "attn.v_bias"]])
        q, k, v = (
            F.linear(norm(x, b + "norm1"), w[b + "attn.qkv.weight"], bias).view(2, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        )
        weight = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + table[relative_places()].permute(2, 0, 1)).softmax(-1)
        x = x + w[b + "gamma_1"] * F.linear((weight @ v).transpose(1, 2).flatten(2), w[b + "attn.proj.weight"], w[b + "attn.proj.bias"])
        hidden = F.gelu(F.linear(norm(x, b + "norm2"), w[b + "mlp.fc1.weight"], w[b + "mlp.fc1.bias"]))
        x = x + w[b + "gamma_2"] * F.linear(hidden, w[b + "mlp.fc2.weight"], w[b + "mlp.fc2.bias"])
    return norm(x, "fc_norm" if "fc_norm.weight" in w else "norm")


@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize("project", ["SimMIM", "BEiT"])
def test_relative_positions_layer_scale_and_separate_biases(tmp_path, project, finetuned):
    weights = beit_weights(shared=project == "SimMIM", finetuned=finetuned)
    prefix = "encoder." if project == "SimMIM" and not finetuned else ""
    stored = {prefix + name: tensor for name, tensor in weights.items()}
    stored |= {f"{prefix}mask_token": torch.zeros(1, 1, WIDTH), f"{prefix}rel_pos_bias.relative_position_index": relative_places()}
    stored |= (
        {"decoder.0.weight": torch.zeros(3, WIDTH, 1, 1), "decoder.0.bias": torch.zeros(3)}
        if prefix
        else {"head.weight": torch.zeros(9, WIDTH)}
    )
    torch.save({"model": stored}, tmp_path / "pretrained.pth")
    loaded = read_encoder(tmp_path / "pretrained.pth")
    torch.testing.assert_close(tokens_of(loaded), beit_forward(weights), atol=1e-4, rtol=1e-4)
    assert any("mask_token" in note for note in loaded.notes)
    assert not any("heads are assumed" in note for note in loaded.notes)  # the table has a column for each


# ------------------------------------------------------------------------------------------------------------------------------------ timm


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": IMAGE, "patch_size": PATCH, "depth": 1, "reg_tokens": 2, "init_values": 0.1, "no_embed_class": True},
        ),
        ("vit_tiny_patch16_224", {"img_size": IMAGE, "depth": 1, "class_token": False, "global_pool": "avg"}),
        ("resnet18", {}),
    ],
)
def test_a_folder_of_timm_with_a_classifier(tmp_path, name, arguments):
    from timm.models import save_for_hf

    net = scattered(timm.create_model(name, num_classes=5, **arguments))
    save_for_hf(net, tmp_path, model_args=arguments, safe_serialization=True)
    loaded = read_encoder(tmp_path)
    torch.testing.assert_close(loaded.net.forward_features(images()), net.forward_features(images()), atol=1e-5, rtol=1e-5)
    assert any("classifier is left out" in note for note in loaded.notes)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    if name != "resnet18":  # whose shapes alone do not tell
        assert read_encoder(tmp_path / "weights.pth").net.num_prefix_tokens == net.num_prefix_tokens
        torch.testing.assert_close(read_encoder(tmp_path / "weights.pth").net.forward_features(images()), net.forward_features(images()))


@torch.no_grad()
def test_timm_by_name_with_random_weights_and_with_a_file(tmp_path):
    net = scattered(timm.create_model("resnet10t"))
    save_file(net.state_dict(), tmp_path / "resnet.safetensors")
    loaded = read_encoder(f"timm:resnet10t@{tmp_path / 'resnet.safetensors'}")
    torch.testing.assert_close(loaded.net.forward_features(images()), net.forward_features(images()))
    state = torch.get_rng_state()
    random = read_encoder("timm:resnet10t@random")
    assert random.digest == read_encoder("timm:resnet10t@random").digest != loaded.digest
    assert digest_of(loaded.fresh(1)) == digest_of(loaded.fresh(1)) != digest_of(loaded.fresh(2))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ConfigError, match="no model resnet10x"):
        read_encoder("timm:resnet10x")


def test_without_a_network_the_remedy_is_named(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"\(Cannot reach .*HF_HOME.*timm:vit_tiny_patch16_224@/path/to"):
        read_encoder("timm:vit_tiny_patch16_224")


def test_the_hub_is_announced_once_its_retries_are_silent_and_the_first_cause_of_its_failure_is_said(monkeypatch, capfd):
    def fails(*_args, **_options):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise RuntimeError("please check your connection") from error

    monkeypatch.setattr(timm, "create_model", fails)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(CheckpointError, match=r"timm cannot get its weights \(\[Errno -2\] Name or service not known\); where"):
        read_encoder("timm:vit_tiny_patch16_224")
    said = capfd.readouterr().err
    assert "Retrying" not in said and said.count("note: timm:vit_tiny_patch16_224: its weights come from the hub") == 1
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.parametrize(("width", "heads"), [(1024, 16), (1152, 16), (1280, 16)])  # ViT-L, ViT-SO400M, ViT-H
def test_a_file_of_a_published_size_has_the_heads_of_that_size(width, heads):
    with torch.device("meta"):
        weights = timm.create_model("vit_tiny_patch16_224", embed_dim=width, depth=1, num_heads=1, num_classes=0).state_dict()
    assert architecture_from_shapes(weights, None)[1]["num_heads"] == heads


# ------------------------------------------------------------------------------------------------------------------------- what all share


def test_the_digest_is_of_the_encoder_and_not_of_its_file(tmp_path):
    vit = build_encoder(SMALL, 3).vit
    weights = vit.state_dict()
    write_encoder(tmp_path / "ours", weights, SMALL, (0.5,) * 3, (0.5,) * 3, "a test")
    save_file(weights, tmp_path / "vit.safetensors")
    torch.save({"model": {name: tensor.double() for name, tensor in weights.items()}}, tmp_path / "vit.pth")
    digest = read_encoder(tmp_path / "ours").digest
    assert digest == read_encoder(tmp_path / "vit.safetensors").digest == read_encoder(tmp_path / "vit.pth").digest
    assert digest == digest_of(build_encoder(SMALL.model_copy(update={"drop_path": 0.2}), 3).vit)
    other_heads = build_encoder(SMALL.model_copy(update={"heads": 4}), 3).vit
    other_heads.load_state_dict(weights)
    assert digest_of(other_heads) != digest
    with torch.no_grad():
        vit.blocks[1].norm2.bias[7] += 1e-7
    assert digest_of(vit) != digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.__setitem__("blocks.0.attn.extra", torch.zeros(1)), r"blocks\.0\.attn\.extra"),
        (lambda w: w.__setitem__("adapter.weight", torch.zeros(1)), r"adapter\.weight"),
        (lambda w: w.pop("blocks.1.attn.proj.bias"), r"lacks blocks\.1\.attn\.proj\.bias"),
        (lambda w: w.__setitem__("norm.bias", torch.zeros(3)), r"of another shape are norm\.bias"),
        (lambda w: w.__setitem__("pos_embed", torch.zeros(1, 13, WIDTH)), "no square grid"),
        (lambda w: w.pop("pos_embed"), "neither position embeddings nor relative"),
        (lambda w: w.__setitem__("patch_embed.proj.weight", torch.zeros(WIDTH, 1, PATCH, PATCH)), "RGB"),
        (lambda w: w.pop("patch_embed.proj.weight"), "no patch embedding"),
    ],
)  # fmt: skip
def test_a_tensor_too_many_too_few_or_of_another_shape_is_named(tmp_path, change, words):
    weights = dict(build_encoder(SMALL, 0).vit.state_dict())
    change(weights)
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_encoder(tmp_path / "odd.safetensors")


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"model": build_encoder(SMALL, 0).vit.state_dict(), "args": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="weights_only"):
        read_encoder(tmp_path / "hostile.pth")
    assert "executed" not in capsys.readouterr().out


def test_checkpoints_that_keep_the_words_of_their_training_are_read(tmp_path):
    """As MAE's, DINO's and DeiT's own programs write them: `args` is an argparse.Namespace."""
    weights, args = build_encoder(SMALL, 0).vit.state_dict(), argparse.Namespace(model="mae_vit_base_patch16", lr=1e-3, norm_pix_loss=True)
    torch.save({"model": weights, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 799, "args": args}, tmp_path / "checkpoint-799.pth")
    found = read_encoder(tmp_path / "checkpoint-799.pth").net.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):  # for that file alone: nobody else's torch.load is changed
        torch.load(tmp_path / "checkpoint-799.pth", weights_only=True)


def test_what_else_lies_beside_weights_is_named_with_the_way_to_leave_it_out(tmp_path):
    torch.save({"model": build_encoder(SMALL, 0).vit.state_dict(), "config": Hostile}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError,
        match=r"other\.pth cannot be read as weights: it holds a \S+\.Hostile beside them, .* keep the weights alone: python",
    ):
        read_encoder(tmp_path / "other.pth")


def test_only_a_run_that_learns_from_a_teacher_has_one(tmp_path):
    """A folder, a file and timm's weights are one encoder each: asked for another, they do not give that one."""
    save_file(build_encoder(SMALL, 0).vit.state_dict(), tmp_path / "file.safetensors")
    for source in (tmp_path / "file.safetensors", "timm:vit_tiny_patch16_224@random"):
        with pytest.raises(CheckpointError, match=r"has no teacher: that is what a pretraining run"):
            read_encoder(source, network="teacher")


def test_files_without_weights_are_refused(tmp_path):
    for name, content in [("text.pth", b"hello"), ("empty.safetensors", b""), ("cut.safetensors", b"\x08\0\0\0\0\0\0\0{}")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_encoder(tmp_path / name)
    torch.save({"lr": 3}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_encoder(tmp_path / "numbers.pth")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_encoder(tmp_path)
    assert load_file(tmp_path / "model.safetensors")
