"""The encoder with a new head, at other sizes: known answers for every kind of position."""

import pytest
import timm
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn

from mpp.base.errors import ConfigError
from mpp.config.sections import ClassifierConfig
from mpp.model.classifier import build_classifier, classifier_arguments, partners, resize_positions, soft_targets
from mpp.train.classify import cross_entropy, mixed

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
KINDS = {
    "learned": ("vit_tiny_patch16_224", VIT),
    "none for the class token": ("deit3_small_patch16_224", VIT),
    "relative bias": ("vit_relpos_small_patch16_224", VIT | {"rel_pos_type": "bias"}),
    "relative bias, shared": ("vit_srelpos_small_patch16_224", VIT | {"rel_pos_type": "bias"}),
    "relative mlp": ("vit_relpos_base_patch16_clsgap_224", VIT),
    "relative, beit": ("beit_base_patch16_224", VIT),
    "rotary": ("vit_small_patch16_rope_224", VIT | {"embed_dim": 32}),
    "rotary, learned": ("vit_small_patch16_rope_mixed_224", VIT | {"embed_dim": 32}),
    "rotary and learned": ("eva02_tiny_patch14_224", VIT | {"embed_dim": 32}),
    "rotary, dinov3": ("vit_small_patch16_dinov3", VIT | {"embed_dim": 32}),
    "a stack of convolutions": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
}
PLAIN = ClassifierConfig(drop_path=0, head_std=0.02)


def encoder(kind: str, **other):
    arch, arguments = KINDS[kind][0], KINDS[kind][1] | other
    torch.manual_seed(0)
    return timm.create_model(arch, pretrained=False, num_classes=0, **arguments).eval(), arch, arguments


def classifier(kind: str, size=(32, 32), config=PLAIN, seed: int = 0, classes: int = 5):
    net, arch, arguments = encoder(kind)
    wanted = classifier_arguments(net, arguments, config, size)
    return build_classifier(net, arch, wanted, classes, config, size, seed).eval(), arch, wanted


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_size_the_encoder_is_carried_over_bit_for_bit(kind):
    net, _, _ = encoder(kind)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(classifier(kind)[0].forward_features(images), net.forward_features(images))


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_size_that_is_no_square_it_is_timms_model_of_that_size_with_the_same_weights(kind):
    model, arch, arguments = classifier(kind, (32, 64))
    again = timm.create_model(arch, pretrained=False, num_classes=5, **arguments).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 5)
        assert torch.isfinite(logits).all()
        assert torch.equal(again(images), logits)


def test_a_slope_in_learned_positions_stays_a_slope_along_each_side():
    net, _, _ = encoder("learned")
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        net.pos_embed.zero_()
        net.pos_embed[0, 0] = 7.0  # the class token's own
        net.pos_embed[0, 1:, 0] = rows.flatten()
        net.pos_embed[0, 1:, 1] = columns.flatten()
    resize_positions(net, (64, 96))  # 8 x 12 patches
    assert torch.equal(net.pos_embed[0, 0], torch.full((24,), 7.0))
    found = net.pos_embed[0, 1:].reshape(8, 12, 24)
    inner = slice(3, -3)  # away from the rim, where the slope ends
    wanted_rows, wanted_columns = (torch.arange(8) + 0.5) / 2 - 0.5, (torch.arange(12) + 0.5) / 3 - 0.5
    assert torch.allclose(found[inner, :, 0], wanted_rows[inner, None].expand(-1, 12), atol=1e-5)
    assert torch.allclose(
        found[:, inner, 1], wanted_columns[None, inner].expand(8, -1), atol=0.08
    )  # the bicubic kernel is no line at thirds
    assert torch.equal(found[..., 2:], torch.zeros(8, 12, 22))
    resize_positions(net, (96, 64))  # 12 x 8: from a grid that is no square itself
    turned = net.pos_embed[0, 1:].reshape(12, 8, 24)
    assert (turned[..., 0].diff(dim=0) > 0).all() and (turned[..., 1].diff(dim=1) > 0).all()
    assert turned[..., 0].diff(dim=1).abs().max() < 1e-5 and turned[..., 1].diff(dim=0).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["relative bias", "relative bias, shared", "relative, beit"])
