"""Class tokens, registers, rotary positions, layer scale and the like: the same encoder code, whatever stands between the patches and the head."""

import math

import pytest
import timm
import torch
from torch.testing import assert_close

from mpp.base.errors import ConfigError
from mpp.config.finetune import FinetuneConfig
from mpp.config.schema import load
from mpp.config.sections import ClassifierConfig, ModelConfig
from mpp.model.architecture import architecture_of
from mpp.model.backbone import Backbone
from mpp.model.classifier import build_classifier, classifier_arguments
from mpp.model.encoder import Encoder, build_encoder, timm_arguments
from mpp.model.tokens import class_tokens_of
from mpp.transfer.extractors import EncoderExtractor
from mpp.transfer.features import FeatureSpec
from mpp.transfer.probes.mae import MaeHeads

TINY = {"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 48, "depth": 3, "heads": 3, "layer_scale": 0.0}
ROTARY = TINY | {"arch": "vit_small_patch16_rope_224", "position": "rotary"}
PIXIO, CAPI = {"class_tokens": 8}, {"class_tokens": 0, "registers": 16, "rotary_frequencies": (7.0, 7e-4)}
KINDS = {
    "axial": ("vit_small_patch16_rope_224", {"num_reg_tokens": 3}),
    "axial, no prefix": ("vit_small_patch16_rope_224", {"class_token": False, "global_pool": "avg", "use_fc_norm": False}),
    "mixed, learned frequencies": ("vit_small_patch16_rope_mixed_224", {"num_reg_tokens": 2}),
    "by halves, coordinates around the centre": ("vit_small_patch16_dinov3", {"dynamic_img_size": False}),
    "timm's first attention": ("vit_base_patch16_rope_reg1_gap_256", {"use_fc_norm": False}),
}


def encoder(seed: int = 0, **changes) -> Encoder:
    return build_encoder(ModelConfig(**changes), seed, fused_attention=False).eval()


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def of_timm(kind: str, grid: tuple[int, int]) -> Encoder:
    """Every token and matrix large enough that a wrong rotation shows."""
    name, arguments = KINDS[kind]
    size = {"img_size": (grid[0] * 8, grid[1] * 8), "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": None}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model(name, num_classes=0, **(size | arguments)).eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 1.0)
    return Encoder(net)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (6, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_rotary_at_the_kept_places_is_full_attention_under_a_mask_that_hides_the_others(kind, grid):
    model, pictures = of_timm(kind, grid), images(grid[0] * 8, grid[1] * 8)
    patches = grid[0] * grid[1]
    draw = torch.Generator().manual_seed(1)
    visible = torch.stack([torch.randperm(patches, generator=draw)[: patches // 2] for _ in range(2)])  # in no order
    seen = torch.zeros(2, model.prefix + patches, dtype=torch.bool)
    seen[:, : model.prefix] = True
    seen.scatter_(1, model.prefix + visible, True)
    whole = model.vit.forward_features(pictures, attn_mask=seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1))
    found = model(model.embed(pictures), visible)
    assert_close(found[:, : model.prefix], whole[:, : model.prefix], atol=2e-5, rtol=1e-4)
    for b in range(2):
        assert_close(found[b, model.prefix :], whole[b, model.prefix + visible[b]], atol=2e-5, rtol=1e-4)
    assert torch.equal(model(model.embed(pictures)), model.vit.forward_features(pictures))  # timm's own, where nothing is dropped
    moved = model(model.embed(pictures), visible.flip(1))  # the same places in another order
    assert_close(moved[:, model.prefix :].flip(1), found[:, model.prefix :], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [ROTARY, ROTARY | PIXIO, ROTARY | CAPI, TINY | PIXIO, TINY | {"position": "none"}, TINY | {"qk_norm": True}]
)
def test_a_patch_that_is_dropped_is_not_seen_and_one_that_is_shown_is(changes):
    model, visible = encoder(**changes), torch.tensor([[1, 4, 6, 15]] * 2)
    embeddings = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(2))
    found = model(embeddings, visible)
    assert found.shape == (2, model.prefix + 4, 48)
    others = embeddings.clone()
    others[:, [place for place in range(16) if place not in (1, 4, 6, 15)]] = 9.0
    assert torch.equal(model(others, visible), found)
    others[:, 4] = 9.0
    assert not torch.equal(model(others, visible), found)


@torch.no_grad()
@pytest.mark.parametrize(("position", "alike"), [("none", True), ("learned", False), ("sincos2d", False), ("rotary", False)])
def test_without_positions_the_order_of_the_patches_is_no_matter_and_with_any_kind_it_is(position, alike):
    model = encoder(**(ROTARY if position == "rotary" else TINY | {"position": position}))
    embeddings = torch.randn(1, 16, 48, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    off = (model(embeddings[:, order])[:, 1:] - model(embeddings)[:, 1 + order]).abs().max()
    assert (off < 1e-5) == alike
    assert (model.vit.pos_embed is None) == (position in ("none", "rotary"))


@pytest.mark.parametrize(("heads", "highest", "lowest"), [(3, 7.0, 7e-4), (2, 3.0, 0.5)])
def test_rotary_frequencies_are_turns_from_edge_to_edge_in_a_geometric_row(heads, highest, lowest):
    """CAPI's code: angle = 2 pi f x, with x from 0 at one edge to 1 at the other, f from the highest to the lowest, both met."""
    model = encoder(**(ROTARY | {"heads": heads, "rotary_frequencies": (highest, lowest)}))
    count = 48 // heads // 4
    sines, cosines = model.vit.rope.get_embed().chunk(2, -1)
    for place in range(16):
        row, column = divmod(place, 4)
        angles = [2 * math.pi * highest * (lowest / highest) ** (k / (count - 1)) * at / 3 for at in (column, row) for k in range(count)]
        expected = torch.tensor(angles).repeat_interleave(2)
        assert_close(sines[place], expected.sin(), atol=2e-5, rtol=0)
        assert_close(cosines[place], expected.cos(), atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 8])
def test_each_class_token_has_a_vector_and_a_place_of_its_own_added_once(count):
    model = encoder(**(TINY | {"class_tokens": count, "registers": 1}))
    vit, embeddings = model.vit, torch.randn(1, 16, 48, generator=torch.Generator().manual_seed(2))
    assert (model.prefix, class_tokens_of(vit), vit.pos_embed.shape) == (count + 1, count, (1, count + 1 + 16, 48))
    entered = model.blocks(embeddings)[0]
    vectors = torch.cat([vit.cls_token, vit.reg_token, embeddings], dim=1)
    assert torch.equal(entered, vectors + vit.pos_embed)
    apart = torch.cdist(vit.pos_embed[0, :count], vit.pos_embed[0, :count]) + torch.eye(count)
    assert apart.min() > 0.05 and (torch.cdist(vectors[0, :count], vectors[0, :count]) + torch.eye(count)).min() > 0.05


@pytest.mark.parametrize(("arch", "registers"), [("vit_tiny_patch16_224", 0), ("vit_betwixt_patch16_reg4_gap_256", 4)])
def test_registers_are_the_architectures_unless_said_and_class_tokens_come_before_them(arch, registers):
    of = lambda **more: encoder(**(TINY | {"arch": arch, "depth": 1} | more)).prefix
    assert [of(), of(class_tokens=0), of(class_tokens=3), of(registers=2), of(class_tokens=3, registers=0)] == [
        1 + registers, registers, 3 + registers, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("arch", [TINY, ROTARY])
def test_stochastic_depth_rises_in_a_line_or_is_the_same_in_every_block(arch):
    rates = lambda rule: [
        [getattr(block.drop_path1, "drop_prob", 0.0), getattr(block.drop_path2, "drop_prob", 0.0)]
        for block in encoder(**(arch | {"drop_path": 0.2, "drop_path_rule": rule})).vit.blocks
    ]
    assert rates("constant") == [[0.2, 0.2]] * 3
    assert_close(torch.tensor(rates("linear")), torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]]))


