"""Pretraining goes on from weights of another image size or patch size; what makes another model is refused with the words that build the right one."""

import shlex
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from mpp.base.errors import ConfigError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.config.sections import ClassifierConfig
from mpp.disk.files import sha256_of
from mpp.interop.read_encoder import read_encoder
from mpp.interop.start_from import initialise_from
from mpp.model.backbone import Backbone
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.tokens import sincos_positions
from mpp.recipe.model import PretrainingModel, build_model
from mpp.train.commit import checkpoint_folder, write_commit

ARCH = "model.arch=vit_tiny_patch16_224"
SIZES = ["model.width=24", "model.depth=2", "model.heads=2"]
GRID = ["model.image_size=16", "model.patch_size=4"]  # 4 x 4 patches
PIXELS = ["corruption.name=drop", "target={name: pixels, normalise: true}"]
DECODER = "decoder={name: transformer, depth: 1, width: 16, heads: 2, position: learned}"
TINY = [ARCH, *SIZES, *GRID, "model.class_tokens=2", "model.registers=1", *PIXELS, DECODER]


def run_of(folder, *words: str) -> PretrainingModel:
    """A run of one commit with weights that are all its own; its model."""
    config = load(PretrainConfig, None, [*TINY, *words, "seed=3"])
    model = build_model(config).eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    return committed(folder, model, config)


def committed(folder, model: PretrainingModel, config: PretrainConfig) -> PretrainingModel:
    step = checkpoint_folder(folder, 1)
    step.mkdir(parents=True)
    file = step / "rank00000.safetensors"
    save_file({f"weight/{name}": value.detach().contiguous() for name, value in model.named_parameters()}, str(file))
    facts = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}}
    record = {"step": 1, "samples_seen": 4096, "files": facts, "config": config.model_dump(mode="json"), "manifests": {"data": "1"}}
    write_commit(step, record)
    return model


def begun(source, *words: str) -> PretrainingModel:
    """A new model that begins from there."""
    config = load(PretrainConfig, None, [*TINY, *words, f"init_from={source}"])
    model = build_model(config).eval()
    initialise_from(model, config)
    return model


def fresh(*words: str) -> PretrainingModel:
    return build_model(load(PretrainConfig, None, [*TINY, *words])).eval()


def images(side: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def smooth(side: int) -> torch.Tensor:
    coarse = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bicubic")


def equal(one: dict, other: dict, but: set[str] | None = None) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one.keys() - (but or set()))


# ------------------------------------------------------------------------------------------------------------------------------ sizes


@torch.no_grad()
def test_at_its_own_size_every_tensor_and_every_feature_is_what_it_was(tmp_path, capsys):
    model = run_of(tmp_path / "run")
    found = begun(tmp_path / "run")
    assert equal(found.state_dict(), model.state_dict())
    backbone = Backbone(read_encoder(tmp_path / "run").net)
    tokens = found.encoder(found.encoder.embed(images()))
    assert torch.equal(tokens, backbone.layers(images(), [backbone.depth])[0])
    said = capsys.readouterr().out
    assert "| 0 begin afresh" in said and "resampled" not in said and "note" not in said and "left out" not in said


@pytest.mark.parametrize("decoder", [DECODER, "decoder={name: cross_attention, depth: 1, width: 16, heads: 2, position: learned}"])
def test_at_another_image_size_learned_positions_are_those_that_timm_interpolates(tmp_path, capsys, decoder):
    model = run_of(tmp_path / "run", decoder)
    found = begun(tmp_path / "run", decoder, "model.image_size=24")
    before, after = model.state_dict(), found.state_dict()
    names = {"encoder.vit.pos_embed": 3, "decoder.pos_embed": 3 if "transformer" in decoder else 0}  # class tokens and registers
    assert equal({n: before[n] for n in before.keys() - names}, {n: after[n] for n in after.keys() - names})
    for name, prefix in names.items():
        wanted = resample_abs_pos_embed(before[name], [6, 6], [4, 4], num_prefix_tokens=prefix)
        assert torch.equal(after[name], wanted) and torch.equal(after[name][:, :prefix], before[name][:, :prefix])
    said = capsys.readouterr().out
    assert "encoder.vit.pos_embed (4 x 4 to 6 x 6 places, bicubic and antialiased); decoder.pos_embed (4 x 4" in said
    assert "| 0 begin afresh" in said