def test_a_relative_bias_keeps_its_zero_its_symmetry_and_its_own_rows_for_the_class_token(kind):
    net, _, _ = encoder(kind, img_size=64)  # 8 x 8 patches
    name = next(name for name, _ in net.named_parameters() if name.endswith("relative_position_bias_table"))
    table = net.get_parameter(name)
    rows, columns = torch.meshgrid(torch.arange(-7.0, 8), torch.arange(-7.0, 8), indexing="ij")
    with torch.no_grad():
        table[:225] = (rows.square() + 2 * columns.square()).flatten()[:, None]
        if len(table) > 225:
            table[225:] = torch.tensor([5.0, 6.0, 7.0])[:, None]
    before = table.detach().clone()
    resize_positions(net, (64, 64))
    assert torch.equal(net.get_parameter(name), before)
    resize_positions(net, (80, 96))  # 10 x 12 patches
    after = net.get_parameter(name).detach()
    grid = after[: 19 * 23, 0].reshape(19, 23)
    assert grid[9, 11] == 0
    assert torch.allclose(grid, grid.flip(0), atol=1e-4) and torch.allclose(grid, grid.flip(1), atol=1e-4)
    assert torch.equal(after[19 * 23 :], before[225:])
    assert grid[0, 11].item() == pytest.approx(49, rel=0.01)  # the farthest place stays the farthest
    assert grid[9, 0].item() == pytest.approx(98, rel=0.01)
    assert (grid[9, 11:].diff() > 0).all() and (grid[9:, 11].diff() > 0).all()


@pytest.mark.parametrize("kind", ["relative mlp", "rotary", "rotary, learned", "rotary, dinov3"])
def test_positions_that_are_computed_have_nothing_to_resample(kind):
    net, _, _ = encoder(kind)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    resize_positions(net, (32, 64))
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_another_patch_size_sees_the_same_in_an_image_of_another_size():
    smooth = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=(32, 32), mode="bicubic")
    larger = torch.nn.functional.interpolate(smooth, size=(64, 64), mode="bicubic", antialias=True)
    net, _, _ = encoder("learned")
    config = ClassifierConfig(patch_size=16, drop_path=0)
    wanted = net.patch_embed(smooth)
    model, _, _ = classifier("learned", (64, 64), config)
    assert model.patch_embed.grid_size == (4, 4)
    assert torch.equal(model.pos_embed, net.pos_embed)
    off = (model.patch_embed(larger) - wanted).norm() / wanted.norm()
    assert off < 0.02


def test_the_head_is_zero_or_narrow_and_a_function_of_the_seed():
    zero, _, _ = classifier("learned", config=ClassifierConfig(head_std=0))
    assert torch.equal(zero(torch.randn(2, 3, 32, 32)), torch.zeros(2, 5))
    narrow = [classifier("learned", config=ClassifierConfig(head_std=0.02), seed=seed, classes=500)[0].head for seed in (3, 3, 4)]
    assert narrow[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(narrow[0].weight, narrow[1].weight) and not torch.equal(narrow[0].weight, narrow[2].weight)
    assert torch.equal(narrow[0].bias, torch.zeros(500))


def test_building_leaves_the_global_generator_alone():
    net, arch, arguments = encoder("learned")
    state = torch.random.get_rng_state()
    build_classifier(net, arch, classifier_arguments(net, arguments, PLAIN, (32, 32)), 5, PLAIN, (32, 32), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pooling_is_the_mean_of_the_patches_or_the_class_token_under_the_norm():
    images = torch.randn(2, 3, 32, 32)
    for pooling, take in (("mean", lambda tokens: tokens[:, 1:].mean(1)), ("cls", lambda tokens: tokens[:, 0])):
        model, _, _ = classifier("learned", config=PLAIN.model_copy(update={"pooling": pooling}))
        with torch.no_grad():
            tokens = model.forward_features(images)
            assert torch.allclose(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5)  # each token is normalised
            assert torch.allclose(model(images), model.head(take(tokens)), atol=1e-6)


def test_a_norm_behind_the_pooling_replaces_the_one_before_it():
    model, _, arguments = classifier("learned", config=PLAIN.model_copy(update={"norm": "pooled"}))
    assert arguments["fc_norm"] is True
    assert isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.LayerNorm)
    assert torch.equal(model.fc_norm.weight, torch.ones(24))


def test_drop_path_grows_to_the_rate_of_the_last_block():
    model, _, _ = classifier("learned", config=ClassifierConfig(drop_path=0.3))
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks] == pytest.approx([0.0, 0.3])