def test_layer_scale_and_the_norm_of_queries_and_keys_are_there_as_said():
    scales = lambda model: {
        float(value) for name, value in model.state_dict().items() if "gamma" in name for value in (value.min(), value.max())
    }
    for arch in (TINY, ROTARY):
        assert scales(encoder(**(arch | {"layer_scale": 0.25}))) == {0.25}
        none = encoder(**(arch | {"layer_scale": 0.0}))  # timm's Eva has them whatever it is told: they stay at 1
        assert scales(none) <= {1.0} and not any(p.requires_grad for name, p in none.named_parameters() if "gamma" in name)
        norms = [
            name
            for name, _ in encoder(**(arch | {"qk_norm": True})).named_parameters()
            if "q_norm.weight" in name or "k_norm.weight" in name
        ]
        assert len(norms) == 6
    assert scales(encoder(**(TINY | {"layer_scale": None}))) == set()
    (of_the_architecture,) = scales(encoder(**(ROTARY | {"layer_scale": None})))
    assert of_the_architecture == pytest.approx(1e-5)


def test_a_rotary_encoder_begins_as_any_other():
    model = encoder(**(ROTARY | {"width": 192})).vit
    for matrix in (model.patch_embed.proj.weight.flatten(1), model.blocks[0].attn.qkv.weight, model.blocks[1].mlp.fc1.weight):
        bound = math.sqrt(6 / sum(matrix.shape))  # Xavier, uniform
        assert 0.99 * bound < matrix.abs().max() <= bound
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))
    assert abs(model.cls_token.std().item() - 0.02) < 0.003