def test_a_decoder_of_another_kind_keeps_its_own_positions(tmp_path):
    run_of(tmp_path / "run", "model.class_tokens=0", "model.registers=0")
    words = ["model.class_tokens=0", "model.registers=0", "model.image_size=24"]
    other = "decoder={name: cross_attention, depth: 1, width: 16, heads: 2, position: learned}"
    assert torch.equal(begun(tmp_path / "run", *words, other).decoder.pos_embed, fresh(*words, other).decoder.pos_embed)


def test_at_another_patch_size_the_embedding_is_the_one_that_timm_resamples_and_the_head_begins_afresh(tmp_path, capsys):
    model = run_of(tmp_path / "run")
    words = ["model.image_size=32", "model.patch_size=8"]
    found, new = begun(tmp_path / "run", *words), fresh(*words)
    name, head = "encoder.vit.patch_embed.proj.weight", {"decoder.head.weight", "decoder.head.bias"}
    before, after = model.state_dict(), found.state_dict()
    assert torch.equal(after[name], resample_patch_embed(before[name], [8, 8]))
    assert equal(before, after, {name, *head})  # the same 4 x 4 places
    assert all(torch.equal(after[each], new.state_dict()[each]) for each in head)
    said = capsys.readouterr().out
    assert f"resampled: {name} (patches of 4 x 4 to 8 x 8 pixels, by FlexiViT's pseudo-inverse) |" in said
    assert "2 begin afresh: decoder.head.bias, decoder.head.weight" in said


def test_both_are_resampled_as_fine_tuning_does_it(tmp_path):
    run_of(tmp_path / "run")
    found = begun(tmp_path / "run", "model.image_size=48", "model.patch_size=8").encoder.vit
    loaded, config = read_encoder(tmp_path / "run"), ClassifierConfig(patch_size=8)
    arch, arguments = loaded.architecture
    wanted = classifier_arguments(loaded.net, arguments, config, (48, 48))
    tuned = build_classifier(loaded.net, arch, wanted, 5, config, (48, 48), seed=0)
    assert equal(found.state_dict(), {n: t for n, t in tuned.state_dict().items() if not n.startswith("head.")})


@torch.no_grad()
def test_a_larger_patch_embedding_sees_in_enlarged_patches_what_it_saw_in_the_small_ones(tmp_path):
    """FlexiViT 3.4: exactly, where each patch is enlarged by itself; nearly, where the image is."""
    model = run_of(tmp_path / "run")
    found = begun(tmp_path / "run", "model.image_size=32", "model.patch_size=8")
    patches = F.unfold(images(), 4, stride=4).transpose(1, 2).reshape(-1, 3, 4, 4)
    larger = F.interpolate(patches, size=(8, 8), mode="bicubic", antialias=True).reshape(2, 16, -1).transpose(1, 2)
    enlarged = F.fold(larger, (32, 32), 8, stride=8)
    torch.testing.assert_close(found.encoder.embed(enlarged), model.encoder.embed(images()), atol=1e-5, rtol=1e-5)
    wanted = model.encoder.embed(smooth(16))
    whole = F.interpolate(smooth(16), size=(32, 32), mode="bicubic", antialias=True)
    assert (found.encoder.embed(whole) - wanted).norm() / wanted.norm() < 0.05
    assert (found.encoder.embed(whole) - fresh("model.image_size=32", "model.patch_size=8").encoder.embed(whole)).norm() > wanted.norm() / 2


@torch.no_grad()
def test_a_constant_field_of_positions_stays_constant_and_up_and_down_again_is_where_it_was(tmp_path):
    model = run_of(tmp_path / "run", "model.image_size=32")  # 8 x 8 places
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 8), torch.linspace(0, 3, 8), indexing="ij")
    field = torch.stack([torch.sin(rows + phase) * torch.cos(columns) for phase in torch.arange(12.0)], dim=-1).flatten(0, 1)
    positions = model.encoder.vit.pos_embed
    positions[0, 3:, :12], positions[0, 3:, 12:] = field, 0.7
    for folder, words in (("run", ["model.image_size=32"]), ("up", ["model.image_size=64"])):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        committed(tmp_path / folder, model, load(PretrainConfig, None, [*TINY, *words]))
        model = begun(tmp_path / folder, "model.image_size=64" if folder == "run" else "model.image_size=32")
        now = model.encoder.vit.pos_embed
        assert now.shape[1] == (259 if folder == "run" else 67) and torch.equal(now[:, :3], positions[:, :3])
        torch.testing.assert_close(now[0, 3:, 12:], torch.full_like(now[0, 3:, 12:], 0.7))
    assert (now[0, 3:, :12] - field).abs().max() < 0.05