def test_fixed_positions_stay_fixed():
    net, arch, arguments = encoder("learned")
    net.pos_embed.requires_grad_(False)
    model = build_classifier(net, arch, classifier_arguments(net, arguments, PLAIN, (64, 32)), 5, PLAIN, (64, 32), 0)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["pos_embed"]


def test_batch_norms_keep_their_statistics_and_are_refused_from_scratch():
    net = timm.create_model("resnet10t", num_classes=0)
    model = build_classifier(net, "resnet10t", classifier_arguments(net, {}, PLAIN, (32, 32)), 5, PLAIN, (32, 32), 0).train()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)
    with pytest.raises(ConfigError, match="batch norms"):
        build_classifier(net, "resnet10t", {}, 5, PLAIN, (32, 32), 0, random=True)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({}, (30, 32), r"nearest is \[32, 32\]"),
        ({"pooling": "cls"}, (32, 32), "no class token"),
        ({"norm": "pooled", "patch_size": 7}, (32, 32), r"patch size \[7, 7\]"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(config, size, message):
    kind = "relative bias" if "pooling" in config else "learned"
    with pytest.raises(ConfigError, match=message):
        classifier(kind, size, ClassifierConfig(**config))


def test_targets_are_timms():
    labels = torch.tensor([2, 0, 1, 1])
    assert torch.allclose(soft_targets(labels, 3, 0.1), mixup_target(labels, 3, smoothing=0.1))
    share = torch.tensor([0.7, 0.7, 0.2, 0.2])
    found = soft_targets(labels, 3, 0.1, share)
    for pair in (slice(0, 2), slice(2, 4)):
        assert torch.allclose(found[pair], mixup_target(labels[pair], 3, lam=float(share[pair][0]), smoothing=0.1))
    logits = torch.randn(4, 3)
    assert torch.allclose(cross_entropy(logits, soft_targets(labels, 3, 0.1)).mean(), LabelSmoothingCrossEntropy(0.1)(logits, labels))


@pytest.mark.parametrize("cut", [False, True])
def test_a_pair_is_mixed_as_timm_mixes_it(cut, monkeypatch):
    images, labels = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 2])
    box = (3, 2, 9, 7)  # left, top, right, bottom
    share = 1 - 30 / 96 if cut else 0.3
    mixer = Mixup(mixup_alpha=0.0 if cut else 1.0, cutmix_alpha=1.0 if cut else 0.0, label_smoothing=0.1, num_classes=3)
    monkeypatch.setattr(mixer, "_params_per_batch", lambda: (share, cut))
    monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: ((box[1], box[3], box[0], box[2]), share))
    wanted, targets = mixer(images.clone(), labels)
    shares = torch.full((2,), share)
    found = mixed(images, shares, torch.tensor([box if cut else (0, 0, 0, 0)] * 2))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(soft_targets(labels, 3, 0.1, shares), targets, atol=1e-6)
    assert torch.equal(partners(images), images.flip(0))