def test_parameters_that_are_used_outside_their_own_modules_pass_are_named():
    for kind, expected in {
        "axial": {"vit.cls_token", "vit.reg_token"},
        "mixed, learned frequencies": {"vit.cls_token", "vit.reg_token", "vit.rope.freqs"},
        "timm's first attention": {"vit.reg_token", "vit.blocks.0.attn.qkv.weight", "vit.blocks.1.attn.qkv.weight"},
    }.items():
        model = of_timm(kind, (4, 4))
        borrowed = {id(parameter) for parameter in model.borrowed_parameters()}
        assert {name for name, parameter in model.named_parameters() if id(parameter) in borrowed} == expected


@torch.no_grad()
def test_rotations_stay_float32_in_bf16_and_the_whole_compiles_without_a_break():
    model, visible = encoder(**(ROTARY | CAPI)), torch.tensor([[0, 3, 9], [5, 1, 14]])
    embeddings = model.embed(images())
    expected, seen = model(embeddings, visible), []
    hook = model.vit.blocks[0].register_forward_pre_hook(lambda _module, _inputs, words: seen.append(words["rope"].dtype), with_kwargs=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(embeddings, visible)
    hook.remove()
    assert seen == [torch.float32] and model.vit.rope.get_embed().dtype == torch.float32
    assert 1e-5 < (rounded - expected).abs().max() < 0.1
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(embeddings, visible), expected, atol=1e-5, rtol=1e-5)
    fused = build_encoder(ModelConfig(**(ROTARY | CAPI)), 0, fused_attention=True).eval()
    assert all(block.attn.fused_attn for block in fused.vit.blocks) and not any(block.attn.fused_attn for block in model.vit.blocks)
    assert_close(fused(embeddings, visible), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [(TINY | {"position": "rotary"}, "model.position=rotary: vit_tiny_patch16_224 has no rotary positions; take model.arch=vit_tiny|vit_base_patch16_rope_224"),
     (TINY | {"arch": "vit_large_patch16_224", "position": "rotary"}, "take model.arch=vit_large_patch16_rope_224"),
     (ROTARY | {"position": "learned"}, "model.position=learned: vit_small_patch16_rope_224 has rotary .* set model.position=rotary, or take model.arch=vit_small_patch16_224"),
     (ROTARY | {"position": "sincos2d"}, "model.position=sincos2d: vit_small_patch16_rope_224 has rotary"),
     (ROTARY | {"arch": "vit_small_patch16_rope_ape_224"}, "learned and rotary positions together; take model.arch=vit_small_patch16_rope_224"),
     (ROTARY | {"width": 54}, "width=54 over heads=3 must be a multiple of 4; the nearest width below is 48"),
     (ROTARY | {"arch": "vit_small_patch16_dinov3", "rotary_frequencies": (7.0, 0.1)}, "the frequencies of vit_small_patch16_dinov3 cannot be set")],
)  # fmt: skip
def test_positions_that_an_architecture_cannot_take_are_refused_in_a_line(changes, words):
    with pytest.raises(ConfigError, match=words) as refused:
        encoder(**changes)
    assert "\n" not in str(refused.value)