def test_fixed_positions_are_the_new_runs_own_and_learned_ones_that_they_replace_are_said(tmp_path, capsys):
    words = ["model.class_tokens=1", "model.registers=0", "model.position=sincos2d"]
    run_of(tmp_path / "fixed", *words)
    found = begun(tmp_path / "fixed", *words, "model.image_size=24").encoder.vit
    assert torch.equal(found.pos_embed[0, 1:], sincos_positions(24, (6, 6))) and not found.pos_embed.requires_grad
    said = capsys.readouterr().out
    assert "this run's own, fixed: encoder.vit.pos_embed |" in said and "note" not in said and "encoder.vit.pos_embed (" not in said
    run_of(tmp_path / "learned", *words[:2])
    found = begun(tmp_path / "learned", *words, "model.image_size=24").encoder.vit
    assert torch.equal(found.pos_embed[0, 1:], sincos_positions(24, (6, 6)))
    assert "encoder.vit.pos_embed is another and is left out; model.position=learned would take it" in capsys.readouterr().out


def test_rotary_positions_are_computed_for_the_new_grid(tmp_path):
    words = ["model.arch=vit_small_patch16_rope_224", "model.position=rotary", "model.registers=0", "model.class_tokens=1"]
    model = run_of(tmp_path / "run", *words)
    found = begun(tmp_path / "run", *words, "model.image_size=24")
    assert equal(found.encoder.state_dict(), model.encoder.state_dict())
    with torch.no_grad():
        oracle = read_encoder(tmp_path / "run").net
        oracle.set_input_size(img_size=(24, 24))
        torch.testing.assert_close(found.encoder(found.encoder.embed(images(24))), oracle.forward_features(images(24)))


# ------------------------------------------------------------------------------------------------------------------------------ other models


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (["model.depth=3"], [], "model.depth=3"),
        (["model.depth=1"], [], "model.depth=1"),
        (["model.heads=3"], [], "model.heads=3"),  # the weights alone would fit
        (["model.width=36", "model.heads=3", "model.depth=1"], [], "model.width=36 model.depth=1 model.heads=3"),
        (["model.class_tokens=8"], [], "model.class_tokens=8"),
        (["model.class_tokens=0"], [], "model.class_tokens=0"),
        (["model.registers=4"], [], "model.registers=4"),
        (["model.layer_scale=0.1"], [], "model.layer_scale=1e-05"),
        ([], ["model.layer_scale=0.1"], "model.layer_scale=0"),
        (["model.qk_norm=true"], [], "model.qk_norm=true"),
        (["model.position=none", "model.arch=vit_small_patch16_rope_224"], [], "model.arch=vit_small_patch16_rope_224 model.position=none"),
        (
            ["model.position=rotary", "model.arch=vit_small_patch16_rope_224", "model.depth=3"],
            [],
            "model.arch=vit_small_patch16_rope_224 model.depth=3 model.position=rotary",
        ),
        (
            [],
            ["model.position=rotary", "model.arch=vit_small_patch16_rope_224", "model.rotary_frequencies=[7, 1]"],
            "model.arch=vit_tiny_patch16_224 model.position=learned model.rotary_frequencies=null",
        ),
        (["model.arch=deit3_small_patch16_224", "model.class_tokens=1"], ["model.class_tokens=1"], "model.arch=deit3_small_patch16_224"),
        (["model.arch=vit_base_patch32_clip_quickgelu_224"], [], "model.arch=vit_base_patch32_clip_quickgelu_224"),
        (
            ["model.arch=vit_base_patch16_siglip_224"],
            ["model.arch=vit_so400m_patch14_siglip_224"],
            "model.arch=vit_base_patch16_siglip_224",
        ),
        (["model.width=null", "model.heads=null"], ["model.width=null", "model.heads=null", "model.arch=vit_small_patch16_224"], ARCH),
    ],
)
def test_another_model_is_refused_with_all_the_words_that_make_it_the_same(tmp_path, theirs, ours, words):
    model = run_of(tmp_path / "run", *theirs)
    with pytest.raises(ConfigError) as refused:
        begun(tmp_path / "run", *ours, "model.image_size=24")
    said, _, given = str(refused.value).partition("; to begin from it give ")
    assert given == words and f"init_from={tmp_path / 'run'} is of another model (there " in said and "\n" not in said
    found = begun(tmp_path / "run", *ours, *given.split())
    assert equal(found.encoder.state_dict(), model.encoder.state_dict())


def test_weights_that_would_fit_and_compute_something_else_are_refused(tmp_path):
    """An activation is in no tensor."""
    run_of(tmp_path / "run", "model.arch=vit_base_patch32_clip_quickgelu_224")
    with pytest.raises(
        ConfigError,
        match=r"there blocks\.0\.mlp\.act is QuickGELU and here GELU\); .* give model\.arch=vit_base_patch32_clip_quickgelu_224$",
    ):
        begun(tmp_path / "run", "model.arch=vit_base_patch32_clip_224")


def test_what_no_words_build_is_refused_with_the_first_difference(tmp_path):
    net = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=64, depth=1, num_heads=1, mlp_ratio=3, img_size=16, patch_size=4, num_classes=0
    )
    save_file(net.state_dict(), str(tmp_path / "vit.safetensors"))
    words = ["model.class_tokens=1", "model.registers=0", "model.width=64", "model.depth=1", "model.heads=1"]
    with pytest.raises(ConfigError, match=r"a VisionTransformer that no words of the model section build \(blocks\.0\.mlp\.fc1\.weight is"):
        begun(tmp_path / "vit.safetensors", *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "timm:vit_tiny_patch16_224@random",
            r"has no weights to begin from; give timm:vit_tiny_patch16_224 for timm's published ones, or leave",
        ),
        ("timm:resnet10t@FILE", r"is a ResNet, which mpp does not train; give weights of a plain Vision Transformer"),
        ("timm:vit_tiny_r_s16_p8_224@FILE", r"has a HybridEmbed of \d+ x \d+ pixels before its blocks, which is not resampled; set"),
    ],
)
def test_what_is_no_plain_vision_transformer_and_what_has_no_weights_is_refused(tmp_path, name, words):
    if "FILE" in name:
        save_file(timm.create_model(name[5:-5], pretrained=False).state_dict(), str(tmp_path / "w.safetensors"))
        name = name.replace("FILE", str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=words):
        begun(name)


@pytest.mark.parametrize(("name", "norm", "pooled"), [("test_vit2", "fc_norm", False), ("test_vit3", "norm", True)])
def test_a_norm_behind_the_pooling_is_the_final_one_and_a_pooling_by_attention_is_left_out_and_said(tmp_path, capsys, name, norm, pooled):
    weights = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    weights[f"{norm}.weight"] = torch.randn(weights[f"{norm}.weight"].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, str(tmp_path / "w.safetensors"))
    source, words = f"timm:{name}@{tmp_path / 'w.safetensors'}", [f"model.{key}=null" for key in ("width", "depth", "heads", "registers")]
    found = begun(source, f"model.arch={name}", *words, "model.class_tokens=0").encoder.vit
    assert torch.equal(found.norm.weight, weights[f"{norm}.weight"])
    said, beside = capsys.readouterr().out, sum(each.startswith("attn_pool.") for each in weights)
    assert bool(beside) == pooled and ("left out of it" in said) == pooled
    assert not pooled or f"left out of it: {beside} of attn_pool" in said


# ------------------------------------------------------------------------------------------------------------------------------ what is said


def test_a_decoder_with_other_heads_is_refused_and_one_of_another_shape_begins_afresh_and_is_said(tmp_path, capsys):
    run_of(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"has a decoder of 2 attention heads, and here it has 4; set decoder\.heads=2$"):
        begun(tmp_path / "run", "decoder.heads=4")
    words = ["decoder.width=32", "decoder.heads=4", "decoder.depth=2"]
    found, new = begun(tmp_path / "run", *words), fresh(*words)
    said = capsys.readouterr().out
    assert torch.equal(found.decoder.blocks[0].attn.qkv.weight, new.decoder.blocks[0].attn.qkv.weight)
    assert "note: its decoder is another" in said and "decoder.width=16 decoder.depth=1 decoder.heads=2 would take all of it" in said
    begun(tmp_path / "run", "decoder={name: cross_attention, depth: 1, width: 32, heads: 2}")  # another kind, of which nobody expects it
    assert "its decoder is another" not in capsys.readouterr().out


def test_the_words_that_go_on_with_the_normalisation_of_the_weights_are_said_and_do_so(tmp_path, capsys):
    words = ["data.mean=[0.485, 0.456, 0.406]", "data.std=[0.229, 0.224, 0.225]"]
    run_of(tmp_path / "run", *words)
    begun(tmp_path / "run")
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    given = [word for word in shlex.split(note.replace("weights'", "weights")) if word.startswith("data.") and "=" in word]
    assert given == words
    begun(tmp_path / "run", *given)
    assert "note" not in capsys.readouterr().out