def test_numbers_that_belong_to_another_kind_of_position_are_refused():
    for changes, words in [
        (TINY | {"rotary_frequencies": (7.0, 0.1)}, "rotary_frequencies=.* are of position=rotary, not of position=learned"),
        (ROTARY | {"rotary_frequencies": (0.1, 7.0)}, "must be the highest, then the lowest, above 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            ModelConfig(**changes)


def test_the_older_name_of_the_class_token_is_read_and_never_beside_the_new_one():
    assert [ModelConfig.model_validate({"class_token": has}).class_tokens for has in (True, False)] == [1, 0]
    assert "class_token" not in ModelConfig.model_validate({"class_token": False}).model_dump()
    for tree in ({"class_token": True, "class_tokens": 8}, {"class_token": 8}):
        with pytest.raises(ValueError, match="is the older name of class_tokens, a number; leave it out"):
            ModelConfig.model_validate(tree)


# ------------------------------------------------------------------------------------------ what probes and fine-tuning see of it


def pooled(model: Encoder, poolings: tuple) -> torch.Tensor:
    backbone = Backbone(model.vit)
    spec = FeatureSpec("any", (3,), poolings, 32, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32")
    return EncoderExtractor(backbone, spec, torch.device("cpu"))((images() * 40 + 128).clamp(0, 255))


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [TINY | {"class_tokens": 8, "registers": 3}, ROTARY | {"class_tokens": 1, "registers": 3}, ROTARY | PIXIO]
)
def test_the_class_feature_is_the_mean_of_the_class_tokens_and_registers_are_in_no_feature(changes):
    model, count = encoder(**changes), changes["class_tokens"]
    pictures = (images() * 40 + 128).clamp(0, 255)
    tokens = model(model.embed((pictures / 255 - 0.5) / 0.5))
    expected = torch.cat([tokens[:, :count].mean(1), tokens[:, model.prefix :].mean(1)], dim=1)
    assert_close(pooled(model, ("cls", "mean")), expected, atol=1e-5, rtol=1e-5)
    heads = MaeHeads(
        [(3, "both")], {3: 48}, model.prefix, 2, learning_rates=[0.1], images_per_step=2, seed=0, device=tokens.device, class_tokens=count
    )
    assert_close(heads._pool({3: tokens}), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("changes", [ROTARY, ROTARY | CAPI, ROTARY | PIXIO])
def test_another_resolution_turns_by_that_grids_own_coordinates(changes):
    model, pictures = encoder(**changes), images(48, 64)
    larger = Backbone(model.vit).at_size(48, 64)
    arguments = timm_arguments(ModelConfig(**changes)) | {"img_size": (48, 64)}
    theirs = timm.create_model(changes["arch"], **arguments).eval()
    theirs.load_state_dict(model.vit.state_dict())
    assert_close(larger.layers(pictures, [3])[0], theirs.forward_features(pictures), atol=1e-5, rtol=1e-5)
    entered = larger.layers(pictures, [0])[0]
    assert_close(entered[:, model.prefix :], model.vit.norm(theirs.patch_embed(pictures)), atol=1e-5, rtol=1e-5)  # without a position
    assert model.vit.patch_embed.img_size == (32, 32)


@torch.no_grad()
@pytest.mark.parametrize("changes", [TINY | PIXIO, ROTARY | PIXIO, ROTARY | CAPI, ROTARY])
@pytest.mark.parametrize("resolution", [32, 48])
def test_a_fine_tuned_model_pools_all_class_tokens_and_timm_opens_it(changes, resolution):
    model, arch = encoder(**changes), changes["arch"]
    config = ClassifierConfig(pooling="cls" if Backbone(model.vit).class_tokens else "mean", head_std=0.1)
    arguments = classifier_arguments(model.vit, timm_arguments(ModelConfig(**changes)), config, (resolution,) * 2)
    classifier = build_classifier(model.vit, arch, arguments, 5, config, (resolution,) * 2, seed=0).eval()
    pictures = images(resolution, resolution)
    tokens = classifier.forward_features(pictures)
    count = class_tokens_of(classifier)
    assert count == ModelConfig(**changes).class_tokens
    features = tokens[:, :count].mean(1) if count else tokens[:, classifier.num_prefix_tokens :].mean(1)
    assert_close(classifier(pictures), classifier.head(features), atol=1e-5, rtol=1e-5)
    theirs = timm.create_model(arch, num_classes=5, **arguments).eval()
    theirs.load_state_dict(classifier.state_dict())
    logits = theirs(pictures)
    assert logits.ndim == (3 if count > 1 else 2)  # with several class tokens timm has no pooling: each token has its own logits
    assert_close(logits[:, :count].mean(1) if count > 1 else logits, classifier(pictures), atol=1e-5, rtol=1e-5)


def test_fine_tuning_takes_the_class_tokens_where_it_is_told_to():
    config = load(FinetuneConfig, None, ["encoder=RUN", "train=data/train", "model.pooling=cls"]).model
    without = encoder(**(ROTARY | CAPI)).vit
    with pytest.raises(ConfigError, match=r"model\.pooling=cls: the encoder has no class token"):
        classifier_arguments(without, timm_arguments(ModelConfig(**(ROTARY | CAPI))), config, (32, 32))


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("vit_tinny", "vit_tiny_patch16_224"),
        ("vit_base_patch16_244", "vit_base_patch16_224"),
        ("ViT-B/16", "vit_b"),
        ("deit_small", "deit_small_patch16_224"),
    ],
)
def test_a_name_that_is_misspelt_brings_the_nearest_ones(wrong, near):
    with pytest.raises(
        ConfigError, match=rf"^model.arch={wrong} is not a timm model; try one of timm.list_models\('vit_\*'\), such as {near}"
    ):
        architecture_of(wrong)
